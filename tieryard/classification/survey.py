"""One pass over a table before a run: how many rows there are, how many texts that differ, and whether each truth can
be met. Nothing is kept of a row but, of some drawn by chance, its text."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from tieryard.classification.saving import BETWEEN
from tieryard.classification.tables import Batch, Table, check_column, text_of
from tieryard.errors import UserError

MOST_DRAWN = 1000
"""Texts that are kept. How many differ in all is then told with a standard error of 3 % (Beyer 2007, SIGMOD, §4)."""
_MOST_DRAWN_CHARS = 8 * 2**20
_LEAST_DRAWN = 30
_HASHES = 2**64


@dataclass(frozen=True, slots=True)
class RowRead:
    """A row with something to ask about: its text, and the labels that it should get, if that is known."""

    text: str
    truth: tuple[str, ...] | None = None

    def line(self, *, several: bool) -> bytes:
        """As it is sent."""
        said: dict[str, Any] = {"text": self.text}
        if self.truth is not None:
            said["truth"] = list(self.truth) if several else self.truth[0]
        return orjson.dumps(said) + b"\n"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a table's rows are read: which column is asked about, and which has the truth. `several`: a row may have
    more labels than one, or none."""

    column: str
    truth: str | None = None
    several: bool = False

    def rows(self, batch: Batch) -> list[RowRead | None]:
        """One for each row; None where its text is empty: there is nothing to ask."""
        texts = [text_of(value) for value in batch.values(self.column)]
        truths = batch.values(self.truth) if self.truth is not None else [None] * len(texts)
        return [
            None if text is None else RowRead(text, truth_of(truth, several=self.several))
            for text, truth in zip(texts, truths, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a table holds. `rows` are all, of which `empty` have no text; `texts` are those that differ, exactly where
    `counted`, else estimated; `drawn` is a sample of these, in the order of chance; `with_truth` rows have one."""

    columns: tuple[str, ...]
    rows: int
    empty: int
    texts: int
    counted: bool
    drawn: tuple[str, ...]
    with_truth: int

    @property
    def asked(self) -> int:
        """Rows that are sent."""
        return self.rows - self.empty


def survey(table: Table, reading: Reading, labels: Collection[str]) -> Survey:
    """Raises UserError for a column that is not there, and with the row for what could not be sent."""
    if table.columns:
        _check(table, table.columns, reading)
    known, draw = frozenset(labels), _Draw()
    columns: dict[str, None] = dict.fromkeys(table.columns)
    rows = empty = with_truth = 0
    for batch in table.batches():
        if not table.columns:
            columns |= dict.fromkeys(name for row in batch.objects() for name in row)
        for read in reading.rows(batch):
            rows += 1
            if read is None:
                empty += 1
                continue
            draw.add(read.text)
            _check_row(table, reading, rows, read, known)
            with_truth += read.truth is not None
    if not rows:
        raise UserError(f"{table.path}: has no rows")
    if not table.columns:
        _check(table, tuple(columns), reading)
    if empty == rows:
        raise UserError(f"--column {reading.column}: no row of {table.path} has a text there")
    texts = min(draw.texts, rows - empty)
    return Survey(tuple(columns), rows, empty, texts, draw.counted, tuple(draw.drawn()), with_truth)


def truth_of(value: Any, *, several: bool) -> tuple[str, ...] | None:
    """A cell as labels; None for an empty one. Of several they are a list, JSON, or stand between `|`; an empty list
    says that it has none."""
    if isinstance(value, list | tuple) and several:
        return tuple(str(one) for one in value)
    text = text_of(value)
    if text is None:
        return None
    if not several:
        return (text.strip(),)
    if text.lstrip().startswith("["):
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:
            found = None
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return tuple(found)
    return tuple(one.strip() for one in text.split(BETWEEN) if one.strip())


def _check(table: Table, columns: tuple[str, ...], reading: Reading) -> None:
    check_column(table, columns, reading.column, option="--column")
    if reading.truth is not None:
        check_column(table, columns, reading.truth, option="--truth")


def _check_row(table: Table, reading: Reading, number: int, read: RowRead, known: frozenset[str]) -> None:
    if "\x00" in read.text:
        raise UserError(f"{table.path}: row {number}, {reading.column}: holds a NUL character; take it out")
    unknown = next((one for one in read.truth or () if one not in known), None)
    if unknown is not None:
        raise UserError(f"{table.path}: row {number}, {reading.truth}: '{unknown[:100]}' is none of the labels")


@dataclass(slots=True)
class _Draw:
    """The texts whose hashes are the smallest: as likely each text as any other, however often it stands there. By the
    largest of these hashes all that differ are counted: k − 1 of them in so much of the whole range."""

    _heap: list[tuple[int, str]] = field(default_factory=list)
    _kept: set[int] = field(default_factory=set)
    _chars: int = 0
    counted: bool = True

    def add(self, text: str) -> None:
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        if number in self._kept or (not self.counted and number > -self._heap[0][0]):
            return
        heapq.heappush(self._heap, (-number, text))
        self._kept.add(number)
        self._chars += len(text)
        while len(self._heap) > MOST_DRAWN or (self._chars > _MOST_DRAWN_CHARS and len(self._heap) > _LEAST_DRAWN):
            largest, gone = heapq.heappop(self._heap)
            self._kept.discard(-largest)
            self._chars -= len(gone)
            self.counted = False

    @property
    def texts(self) -> int:
        n = len(self._heap)
        return n if self.counted else round((n - 1) * _HASHES / -self._heap[0][0])

    def drawn(self) -> Iterator[str]:
        return (text for _, text in sorted(self._heap, reverse=True))
