"""Writes rows with the columns that a run has added, as CSV, JSON lines or Parquet, whatever they were read from. The
file is whole or not there: it takes its name when its last row is written."""

from __future__ import annotations

import contextlib
import csv
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from tieryard.classification.tables import (
    ArrowRows,
    Batch,
    JsonRows,
    Table,
    TextRows,
    arrow,
    kind_of,
    parquet,
    plain_text,
)
from tieryard.errors import UserError

Type = Literal["text", "texts", "number", "count", "money"]
"""Of a column that is added. `texts` is a list; money has twelve decimals in Parquet, and is text in JSON."""

Added = Mapping[str, Sequence[Any]]
"""Columns by name, with a value for each row of a batch."""

BETWEEN = "|"
"""Stands between the labels of one cell of CSV."""
_PARTLY = ".part"
_MONEY_DIGITS = (38, 12)


class Writer(ABC):
    """Takes batches of rows in their order."""

    @abstractmethod
    def write(self, batch: Batch, added: Added) -> None: ...

    def close(self) -> None:  # noqa: B027  # most have nothing left to do
        """All rows were written."""


class Saving:
    """How the rows of a table are to be written. Making one finds whatever would be wrong with it: before a run, not
    after. `columns` are those of the whole table. Raises UserError."""

    def __init__(self, table: Table, columns: Sequence[str], out: Path, added: Mapping[str, Type]) -> None:
        self.out, self.added, self._table, self._columns = out, dict(added), table, tuple(columns)
        self._kind = kind_of(out)
        if twins := [name for name in added if name in columns]:
            raise UserError(
                f"{table.path} has a column '{twins[0]}' already; name the new ones apart, such as --prefix predicted_"
            )
        folder = out.absolute().parent
        if not folder.is_dir():
            raise UserError(f"{out}: there is no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise UserError(f"{out}: {folder} cannot be written to")
        if out.exists() and out.samefile(table.path):
            raise UserError(f"{out}: is the file that is read; give --out another name")
        self._schema = self._arrow_schema() if self._kind == "parquet" else None

    @contextlib.contextmanager
    def open(self) -> Iterator[Writer]:
        """A writer. The file is there, under its name, once the block has ended well."""
        partly = self.out.with_name(f".{self.out.name}{_PARTLY}")
        try:
            with partly.open("wb") as file:
                writer = self._writer(file)
                yield writer
                writer.close()
                file.flush()
                os.fsync(file.fileno())
            partly.replace(self.out)
        except OSError as error:
            raise UserError(f"{self.out}: cannot be written ({error.strerror})") from None
        finally:
            partly.unlink(missing_ok=True)

    def _writer(self, file: IO[bytes]) -> Writer:
        if self._kind == "parquet":
            return _ParquetWriter(file, self._schema, self.added)
        if self._kind == "jsonl":
            return _JsonWriter(file)
        return _CsvWriter(file, self._table, self._columns, self.added, tabs=self.out.suffix.lower() == ".tsv")

    def _arrow_schema(self) -> Any:
        """The input's own, where it has one; else its columns are text, or what JSON makes of them."""
        pa = arrow()
        if self._table.kind == "parquet":
            schema = parquet().read_schema(self._table.path)
        elif self._table.kind == "csv":
            schema = pa.schema([(name, pa.string()) for name in self._columns])
        else:
            schema = _json_schema(self._table)
        for name, kind in self.added.items():
            schema = schema.append(pa.field(name, _arrow_type(kind)))
        return schema


class _CsvWriter(Writer):
    def __init__(
        self, file: IO[bytes], table: Table, columns: Sequence[str], added: Mapping[str, Type], *, tabs: bool
    ) -> None:
        self._file, self._columns, dialect = _Encoded(file), columns, table.dialect
        delimiter = "\t" if tabs else dialect.delimiter
        self._csv = csv.writer(self._file, delimiter=delimiter, lineterminator=dialect.line_end)
        if dialect.has_mark:
            file.write(b"\xef\xbb\xbf")
        self._csv.writerow([*columns, *added])

    def write(self, batch: Batch, added: Added) -> None:
        more = [[_cell(value) for value in values] for values in added.values()]
        if isinstance(batch, TextRows):
            rows = batch.rows
        else:
            rows = [[_cell(row.get(name)) for name in self._columns] for row in batch.objects()]
        self._csv.writerows([*row, *cells] for row, *cells in zip(rows, *more, strict=True))


class _Encoded:
    """What `csv` writes to: bytes, with no buffer of text that would have to be flushed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())


class _JsonWriter(Writer):
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, batch: Batch, added: Added) -> None:
        more = [dict(zip(added, values, strict=True)) for values in zip(*added.values(), strict=True)]
        if isinstance(batch, JsonRows):
            lines = (_joined(line, extra) for line, extra in zip(batch.lines, more, strict=True))
        else:
            lines = (_dumped(row | extra) for row, extra in zip(batch.objects(), more, strict=True))
        self._file.writelines(line + b"\n" for line in lines)


class _ParquetWriter(Writer):
    def __init__(self, file: IO[bytes], schema: Any, added: Mapping[str, Type]) -> None:
        self._pa, self._schema, self._added = arrow(), schema, added
        self._parquet = parquet().ParquetWriter(file, schema)
        self._own = self._pa.schema(list(schema)[: len(schema) - len(added)])
        self._waiting: list[Any] = []
        self._rows = 0

    def write(self, batch: Batch, added: Added) -> None:
        pa = self._pa
        rows = batch.batch if isinstance(batch, ArrowRows) else self._batch(batch)
        columns = [*rows.columns, *(pa.array(added[n], type=_arrow_type(kind)) for n, kind in self._added.items())]
        self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._rows += len(batch)
        if self._rows >= _GROUP_ROWS or sum(one.nbytes for one in self._waiting) >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._parquet.close()

    def _batch(self, batch: Batch) -> Any:
        """Of rows that have no types of their own. One may lack a column."""
        pa = self._pa
        objects = batch.objects()
        columns = [pa.array([row.get(f.name) for row in objects], type=f.type) for f in self._own]
        return pa.RecordBatch.from_arrays(columns, schema=self._own)

    def _flush(self) -> None:
        """As one row group: small ones make readers slow."""
        if self._waiting:
            self._parquet.write_table(self._pa.Table.from_batches(self._waiting))
        self._waiting, self._rows = [], 0


_GROUP_ROWS = 20_000
_GROUP_BYTES = 16 * 2**20


def _json_schema(table: Table) -> Any:
    """What all lines have in common. Raises UserError where a column is of kinds that have nothing in common."""
    pa = arrow()
    schema = pa.schema([])
    for batch in table.batches():
        for name in dict.fromkeys(name for row in batch.objects() for name in row):
            try:
                found = pa.array(batch.values(name)).type
                both = [pa.schema([(name, kind)]) for kind in (*_type_of(schema, name), found)]
                kind = pa.unify_schemas(both, promote_options="permissive").field(name).type
            except (pa.ArrowException, OverflowError) as error:
                raise UserError(
                    f"{table.path}: '{name}' is of several kinds, which a column of Parquet cannot hold "
                    f"({str(error).splitlines()[0]}); write --out as .jsonl"
                ) from None
            at = schema.get_field_index(name)
            one = pa.field(name, kind)
            schema = schema.append(one) if at < 0 else schema.set(at, one)
    return pa.schema([pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in schema])


def _type_of(schema: Any, name: str) -> list[Any]:
    return [schema.field(name).type] if schema.get_field_index(name) >= 0 else []


def _arrow_type(kind: Type) -> Any:
    pa = arrow()
    return {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "number": pa.float64(),
        "count": pa.int64(),
        "money": pa.decimal128(*_MONEY_DIGITS),
    }[kind]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return BETWEEN.join(value)
    return plain_text(value)


def _joined(line: bytes, extra: dict[str, Any]) -> bytes:
    """The line as it stands, with more members: numbers of any length and the order of members stay what they were."""
    body = line[:-1].rstrip()
    return body + (b"" if body == b"{" else b",") + _dumped(extra)[1:]


def _dumped(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, default=_jsonable)


def _jsonable(value: Any) -> Any:
    return f"{value:f}" if isinstance(value, Decimal) else plain_text(value)
