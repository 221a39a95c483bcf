"""Reports as files: CSV, and Parquet with exact decimals. Needs the extra `parquet` for the latter."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from importlib import import_module
from typing import Any

from tieryard.costs.reporting import Dimension
from tieryard.errors import RequestError

_DIGITS = 38
"""Of a decimal128."""
_PLACES = 12
"""Of the ledger's amounts. A row that has more gets more, and nothing is rounded."""
_DECIMALS = frozenset({"usd", "hours", "share", "score"})
_COUNTS = frozenset({"jobs", "succeeded", "tokens", "windows", "scored"})
"""By a part of a column's name, so that a file of no rows has the same types as any other."""

Row = Mapping[str, Any]


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    """A header, then a line for each row; amounts exact and without an exponent, what is not known empty. What a
    spreadsheet would take for a formula is quoted by an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return text.getvalue().encode()


def as_parquet(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    """Amounts, hours, shares and scores are decimal128, days date32, counts int64, the rest text. Raises RequestError
    without pyarrow."""
    try:
        pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise RequestError("Parquet needs pyarrow: pip install 'tieryard[parquet]'", param="format") from None
    fields = [(name, _kind(pa, name, [row[name] for row in rows])) for name in columns]
    arrays = [pa.array([_value(name, row[name]) for row in rows], type=kind) for name, kind in fields]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), sink)
    return sink.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return f"{value:f}"
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _value(name: str, value: Any) -> Any:
    return date.fromisoformat(value) if name == Dimension.DAY and value is not None else value


def _kind(pa: Any, name: str, values: Sequence[Any]) -> Any:
    parts = name.split("_")
    if name == Dimension.DAY:
        return pa.date32()
    if not _DECIMALS.isdisjoint(parts):
        exponents = [int(value.as_tuple().exponent) for value in values if value is not None]
        return pa.decimal128(_DIGITS, max([_PLACES, *(-exponent for exponent in exponents)]))
    return pa.int64() if parts[-1] in _COUNTS else pa.string()
