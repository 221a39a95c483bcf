"""Whose turn it is: lanes share the slots, and one that fails or hangs takes none from those that work.

A lane is an endpoint, or a server that callback addresses name. A steady one, that answered last well and soon, may
have several deliveries in flight; any other has one, which finds out how it is. Those that are not known to be steady
have a part of the slots between them, and those that fail a part of that: however many there are, steady ones have the
rest. Of that part a tenant has a part: callback addresses make as many lanes as somebody can think of names.
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
_MOST_UNPROVEN_OF_TENANT = 48

SLOW_MS = 5000.0
"""An answer that takes longer is taken, but does not make a lane steady: it would hold its slots for long."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A tenant's lane with something due: whether its last answer came well and soon, its `failures` in a row."""

    lane_id: int
    tenant_id: int
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
        held = self._held()
        shares: dict[int, int] = {}
        for lane in lanes:
            room = (MOST_OF_STEADY if lane.steady else 1) - self._in_flight[lane.lane_id]
            room = min(room, held.room_for(lane))
            if room > 0:
                shares[lane.lane_id] = room
                held.add(lane, room)
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

    def _held(self) -> _Held:
        held = _Held()
        for lane_id, n in self._in_flight.items():
            held.add(self._classes[lane_id], n)
        return held


@dataclass(slots=True)
class _Held:
    """Slots that are taken: in all, by lanes that are not steady, by those of them that fail, and by tenant."""

    all: int = 0
    unproven: int = 0
    failing: int = 0
    of_tenant: Counter[int] = field(default_factory=Counter)

    def add(self, lane: Waiting, n: int) -> None:
        self.all += n
        if not lane.steady:
            self.unproven += n
            self.failing += n if lane.failures else 0
            self.of_tenant[lane.tenant_id] += n

    def room_for(self, lane: Waiting) -> int:
        room = SLOTS - self.all
        if not lane.steady:
            of_tenant = _MOST_UNPROVEN_OF_TENANT - self.of_tenant[lane.tenant_id]
            room = min(room, _MOST_UNPROVEN - self.unproven, of_tenant)
            if lane.failures:
                room = min(room, _MOST_FAILING - self.failing)
        return room
