"""Public ids say what they are; runs name many ids in little room and lose none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.errors import NotFoundError
from tieryard.ids import cut, from_runs, internal, public, to_runs

ids = st.integers(min_value=1, max_value=10**17)
many = st.lists(st.integers(min_value=1, max_value=400), max_size=200)


@given(st.sampled_from(["job", "batch"]), ids)
def test_public_ids_come_back(kind: str, number: int) -> None:
    assert internal(kind, public(kind, number)) == number


@pytest.mark.parametrize(
    "text",
    ["", "job", "job_", "7", "batch_7", "job_-7", "job_7x", "job_७", "job_1_2", "job_" + "9" * 19, "JOB_7", "job_ 7"],
)
def test_what_cannot_be_an_id_is_not_found(text: str) -> None:
    with pytest.raises(NotFoundError):
        internal("job", text)


@given(many)
def test_runs_name_exactly_the_ids(numbers: list[int]) -> None:
    runs = to_runs(numbers)
    assert list(from_runs(runs)) == sorted(set(numbers))
    assert all(n > 0 for _, n in runs)
    assert all(first + n < after for (first, n), (after, _) in itertools.pairwise(runs))


@given(many, st.integers(min_value=1, max_value=70))
def test_cutting_keeps_every_id_in_order(numbers: list[int], size: int) -> None:
    pieces = [list(from_runs(piece)) for piece in cut(to_runs(numbers), size)]
    assert [i for piece in pieces for i in piece] == sorted(set(numbers))
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces)


def test_a_batch_parcel_is_one_run() -> None:
    assert list(cut(to_runs(range(100, 228)), 64)) == [[(100, 64)], [(164, 64)]]
