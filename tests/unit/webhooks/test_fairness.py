"""Slots are shared so that receivers which fail or hang leave room for those that work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tieryard.webhooks.fairness import MOST_OF_STEADY, SLOTS, Slots, Waiting


def steady(n: int) -> Waiting:
    return Waiting(n, n, 0, steady=True)


def failing(n: int, tenant: int | None = None) -> Waiting:
    """Of a tenant of its own, unless told otherwise."""
    return Waiting(n, n if tenant is None else tenant, 3, steady=False)


def new(n: int, tenant: int | None = None) -> Waiting:
    return Waiting(n, n if tenant is None else tenant, 0, steady=False)


def fill(slots: Slots, *waiting: Waiting) -> dict[int, int]:
    shares = slots.share_out(waiting)
    for lane_id, n in shares.items():
        for _ in range(n):
            slots.took(lane_id)
    return shares


def test_one_that_works_has_several_and_others_one() -> None:
    assert fill(Slots(), steady(1), failing(2), new(3)) == {1: MOST_OF_STEADY, 2: 1, 3: 1}


def test_a_lane_has_no_more_than_its_share_in_flight() -> None:
    slots = Slots()
    fill(slots, steady(1), failing(2))
    assert fill(slots, steady(1), failing(2)) == {}
    slots.gave_back(1)
    slots.gave_back(2)
    assert fill(slots, steady(1), failing(2)) == {1: 1, 2: 1}


def test_however_many_fail_those_that_work_and_new_ones_have_room() -> None:
    slots = Slots()
    assert sum(fill(slots, *map(failing, range(1000))).values()) == 96
    assert sum(fill(slots, *map(new, range(1000, 2000))).values()) == 64
    assert sum(fill(slots, *map(steady, range(2000, 3000))).values()) == SLOTS - 160
    assert slots.in_flight == SLOTS


def test_one_tenants_many_names_leave_room_for_a_new_lane_of_another() -> None:
    """Each callback address may name a server of its own, which answers nothing."""
    slots = Slots()
    assert sum(fill(slots, *(new(n, 1) for n in range(10_000)), new(10_001, 2)).values()) == 48 + 1
    assert fill(slots, *(failing(n, 1) for n in range(10_000)), failing(10_002, 3)) == {10_002: 1}
    assert fill(slots, *map(steady, range(20_000, 20_002))) == {20_000: MOST_OF_STEADY, 20_001: MOST_OF_STEADY}


def test_who_waited_longest_comes_first() -> None:
    slots, seen = Slots(), []
    for _ in range(10):
        shares = fill(slots, *map(failing, range(200)))
        seen += list(shares)
        for lane_id in shares:
            slots.gave_back(lane_id)
    assert set(seen[:200]) == set(range(200)), "each once before any again"


def test_a_lane_is_what_it_was_seen_to_be_last() -> None:
    slots = Slots()
    fill(slots, *map(steady, range(40)))
    assert slots.in_flight == 160
    fill(slots, *map(failing, range(40)))
    assert sum(fill(slots, *map(new, range(100, 300))).values()) == 0, "those that turned bad hold the part of such"
    assert sum(fill(slots, *map(steady, range(300, 400))).values()) == 96


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.integers(0, 2), st.booleans()), max_size=200))
def test_the_slots_are_never_overdrawn(moves: list[tuple[int, bool, int, bool]]) -> None:
    slots, held = Slots(), []
    for lane_id, is_steady, failures, give in moves:
        if give and held:
            slots.gave_back(held.pop(0))
        shares = slots.share_out([Waiting(lane_id, lane_id % 2, 0 if is_steady else failures, is_steady)])
        for lane, n in shares.items():
            for _ in range(n):
                slots.took(lane)
                held.append(lane)
        assert slots.in_flight == len(held) <= SLOTS
    for lane in held:
        slots.gave_back(lane)
    assert slots.in_flight == 0
    slots.forget([])
