"""Tables: rows are read in pieces of a bounded size, and written again as they were, with columns that were added."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.classification.saving import Saving, Type
from tieryard.classification.tables import Batch, check_column, open_table, text_of
from tieryard.errors import UserError

LABEL: dict[str, Type] = {"label": "text", "confidence": "number", "cost_usd": "money"}


def columns_of(path: Path) -> list[str]:
    return list(dict.fromkeys(name for batch in open_table(path).batches() for row in batch.objects() for name in row))


def labelled(batch: Batch, added: dict[str, Type], label: str | None = "bug") -> dict[str, list[Any]]:
    values = {"text": label, "number": 0.5, "money": Decimal("0.000001"), "texts": ["bug", "slow"], "count": 7}
    return {name: [values[kind]] * len(batch) for name, kind in added.items()}


def copied(source: Path, out: Path, added: dict[str, Type] = LABEL, label: str | None = "bug") -> Path:
    """The file with every row labelled."""
    table = open_table(source)
    with Saving(table, table.columns or columns_of(source), out, added).open() as writer:
        for batch in table.batches():
            writer.write(batch, labelled(batch, added, label))
    return out


def saved(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# CSV


def test_cells_of_csv_stay_what_they_were(tmp_path: Path) -> None:
    source = saved(tmp_path, "a.csv", 'id,text,n\n007,"one, ""two""\nthree",1.50\n8,,\n')
    assert copied(source, tmp_path / "out.csv").read_text() == (
        'id,text,n,label,confidence,cost_usd\n007,"one, ""two""\nthree",1.50,bug,0.5,0.000001\n8,,,bug,0.5,0.000001\n'
    )


def test_a_csv_is_written_with_the_marks_it_had(tmp_path: Path) -> None:
    source = saved(tmp_path, "a.csv", b"\xef\xbb\xbfid;text\r\n1;a, b\r\n")
    assert open_table(source).columns == ("id", "text")
    assert copied(source, tmp_path / "out.csv", {"label": "text"}).read_bytes() == (
        b"\xef\xbb\xbfid;text;label\r\n1;a, b;bug\r\n"
    )
    tabs = copied(source, tmp_path / "out.tsv", {"label": "text"})
    assert tabs.read_bytes().endswith(b"id\ttext\tlabel\r\n1\ta, b\tbug\r\n")
    assert open_table(tabs).columns == ("id", "text", "label")


@given(
    rows=st.lists(st.lists(st.text(st.characters(blacklist_categories=["Cs"])), min_size=2, max_size=2), max_size=30)
)
def test_any_csv_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = folder / "a.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    out = copied(source, folder / "out.csv", {"label": "text"})
    with out.open(newline="") as file:
        assert list(csv.reader(file)) == [["id", "text", "label"], *([*row, "bug"] for row in rows)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no header"),
        ("a,a\n1,2\n", "the column 'a' stands twice"),
        ("a,b\n1,2\n1\n", "row 2 has 1 cells, and the header 2"),
        ("a,b\n1,2,3\n", "row 1 has 3 cells, and the header 2"),
        ('a,b\n1,"2\n', "line 2: "),
        (b"a,b\n1,\xff\n", "is not UTF-8; save it as UTF-8"),
    ],
)
def test_a_csv_that_is_refused(tmp_path: Path, content: str | bytes, said: str) -> None:
    source = saved(tmp_path, "a.csv", content)
    with pytest.raises(UserError) as error:
        list(open_table(source).batches())
    assert said in str(error.value)
    assert str(source) in str(error.value)


# JSON lines


def test_json_lines_stay_what_they_were(tmp_path: Path) -> None:
    lines = ['{"n": 123456789012345678901234567890, "text":"é"}', "{ }", '{"text": "x", "deep": {"a": [1.0]}}']
    source = saved(tmp_path, "a.jsonl", "\n".join(["", *lines, ""]))
    added = ', "label":"bug","confidence":0.5,"cost_usd":"0.000001"}'.replace(", ", ",")
    assert copied(source, tmp_path / "out.jsonl").read_text().splitlines() == [
        lines[0][:-1] + added,
        "{" + added[1:],
        lines[2][:-1] + added,
    ]


@pytest.mark.parametrize("line", ["[1]", "{", '"a"', "{'a': 1}", "NaN"])
def test_a_line_that_is_no_object_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    source = saved(tmp_path, "a.jsonl", '{"a": 1}\n\n' + line + "\n")
    with pytest.raises(UserError) as error:
        list(open_table(source).batches())
    assert str(error.value).startswith("line 3: ")


def test_json_lines_as_csv_and_parquet(tmp_path: Path) -> None:
    source = saved(
        tmp_path,
        "a.jsonl",
        '{"text": "a", "n": 1, "tags": ["x", "y"]}\n{"n": 2.5, "on": true}\n{"text": null, "deep": {"k": 1}}\n',
    )
    with copied(source, tmp_path / "out.csv", {"label": "text"}).open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["text", "n", "tags", "on", "deep", "label"],
            ["a", "1", "x|y", "", "", "bug"],
            ["", "2.5", "", "true", "", "bug"],
            ["", "", "", "", '{"k":1}', "bug"],
        ]
    found = pq.read_table(copied(source, tmp_path / "out.parquet")).to_pylist()
    assert [row["n"] for row in found] == [1.0, 2.5, None]
    assert [row["tags"] for row in found] == [["x", "y"], None, None]
    assert [row["deep"] for row in found] == [None, None, {"k": 1}]
    assert found[0]["cost_usd"] == Decimal("0.000001")


def test_types_of_json_are_told_by_all_lines(tmp_path: Path) -> None:
    lines = [{"n": i} for i in range(5000)] + [{"n": 0.5, "late": "yes"}]
    source = saved(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    found = pq.read_table(copied(source, tmp_path / "out.parquet"))
    assert str(found.schema.field("n").type) == "double"
    assert found.column("late").to_pylist()[-1] == "yes"
    source.write_text("\n".join(map(json.dumps, [*lines, {"n": "text"}])))
    table = open_table(source)
    with pytest.raises(UserError, match=r"'n' is of several kinds.*write --out as \.jsonl"):
        Saving(table, columns_of(source), tmp_path / "refused.parquet", LABEL)


# Parquet


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    """Types that others lose: decimals, times with a zone, lists, dictionaries, and more than one row group."""
    rows = 2500
    table = pa.table(
        {
            "text": [f"text {i}" if i % 7 else None for i in range(rows)],
            "price": pa.array([Decimal(i).scaleb(-2) for i in range(rows)], pa.decimal128(10, 2)),
            "at": pa.array([datetime(2026, 11, 23, tzinfo=UTC)] * rows, pa.timestamp("us", "Europe/Oslo")),
            "day": pa.array([date(2026, 11, 23)] * rows),
            "tags": [["a", None]] * rows,
            "kind": pa.array(["x", "y"] * (rows // 2)).dictionary_encode(),
            "small": pa.array([i % 100 for i in range(rows)], pa.int8()),
        }
    ).replace_schema_metadata({"who": "tests"})
    path = tmp_path / "typed.parquet"
    pq.write_table(table, path, row_group_size=700)
    return path


def test_types_of_parquet_stay(tmp_path: Path, typed: Path) -> None:
    out = copied(typed, tmp_path / "out.parquet", {**LABEL, "labels": "texts", "row": "count"})
    before, after = pq.read_table(typed), pq.read_table(out)
    assert after.select(before.column_names).equals(before)
    assert after.schema.metadata[b"who"] == b"tests"
    assert after.column_names == [*before.column_names, "label", "confidence", "cost_usd", "labels", "row"]
    assert str(after.schema.field("cost_usd").type) == "decimal128(38, 12)"
    assert after.column("labels")[0].as_py() == ["bug", "slow"]
    assert pq.ParquetFile(out).num_row_groups == 1


def test_parquet_as_json_lines_and_csv(tmp_path: Path, typed: Path) -> None:
    first = orjson.loads(copied(typed, tmp_path / "out.jsonl").read_bytes().splitlines()[1])
    assert first == {
        "text": "text 1", "price": "0.01", "at": "2026-11-23T01:00:00+01:00", "day": "2026-11-23", "tags": ["a", None],
        "kind": "y", "small": 1, "label": "bug", "confidence": 0.5, "cost_usd": "0.000001",
    }  # fmt: skip
    with copied(typed, tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 2501
    assert rows[2][:3] == ["text 1", "0.01", "2026-11-23 01:00:00+01:00"]
    assert rows[2][4] == '["a",null]'


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        open_table(saved(tmp_path, "a.parquet", "id,text\n"))


# All of them


def sources(folder: Path, rows: int) -> Iterator[Path]:
    content = [{"id": str(i), "text": f"row {i}"} for i in range(rows)]
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *(row.values() for row in content)])
    (folder / "a.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in content))
    pq.write_table(pa.Table.from_pylist(content), folder / "a.parquet")
    yield from (folder / f"a.{kind}" for kind in ("csv", "jsonl", "parquet"))


def test_reading_goes_on_from_any_row(tmp_path: Path) -> None:
    for source in sources(tmp_path, 2500):
        table = open_table(source)
        for first in (0, 1, 999, 1000, 1001, 2499, 2500, 9999):
            found = [text for batch in table.batches(first) for text in batch.values("text")]
            assert found == [f"row {i}" for i in range(first, 2500)]


def test_every_kind_becomes_every_other(tmp_path: Path) -> None:
    for source in sources(tmp_path, 2500):
        for end in ("csv", "tsv", "jsonl", "parquet"):
            out = copied(source, tmp_path / f"{source.suffix[1:]}.{end}")
            found = [row for batch in open_table(out).batches() for row in batch.objects()]
            assert [row["text"] for row in found] == [f"row {i}" for i in range(2500)]
            assert {row["label"] for row in found} == {"bug"}
            assert list(found[0]) == ["id", "text", "label", "confidence", "cost_usd"]


def test_batches_are_bounded_by_rows_and_by_bytes(tmp_path: Path) -> None:
    for source in sources(tmp_path, 5000):
        assert max(len(batch) for batch in open_table(source).batches()) <= 1000
    long = [{"id": str(i), "text": "x" * 300_000} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(long), tmp_path / "long.parquet")
    (tmp_path / "long.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in long))
    for name in ("long.parquet", "long.jsonl"):
        batches = list(open_table(tmp_path / name).batches())
        assert sum(map(len, batches)) == 20
        assert max(map(len, batches)) <= 4


def test_rows_of_a_batch_are_picked(tmp_path: Path) -> None:
    for source in sources(tmp_path, 10):
        [batch] = open_table(source).batches()
        assert batch.only([1, 8]).values("text") == ["row 1", "row 8"]


def test_what_there_is_already_is_not_written_over(tmp_path: Path) -> None:
    source = saved(tmp_path, "a.csv", "label,text\nx,y\n")
    table = open_table(source)
    with pytest.raises(UserError, match=r"has a column 'label' already; .* --prefix predicted_"):
        Saving(table, table.columns, tmp_path / "out.csv", LABEL)
    with pytest.raises(UserError, match="is the file that is read"):
        Saving(table, table.columns, source, {"mine": "text"})
    with pytest.raises(UserError, match="there is no folder"):
        Saving(table, table.columns, tmp_path / "none" / "out.csv", {"mine": "text"})
    with pytest.raises(UserError, match="its name says not what it is"):
        Saving(table, table.columns, tmp_path / "out.xlsx", {"mine": "text"})


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    [source, *_] = sources(tmp_path, 10)
    out = saved(tmp_path, "out.csv", "from before")
    table = open_table(source)
    saving = Saving(table, table.columns, out, {"label": "text"})
    [batch] = table.batches()

    def stop_half_way() -> None:
        with saving.open() as writer:
            writer.write(batch, {"label": ["bug"] * len(batch)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert out.read_text() == "from before"
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "a.jsonl", "a.parquet", "out.csv"}


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    table = open_table(saved(tmp_path, "a.csv", "id,body\n1,x\n"))
    with pytest.raises(UserError, match=r"--column text: .* has no such column; it has id, body"):
        check_column(table, table.columns, "text", option="--column")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, None), ("", None), (" \n", None), ("a ", "a "), (5, "5"), (0.5, "0.5"), (True, "true"), (["a"], '["a"]'),
     (Decimal("1.50"), "1.50"), (date(2026, 11, 23), "2026-11-23")],
)  # fmt: skip
def test_a_cell_as_text(value: Any, text: str | None) -> None:
    assert text_of(value) == text


# Memory

_COPIES = """
import re, sys
from decimal import Decimal
from pathlib import Path
from tieryard.classification.saving import Saving
from tieryard.classification.tables import open_table, text_of
source, out = map(Path, sys.argv[1:])
table = open_table(source)
sent = table.batches()  # one reads what goes up, another what is joined with what comes down
with Saving(table, ("id", "text"), out, {"label": "text", "cost_usd": "money"}).open() as writer:
    for batch, other in zip(table.batches(), sent):
        assert [text_of(value) for value in other.values("text")] == batch.values("text")
        writer.write(batch, {"label": ["bug"] * len(batch), "cost_usd": [Decimal("0.000001")] * len(batch)})
print(re.search("VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_200_000_rows_need_no_more_memory_than_1_000(tmp_path: Path, kind: str) -> None:
    """The most that a process of its own ever has in memory (`ru_maxrss` would count its parent's, from the fork) while
    it reads, joins and writes them. Parquet keeps a row group of 20,000, and arrow what it had before."""
    peaks_kb = {}
    for rows in (1000, 200_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        source = next(path for path in sources(folder, rows) if path.suffix == f".{kind}")
        command = [sys.executable, "-c", _COPIES, str(source), str(folder / f"out.{kind}")]
        peaks_kb[rows] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(kind, peaks_kb)
    assert peaks_kb[200_000] - peaks_kb[1000] < (60_000 if kind == "parquet" else 4_000)


def test_what_is_read_is_let_go(tmp_path: Path) -> None:
    """A reader holds one batch at a time, whatever comes after."""
    [source, *_] = sources(tmp_path, 3000)
    firsts = [batch.values("id")[0] for batch in open_table(source).batches()]
    assert [int(after) - int(before) for before, after in pairwise(firsts)] == [1000, 1000]
