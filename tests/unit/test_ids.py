"""Public ids say what they are; runs name many ids in little room and lose none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.errors import NotFoundError
from tieryard.ids import from_runs, internal, pieces, public, read_keyed, to_keyed_runs, to_runs, write_keyed

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
def test_pieces_keep_everything_in_order(numbers: list[int], size: int) -> None:
    found = list(pieces(numbers, size))
    assert [i for piece in found for i in piece] == numbers
    assert all(len(piece) == size for piece in found[:-1])
    assert all(0 < len(piece) <= size for piece in found)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 4)), unique_by=lambda pair: pair[0]))
def test_keyed_runs_put_those_of_one_key_together(keyed: list[tuple[int, int]]) -> None:
    flat = [(first + i, key) for first, n, key in to_keyed_runs(keyed) for i in range(n)]
    assert sorted(flat) == sorted(keyed)
    assert [key for key, _ in itertools.groupby(key for _, key in flat)] == list(dict.fromkeys(k for _, k in keyed))


def test_neighbours_are_a_run_a_key() -> None:
    interleaved = [(n, 1 + n % 2) for n in (10, 11, 12, 13)]
    assert to_keyed_runs(interleaved) == [(10, 1, 1), (12, 1, 1), (11, 1, 2), (13, 1, 2)]
    assert to_keyed_runs((n, 5) for n in range(10, 74)) == [(10, 64, 5)]


def test_runs_are_read_with_and_without_keys() -> None:
    assert read_keyed([[1, 64], [70, 2, 9]]) == [(1, 64, 0), (70, 2, 9)]


def test_a_run_without_a_key_is_written_as_one() -> None:
    """As infer processes read it that know of no keys, and classifiers always do."""
    assert write_keyed([(1, 64, 0), (70, 2, 9), (80, 3)]) == [(1, 64), (70, 2, 9), (80, 3)]
    assert read_keyed(write_keyed([(1, 64, 0), (70, 2, 9)])) == [(1, 64, 0), (70, 2, 9)]
