"""Jobs on their way into an engine, as keyed runs of ids: realtime first, then by due time, and those that begin alike
together as far as that keeps nobody waiting.

A job may pass others for the sake of its prefix when it is due within the feeder's window of the earliest, 64 jobs in a
row: so the feeder's order stands but for that window.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from tieryard.catalog import REALTIME
from tieryard.ids import KeyedRun, to_runs
from tieryard.queues import is_behind

_HIGH, _LOW = 50_000, 25_000  # ids; about a megabyte, or ten when no two begin alike
_STREAK = 64  # jobs that begin alike in a row, before the earliest has its turn


@dataclass(slots=True)
class _Entry:
    """Jobs of one parcel and one key. `rank` is 0 for realtime, whose key does not count. `behind`: nobody is to wait
    for them."""

    rank: int
    due: float
    tier: str
    key: int
    ids: list[range]
    left: int
    behind: bool

    def take(self, most: int) -> list[int]:
        """The first `most` ids, which leave it."""
        taken: list[int] = []
        while self.ids and len(taken) < most:
            room = most - len(taken)
            taken += self.ids[0][:room]
            if len(self.ids[0]) > room:
                self.ids[0] = self.ids[0][room:]
            else:
                self.ids.pop(0)
        self.left -= len(taken)
        return taken


_Heap = list[tuple[int, float, int, _Entry]]
"""By rank, due time and turn of arrival."""


class Inbox:
    """A queue of keyed runs. It never blocks; `crossed` says when its owner should stop or start taking more.

    What is due no more than `within_s` after the earliest may pass it for its key: what the feeder keeps released.
    """

    def __init__(self, *, within_s: float = 0.0) -> None:
        self._within_s = within_s
        self._heap: _Heap = []
        self._alike: dict[int, _Heap] = {}  # the same entries, those that have a key
        self._spent = 0  # entries of the heap that were taken for their key
        self._turn = itertools.count()
        self._length = 0
        self.realtime = 0
        """How many of the ids are realtime."""
        self.behind = 0
        """How many wait behind everybody's."""
        self._open = True
        self._streak, self._streak_left = 0, 0

    def __len__(self) -> int:
        return self._length

    def push(self, tier: str, due: float, runs: list[KeyedRun]) -> None:
        rank, behind = int(tier != REALTIME), is_behind(due)
        for key, members in itertools.groupby(runs, key=lambda run: run[2] * rank):
            ids = [range(first, first + n) for first, n, _ in members]
            entry = _Entry(rank, due, tier, key, ids, sum(map(len, ids)), behind)
            placed = (rank, due, next(self._turn), entry)
            heapq.heappush(self._heap, placed)
            if key:
                heapq.heappush(self._alike.setdefault(key, []), placed)
            self._length += entry.left
            self.realtime += 0 if rank else entry.left
            self.behind += entry.left if behind else 0

    def pop(self, room: int, *, realtime: int) -> list[int]:
        """Up to `room` ids in order; of realtime ones up to `realtime`, whatever `room` is."""
        ids: list[int] = []
        while (earliest := self._earliest()) is not None:
            most = (room if earliest.rank else realtime) - len(ids)
            if most <= 0:
                break
            ids += self._take(self._favoured(earliest), most)
        return ids

    def take_all(self) -> Iterator[tuple[str, float, list[tuple[int, int]]]]:
        """Everything in order, as (tier, due, [(id, key)]), leaving it empty."""
        waiting = [entry for *_, entry in sorted(self._heap, key=lambda placed: placed[:3]) if entry.left]
        self._heap, self._alike, self._spent, self._length, self.realtime, self.behind = [], {}, 0, 0, 0, 0
        for (tier, due), entries in itertools.groupby(waiting, key=lambda entry: (entry.tier, entry.due)):
            yield tier, due, [(number, entry.key) for entry in entries for ids in entry.ids for number in ids]

    def take_out(self, most: int) -> list[tuple[str, float, KeyedRun]]:
        """The first `most` ids in order, whatever their tier, as (tier, due, a keyed run)."""
        taken: list[tuple[str, float, KeyedRun]] = []
        while most > 0 and (earliest := self._earliest()) is not None:
            entry = self._favoured(earliest)
            ids = self._take(entry, most)
            taken += [(entry.tier, entry.due, (first, n, entry.key)) for first, n in to_runs(ids)]
            most -= len(ids)
        return taken

    def crossed(self) -> bool | None:
        """False once when it has grown past the high mark, True once when it is below the low one, else None."""
        if self._open and self._length > _HIGH:
            self._open = False
            return False
        if not self._open and self._length < _LOW:
            self._open = True
            return True
        return None

    def _earliest(self) -> _Entry | None:
        while self._heap and not self._heap[0][-1].left:
            heapq.heappop(self._heap)
            self._spent -= 1
        return self._heap[0][-1] if self._heap else None

    def _favoured(self, earliest: _Entry) -> _Entry:
        """Where the next ids are taken from: what begins like the last ones, while it may pass the earliest."""
        if not earliest.rank:
            return earliest
        alike = self._alike.get(self._streak)
        if alike and self._streak_left and alike[0][-1].due <= earliest.due + self._within_s:
            return alike[0][-1]
        self._streak, self._streak_left = earliest.key, _STREAK
        return earliest

    def _take(self, entry: _Entry, most: int) -> list[int]:
        """Ids of an entry, the first of its key (the earliest of all is that too)."""
        taken = entry.take(min(most, self._streak_left) if entry.key else most)
        self._length -= len(taken)
        if not entry.rank:
            self.realtime -= len(taken)
        if entry.behind:
            self.behind -= len(taken)
        if entry.key:
            self._streak_left -= len(taken)
        if not entry.left:
            self._spent += 1
            self._forget(entry.key)
        return taken

    def _forget(self, key: int) -> None:
        """After the first entry of a key was used up. What is spent leaves the heap by its top, or all at once."""
        if key:
            heapq.heappop(self._alike[key])
            if not self._alike[key]:
                del self._alike[key]
        if self._spent > _STREAK and 2 * self._spent > len(self._heap):
            self._heap = [placed for placed in self._heap if placed[-1].left]
            heapq.heapify(self._heap)
            self._spent = 0
