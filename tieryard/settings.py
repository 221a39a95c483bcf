"""Where the parts are and what may be done with them, from the environment (`TIERYARD_…`).

Nothing has an unsafe default: a database, a broker and a catalog must be named. `tieryard up` names its own.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tieryard.errors import UserError


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TIERYARD_", env_file=None, frozen=True, extra="ignore")

    database_url: SecretStr = Field(description="postgresql://… of the store.")
    redis_url: SecretStr = Field(description="redis://… of the broker and metrics store.")
    catalog: Path = Field(description="Path of tieryard.yaml.")

    api_key: SecretStr | None = Field(
        default=None, description="Key made for the first tenant when the database has none."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="`whsec_…`, signs callbacks. Without it jobs with a callback_url are refused."
    )
    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "tieryard", description="Converted tokenizers are kept here."
    )
    webhook_allow_private: bool = Field(
        default=False, description="Deliver callbacks to private and loopback addresses (development only)."
    )
    engine_key: SecretStr | None = Field(default=None, description="Bearer key sent to attached engines.")

    log_json: bool = Field(default=True, description="JSON log lines; otherwise a console format.")
    log_level: str = "info"

    lease_s: float = Field(default=10.0, gt=0, description="A worker silent for this long is dead.")
    heartbeat_s: float = Field(default=2.0, gt=0)
    window_s: float = Field(default=4.0, gt=0, description="Seconds of work the feeder keeps released per tier.")
    drain_s: float = Field(default=25.0, ge=0, description="How long a stopping worker lets its jobs finish.")

    max_body_bytes: int = Field(default=64 * 1024 * 1024, gt=0, description="Largest request body.")
    max_list_jobs: int = Field(default=50_000, gt=0, description="Most jobs in one list.")


def load_settings() -> Settings:
    """Reads the environment. Raises UserError that names every variable missing or wrong."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"TIERYARD_{'_'.join(map(str, e['loc'])).upper()}: {e['msg'].lower()}" for e in error.errors()
        )
        raise UserError(f"settings are incomplete: {wrong}. See docs/reference/settings.md") from None
