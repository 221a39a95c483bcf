"""A tier: the service class that a job is submitted under."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field

from tieryard.catalog.base import Strict
from tieryard.requests import Duration, TierSlo

REALTIME = "realtime"
"""The tier that other tiers leave room for."""


class Tier(Strict):
    """A service class."""

    slo: TierSlo = Field(default=TierSlo(), description="What its jobs may count on.")
    slo_from: Literal["accepted", "claimed"] = Field(
        default="accepted", description="Where `max_latency_ms` starts: `claimed` leaves out the wait."
    )
    waits: bool | None = Field(
        default=None,
        description="Whether its jobs may wait for the cheapest. Default: where no `max_ttft_ms` is set "
        "and the window is an hour or more.",
    )
    window: Duration = Field(
        default=timedelta(hours=24), description="A job not final this long after acceptance expires."
    )

    @property
    def may_wait(self) -> bool:
        """Whether its jobs may wait for the cheapest deployment, as long as their deadlines hold."""
        return self.waits if self.waits is not None else not self.slo.max_ttft_ms and self.window >= timedelta(hours=1)
