"""What a caller or a tier asks of an answer: how soon, how dear at most, how good at least."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from tieryard.requests.fields import Duration, Name, Usd, parse_duration


class Relative(BaseModel):
    """A share of the quality that another deployment is predicted to have for the same prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(gt=0, le=1, description="Of that quality.")
    of: Name = Field(description="A deployment.")


def _by_form(value: Any) -> Any:
    """A mapping is relative, anything else a number: so that a refusal speaks of the one that was meant."""
    if isinstance(value, dict):
        return Relative.model_validate(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Relative):
        raise ValueError("expected a number from 0 to 1, or `{share, of}`")
    return value


def _instant(value: object) -> object:
    """A duration, or a time with its zone."""
    if isinstance(value, datetime | timedelta):
        return value
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except ValueError:
            with contextlib.suppress(ValueError):
                if (moment := datetime.fromisoformat(value)).tzinfo is not None:
                    return moment
    raise ValueError("expected a duration such as '2h', or a time with its zone such as '2026-11-23T06:00:00Z'")


MinQuality = Annotated[Annotated[float, Field(ge=0, le=1)] | Relative, BeforeValidator(_by_form)]
Deadline = Annotated[timedelta | AwareDatetime, BeforeValidator(_instant)]


class TierSlo(BaseModel):
    """What every job of a tier may count on. Times are the 95th percentile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_ttft_ms: float | None = Field(default=None, gt=0, description="Time to the first token.")
    max_latency_ms: float | None = Field(default=None, gt=0, description="End-to-end time.")
    max_cost_per_1k: Usd | None = Field(default=None, description="USD per 1,000 tokens, prompt and completion.")
    min_quality: MinQuality | None = Field(
        default=None, description="Predicted quality, 0 to 1; or `{share: 0.9, of: DEPLOYMENT}`."
    )
    deadline: Duration | None = Field(default=None, description="When it should be done, counted from acceptance.")


class Slo(TierSlo):
    """What one job asks; what it leaves out is its tier's."""

    deadline: Deadline | None = Field(  # type: ignore[assignment]  # wider than a tier's
        default=None, description="When it should be done: counted from acceptance (`2h`), or a time."
    )


JobSlo = Annotated[Slo, Field(description="What this job asks; the rest is its tier's.")]
MaxCost = Annotated[Usd, Field(description="Most that it may cost, in USD, whatever it answers.")]
