"""Where the parts are and what may be done with them, from the environment (`TIERYARD_…`).

Nothing has an unsafe default: a database, a broker and a catalog must be named. `tieryard up` names its own.
"""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tieryard.complaints import complaint
from tieryard.errors import UserError


def _webhook_secret(value: SecretStr | None) -> SecretStr | None:
    """Standard Webhooks' form, so that a wrong one is refused at start and not at the first delivery."""
    if value is None:
        return None
    found = value.get_secret_value().split()
    if not 1 <= len(found) <= 2 or not all(map(_is_webhook_secret, found)):
        raise ValueError("expected whsec_ and the base64 of 24 bytes or more; or two such, the newer first")
    return value


def _is_webhook_secret(text: str) -> bool:
    prefix, _, encoded = text.partition("_")
    try:
        return prefix == "whsec" and len(b64decode(encoded, validate=True)) >= 24
    except ValueError:
        return False


def _public_url(value: str | None) -> str | None:
    """Empty, as Compose passes what is not set, is none."""
    if not value:
        return None
    if not value.startswith(("https://", "http://")):
        raise ValueError("expected https://… or http://…")
    return value


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TIERYARD_", env_file=None, frozen=True, extra="ignore")

    database_url: SecretStr = Field(description="postgresql://… of the store.")
    redis_url: SecretStr = Field(description="redis://… of the broker and metrics store.")
    catalog: Path = Field(description="Path of tieryard.yaml.")

    api_key: SecretStr | None = Field(
        default=None, description="A key that the tenant `default` has: added at every start, unless it exists."
    )
    webhook_secret: Annotated[SecretStr | None, AfterValidator(_webhook_secret)] = Field(
        default=None,
        description="`whsec_…`, signs what goes to a callback_url; without it jobs with one are refused. While it is "
        "changed, two with a space between them, the newer first.",
    )
    public_url: Annotated[str | None, AfterValidator(_public_url)] = Field(
        default=None, description="Where callers reach the API, for the links in callbacks. Without it they are paths."
    )
    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "tieryard", description="Converted tokenizers are kept here."
    )
    webhook_allow_private: bool = Field(
        default=False, description="Deliver callbacks to private and loopback addresses (development only)."
    )
    webhook_timeout_s: float = Field(default=15.0, gt=0, le=30, description="For one attempt, all of it.")
    webhook_retry_first_s: float = Field(
        default=5.0, gt=0, le=3600, description="Before the second attempt; the waits triple, to 12 hours."
    )
    deliveries_kept_days: float = Field(
        default=30.0, ge=4, description="Settled deliveries and their attempts can be looked at for so long."
    )
    engine_key: SecretStr | None = Field(default=None, description="Bearer key sent to attached engines.")

    log_json: bool = Field(default=True, description="JSON log lines; otherwise a console format.")
    log_level: str = "info"

    lease_s: float = Field(default=10.0, gt=0, description="A worker silent for this long is dead.")
    heartbeat_s: float = Field(default=2.0, gt=0)
    window_s: float = Field(default=4.0, gt=0, description="Seconds of work the feeder keeps released per tier.")
    drain_s: float = Field(default=25.0, ge=0, description="How long a stopping worker lets its jobs finish.")
    snapshots_kept_days: float = Field(
        default=2.0, ge=0.1, description="Decisions can be told in every number, and replayed, for so long."
    )

    rent_grace_s: float = Field(
        default=600.0,
        gt=0,
        description="So long after a rent window's stop it is closed: longer than any job's end takes to be written.",
    )

    redactor: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="`module:function`, text to text, for tenants' requests that speed is measured with.",
    )

    keepalive_s: float = Field(default=5.0, gt=0, description="Between comments in a stream that has no token yet.")
    send_timeout_s: float = Field(default=30.0, gt=0, description="A caller that reads nothing for so long has gone.")

    max_body_bytes: int = Field(default=64 * 1024 * 1024, gt=0, description="Largest request body.")
    max_file_bytes: int = Field(default=200 * 1024 * 1024, gt=0, description="Largest uploaded file.")
    max_list_jobs: int = Field(default=50_000, gt=0, description="Most jobs in one list or batch file.")


def load_settings(**given: Any) -> Settings:
    """Reads the environment; what is `given` goes before it. Raises UserError that names every variable missing or
    wrong."""
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = "; ".join(
            f"TIERYARD_{'_'.join(map(str, e['loc'])).upper()}: {complaint(e, quotes=False)}" for e in error.errors()
        )
        raise UserError(f"settings are incomplete: {wrong}. See docs/reference/settings.md") from None
