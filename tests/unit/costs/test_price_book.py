"""The price book: a row has a source and days; a bad one is refused with its line and field."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from tests.unit.catalog.test_tariffs import BOOK
from tieryard.costs.price_book import load_price_book, parse_price_book
from tieryard.errors import CatalogError, NotFoundError, UserError

GOOD = """\
version: 1
hosted:
  - provider: acme
    model: big
    input_usd_per_1m: 2.50
    output_usd_per_1m: 10.00
    valid_from: 2025-01-01
    valid_until: 2025-06-30
    source: acme's page
    read_on: 2025-01-02
    status: checked
  - provider: acme
    model: big
    input_usd_per_1m: 2.00
    output_usd_per_1m: 8.00
    valid_from: 2025-07-01
    source: acme's page
    read_on: 2025-07-02
    status: checked
instances:
  - provider: cloud
    name: gpu.large
    region: here
    purchase: spot
    gpus: 1
    gpu_type: A10G
    usd_per_h: 0.50
    valid_from: 2025-01-01
    source: a list
    read_on: 2025-01-02
    status: as_printed
"""
TODAY = date(2026, 11, 23)


def refused(text: str) -> str:
    with pytest.raises(CatalogError) as caught:
        parse_price_book(text, name="p.yaml")
    return str(caught.value)


def test_a_price_that_changes_does_not_rewrite_what_it_was() -> None:
    book = parse_price_book(GOOD)
    before, after = book.find_hosted("big", date(2025, 6, 30)), book.find_hosted("acme/big", date(2025, 7, 1))
    assert (before.input_usd_per_1m, after.input_usd_per_1m) == (Decimal("2.50"), Decimal("2.00"))
    assert book.hosted_on(date(2024, 12, 31)) == []


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ("input_usd_per_1m: 2.50", "input_usd_per_1m: -2.50", "p.yaml:5: hosted.0.input_usd_per_1m: must be greater"),
        ("    input_usd_per_1m: 2.50\n", "", "p.yaml:3: hosted.0.input_usd_per_1m: is required"),
        ("    output_usd_per_1m: 10.00\n", "", "p.yaml:3: hosted.0.output_usd_per_1m: is required"),
        ("    usd_per_h: 0.50\n", "", "p.yaml:21: instances.0.usd_per_h: is required"),
        ("usd_per_h: 0.50", "usd_per_h: 0", "p.yaml:27: instances.0.usd_per_h: must be greater than 0, not 0"),
        ("    source: a list\n", "", "p.yaml:21: instances.0.source: is required"),
        (
            "valid_until: 2025-06-30",
            "valid_until: 2025-07-01",
            "p.yaml:16: hosted.1.valid_from: overlaps hosted.0 (acme/big), from 2025-01-01 to 2025-07-01",
        ),
        ("    valid_until: 2025-06-30\n", "", "p.yaml:15: hosted.1.valid_from: overlaps hosted.0 (acme/big), from"),
        (
            "valid_until: 2025-06-30",
            "valid_until: 2024-12-31",
            "p.yaml:8: hosted.0.valid_until: ends before it starts, on 2025-01-01",
        ),
        ("version: 1", "version: 2", "p.yaml:1: version: expected 1, not 2"),
        ("    model: big\n", "    model: big\n    currency: EUR\n", "p.yaml:5: hosted.0.currency: expected 'USD'"),
        ("read_on: 2025-01-02", "read_on: soon", "hosted.0.read_on: expected a date such as 2026-11-22, not 'soon'"),
        ("status: as_printed", "status: guessed", "instances.0.status: expected 'checked' or 'as_printed'"),
        ("    gpu_type: A10G\n", "", "p.yaml:25: instances.0.gpus: give `gpu_type` where there are GPUs"),
        ("usd_per_h: 0.50", "usd_per_h: 100000000.5", "instances.0.usd_per_h: must be less than or equal to 100000000"),
        ("usd_per_h: 0.50", "usd_per_h: 0.0000001", "instances.0.usd_per_h: must have at most 6 decimal places"),
        ("usd_per_h: 0.50", "usd_per_h: .nan", "instances.0.usd_per_h: expected a finite number"),
        ("purchase: spot", "price: 4", "p.yaml:24: instances.0.price: is not a known field"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_and_field(good: str, bad: str, says: str) -> None:
    assert good in GOOD
    assert says in refused(GOOD.replace(good, bad, 1))


@pytest.mark.parametrize("written", ["0.1", "0.300001", "99999999.999999", "1e-6", "7"])
def test_a_price_is_what_the_file_says_and_not_its_nearest_float(written: str) -> None:
    book = parse_price_book(GOOD.replace("usd_per_h: 0.50", f"usd_per_h: {written}"))
    assert book.find_instance("gpu.large", TODAY).usd_per_h == Decimal(written)


def test_what_is_no_price_book() -> None:
    assert refused("- a list") == "p.yaml:1: expected a mapping with version, hosted, instances"


def test_two_rows_of_one_name_are_told_apart() -> None:
    twice = GOOD + GOOD[GOOD.index("  - provider: cloud") :].replace("spot", "on_demand")
    with pytest.raises(UserError, match=r"is cloud/gpu.large \(spot, here\), cloud/gpu.large \(on_demand, here\): say"):
        parse_price_book(twice).find_instance("gpu.large", TODAY)


def test_what_is_not_there_is_told_with_what_is() -> None:
    with pytest.raises(NotFoundError, match=r"no 'bigger' on 2026-11-23; it has acme/big, cloud/gpu.large \(spot, he"):
        parse_price_book(GOOD).find("bigger", TODAY)


def test_nothing_is_computed_with_what_cannot_be_right_or_is_not_known() -> None:
    doubted = parse_price_book(GOOD + "    doubt: too cheap\n").find_instance("gpu.large", TODAY)
    with pytest.raises(UserError, match=r"price of cloud/gpu\.large: too cheap"):
        doubted.sound()
    unknown = parse_price_book(GOOD.replace("output_usd_per_1m: 8.00", "output_usd_per_1m: null"))
    with pytest.raises(UserError, match="acme/big has no output price"):
        unknown.find_hosted("big", TODAY).price()


def test_a_catalogs_own_book_is_read(tmp_path: Path) -> None:
    file = tmp_path / "tieryard.yaml"
    file.write_text(BOOK, encoding="utf-8")
    assert [row.usd_per_h for row in load_price_book(file).instances_on(date(2026, 11, 23))][-1] == Decimal("0.05")


def test_the_pages_example_is_a_price_book() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "costs.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```yaml\n(version: .*?)```", page, re.DOTALL)
    book = parse_price_book(example)
    fields = {name for row in book.rows for name in row.model_dump(by_alias=True)}
    assert [name for name in fields if f"`{name}`" not in page] == []


def test_the_shipped_example() -> None:
    book = load_price_book()
    inputs = {row.model: row.input_usd_per_1m for row in book.hosted_on(TODAY)}
    assert inputs == {
        "gpt-4o": Decimal("2.50"),
        "claude-3.5-sonnet": Decimal("3.00"),
        "gemini-1.5-pro": Decimal("3.50"),
        "gpt-4o-mini": Decimal("0.15"),
        "claude-3-haiku": Decimal("0.25"),
        "gemini-1.5-flash": Decimal("0.35"),
    }
    assert [row.name for row in book.rows if row.doubt] == ["unnamed/a10g"]
    assert [row.name for row in book.hosted if row.output_usd_per_1m is None and row.note is None] == []
    assert all(row.source and row.read_on <= TODAY for row in book.rows)
