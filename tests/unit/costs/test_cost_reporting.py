"""What a report may be asked, its figures, files and pictures. No I/O but files of the test's own."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tieryard.cli import cost_tables
from tieryard.costs import export, picture
from tieryard.costs.reconciling import Books, WindowSum
from tieryard.costs.reporting import (
    CostRow,
    Costs,
    Dimension,
    Span,
    quotient,
    read_dimensions,
    read_month,
    read_span,
)
from tieryard.costs.savings import CategorySavings, Measured, Savings, pooled
from tieryard.costs.windows import Kind
from tieryard.errors import RequestError, UserError

NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC)
_NO_KIND = dict.fromkeys(Kind, Decimal(0))


def row(usd: str = "1", *, jobs: int = 3, succeeded: int = 2, **group: str | None) -> CostRow:
    return CostRow(group, jobs, succeeded, 700, 10, 300, 5, Decimal(usd), _NO_KIND, Decimal(0))


def report(*rows: CostRow, by: tuple[Dimension, ...] = (Dimension.DAY, Dimension.KIND)) -> Costs:
    return Costs(Span(MIDNIGHT - timedelta(days=2), NOW), by, row(), list(rows), 0, truncated=False)


# --- what may be asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "start"),
    [
        (None, MIDNIGHT - timedelta(days=6)),
        ("7d", MIDNIGHT - timedelta(days=6)),
        ("1d", MIDNIGHT),
        ("24h", NOW - timedelta(hours=24)),
        ("1.5d", NOW - timedelta(hours=36)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T02:00:00+02:00", datetime(2026, 11, 1, tzinfo=UTC)),
    ],
)
def test_a_time_is_of_days_of_utc(since: str | None, start: datetime) -> None:
    assert read_span(since, None, NOW) == Span(start, NOW)


@pytest.mark.parametrize("since", ["", "7", "yesterday", "2026-02-30", "9" * 400, "-3d", "0001-01-01", "999999999d"])
def test_a_time_that_is_none_is_refused(since: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_span(since, None, NOW)
    assert refused.value.param == "since"
    assert len(refused.value.message) < 200


def test_a_month_is_of_utc() -> None:
    assert read_month("2026-02", NOW)[1] == Span(datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))
    assert read_month("2025-12", NOW)[1].until == datetime(2026, 1, 1, tzinfo=UTC)
    for wrong in ("2026-2", "2026-13", "26-01", "2026-01-01", "2026-12", "9999-12", "x", ""):
        with pytest.raises(RequestError):
            read_month(wrong, NOW)


def test_groups_are_named_once() -> None:
    assert read_dimensions("day, kind", param="x") == (Dimension.DAY, Dimension.KIND)
    for wrong in ("", "day,", "day,day", "Day", "day;kind"):
        with pytest.raises(RequestError):
            read_dimensions(wrong, param="x")


# --- figures ------------------------------------------------------------------------------------------


def test_unit_costs_are_of_all_that_a_group_cost() -> None:
    one = row("1")
    assert (one.usd_per_1k_tokens, one.usd_per_job) == (Decimal("1.000000000000"), Decimal("0.333333333333"))
    assert one.usd_per_successful_job == Decimal("0.500000000000")
    none = row("1", jobs=0, succeeded=0)
    assert (none.usd_per_job, none.usd_per_successful_job) == (None, None)


def test_a_quotient_is_rounded_as_postgres_does() -> None:
    assert quotient(Decimal("0.000000000001"), 2) == Decimal("0.000000000001")
    assert quotient(Decimal("-0.000000000001"), 2) == Decimal("-0.000000000001")
    assert quotient(Decimal(2), 3) == Decimal("0.666666666667")


def saved(category: str, *, scored: int = 0, score: str | None = None) -> CategorySavings:
    usd = Decimal
    rest = (usd(1), 6, usd("0.6"), usd("2.4"), 0, usd(0), usd(0))
    return CategorySavings(category, 10, *rest, scored, None if score is None else usd(score))


def test_savings_are_over_the_jobs_that_can_be_compared() -> None:
    found = Savings([saved("chat"), saved("code")], "large", {})
    large = found.large()
    assert (large.jobs, large.of, large.saved_usd, large.saved_share) == (12, 20, Decimal("3.6"), Decimal("0.750000"))
    assert found.hosted().saved_share is None
    assert found.quality is None


def test_quality_is_held_against_the_baselines_of_the_same_categories() -> None:
    rows = [
        saved("chat", scored=30, score="0.8"),
        saved("code", scored=10, score="0.4"),
        saved("x", scored=9, score="0"),
    ]
    measured = pooled([("chat", 100, 0.9), ("code", 60, 0.7), ("code", 40, 0.2), ("other", 5, 1.0)])
    assert measured["code"] == Measured(100, Decimal("0.500000"))
    assert Savings(rows, "large", measured).quality == (
        Measured(40, Decimal("0.700000")),
        Measured(200, Decimal("0.800000")),
    )


def test_books_that_do_not_balance_say_where() -> None:
    hour = timedelta(hours=1)
    window = WindowSum(
        7, "one", "h", MIDNIGHT, MIDNIGHT + hour, NOW, Decimal(1), NOW, {Kind.IDLE: Decimal(2), Kind.RETRY: Decimal(-1)}
    )
    standing = WindowSum(8, "one", "h", MIDNIGHT, None, None, Decimal(2), MIDNIGHT + hour)
    books = Books([window, standing], {Kind.INFERENCE: Decimal("0.5")}, [], [])
    assert books.balanced
    assert (books.bill_usd, books.posted_usd, books.by_kind[Kind.IDLE]) == (Decimal("1.5"), Decimal("1.5"), 2)
    assert (standing.rent_usd, standing.difference_usd) == (2, -2)
    window.by_kind[Kind.IDLE] -= Decimal("1E-12")
    assert (books.balanced, books.differing, books.difference_usd) == (False, [window], Decimal("-1E-12"))


# --- files and pictures -------------------------------------------------------------------------------


def test_csv_has_every_digit_and_no_formula() -> None:
    rows = [{"a": "=1+1", "cost_usd": Decimal("1E-12"), "n": -3}, {"a": None, "cost_usd": None, "n": 0}]
    assert export.as_csv(rows, ["a", "cost_usd", "n"]).decode() == "a,cost_usd,n\n'=1+1,0.000000000001,-3\n,,0\n"


def test_parquet_has_a_type_for_each_figure_also_where_nothing_is_known() -> None:
    names = [
        "day",
        "deployment",
        "jobs",
        "open_windows",
        "prompt_tokens",
        "usd_per_1k_tokens",
        "gpu_hours",
        "idle_share",
    ]
    known = dict.fromkeys(names) | {
        "day": "2026-11-23",
        "jobs": 2,
        "idle_share": Decimal("0.25"),
        "score": Decimal(1) / 3,
    }
    kinds = {}
    for rows in ([], [dict.fromkeys([*names, "score"])], [known]):
        table = pq.read_table(io.BytesIO(export.as_parquet(rows, [*names, "score"])))
        kinds = {field.name: str(field.type) for field in table.schema}
        assert kinds["day"] == "date32[day]"
        assert {kinds[name] for name in ("jobs", "open_windows", "prompt_tokens")} == {"int64"}
        assert {kinds[name] for name in ("usd_per_1k_tokens", "gpu_hours", "idle_share")} == {"decimal128(38, 12)"}
        assert kinds["deployment"] == "string"
    assert kinds["score"] == "decimal128(38, 28)"


def test_a_picture_is_of_days_and_one_thing() -> None:
    assert picture.stacking(Path("x.svg"), [Dimension.DAY]) is None
    assert picture.stacking(Path("x.PNG"), [Dimension.KIND, Dimension.DAY]) is Dimension.KIND
    for path, by in (("x.pdf", "day"), ("x.svg", "kind"), ("x.svg", "day,kind,tier")):
        with pytest.raises(UserError):
            picture.stacking(Path(path), read_dimensions(by, param="by"))


def test_layers_keep_the_dearest_and_sum_the_rest() -> None:
    rows = [row(str(n), day="2026-11-22", tenant=f"t{n:02}") for n in range(1, 13)]
    parts = picture.layers([*rows, row("-20", day="2026-11-23", tenant=None)], Dimension.TENANT)
    assert list(parts)[:2] == ["no tenant", "t12"]
    assert (len(parts), parts["others"]) == (10, {MIDNIGHT.date() - timedelta(days=1): 1 + 2 + 3 + 4})


@pytest.mark.parametrize("length", [3, 24, 63])
def test_the_names_below_a_picture_are_not_cut(length: int) -> None:
    rows = [row(str(n), day="2026-11-22", tenant=f"t{n:02}-{'m' * (length - 4)}"[:length]) for n in range(1, 13)]
    figure = picture.figure_of(report(*rows, by=(Dimension.DAY, Dimension.TENANT)), Dimension.TENANT)
    figure.draw_without_rendering()
    [legend] = figure.legends
    shown = legend.get_window_extent()
    assert shown.x0 >= 0
    assert shown.x1 <= figure.bbox.x1


@pytest.mark.parametrize("ending", picture.ENDINGS)
def test_the_same_costs_give_the_same_picture(tmp_path: Path, ending: str) -> None:
    rows = [row("2", day="2026-11-22", kind="inference"), row("-0.5", day="2026-11-22", kind="idle")]
    one, two = tmp_path / f"one{ending}", tmp_path / f"two{ending}"
    for path in (one, two):
        picture.draw(report(*rows), path)
    assert one.read_bytes() == two.read_bytes()


# --- tables -------------------------------------------------------------------------------------------


def shown(found: Costs) -> list[str]:
    console = Console(width=80, file=io.StringIO(), highlight=False)
    cost_tables.show_costs(console, found)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(len(line) for line in lines if "─" in line) <= 80
    return lines


def test_savings_without_anything_to_compare_with_say_what_to_do() -> None:
    one = CategorySavings("chat", 3, Decimal(1), 0, *(Decimal(0),) * 2, 0, *(Decimal(0),) * 2, 0, None)
    console = Console(width=80, file=io.StringIO(), highlight=False)
    cost_tables.show_savings(console, Savings([one], None, {}), Span(MIDNIGHT, NOW))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "always-large: nothing was recorded to compare with; the catalog needs a `baseline`" in text
    assert "equivalent: nothing was recorded to compare with; the catalog's `price_book` needs hosted models" in text


def test_kinds_are_shown_once() -> None:
    kinds = _NO_KIND | {Kind.IDLE: Decimal(2), Kind.RETRY: Decimal(1)}
    for by in ("kind", "day", "kind,day"):
        dimensions = read_dimensions(by, param="by")
        values = {"kind": "idle", "day": "2026-11-23"}
        one = replace(row(**{str(d): values[str(d)] for d in dimensions}), by_kind=kinds)
        found = replace(report(one, by=dimensions), total=replace(row(), by_kind=kinds))
        assert "\n".join(shown(found)).count("idle") == 1


def test_any_number_of_groups_can_be_read() -> None:
    group = {
        "day": "2026-11-23",
        "deployment": "smol-short",
        "tenant": "tieryard-rent",
        "category": "summarization",
        "tier": "interactive",
        "batch": "batch_1234567",
        "kind": "inference",
        "key": None,
    }
    for n in range(1, len(Dimension) + 1):
        by = tuple(Dimension)[:n]
        one = row("0.0000571234567", jobs=12_345, **{str(name): group[str(name)] for name in by})
        text = "\n".join(shown(report(one, by=by)))
        values = [value for value in list(group.values())[:n] if value]
        words = [str(name) for name in by] + [part for value in values for part in re.split("[-_]", value)]
        assert [word for word in words if word not in text] == [], text
        assert "12,345" in text
