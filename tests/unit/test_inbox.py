"""The inbox: realtime first, then by due time; compared with a sorted list that does the same slowly."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from workers import inbox
from workers.inbox import Inbox

dues = st.integers(min_value=0, max_value=5).map(float)
sizes = st.lists(st.integers(min_value=1, max_value=9), min_size=1, max_size=4)


class InboxModel(RuleBasedStateMachine):
    """The model is a list of (rank, due, turn, id), sorted when it is read."""

    @initialize()
    def start(self) -> None:
        self.inbox = Inbox()
        self.model: list[tuple[int, float, int, int]] = []
        self.turn = itertools.count()
        self.next_id = 1

    def _runs(self, lengths: list[int]) -> list[tuple[int, int]]:
        runs = []
        for n in lengths:
            runs.append((self.next_id, n))
            self.next_id += n + 1
        return runs

    def _expect(self, rank: int, due: float, runs: list[tuple[int, int]]) -> None:
        turn = next(self.turn)
        self.model += [(rank, due, turn, first + i) for first, n in runs for i in range(n)]
        self.model.sort()

    @rule(tier=st.sampled_from(["realtime", "interactive", "bulk"]), due=dues, lengths=sizes)
    def push(self, tier: str, due: float, lengths: list[int]) -> None:
        runs = self._runs(lengths)
        self.inbox.push(tier, due, runs)
        self._expect(int(tier != "realtime"), due, runs)

    @rule(room=st.integers(min_value=0, max_value=20), realtime=st.integers(min_value=0, max_value=20))
    def pop(self, room: int, realtime: int) -> None:
        wanted: list[int] = []
        for rank, _, _, number in self.model:
            if len(wanted) >= (realtime if rank == 0 else room):
                break
            wanted.append(number)
        assert self.inbox.pop(room, realtime=realtime) == wanted
        self.model = self.model[len(wanted) :]

    @rule()
    def take_all(self) -> None:
        taken = [first + i for _, _, runs in self.inbox.take_all() for first, n in runs for i in range(n)]
        assert taken == [number for *_, number in self.model]
        self.model = []

    @invariant()
    def counts(self) -> None:
        assert len(self.inbox) == len(self.model)
        assert self.inbox.realtime == sum(rank == 0 for rank, *_ in self.model)


TestInboxModel = InboxModel.TestCase
TestInboxModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_the_marks_are_crossed_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "_HIGH", 10)
    monkeypatch.setattr(inbox, "_LOW", 5)
    box = Inbox()
    box.push("bulk", 0.0, [(1, 10)])
    assert box.crossed() is None
    box.push("bulk", 0.0, [(11, 1)])
    assert [box.crossed(), box.crossed()] == [False, None]
    box.pop(6, realtime=6)
    assert box.crossed() is None
    box.pop(1, realtime=1)
    assert [box.crossed(), box.crossed()] == [True, None]


@given(st.integers(min_value=0, max_value=200))
def test_realtime_gets_through_when_there_is_no_room_for_others(waiting: int) -> None:
    box = Inbox()
    if waiting:
        box.push("bulk", 0.0, [(1000, waiting)])
    box.push("realtime", 9.0, [(1, 2)])
    assert box.pop(0, realtime=4) == [1, 2]
    assert box.pop(0, realtime=4) == []
