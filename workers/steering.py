"""How many requests an engine is given at once: as many as keep it full, and no more than it can hold.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), steered by what the server says of itself. A request
beyond what it can hold is not served sooner there: it is preempted and computed again, or waits where neither a more
urgent job can pass it nor another replica take it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tieryard.engines.load import Load

_SHRINK = 0.9
_SPARE = 0.05  # of the limit may wait in the server, so that its batch is full again at once when one ends
_ROOMY = 0.9  # of the KV cache: below, more may come
_STALLED_LOOKS = 4  # in a row in which requests wait and no more of them run: the server is full
_HOLD_S = 10.0  # after a cut, before the limit grows again
_LONGEST_HOLD_S = 300.0
_LEAST_SHARE = 0.25  # of the ceiling is kept however slow the first token is
_FEW = 10  # requests: fewer say nothing of a 95th percentile


@dataclass(frozen=True, slots=True)
class Cut:
    """A limit that was lowered, and why."""

    limit: int
    why: str


class Steering:
    """The in-flight limit of one engine, between `floor` and `ceiling`; it starts at the ceiling.

    `ttft_limit_ms` is what the deployment's realtime jobs are promised, None where it keeps nothing for them.
    """

    def __init__(self, ceiling: int, *, floor: int = 1, ttft_limit_ms: float | None = None) -> None:
        self._ceiling, self._floor = ceiling, floor
        self._ttft_limit_ms = ttft_limit_ms
        self._exact = float(ceiling)
        self._last: Load | None = None
        self._stalled = 0
        self._hold_s, self._hold_until = _HOLD_S, -math.inf
        self.ttft_ms: float | None = None
        """p95 of TTFT at the server, over the latest look in which enough requests began."""

    @property
    def limit(self) -> int:
        return int(self._exact)

    def restarted(self) -> None:
        """The server is a new one: its counters begin again, and what the last one could hold is not known of it."""
        self._exact, self._last, self._stalled = float(self._ceiling), None, 0
        self._hold_s, self._hold_until = _HOLD_S, -math.inf
        self.ttft_ms = None

    def observe(self, load: Load, *, now: float) -> Cut | None:
        """Takes a look into account: the cut that it led to, if one. `now` is monotonic seconds."""
        last, self._last = self._last, load
        if last is None:
            return None
        overload = self._overload(load, last)
        if overload is None:
            if self._has_room(load) and now >= self._hold_until:
                self._exact = min(self._ceiling, self._exact + max(1.0, self._exact * _SPARE))
            return None
        why, holds = overload
        before = self.limit
        self._exact = max(self._floor, min(self._exact, holds))
        self._hold(now)
        self._stalled = 0
        return Cut(self.limit, why) if self.limit < before else None

    def _hold(self, now: float) -> None:
        """Puts growth off: for longer each time that it led to a cut soon after it was resumed."""
        since = now - self._hold_until
        if since >= 2 * self._hold_s:
            self._hold_s = _HOLD_S
        elif since >= 0:
            self._hold_s = min(2 * self._hold_s, _LONGEST_HOLD_S)
        self._hold_until = now + self._hold_s

    def _overload(self, load: Load, last: Load) -> tuple[str, float] | None:
        """(why the server has too much, how many it can hold), if it has."""
        preempted = load.preemptions - last.preemptions
        if preempted > 0:
            used = f"{load.running} run with {load.kv_usage:.0%} of its KV cache used"
            holds = load.running if load.waiting else self._exact  # at the tail of a batch fewer run than it holds
            return f"it preempted {preempted} requests; {used}", min(self._exact * _SHRINK, holds)
        waits = load.waiting > max(1.0, self._exact * _SPARE)
        self._stalled = self._stalled + 1 if waits and load.running <= last.running else 0
        if self._stalled >= _STALLED_LOOKS:
            return f"{load.waiting} requests wait in it while {load.running} run", load.running * (1 + _SPARE)
        if _began(load) - _began(last) >= _FEW:
            self.ttft_ms = load.ttft_ms_since(last, 0.95)
            promised, least = self._ttft_limit_ms, self._ceiling * _LEAST_SHARE
            if promised is not None and (self.ttft_ms or 0) > promised and self._exact > least:
                return (
                    f"TTFT is {self.ttft_ms:g} ms at p95, and realtime is promised {promised:g}",
                    self._exact * _SHRINK,
                )
        return None

    def _has_room(self, load: Load) -> bool:
        """Whether the limit is what keeps more from coming, and the server could take it."""
        limited = load.running + load.waiting >= self._exact - 1
        return limited and load.waiting <= self._exact * _SPARE and load.kv_usage < _ROOMY


def _began(load: Load) -> int:
    return load.ttft_counts[-1][1] if load.ttft_counts else 0
