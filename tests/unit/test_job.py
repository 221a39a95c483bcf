"""The one table of moves: nothing leaves a final state, everything else can, and nobody makes a move not in it."""

from __future__ import annotations

import itertools

import pytest

from tieryard.job import FINAL, TRANSITIONS, WAITING, Mover, State, sources


def test_states_are_waiting_running_or_final() -> None:
    assert frozenset(State) == WAITING | {State.RUNNING} | FINAL
    assert not WAITING & FINAL


def test_nothing_leaves_a_final_state() -> None:
    assert not [move for move in TRANSITIONS if move[0] in FINAL]


@pytest.mark.parametrize("state", sorted(set(State) - FINAL))
def test_every_other_state_leads_to_an_end(state: State) -> None:
    seen, reach = set(), {state}
    while reach - seen:
        seen |= reach
        reach = {b for a, b in TRANSITIONS if a in reach}
    assert seen & FINAL


@pytest.mark.parametrize("state", sorted(set(State) - {State.QUEUED}))
def test_every_state_can_be_reached_from_queued(state: State) -> None:
    assert any(b is state for _, b in TRANSITIONS)


def test_only_a_claim_starts_a_job() -> None:
    assert {(a, m) for (a, b), movers in TRANSITIONS.items() for m in movers if b is State.RUNNING} == {
        (State.ROUTED, Mover.INFER)
    }


def test_every_move_has_a_mover() -> None:
    assert all(TRANSITIONS.values())


@pytest.mark.parametrize(("target", "by"), list(itertools.product(State, Mover)))
def test_sources_are_the_tables_and_unknown_moves_are_refused(target: State, by: Mover) -> None:
    wanted = [str(a) for (a, b), movers in TRANSITIONS.items() if b is target and by in movers]
    if wanted:
        assert sources(target, by) == wanted
    else:
        with pytest.raises(ValueError, match=f"{by} may not move a job to {target}"):
            sources(target, by)
