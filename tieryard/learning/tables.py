"""Tables of outcomes: a CSV file with one prompt a row and, for each model, the score that it reached, 0–1.

A file that cannot be trusted is refused with the line and the column: a model that learned from a slipped column would
look like any other.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tieryard.errors import UserError

PROMPT = "prompt"
_LONGEST_CELL = 10_000_000  # characters; csv's own limit is 131,072, less than a long prompt
_SHOWN = 40
_NOT_WORDS = re.compile(r"\W+")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of equal length: `scores[model][row]`, and `categories` and `groups` where the columns were asked for."""

    source: str
    prompts: list[str]
    scores: dict[str, list[float]]
    categories: list[str] | None = None
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def category(self, row: int) -> str | None:
        return self.categories[row] if self.categories is not None else None


def read_table(
    path: Path,
    columns: dict[str, str],
    *,
    prompt: str = PROMPT,
    category: str | None = None,
    group: str | None = None,
) -> Table:
    """`columns`: a model's name for each column of scores. Raises UserError with line and column for anything wrong."""
    wanted = [prompt, *columns, *(c for c in (category, group) if c is not None)]
    table = Table(
        path.name,
        [],
        {name: [] for name in columns.values()},
        [] if category is not None else None,
        [] if group is not None else None,
    )
    for line, row in _rows(path, wanted):
        table.prompts.append(_prompt(row[prompt], prompt, line))
        for column, name in columns.items():
            table.scores[name].append(_score(row[column], column, line))
        if table.categories is not None and category is not None:
            table.categories.append(row[category])
        if table.groups is not None and group is not None:
            table.groups.append(row[group])
    return table


def read_prompts(path: Path, *, prompt: str = PROMPT, category: str | None = None) -> Table:
    """The prompts, and the categories where asked for; whatever else the file holds is not looked at."""
    return read_table(path, {}, prompt=prompt, category=category)


def normalized(prompt: str) -> str:
    """Equal for prompts that differ in case, spaces and marks only: such must not stand on both sides of a fold."""
    return _NOT_WORDS.sub(" ", prompt.lower()).strip()


def _rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(first line, cells of the wanted columns) for each row."""
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    try:
        header = next((row for row in reader if row), None)
        if header is None:
            raise UserError(f"{path.name} is empty; it needs a header line and rows", line=1)
        places = _places(header, wanted, reader.line_num)
        rows = 0
        line = reader.line_num + 1
        for row in reader:
            if row:
                _check_width(row, header, line)
                yield line, {name: row[at] for name, at in places.items()}
                rows += 1
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path.name} is no CSV: {error}; mind the quotes", line=line) from None
    if not rows:
        raise UserError(f"{path.name} has a header and no rows", line=line)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        at = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise UserError(f"{path.name} is not UTF-8 (byte {at} of the line); save it as UTF-8", line=line) from None


_NO_COMMAS = {";": "';'", "\t": "tabs"}
"""What spreadsheets write in place of commas, and its name."""


def _places(header: list[str], wanted: Sequence[str], line: int) -> dict[str, int]:
    for name in wanted:
        if name not in header:
            why = f"there is no such column; there are {', '.join(header)}"
            if len(header) == 1 and (mark := next((m for m in _NO_COMMAS if m in header[0]), None)):
                why += f", separated by {_NO_COMMAS[mark]}: save it with commas"
            raise UserError(why, param=_column(name), line=line)
        if header.count(name) > 1:
            raise UserError("the header has it more than once", param=_column(name), line=line)
    return {name: header.index(name) for name in wanted}


def _check_width(row: list[str], header: list[str], line: int) -> None:
    if len(row) < len(header):
        missing = header[len(row)]
        raise UserError(
            f"the row ends too early: {len(row)} of {len(header)} columns", param=_column(missing), line=line
        )
    if len(row) > len(header):
        raise UserError(
            f"the row has {len(row)} columns, the header {len(header)}; mind the quotes",
            param=_column(header[-1]),
            line=line,
        )


def _prompt(cell: str, column: str, line: int) -> str:
    if not cell.strip():
        raise UserError("the prompt is empty", param=_column(column), line=line)
    return cell


def _score(cell: str, column: str, line: int) -> float:
    shown = cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}…"
    try:
        value = float(cell)
    except ValueError:
        raise UserError(f"'{shown}' is no number; a score is 0 to 1", param=_column(column), line=line) from None
    if not 0 <= value <= 1:  # also what is not a number, and infinity
        raise UserError(f"{shown} is outside 0 to 1", param=_column(column), line=line)
    return value


def _column(name: str) -> str:
    return f"column '{name}'"
