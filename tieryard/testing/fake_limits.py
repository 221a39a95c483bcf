"""The rate limits of a hosted API, for the fake: a moving window over the requests that it has accepted."""

from __future__ import annotations

import math
import time
from collections import deque

from tieryard.testing.fake_wire import RefusalError
from tieryard.testing.fault_plan import FakePlan


class RateWindow:
    """Requests and tokens (prompt and answer) of the last `plan.window_s` seconds."""

    def __init__(self) -> None:
        self._accepted: deque[tuple[float, int]] = deque()

    def admit(self, plan: FakePlan, tokens: int) -> None:
        """Counts a request. Raises RefusalError (429, with the seconds after which it would be taken as Retry-After)
        when it is one too many."""
        now = time.monotonic()
        while self._accepted and self._accepted[0][0] <= now - plan.window_s:
            self._accepted.popleft()
        excess = max(
            self._waits_for(1, plan.requests_per_minute, [1] * len(self._accepted)),
            self._waits_for(tokens, plan.tokens_per_minute, [n for _, n in self._accepted]),
        )
        if excess:
            wait_s = self._accepted[min(excess, len(self._accepted)) - 1][0] + plan.window_s - now
            raise RefusalError(429, "Rate limit reached", retry_after_s=math.ceil(wait_s) if plan.says_when else None)
        self._accepted.append((now, tokens))

    @staticmethod
    def _waits_for(wanted: int, limit: int | None, taken: list[int]) -> int:
        """How many of the oldest must have left the window before there is room; 0 when there is."""
        if limit is None:
            return 0
        used, oldest = sum(taken) + min(wanted, limit), 0
        while used > limit and oldest < len(taken):
            used -= taken[oldest]
            oldest += 1
        return oldest
