"""Claimed jobs that have not started: which are next, and how many there are slots for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tieryard.catalog import REALTIME
from tieryard.store.jobs import Claimed
from workers.inbox import Inbox

Room = Callable[[int, int], tuple[int, int]]
"""With so many of those that are let out, and so many realtime ones among them: (room for one more, and for one more
realtime job)."""


class Ready:
    """A job is held here until it is taken or dropped; one that was let out for the asking goes back in by `add`."""

    def __init__(self) -> None:
        self._jobs: dict[int, Claimed] = {}
        self._order = Inbox()

    def __len__(self) -> int:
        """Those that wait their turn, less those that are let out."""
        return len(self._order)

    def __iter__(self) -> Iterator[Claimed]:
        """All that are held."""
        return iter(list(self._jobs.values()))

    @property
    def realtime(self) -> int:
        return self._order.realtime

    def add(self, job: Claimed) -> None:
        self._jobs[job.id] = job
        self._order.push(job.tier, job.claimed_at.timestamp(), [(job.id, 1, 0)])

    def let_out(self, room: Room) -> list[Claimed]:
        """In order, as far as there is room: to start, or to ask for leave to."""
        found: list[Claimed] = []
        urgent = 0
        while self._order:
            any_room, realtime_room = room(len(found), urgent)
            popped = self._order.pop(1 if any_room > 0 else 0, realtime=1 if realtime_room > 0 else 0)
            if not popped:
                break
            if (job := self._jobs.get(popped[0])) is not None:  # else it was stopped while it waited
                found.append(job)
                urgent += job.tier == REALTIME
        return found

    def holds(self, job: Claimed) -> bool:
        return self._jobs.get(job.id) is job

    def take(self, job_id: int) -> Claimed | None:
        """None when it is not here any more."""
        return self._jobs.pop(job_id, None)

    def clear(self) -> None:
        self._jobs, self._order = {}, Inbox()
