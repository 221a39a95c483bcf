"""When the fake writes what: moments that it waits for, its freeze, and a record of what left when."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from aiohttp import web

from tieryard.testing.fault_plan import FakePlan


@dataclass(slots=True)
class Sent:
    """What the fake did for one request, in seconds of the monotonic clock, which all processes of a machine share.
    `sends` are (time, tokens so far) of the events with content."""

    prompt: str
    arrived: float
    sends: list[tuple[float, int]] = field(default_factory=list)
    ended: float | None = None


class Pace:
    """Waits for moments on the monotonic clock, so that lateness does not add up. In a freeze nothing ends its wait.
    `sent` is what a plan with `records` keeps."""

    def __init__(self, plan: FakePlan) -> None:
        self.sent: list[Sent] = []
        self._plan = plan
        self._began: float | None = None

    def begin(self) -> None:
        """A request has come; the freeze counts from the first."""
        if self._began is None:
            self._began = time.monotonic()

    def record(self, prompt: str, arrived: float) -> Sent:
        sent = Sent(prompt, arrived)
        if self._plan.records:
            self.sent.append(sent)
        return sent

    async def until(self, deadline: float) -> None:
        """Always gives way."""
        await asyncio.sleep(max(0.0, deadline - time.monotonic()))
        freeze = self._plan.freeze
        if freeze is not None and self._began is not None:
            begins, now = self._began + freeze.after_s, time.monotonic()
            if begins <= now < (ends := begins + freeze.for_s):
                await asyncio.sleep(ends - now)

    async def write(self, response: web.StreamResponse, data: bytes) -> None:
        """In as many writes as the plan says, each of which leaves before the next."""
        parts = self._plan.split
        size = max(1, -(-len(data) // parts))
        for start in range(0, len(data), size):
            await response.write(data[start : start + size])
            if parts > 1:
                await asyncio.sleep(0)
