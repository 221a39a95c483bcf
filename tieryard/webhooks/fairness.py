"""Whose turn it is: lanes share the slots, and one that fails or hangs takes none from those that work.

A lane is an endpoint, or a server that callback addresses name. A steady one, that answered last well and soon, may
have several deliveries in flight; any other has one, which finds out how it is. Those that are not known to be steady
have a part of the slots between them, and those that fail a part of that: however many there are, steady ones have the
rest.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

SLOTS = 256
MOST_OF_STEADY = 4
"""In flight at once, of one steady lane."""
_MOST_UNPROVEN = 160
_MOST_FAILING = 96

SLOW_MS = 5000.0
"""An answer that takes longer is taken, but does not make a lane steady: it would hold its slots for long."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A lane with something due: whether its last answer came well and soon, and its `failures` in a row."""

    lane_id: int
    failures: int
    steady: bool


@dataclass(slots=True)
class Slots:
    """What is in flight in one process."""

    _in_flight: Counter[int] = field(default_factory=Counter)
    _classes: dict[int, Waiting] = field(default_factory=dict)
    _served: dict[int, int] = field(default_factory=dict)
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def in_flight(self) -> int:
        return self._in_flight.total()

    def share_out(self, waiting: Iterable[Waiting]) -> dict[int, int]:
        """How many deliveries each lane may take now. Who was served longest ago comes first."""
        lanes = sorted(waiting, key=lambda lane: self._served.get(lane.lane_id, -1))
        self._classes |= {lane.lane_id: lane for lane in lanes}
        failing, unproven, free = self._room()
        shares: dict[int, int] = {}
        for lane in lanes:
            room = (MOST_OF_STEADY if lane.steady else 1) - self._in_flight[lane.lane_id]
            if not lane.steady:
                room = min(room, unproven, failing if lane.failures else unproven)
            room = min(room, free)
            if room > 0:
                shares[lane.lane_id] = room
                free -= room
                unproven -= 0 if lane.steady else room
                failing -= room if lane.failures else 0
        return shares

    def took(self, lane_id: int) -> None:
        """One delivery of this lane is in flight now."""
        self._in_flight[lane_id] += 1
        self._served[lane_id] = next(self._turn)

    def gave_back(self, lane_id: int) -> None:
        """It is no more."""
        self._in_flight[lane_id] -= 1
        if self._in_flight[lane_id] <= 0:
            del self._in_flight[lane_id]

    def forget(self, keep: Iterable[int]) -> None:
        """Lanes that have nothing due and nothing in flight need not be remembered."""
        kept = set(keep) | set(self._in_flight)
        self._served = {lane: turn for lane, turn in self._served.items() if lane in kept}
        self._classes = {lane: seen for lane, seen in self._classes.items() if lane in kept}

    def _room(self) -> tuple[int, int, int]:
        """Slots left for failing lanes, for those that are not steady, and for all."""
        failing = unproven = 0
        for lane_id, n in self._in_flight.items():
            seen = self._classes.get(lane_id)
            if seen is not None and not seen.steady:
                unproven += n
                failing += n if seen.failures else 0
        return _MOST_FAILING - failing, _MOST_UNPROVEN - unproven, SLOTS - self.in_flight
