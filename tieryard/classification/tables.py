"""Files of rows, read a small piece at a time: CSV, JSON lines and Parquet. What is read keeps what it was: a cell of
CSV is text, a JSON line stays the line it was, and a Parquet column keeps its type."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import orjson

from tieryard.errors import UserError

Kind = Literal["csv", "jsonl", "parquet"]

KINDS: dict[str, Kind] = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip

_MOST_ROWS = 1000
_MOST_BYTES = 2**20
"""Of a batch: whichever is reached first ends it."""
_MOST_CELL_CHARS = 16 * 2**20
_HEAD_BYTES = 2**16
_DELIMITERS = ",;\t"
_PARQUET_BUFFER_BYTES = 2**18
_MOST_NAMED = 12  # columns that an error lists


class Batch(Protocol):
    """Some rows that follow each other."""

    def __len__(self) -> int: ...

    def values(self, column: str) -> list[Any]:
        """A column's values; None where a row has none."""

    def objects(self) -> list[dict[str, Any]]:
        """The rows by column, as Python has them."""

    def only(self, at: Sequence[int]) -> Self:
        """These rows of it, by their place."""


@dataclass(frozen=True, slots=True)
class TextRows:
    """Of CSV: every cell is text."""

    columns: tuple[str, ...]
    rows: list[list[str]]

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, column: str) -> list[Any]:
        at = self.columns.index(column)
        return [row[at] for row in self.rows]

    def objects(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def only(self, at: Sequence[int]) -> TextRows:
        return TextRows(self.columns, [self.rows[i] for i in at])


@dataclass(frozen=True, slots=True)
class JsonRows:
    """Of JSON lines: `lines` are as they stand in the file, `found` what they say."""

    lines: list[bytes]
    found: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.lines)

    def values(self, column: str) -> list[Any]:
        return [row.get(column) for row in self.found]

    def objects(self) -> list[dict[str, Any]]:
        return self.found

    def only(self, at: Sequence[int]) -> JsonRows:
        return JsonRows([self.lines[i] for i in at], [self.found[i] for i in at])


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """Of Parquet: a `pyarrow.RecordBatch`."""

    batch: Any

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def values(self, column: str) -> list[Any]:
        found: list[Any] = self.batch.column(column).to_pylist()
        return found

    def objects(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.batch.to_pylist()
        return found

    def only(self, at: Sequence[int]) -> ArrowRows:
        return ArrowRows(self.batch.take(arrow().array(at, "int64")))


@dataclass(frozen=True, slots=True)
class CsvDialect:
    """How a CSV file is written, so that what comes of it is written alike."""

    delimiter: str = ","
    line_end: str = "\n"
    has_mark: bool = False
    """Whether it begins with a byte order mark, without which Excel takes UTF-8 for something else."""

    @property
    def encoding(self) -> str:
        return "utf-8-sig" if self.has_mark else "utf-8"


@dataclass(frozen=True, slots=True)
class Table:
    """A file of rows, which can be read again and again. Of JSON lines the columns are not known before all was read:
    `columns` is empty."""

    path: Path
    kind: Kind
    columns: tuple[str, ...] = ()
    dialect: CsvDialect = field(default_factory=CsvDialect)

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """All rows from row `first` (from 0), in batches of a bounded size. Raises UserError by the row or line at
        fault."""
        for batch in _READERS[self.kind](self):
            if first >= len(batch):
                first -= len(batch)
            elif first:
                yield batch.only(range(first, len(batch)))
                first = 0
            else:
                yield batch


def open_table(path: Path) -> Table:
    """Raises UserError for a file that is none of these, or has no header."""
    kind = kind_of(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if kind == "jsonl":
        return Table(path, kind)
    if kind == "parquet":
        return Table(path, kind, _unique(path, tuple(_parquet(path).schema_arrow.names)))
    dialect = _dialect(path, head)
    header = next(_cells(path, dialect), None)
    if not header:
        raise UserError(f"{path}: has no header; the first line names the columns")
    return Table(path, kind, _unique(path, tuple(header)), dialect)


def kind_of(path: Path) -> Kind:
    """By the file's name. Raises UserError."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: its name says not what it is; expected one that ends with {', '.join(KINDS)}")
    return kind


def check_column(table: Table, columns: Sequence[str], name: str, *, option: str) -> None:
    """Raises UserError that names the columns there are."""
    if name in columns:
        return
    known = ", ".join(columns[:_MOST_NAMED]) + (", …" if len(columns) > _MOST_NAMED else "")
    raise UserError(f"{option} {name}: {table.path} has no such column; it has {known or 'none'}")


def text_of(value: Any) -> str | None:
    """A cell as the text that is asked about; None for one that says nothing."""
    if value is None:
        return None
    text = value if isinstance(value, str) else plain_text(value)
    return text if text.strip() else None


def plain_text(value: Any) -> str:
    """A value as text, such as a cell of CSV: lists and objects as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool | int | float | list | dict):
        return orjson.dumps(value, default=plain_text).decode()
    return str(value)


def arrow() -> Any:
    """pyarrow. Raises UserError where it is not installed."""
    return _import("pyarrow")


def parquet() -> Any:
    """`pyarrow.parquet`. Raises UserError where it is not installed."""
    return _import("pyarrow.parquet")


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install 'tieryard[parquet]'") from None


# --- CSV --------------------------------------------------------------------------------------------------------------


def _dialect(path: Path, head: bytes) -> CsvDialect:
    """By its first line: what of `,`, `;` and tab stands there most often, and how it ends."""
    line, end, _ = head.partition(b"\n")
    tabs = path.suffix.lower() == ".tsv"
    delimiter = "\t" if tabs else max(_DELIMITERS, key=lambda mark: line.count(mark.encode()))
    line_end = "\r\n" if end and line.endswith(b"\r") else "\n"
    return CsvDialect(delimiter, line_end, has_mark=head.startswith(b"\xef\xbb\xbf"))


def _cells(path: Path, dialect: CsvDialect) -> Iterator[list[str]]:
    """Every line's cells, less blank lines. Raises UserError with the line."""
    csv.field_size_limit(_MOST_CELL_CHARS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=dialect.delimiter, strict=True)
        try:
            yield from filter(None, reader)
        except csv.Error as error:
            raise UserError(f"{path}: {error}; a cell with quotes, commas or line ends stands in quotes, and quotes "
                            "within it are doubled", line=reader.line_num) from None  # fmt: skip
        except UnicodeDecodeError:
            raise UserError(f"{path}: is not UTF-8; save it as UTF-8", line=reader.line_num + 1) from None


def _read_csv(table: Table) -> Iterator[TextRows]:
    rows: list[list[str]] = []
    size, width = 0, len(table.columns)
    found = _cells(table.path, table.dialect)
    next(found, None)  # the header
    for number, row in enumerate(found, start=1):
        if len(row) != width:
            raise UserError(
                f"{table.path}: row {number} has {len(row)} cells, and the header {width}; a text with "
                f"{table.dialect.delimiter!r} in it stands in quotes"
            )
        rows.append(row)
        size += sum(map(len, row))
        if len(rows) == _MOST_ROWS or size > _MOST_BYTES:
            yield TextRows(table.columns, rows)
            rows, size = [], 0
    if rows:
        yield TextRows(table.columns, rows)


# --- JSON lines -------------------------------------------------------------------------------------------------------


def _read_jsonl(table: Table) -> Iterator[JsonRows]:
    lines: list[bytes] = []
    found: list[dict[str, Any]] = []
    size = 0
    with table.path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).strip()
            if not line:
                continue
            found.append(_object(table.path, number, line))
            lines.append(line)
            size += len(line)
            if len(lines) == _MOST_ROWS or size > _MOST_BYTES:
                yield JsonRows(lines, found)
                lines, found, size = [], [], 0
    if lines:
        yield JsonRows(lines, found)


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON: {error.msg}; one object a line", line=number) from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected one object a line", line=number)
    return found


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> Any:
    """Read through a small buffer: a file may be one single row group of any size."""
    pa = arrow()
    try:
        return parquet().ParquetFile(path, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {_first_line(error)}") from None


def _read_parquet(table: Table) -> Iterator[ArrowRows]:
    pa = arrow()
    with _parquet(table.path) as file:
        try:
            for batch in file.iter_batches(batch_size=_MOST_ROWS, use_threads=False):
                yield from _bounded(batch)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{table.path}: cannot be read as Parquet: {_first_line(error)}") from None


def _bounded(batch: Any) -> Iterator[ArrowRows]:
    """In pieces, where its rows are long."""
    pieces = max(1, min(batch.num_rows, batch.nbytes // _MOST_BYTES))
    step = max(1, -(-batch.num_rows // pieces))
    for first in range(0, batch.num_rows, step):
        yield ArrowRows(batch.slice(first, step))


def _first_line(error: Exception) -> str:
    return next(chain(str(error).splitlines(), [type(error).__name__]))


def _unique(path: Path, columns: tuple[str, ...]) -> tuple[str, ...]:
    twins = [name for name in columns if columns.count(name) > 1]
    if twins:
        raise UserError(f"{path}: the column '{twins[0]}' stands twice; rename one")
    return columns


_READERS: dict[Kind, Callable[[Table], Iterator[Any]]] = {
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
