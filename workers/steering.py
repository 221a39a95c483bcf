"""How many requests an engine is given at once: as many as keep it full, and no more than it can hold.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), steered by what the server says of itself. A request
beyond what it can hold is not served sooner there: it is preempted and computed again, or waits where neither a more
urgent job can pass it nor another replica take it. A hosted API says only that it was asked for too much (429).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from tieryard.engines.load import Load

_SHRINK = 0.9
_REFUSED = 0.5  # of the limit is kept when a provider refuses requests
_SPARE = 0.05  # of the limit may wait in the server, so that its batch is full again at once when one ends
_ROOMY = 0.9  # of the KV cache: below, more may come
_STALLED_LOOKS = 4  # in a row in which requests wait and no more of them run: the server is full
_HOLD_S = 10.0  # after a cut, before the limit grows again
_LONGEST_HOLD_S = 300.0
_MIXED_S = 60.0  # after counters fell without a restart: there are several servers behind one address
_LEAST_SHARE = 0.25  # of the ceiling is kept however slow the first token is
_FEW = 10  # requests: fewer say nothing of a 95th percentile
_HELPED = 0.95  # of what TTFT was: a cut that does not even bring that is taken back
_GIVEN_UP_S = 300.0  # then it is not the load that is slow


@dataclass(frozen=True, slots=True)
class Cut:
    """A limit that was lowered, and why."""

    limit: int
    why: str


class Steering:
    """The in-flight limit of one engine, between `floor` and `ceiling`; it starts at the ceiling.

    `promised_ms` is the TTFT that the deployment's realtime jobs are promised, None where it keeps nothing for them.
    It is held against what those jobs see, and not against the server's histogram: that counts prompts of bulk jobs,
    which take as long as they are, whatever the limit is.
    """

    def __init__(self, ceiling: int, *, floor: int = 1, promised_ms: float | None = None) -> None:
        self._ceiling, self._floor, self._promised_ms = ceiling, floor, promised_ms
        self.ttft_ms: float | None = None
        """p95 of TTFT at the server, over the latest look in which enough requests began."""
        self.restarted()

    def restarted(self) -> None:
        """The server is a new one: its counters begin again, and what the last one could hold is not known of it."""
        self._exact = float(self._ceiling)
        self._last: Load | None = None
        self._stalled = 0
        self._hold_s, self._hold_until = _HOLD_S, -math.inf
        self._mixed_until = -math.inf
        self._seen_ms: list[float] = []  # TTFT of realtime jobs since the last verdict on them
        self._seen_from = -math.inf
        self._refused_at = -math.inf
        self._tried: tuple[float, float] | None = None  # (limit, TTFT) before the latest cut for their sake
        self.ttft_ms = None

    @property
    def limit(self) -> int:
        return int(self._exact)

    def promise(self, ttft_ms: float | None) -> None:
        """What realtime jobs are promised from now on."""
        self._promised_ms = ttft_ms

    def realtime_began(self, ttft_ms: float, *, now: float) -> None:
        """What one realtime job saw. Those that began under a limit just cut say nothing of the new one."""
        if self._promised_ms is not None and now >= self._seen_from:
            self._seen_ms.append(ttft_ms)

    def refused(self, *, began: float, now: float) -> Cut | None:
        """A request that was sent at `began` was answered 429. What was under way at the latest cut was sent under the
        old limit, so there is one cut a round trip; None for the others."""
        if began < self._refused_at:
            return None
        self._refused_at = now
        self._exact = max(self._floor, self._exact * _REFUSED)
        return Cut(self.limit, "its provider refused a request for its rate limit (429)")

    def answered(self) -> None:
        """A provider that refuses has answered a request: one more may be under way after each round trip."""
        self._exact = min(self._ceiling, self._exact + 1 / self._exact)

    def observe(self, load: Load, *, now: float) -> Cut | None:
        """Takes a look into account: the cut that it led to, if one. `now` is monotonic seconds."""
        last, self._last = self._last, load
        if last is None:
            return None
        if load.preemptions < last.preemptions or _began(load) < _began(last):
            self._mixed_until = now + _MIXED_S
            return None
        if _began(load) - _began(last) >= _FEW:
            self.ttft_ms = load.ttft_ms_since(last, 0.95)
        overload = self._overload(load, last, now) or self._broken_promise(now)
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

    def _overload(self, load: Load, last: Load, now: float) -> tuple[str, float] | None:
        """(why the server has too much, how many it can hold), if it has."""
        preempted = load.preemptions - last.preemptions
        if preempted > 0 and now >= self._mixed_until:
            used = f"{load.running} run with {load.kv_usage:.0%} of its KV cache used"
            holds = load.running if load.waiting else self._exact  # at the tail of a batch fewer run than it holds
            return f"it preempted {preempted} requests; {used}", min(self._exact * _SHRINK, holds)
        waits = load.waiting > max(1.0, self._exact * _SPARE)
        self._stalled = self._stalled + 1 if waits and load.running <= last.running else 0
        if self._stalled >= _STALLED_LOOKS:
            return f"{load.waiting} requests wait in it while {load.running} run", load.running * (1 + _SPARE)
        return None

    def _broken_promise(self, now: float) -> tuple[str, float] | None:
        """(why realtime jobs are late, how many requests may be beside them), if a smaller limit may help them."""
        if self._promised_ms is None or len(self._seen_ms) < _FEW:
            return None
        seen_ms = statistics.quantiles(self._seen_ms, n=20)[-1]
        self._seen_ms.clear()
        tried, self._tried = self._tried, None
        if seen_ms <= self._promised_ms:
            return None
        if tried is not None and seen_ms > _HELPED * tried[1]:
            self._exact, self._seen_from = max(self._exact, tried[0]), now + _GIVEN_UP_S
            return None
        least = self._ceiling * _LEAST_SHARE
        if self._exact <= least:
            return None
        self._tried, self._seen_from = (self._exact, seen_ms), now + _HOLD_S
        why = f"realtime jobs see a TTFT of {seen_ms:.0f} ms at p95, and are promised {self._promised_ms:g}"
        return why, max(least, self._exact * _SHRINK)

    def _has_room(self, load: Load) -> bool:
        """Whether the limit is what keeps more from coming, and the server could take it."""
        limited = load.running + load.waiting >= self._exact - 1
        return limited and load.waiting <= self._exact * _SPARE and load.kv_usage < _ROOMY


def _began(load: Load) -> int:
    return load.ttft_counts[-1][1] if load.ttft_counts else 0
