"""How the fleet measures itself: when, with which requests, who judges, and how much worse a candidate may be."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from tieryard.catalog.base import CategoryName, DeploymentName, Strict, misfit

if TYPE_CHECKING:
    from celery.schedules import crontab

Share = Annotated[float, Field(ge=0, le=1)]


def _fields(text: str) -> str:
    """A crontab line that Celery can read. Raises ValueError."""
    try:
        schedule(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is no crontab line, such as '0 3 * * *': {error}") from error
    return text


def schedule(text: str) -> crontab:
    """Minute, hour, day of the month, month and day of the week, in UTC. Raises ValueError."""
    from celery.schedules import ParseException, crontab  # only those who have schedules wait for it

    if len(parts := text.split()) != 5:
        raise ValueError(f"it has {len(parts)} fields instead of 5")
    minute, hour, day, month, weekday = parts
    try:
        return crontab(minute=minute, hour=hour, day_of_month=day, month_of_year=month, day_of_week=weekday)
    except ParseException as error:
        raise ValueError(str(error)) from error


Cron = Annotated[str, AfterValidator(_fields)]


class Window(Strict):
    """A time of day, in UTC; over midnight where it ends before it begins."""

    start: time = Field(description="Such as `02:00`.")
    end: time = Field(description="Such as `05:00`.")

    def holds(self, now: datetime) -> bool:
        """Whether `now` lies in it."""
        at = now.astimezone(UTC).time()
        return self.start <= at < self.end if self.start <= self.end else at >= self.start or at < self.end


class Limits(Strict):
    """What a measured request is held to. Each is of one request, not of a percentile."""

    max_ttft_ms: float | None = Field(default=None, gt=0, description="Time to the first token.")
    max_tpot_ms: float | None = Field(default=None, gt=0, description="Time per output token after the first.")
    max_latency_ms: float | None = Field(default=None, gt=0, description="End-to-end time.")


class SampleItem(Strict):
    """A request to measure with."""

    category: CategoryName = Field(description="What it asks for.")
    prompt: str = Field(min_length=1, description="One user message.")
    max_tokens: int = Field(default=128, ge=1, description="Most tokens to generate.")


class Redaction(Strict):
    """What is taken out of a tenant's request before it is measured with."""

    pattern: str = Field(min_length=1, description="A regular expression.")
    put: str = Field(default="…", description="What stands in its place.")

    @field_validator("pattern")
    @classmethod
    def _can_be_read(cls, given: str) -> str:
        try:
            re.compile(given)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return given


class Sample(Strict):
    """The requests that speed is measured with."""

    tenants: list[str] = Field(default=[], description="Whose recent requests may be used: they have agreed.")
    redact: list[Redaction] = Field(default=[], description="Taken out of these, in this order.")
    per_category: int = Field(default=32, ge=1, le=1000, description="Most requests of a category.")
    items: list[SampleItem] = Field(default=[], description="Used where tenants' requests are too few.")


class Judge(Strict):
    """The deployment that scores answers for which no rule can tell. It never judges its own."""

    deployment: DeploymentName = Field(description="Who judges.")
    live_share: Share = Field(default=0.0, description="Of the finished jobs of `sample.tenants`, judged too.")


class Gate(Strict):
    """What a candidate must show before it takes jobs."""

    allowed_drop: float = Field(default=0.05, ge=0, lt=1, description="In pass rate and in mean score, by category.")
    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="The chance of a wrong acceptance.")
    floors: dict[CategoryName, Share] = Field(default={}, description="Least mean score by category.")


class BenchmarkSchedule(Strict):
    """Runs that nobody needs to ask for."""

    run: Literal["speed", "capacity", "quality"] = Field(description="What is measured.")
    at: Cron = Field(description="A crontab line, in UTC: `0 3 * * *` is each night at three.")
    deployments: list[DeploymentName] | None = Field(default=None, min_length=1, description="Default: all.")
    golden: list[str] = Field(default=[], description="Golden sets, for `quality`.")

    @model_validator(mode="after")
    def _quality_has_sets(self) -> Self:
        if (self.run == "quality") != bool(self.golden):
            raise misfit("`golden` names the sets of `run: quality`, and of nothing else", "golden")
        return self


class Benchmarks(Strict):
    """The whole section; each part has a default."""

    window: Window | None = Field(
        default=None, description="Runs in it do not wait for spare capacity. Default: they always do."
    )
    slo: Limits = Field(default=Limits(), description="What goodput and capacity count. Default: `interactive`'s SLO.")
    sample: Sample = Field(default=Sample(), description="What speed is measured with.")
    judge: Judge | None = Field(default=None, description="Who scores what no rule can.")
    gate: Gate = Field(default=Gate(), description="What a candidate must show.")
    schedules: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")], BenchmarkSchedule] = Field(
        default={}, description="By name."
    )
    callback_url: str | None = Field(default=None, description="Is told of regressions and of scheduled runs' ends.")
