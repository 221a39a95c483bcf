"""Decisions about many jobs as they go out: a line for each."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field

from api.shapes import Usd
from tieryard.errors import RequestError
from tieryard.routing import Decision


class RouteFault(BaseModel):
    """What is wrong with a job, in which field."""

    message: str
    param: str | None


class RoutedLine(BaseModel):
    """Where the job of a line would go, with what is predicted for that deployment: the cost and tokens that are
    expected, times at the 95th percentile. All of that is null where it would go nowhere now."""

    line: int
    deployment: str | None = None
    reason: str | None = None
    fallback: bool = Field(default=False, description="None met the SLO and the floors.")
    defer_s: float = Field(default=0.0, description="Above 0: it would wait so long for a cheaper deployment.")
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    expected_cost_usd: Usd | None = None
    ttft_ms: float | None = None
    latency_ms: float | None = None
    quality: float | None = None
    error: RouteFault | None = Field(default=None, description="Why it is no job; null for one that is.")

    @classmethod
    def refused(cls, line: int, error: RequestError) -> Self:
        return cls(line=line, error=RouteFault(message=error.message, param=error.param))

    @classmethod
    def of(cls, line: int, made: Decision) -> Self:
        told = {"line": line, "deployment": made.deployment, "reason": made.reason, "fallback": made.fallback}
        chosen = next((one for one in made.judged if one.name == made.deployment), None)
        if chosen is None:
            return cls(**told, defer_s=made.defer_s)
        return cls(
            **told,
            prompt_tokens=chosen.prompt_tokens,
            output_tokens=chosen.output_tokens,
            expected_cost_usd=chosen.cost_usd,
            ttft_ms=chosen.ttft_ms,
            latency_ms=chosen.latency_ms,
            quality=chosen.quality,
        )
