"""The inbox: realtime first, then by due time, and what begins alike together within bounds; compared with a sorted
list that does the same slowly."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tieryard.ids import KeyedRun
from workers import inbox
from workers.inbox import Inbox

dues = st.integers(min_value=0, max_value=9).map(float)
runs = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=4)

Waiting = tuple[int, float, int, int, int]
"""(rank, due, turn, id, key)."""


class InboxModel(RuleBasedStateMachine):
    """The model is a list that is sorted when it is read. A streak is at most 5 here, so that it often ends."""

    @initialize()
    def start(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(inbox, "_STREAK", 5)
        self.inbox = Inbox(within_s=4.0)
        self.model: list[Waiting] = []
        self.turn = itertools.count()
        self.next_id = 1
        self.streak = (0, 0)

    def teardown(self) -> None:
        self.patch.undo()

    @rule(tier=st.sampled_from(["realtime", "interactive", "bulk"]), due=dues, wanted=runs)
    def push(self, tier: str, due: float, wanted: list[tuple[int, int]]) -> None:
        pushed: list[KeyedRun] = []
        rank, turn = int(tier != "realtime"), next(self.turn)
        for n, key in wanted:
            pushed.append((self.next_id, n, key))
            self.model += [(rank, due, turn, self.next_id + i, key * rank) for i in range(n)]
            self.next_id += n + 1
        self.inbox.push(tier, due, pushed)
        self.model.sort()

    def _next(self) -> Waiting:
        earliest = self.model[0]
        if earliest[0] == 0:
            return earliest
        key, left = self.streak
        alike = next((w for w in self.model if key and w[0] and w[4] == key and w[1] <= earliest[1] + 4), None)
        if alike is None or left == 0:
            self.streak = (earliest[4], 5)
            alike = earliest
        self.streak = (self.streak[0], self.streak[1] - 1)
        return alike

    @rule(room=st.integers(min_value=0, max_value=20), realtime=st.integers(min_value=0, max_value=20))
    def pop(self, room: int, realtime: int) -> None:
        wanted: list[int] = []
        while self.model and len(wanted) < (room if self.model[0][0] else realtime):
            taken = self._next()
            self.model.remove(taken)
            wanted.append(taken[3])
        assert self.inbox.pop(room, realtime=realtime) == wanted

    @rule()
    def take_all(self) -> None:
        taken = [pair for _, _, keyed in self.inbox.take_all() for pair in keyed]
        assert taken == [(number, key) for *_, number, key in self.model]
        self.model = []

    @invariant()
    def counts(self) -> None:
        assert len(self.inbox) == len(self.model)
        assert self.inbox.realtime == sum(rank == 0 for rank, *_ in self.model)


TestInboxModel = InboxModel.TestCase
TestInboxModel.settings = settings(max_examples=150, stateful_step_count=30)


def test_the_marks_are_crossed_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "_HIGH", 10)
    monkeypatch.setattr(inbox, "_LOW", 5)
    box = Inbox()
    box.push("bulk", 0.0, [(1, 10, 0)])
    assert box.crossed() is None
    box.push("bulk", 0.0, [(11, 1, 0)])
    assert [box.crossed(), box.crossed()] == [False, None]
    box.pop(6, realtime=6)
    assert box.crossed() is None
    box.pop(1, realtime=1)
    assert [box.crossed(), box.crossed()] == [True, None]


@given(st.integers(min_value=0, max_value=200))
def test_realtime_gets_through_when_there_is_no_room_for_others(waiting: int) -> None:
    box = Inbox()
    if waiting:
        box.push("bulk", 0.0, [(1000, waiting, 7)])
    box.push("realtime", 9.0, [(1, 2, 7)])
    assert box.pop(0, realtime=4) == [1, 2]
    assert box.pop(0, realtime=4) == []


def test_what_begins_alike_is_popped_together_though_others_came_between() -> None:
    box = Inbox(within_s=4.0)
    for n in range(12):
        box.push("batch", n / 10, [(n, 1, 1 + n % 3)])
    assert box.pop(12, realtime=0) == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


def test_a_streak_goes_on_when_there_is_room_again() -> None:
    box = Inbox()
    for n in range(6):
        box.push("batch", 0.0, [(n, 1, 1 + n % 2)])
    assert [box.pop(1, realtime=0) for _ in range(6)] == [[0], [2], [4], [1], [3], [5]]


@pytest.mark.parametrize(("within_s", "order"), [(4.0, [1, 3, 2]), (3.9, [1, 2, 3])])
def test_how_much_later_it_may_be_due_is_the_owners_to_say(within_s: float, order: list[int]) -> None:
    box = Inbox(within_s=within_s)
    box.push("batch", 0.0, [(1, 1, 7), (2, 1, 8)])
    box.push("batch", 4.0, [(3, 1, 7)])
    assert box.pop(3, realtime=0) == order


def test_a_streak_ends_after_64_jobs_when_somebody_waits() -> None:
    box = Inbox(within_s=4.0)
    box.push("batch", 0.0, [(1, 1, 7)])
    box.push("batch", 0.5, [(9000, 1, 8)])
    box.push("batch", 1.0, [(1000, 500, 7)])
    popped = box.pop(500, realtime=0)
    assert popped.index(9000) == 64
    assert popped[:64] == [1, *range(1000, 1063)]


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 4), st.integers(1, 90)), min_size=1, max_size=40),
    st.lists(st.integers(1, 70), min_size=1),
)
def test_nobody_is_passed_by_what_is_due_more_than_the_window_later(
    pushed: list[tuple[float, int, int]], rooms: list[int]
) -> None:
    box, due_of, key_of = Inbox(within_s=4.0), {}, {}
    for number, (due, key, n) in enumerate(pushed):
        box.push("batch", due, [(number * 100, n, key)])
        due_of |= dict.fromkeys(range(number * 100, number * 100 + n), due)
        key_of |= dict.fromkeys(range(number * 100, number * 100 + n), key)
    popped: list[int] = []
    for room in itertools.cycle(rooms):
        if not (taken := box.pop(room, realtime=0)):
            break
        popped += taken
    assert sorted(popped) == sorted(due_of), "nothing lost, nothing twice"
    earliest = list(itertools.accumulate((due_of[n] for n in reversed(popped)), min))[::-1]
    assert all(due_of[n] <= first + 4 for n, first in zip(popped, earliest, strict=True))
    passing = [(key_of[n], due_of[n] > first) for n, first in zip(popped, earliest, strict=True)]
    streaks = [len(list(group)) for (_, passes), group in itertools.groupby(passing) if passes]
    assert max(streaks, default=0) <= 64


def test_what_was_taken_for_its_key_does_not_stay() -> None:
    box = Inbox()
    for n in range(5000):
        box.push("batch", 0.0, [(3 * n, 1, 1)])
        box.push("batch", 0.0, [(3 * n + 1, 1, 2 + n)])
    while len(box) > 100:
        box.pop(50, realtime=0)
    assert len(box._heap) < 400
    assert sum(map(len, box._alike.values())) == 100


def test_what_is_taken_out_goes_back_to_its_place():
    box = Inbox(within_s=4.0)
    box.push("bulk", 5.0, [(10, 3, 7)])
    box.push("batch", 2.0, [(20, 2, 0), (30, 1, 7)])
    box.push("realtime", 9.0, [(1, 1, 0)])
    taken = box.take_out(5)
    assert taken == [("realtime", 9.0, (1, 1, 0)), ("batch", 2.0, (20, 2, 0)), ("batch", 2.0, (30, 1, 7)),
                     ("bulk", 5.0, (10, 1, 7))]  # fmt: skip
    assert (len(box), box.realtime) == (2, 0)
    for tier, due, run in taken[1:]:
        box.push(tier, due, [run])
    assert sorted(box.pop(9, realtime=0)) == [10, 11, 12, 20, 21, 30]
