"""What a load is to be: the parts of a benchmark's request that say how requests are sent."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

_FEWEST, _MOST = 48, 100_000
_ROUNDS = 4
_USUAL_S = 30.0


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    category: str | None = Field(default=None, max_length=64, description="Only requests of this one. Default: all.")


class SpeedSpec(_Spec):
    """A fixed concurrency, or a Poisson process of requests at a rate."""

    concurrency: int | None = Field(
        default=None, ge=1, le=4096, description="Requests at any time. Default: all that its replicas take at once."
    )
    rate_per_s: float | None = Field(
        default=None, gt=0, le=10_000, description="Requests a second, at random times, whatever is answered."
    )
    requests: int | None = Field(
        default=None,
        ge=1,
        le=_MOST,
        description="How many are measured. Default: four times what is in flight, or half a minute's; 48 at least.",
    )
    warm_up: int = Field(default=4, ge=0, le=1000, description="Requests before them, with prompts of their own.")
    seed: int = Field(default=0, ge=0, le=2**31, description="Fixes the times and the order of requests.")

    def count(self, in_flight: int) -> int:
        """How many requests are measured where so many are in flight: under full load the beginning and the end, in
        which there are fewer, are then a small part of it."""
        usual = _USUAL_S * self.rate_per_s if self.rate_per_s is not None else _ROUNDS * in_flight
        return self.requests if self.requests is not None else min(max(_FEWEST, math.ceil(usual)), _MOST)

    @model_validator(mode="after")
    def _one_shape(self) -> SpeedSpec:
        if self.concurrency is not None and self.rate_per_s is not None:
            raise PydanticCustomError("shape", "give `concurrency` or `rate_per_s`, not both")
        return self


class CapacitySpec(_Spec):
    """A search for the highest rate of requests at which all SLOs hold."""

    low: float = Field(default=0.5, gt=0, le=10_000, description="Requests a second to begin with.")
    high: float | None = Field(default=None, gt=0, le=10_000, description="No rate above this is tried.")
    most: int = Field(default=10, ge=1, le=10, description="Most probes.")
    target: float = Field(default=0.95, gt=0, le=1, description="Share of requests that must meet all SLOs.")
    seconds: float = Field(default=20.0, gt=0, le=600, description="About how long a probe takes.")
    least: int = Field(default=100, ge=10, le=10_000, description="Requests of a probe at the least.")
    seed: int = Field(default=0, ge=0, le=2**31, description="Fixes the times of requests.")

    @model_validator(mode="after")
    def _range(self) -> CapacitySpec:
        if self.high is not None and self.high < self.low:
            raise PydanticCustomError("range", "`high` must not be below `low`")
        return self
