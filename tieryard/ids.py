"""Ids: bigints inside, worded outside; and runs, the compact way to name many of them.

A parcel names jobs as runs `[first, n]`. A batch's jobs have contiguous ids, so 64 of them are one run. On their way
to an engine runs are keyed: jobs of one run begin with the same prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from tieryard.errors import NotFoundError

_T = TypeVar("_T")

Run = tuple[int, int]
"""`(first, n)`: the ids first … first + n - 1."""

KeyedRun = tuple[int, int, int]
"""`(first, n, key)`: a run of jobs whose prompts begin alike, by their prefix key; 0 is none."""


def public(kind: str, number: int) -> str:
    """`public("job", 7)` → `"job_7"`."""
    return f"{kind}_{number}"


def internal(kind: str, text: str) -> int:
    """The number behind a public id. Raises NotFoundError for anything that cannot be one."""
    prefix, _, digits = text.partition("_")
    if prefix != kind or not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise NotFoundError(f"no {kind} '{text}'", param=kind)
    return int(digits)


def draw(number: int) -> float:
    """A job's own chance, 0 to 1: spread evenly over ids that follow each other (Fibonacci hashing)."""
    return float(((number * 0x9E3779B97F4A7C15) & 0xFFFF_FFFF_FFFF_FFFF) >> 40) / (1 << 24)


def to_runs(ids: Iterable[int]) -> list[Run]:
    """Sorted, merged runs of these ids; duplicates fall together."""
    runs: list[Run] = []
    for number in sorted(set(ids)):
        if runs and runs[-1][0] + runs[-1][1] == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def from_runs(runs: Iterable[Run]) -> Iterator[int]:
    for first, n in runs:
        yield from range(first, first + n)


def read_keyed(runs: Iterable[Sequence[int]]) -> list[KeyedRun]:
    """Runs as a message holds them; one without a key has none."""
    return [(run[0], run[1], run[2] if len(run) > 2 else 0) for run in runs]


def write_keyed(runs: Iterable[Run | KeyedRun]) -> list[Run | KeyedRun]:
    """Runs as a message holds them: without a key where there is none, as those who know of no keys read them."""
    return [run[:2] if run[2:] == (0,) else run for run in runs]


def pieces(members: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of at most `size` of these each, in order."""
    ordered = list(members)
    return (ordered[i : i + size] for i in range(0, len(ordered), size))


def to_keyed_runs(keyed: Iterable[tuple[int, int]]) -> list[KeyedRun]:
    """Runs of these (id, key): those of one key stand together, keys in the order in which they come first here."""
    members: dict[int, list[int]] = {}
    for number, key in keyed:
        members.setdefault(key, []).append(number)
    return [(first, n, key) for key, numbers in members.items() for first, n in to_runs(numbers)]
