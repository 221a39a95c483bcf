"""Releases lists' jobs a few seconds of work ahead, earliest deadline first, as `workers/feed.py` does."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from tests.benchmarks.day.servers import Run

_WINDOW_S, _LEAST, _MOST, _STEP, _FLOOR_LISTS = 4.0, 512, 20_000, 64, 16


@dataclass(eq=False, slots=True)
class _Open:
    """A list that is not done: `left` waits to be released, `outstanding` is released and not final."""

    due_s: float
    left: deque[Run]
    mean_tokens: float
    outstanding: int = 0

    @property
    def tokens(self) -> float:
        """Output tokens still to be made."""
        return (len(self.left) + self.outstanding) * self.mean_tokens


class _Rate:
    """A tier's finishing rate: quick to rise, slow to fall."""

    def __init__(self) -> None:
        self.per_s, self.at_s, self.finished = 0.0, 0.0, 0

    def look(self, now_s: float) -> None:
        if (elapsed := now_s - self.at_s) > 0:
            seen = self.finished / elapsed
            self.per_s += (seen - self.per_s) * (1.0 if seen > self.per_s else min(1.0, elapsed))
            self.at_s, self.finished = now_s, 0


class Feeder:
    """All open lists, by tier."""

    def __init__(self) -> None:
        self._lists: dict[str, list[_Open]] = defaultdict(list)
        self._of: dict[int, _Open] = {}
        self._rates: dict[str, _Rate] = defaultdict(_Rate)

    @property
    def open(self) -> bool:
        return any(self._lists.values())

    def add(self, tier: str, due_s: float, runs: list[Run]) -> None:
        batch = _Open(due_s, deque(runs), fmean(run.job.output_tokens for run in runs))
        self._of.update((run.job.id, batch) for run in runs)
        self._lists[tier].append(batch)
        self._lists[tier].sort(key=lambda b: b.due_s)

    def release(self, now_s: float) -> Iterator[Run]:
        """What there is room for now."""
        for tier, found in self._lists.items():
            rate = self._rates[tier]
            rate.look(now_s)
            window = min(_MOST, max(_LEAST, int(rate.per_s * _WINDOW_S)))
            room = window - sum(b.outstanding for b in found)
            for i, batch in enumerate(found):
                floor = _STEP - batch.outstanding if i < _FLOOR_LISTS else 0
                n = min(len(batch.left), max(room, floor, 0))
                room -= n
                batch.outstanding += n
                for _ in range(n):
                    yield batch.left.popleft()

    def ended(self, run: Run) -> None:
        """A job is final."""
        if (batch := self._of.pop(run.job.id, None)) is None:
            return
        tier = run.job.tier
        self._rates[tier].finished += 1
        batch.outstanding -= 1
        if not batch.left and not batch.outstanding:
            self._lists[tier].remove(batch)

    def needed_tps(self, now_s: float) -> dict[str, float]:
        """By tier, the output tokens a second at which the earliest deadlines hold: in order of deadlines, the most
        that all lists up to one of them need."""
        needed: dict[str, float] = {}
        for tier, found in self._lists.items():
            tokens = 0.0
            for batch in found:
                tokens += batch.tokens
                needed[tier] = max(needed.get(tier, 0.0), tokens / max(1.0, batch.due_s - now_s))
        return needed
