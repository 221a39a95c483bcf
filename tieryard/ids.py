"""Ids: bigints inside, worded outside; and runs, the compact way to name many of them.

A parcel names jobs as runs `[first, n]`. A batch's jobs have contiguous ids, so 64 of them are one run. On their way
to an engine runs are keyed: jobs of one run begin with the same prefix.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from tieryard.errors import NotFoundError

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


def cut(runs: Iterable[Run], size: int) -> Iterator[list[Run]]:
    """Cuts runs into lists of at most `size` ids each, in order."""
    piece: list[Run] = []
    room = size
    for first, n in runs:
        while n > 0:
            take = min(n, room)
            piece.append((first, take))
            first, n, room = first + take, n - take, room - take
            if room == 0:
                yield piece
                piece, room = [], size
    if piece:
        yield piece


def cut_by_key(keyed: Iterable[tuple[int, int]], size: int) -> Iterator[list[KeyedRun]]:
    """Runs of these (id, key), cut into lists of at most `size` ids each: those of one key stand together, keys in the
    order in which they come first here."""
    members: dict[int, set[int]] = {}
    for number, key in keyed:
        members.setdefault(key, set()).add(number)
    ordered = [(number, key) for key, numbers in members.items() for number in sorted(numbers)]
    for piece in (ordered[i : i + size] for i in range(0, len(ordered), size)):
        alike = itertools.groupby(piece, key=lambda pair: pair[1])
        yield [(first, n, key) for key, pairs in alike for first, n in to_runs(number for number, _ in pairs)]
