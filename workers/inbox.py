"""Jobs on their way into an engine, as runs of ids: realtime first, then by due time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from tieryard.catalog import REALTIME
from tieryard.ids import Run

_HIGH, _LOW = 50_000, 25_000  # ids; about a megabyte at the most


class Inbox:
    """A queue of runs. It never blocks; `crossed` says when its owner should stop or start taking more."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, str, list[Run]]] = []
        self._turn = itertools.count()
        self._length = 0
        self.realtime = 0
        """How many of the ids are realtime."""
        self._open = True

    def __len__(self) -> int:
        return self._length

    def push(self, tier: str, due: float, runs: list[Run]) -> None:
        self._push((int(tier != REALTIME), due, next(self._turn), tier, runs))

    def pop(self, room: int, *, realtime: int) -> list[int]:
        """Up to `room` ids in order; of realtime ones up to `realtime`, whatever `room` is."""
        ids: list[int] = []
        while self._heap:
            urgent = self._heap[0][0] == 0
            take = (realtime if urgent else room) - len(ids)
            if take <= 0:
                break
            rank, due, turn, tier, runs = heapq.heappop(self._heap)
            taken, rest = _split(runs, take)
            ids += taken
            self.realtime -= len(taken) if urgent else 0
            if rest:
                heapq.heappush(self._heap, (rank, due, turn, tier, rest))
        self._length -= len(ids)
        return ids

    def take_all(self) -> Iterator[tuple[str, float, list[Run]]]:
        """Everything, in order, leaving it empty."""
        while self._heap:
            _, due, _, tier, runs = heapq.heappop(self._heap)
            self._length -= sum(n for _, n in runs)
            self.realtime -= sum(n for _, n in runs) if tier == REALTIME else 0
            yield tier, due, runs

    def crossed(self) -> bool | None:
        """False once when it has grown past the high mark, True once when it is below the low one, else None."""
        if self._open and self._length > _HIGH:
            self._open = False
            return False
        if not self._open and self._length < _LOW:
            self._open = True
            return True
        return None

    def _push(self, entry: tuple[int, float, int, str, list[Run]]) -> None:
        heapq.heappush(self._heap, entry)
        n = sum(count for _, count in entry[4])
        self._length += n
        self.realtime += n if entry[0] == 0 else 0


def _split(runs: list[Run], n: int) -> tuple[list[int], list[Run]]:
    """The first `n` ids, and the runs that are left."""
    taken: list[int] = []
    for index, (first, count) in enumerate(runs):
        part = min(count, n - len(taken))
        taken += range(first, first + part)
        if part < count:
            return taken, [(first + part, count - part), *runs[index + 1 :]]
        if len(taken) == n:
            return taken, runs[index + 1 :]
    return taken, []
