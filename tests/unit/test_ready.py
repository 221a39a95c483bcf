"""Claimed jobs that have not started: in order, as far as there is room, and none lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tieryard.store.jobs import Claimed
from workers.ready import Ready

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def claimed(number: int, tier: str = "batch") -> Claimed:
    at = NOW + timedelta(seconds=number)
    return Claimed(number, 1, None, tier, "chat", 0, 0, 0.0, at, "{}", 1, "one")


def ready(*jobs: Claimed) -> Ready:
    found = Ready()
    for job in jobs:
        found.add(job)
    return found


def ids(jobs: list[Claimed]) -> list[int]:
    return [job.id for job in jobs]


def test_realtime_jobs_go_first_and_may_use_more_room() -> None:
    found = ready(claimed(1), claimed(2), claimed(3, "realtime"), claimed(4, "realtime"))
    assert ids(found.let_out(lambda n, urgent: (3 - n, 4 - n))) == [3, 4, 1]
    assert (len(found), found.realtime) == (1, 0)


def test_only_realtime_jobs_where_others_are_held() -> None:
    found = ready(claimed(1), claimed(2, "realtime"))
    assert ids(found.let_out(lambda n, urgent: (0, 9))) == [2]


def test_what_was_let_out_is_held_until_it_is_taken_and_goes_back_to_its_place() -> None:
    found = ready(claimed(1), claimed(2), claimed(3))
    first = found.let_out(lambda n, urgent: (2 - n, 2 - n))
    assert ids(first) == [1, 2]
    assert ids(list(found)) == [1, 2, 3], "a stop finds it here"
    found.add(first[0])
    assert found.take(2) is not None
    assert not found.holds(first[1])
    assert ids(found.let_out(lambda n, urgent: (9, 9))) == [1, 3]


def test_what_was_stopped_while_it_waited_is_passed_over() -> None:
    found = ready(claimed(1), claimed(2))
    assert found.take(1) is not None
    assert found.take(1) is None
    assert ids(found.let_out(lambda n, urgent: (1 - n, 1 - n))) == [2]
    found.clear()
    assert (list(found), len(found)) == ([], 0)
