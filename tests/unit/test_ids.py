"""Public ids say what they are; runs name many ids in little room and lose none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.errors import NotFoundError
from tieryard.ids import cut, cut_by_key, from_runs, internal, public, read_keyed, to_runs

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


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 4)), unique_by=lambda pair: pair[0]), st.integers(1, 70))
def test_cutting_by_key_puts_those_of_one_key_together(keyed: list[tuple[int, int]], size: int) -> None:
    pieces = [[(first + i, key) for first, n, key in piece for i in range(n)] for piece in cut_by_key(keyed, size)]
    flat = [pair for piece in pieces for pair in piece]
    assert sorted(flat) == sorted(keyed)
    assert [key for key, _ in itertools.groupby(key for _, key in flat)] == list(dict.fromkeys(k for _, k in keyed))
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces)


def test_a_keyed_parcel_of_neighbours_is_a_run_a_key() -> None:
    interleaved = [(n, 1 + n % 2) for n in (10, 11, 12, 13)]
    assert list(cut_by_key(interleaved, 64)) == [[(10, 1, 1), (12, 1, 1), (11, 1, 2), (13, 1, 2)]]
    assert list(cut_by_key([(n, 5) for n in range(10, 80)], 64)) == [[(10, 64, 5)], [(74, 6, 5)]]


def test_runs_are_read_with_and_without_keys() -> None:
    assert read_keyed([[1, 64], [70, 2, 9]]) == [(1, 64, 0), (70, 2, 9)]
