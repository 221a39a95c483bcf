"""`tieryard estimate`, `breakeven`, `tco` and `prices` as a user meets them: 80 columns, every assumption, no float."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tieryard.cli.main import cli
from tieryard.errors import CatalogError, UserError

Ask = Callable[..., Result]
LOAD = ("--daily-queries", "10000", "--input-tokens", "1500", "--output-tokens", "300")
MIX = LOAD[2:]
GPT_4O = ("--input-price", "2.50", "--output-price", "10.00")
ON = ("--on", "2026-11-23")


def ask(*words: str) -> Result:
    return CliRunner().invoke(cli, [*words], env={"COLUMNS": "80"})


def said(*words: str) -> str:
    """What is printed, on one line, within 80 columns."""
    result = ask(*words)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    return " ".join(result.output.split())


def refused(*words: str) -> str:
    result = ask(*words)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.mark.parametrize(
    ("into", "out", "month"),
    [("2.50", "10.00", "$2,025.00"), ("0.15", "0.60", "$121.50"), ("0.25", "1.25", "$225.00")],
)
def test_an_estimate_to_the_cent(into: str, out: str, month: str) -> None:
    text = said("estimate", *LOAD, "--input-price", into, "--output-price", out, *ON)
    assert f"{month} a month at ${into} in and ${out} out per million" in text
    for assumed in ("a month has 30 days", "3 times the day's average", "no discount", "that hold on 2026-11-23"):
        assert assumed in text


def test_an_estimate_compares_the_price_book_and_stands_beside_its_limits() -> None:
    text = said("estimate", *LOAD, "--models", *ON)
    order = ["gpt-4o-mini $0.15", "claude-3-haiku $0.25", "gpt-4o $2.50", "claude-3.5-sonnet $3.00", "gemini-1.5-flash"]
    places = [text.index(row) for row in order]
    assert places == sorted(places)
    assert "google/gemini-1.5-flash $0.35 – – as printed" in text
    assert "needed 21 37,500 31,250 6,250" in text
    assert "openai/gpt-4o tier 1 500 30,000 – – no: tokens × 1.25" in text


def test_a_limit_that_is_just_too_low_says_by_how_much() -> None:
    """8,001 queries a day are 30,003.75 tokens in the busiest minute, and 30,000 are allowed."""
    mix = ("--daily-queries", "8001", "--input-tokens", "1500", "--output-tokens", "300")
    assert "no: tokens × 1.01" in said("estimate", *mix, "--models", *ON)


def test_a_comparison_on_a_day_without_prices_is_refused() -> None:
    assert "--on: the example price book has no hosted model on 2020-01-01" in refused(
        "estimate", *LOAD, "--models", "--on", "2020-01-01"
    )


def test_help_names_no_path_of_this_machine() -> None:
    for command in (("estimate",), ("breakeven",), ("tco",), ("prices", "list"), ("prices", "check")):
        assert "/" not in ask(*command, "--help").output.replace("tieryard.yaml", ""), command


def test_an_estimate_as_json() -> None:
    found = json.loads(ask("estimate", *LOAD, *GPT_4O, "--models", *ON, "--json").output)
    assert found["month_usd"] == "2025.00000"
    assert {one["name"]: one["month_usd"] for one in found["models"]}["openai/gpt-4o-mini"] == "121.500000"
    assert found["needed_per_minute"] == {
        "requests": 21,
        "input_tokens": 31_250,
        "output_tokens": 6_250,
        "tokens": 37_500,
    }
    assert {one["name"]: one["too_low_by"] for one in found["limits"]}["openai/gpt-4o"] == {"tokens": "1.25"}
    assert len(found["assumptions"]) == 6


def test_break_even_that_is_reached() -> None:
    text = said("breakeven", *MIX, "--rent-per-day", "24", *GPT_4O, "--prefill-tps", "3000", "--decode-tps", "600")
    assert "6,400,000 tokens a day (3,556 queries) cost $24.00 there: above that, renting is cheaper" in text
    assert "The GPU can do 155,520,000 tokens a day at full load: it breaks even at 4.1 % of that" in text
    assert "the GPU reads 3,000 or writes 600 tokens a second, by turns, 100.0 % of the day" in text


def test_break_even_that_no_such_gpu_reaches() -> None:
    cheap = ("--input-price", "0.15", "--output-price", "0.60")
    text = said("breakeven", *MIX, "--rent-per-day", "24", *cheap, "--prefill-tps", "1500", "--decode-tps", "300")
    assert "never with this GPU: it would take 106,666,667 tokens a day, and it can do 77,760,000" in text
    assert "The API does as much for $17.50, the rent is $24.00" in text


def test_break_even_of_a_gpu_that_is_not_busy_all_day() -> None:
    speed = ("--prefill-tps", "3000", "--decode-tps", "600", "--utilization", "0.5")
    text = said("breakeven", *MIX, "--rent-per-day", "24", *GPT_4O, *speed)
    assert "per million tokens at full load, 50.0 % of the day" in text
    assert "can do 77,760,000 tokens a day at full load, 50.0 % of the day: it breaks even at 8.2 % of that" in text


def test_break_even_from_the_price_book_says_what_is_not_checked() -> None:
    text = said("breakeven", *MIX, "--instance", "g5.4xlarge", "--model", "gpt-4o", *ON)
    assert "rent $38.98 a day" in text
    assert "whether the GPU can do it is not checked: give --prefill-tps and --decode-tps" in text
    assert "cannot" not in text
    assert "nothing is computed with the price of unnamed/a10g" in refused(
        "breakeven", *MIX, "--instance", "a10g", *GPT_4O, *ON
    )


def test_ownership_by_names_and_options() -> None:
    effort = ("--engineering-hours", "40", "--hourly-rate", "100", "--maintenance-hours", "2", "--evaluation", "500")
    text = said("tco", "--from", "gpt-4o", "--to", "g5.4xlarge", *LOAD, *effort, *ON)
    assert "12 $24,300.00 $20,931.36 -$3,368.64" in text
    assert "B saves $3,368.64 of $24,300.00 after 12 months: 13.9 %. It has paid back by the end of month 7" in text
    assert "B: 1 × $1.624 an hour, day and night, carry the workload: not checked (tieryard breakeven)" in text
    assert "an hour of work costs $100.00" in text


def test_ownership_from_files(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("name: all large\nrent: {usd_per_h: 1}\nsetup_usd: 9760\n")
    b.write_text("name: routed\ntokens: {input_usd_per_1m: 1.00, output_usd_per_1m: 2.00}\nsetup_usd: 6624\n")
    nothing = ("--daily-queries", "0", "--input-tokens", "1", "--output-tokens", "0")
    found = json.loads(ask("tco", "--from", str(a), "--to", str(b), *nothing, "--json").output)
    assert (found["a"]["total_usd"], found["b"]["total_usd"]) == ("18400", "6624.000000")
    assert found["saved_share"] == "0.640000"
    assert "64.0 %" in found["verdict"]
    assert found["payback_month"] == 1
    assert "stands in that file" in refused("tco", "--from", str(a), "--to", str(b), *nothing, "--setup", "1")
    b.write_text("name: routed\nsetup_usd: -1\nrent: {usd_per_h: 2}\n")
    with pytest.raises(CatalogError, match=r"b\.yaml:2: setup_usd: must be greater than or equal to 0, not -1"):
        raise ask("tco", "--from", str(a), "--to", str(b), *nothing).exception or AssertionError


def test_ownership_that_never_pays_back() -> None:
    text = said("tco", "--from", "gpt-4o-mini", "--to", "gpt-4o", *LOAD, "--months", "6", *ON)
    assert "B costs $11,421.00 more than A's $729.00 after 6 months: 1566.7 %. It never pays back" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("estimate", *LOAD), "--input-price: give --input-price and --output-price, or --models"),
        (("estimate", *LOAD, "--input-price", "1"), "--input-price: a price has two parts"),
        (("estimate", *LOAD, *GPT_4O, "--peak-factor", "0.5"), "--peak-factor: must be 1 or more, not 0.5"),
        (("breakeven", *MIX, *GPT_4O), "--rent-per-day: give --rent-per-day, or --instance"),
        (("breakeven", *MIX, *GPT_4O, "--rent-per-day", "0"), "--rent-per-day: must be greater than 0, not 0"),
        (("breakeven", *MIX, "--rent-per-day", "9", "--model", "gemini-1.5-pro", *ON), "has no output price"),
        (("breakeven", *MIX, *GPT_4O, "--rent-per-day", "9", "--decode-tps", "9"), "give --prefill-tps and --decode"),
        (("tco", "--from", "gpt-4o", "--to", "gpt-5", *LOAD, *ON), "the price book has no 'gpt-5' on 2026-11-23"),
        (("tco", "--from", "gpt-4o", "--to", "gpt-4o", *LOAD, "--months", "3", *ON), "--months: must be 6 to 12"),
        (("tco", "--from", "gpt-4o", "--to", "gpt-4o", *LOAD, "--instances", "3", *ON), "gpt-4o is not rented"),
        (
            ("tco", "--from", "gpt-4o", "--to", "gpt-4o", *LOAD, "--prompt-migration-hours", "1.234", *ON),
            "--prompt-migration-hours: must have at most 2 decimal places, not 1.234",
        ),
        (
            ("tco", "--from", "gpt-4o", "--to", "gpt-4o", *LOAD, "--evaluation", "200000000", *ON),
            "--evaluation: must be less than or equal to 100000000, not 200000000",
        ),
        (
            ("tco", "--from", "gpt-4o", "--to", "gpt-4o", *LOAD, "--engineering-hours", "3", *ON),
            "--hourly-rate: hours have a price",
        ),
    ],
)
def test_what_is_refused(words: tuple[str, ...], says: str) -> None:
    assert says in refused(*words)


@pytest.mark.parametrize("bad", ["-1", "many", "nan", "0.0000001"])
def test_a_price_that_is_none(bad: str) -> None:
    result = ask("estimate", *LOAD, "--input-price", bad, "--output-price", "1")
    assert result.exit_code == 2
    assert "--input-price" in result.output


def test_the_price_book_is_listed_and_checked(tmp_path: Path) -> None:
    text = said("prices", "list")
    assert "openai/gpt-4o-mini $0.15 $0.60 $0.075 2025-01-01 – as printed" in text
    assert "– unnamed/a10g: an A10G costs about twenty times as much" in text
    rows = json.loads(ask("prices", "list", "--json").output)
    assert all(row["source"] and row["read_on"] for row in (*rows["hosted"], *rows["instances"]))
    assert "valid (6 hosted models, 5 instances; 0 checked, the rest as printed)" in ask("prices", "check").output
    file = tmp_path / "mine.yaml"
    file.write_text("version: 1\ninstances:\n  - {provider: x, usd_per_h: -1}\n")
    assert f"{file}:3: instances.0.usd_per_h: must be greater than 0, not -1" in refused("prices", "check", str(file))
