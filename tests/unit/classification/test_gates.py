"""The gate of a run."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.bench.stats import wilson
from tieryard.classification.gates import check_rows, judge
from tieryard.errors import RequestError, UserError


@pytest.mark.parametrize(
    ("n", "agreed", "least", "outcome", "says"),
    [
        (100, 98, 0.9, "passed", "98 of 100 agree, 98.0%"),
        (100, 92, 0.9, "failed", "not shown to be at least 90.0%"),
        (100, 70, 0.9, "failed", "shown to be below 90.0%"),
        (34, 34, 0.9, "too_few", "takes 35 rows"),
        (35, 35, 0.9, "passed", "shown to be at least"),
        (0, 0, 0.9, "too_few", "none of the rows"),
    ],
)
def test_outcomes(n, agreed, least, outcome, says):
    verdict = judge(n, agreed, least)
    assert verdict.outcome == outcome
    assert says in verdict.said
    assert 0 <= verdict.low <= verdict.high <= 1


def test_more_that_agree_than_there_are():
    with pytest.raises(UserError):
        judge(3, 4, 0.9)


@given(st.integers(1, 500), st.floats(0.05, 0.98), st.data())
def test_whoever_agrees_more_does_not_fare_worse(n, least, data):
    agreed = data.draw(st.integers(0, n - 1))
    if judge(n, agreed, least).outcome == "passed":
        assert judge(n, agreed + 1, least).outcome == "passed"


@given(st.integers(1, 2000), st.floats(0.05, 0.998))
def test_what_is_let_start_can_pass(rows, least):
    if judge(rows, rows, least).outcome == "passed":
        check_rows(rows, least)
        return
    with pytest.raises(RequestError) as refusal:
        check_rows(rows, least)
    assert refusal.value.param == "gate.rows"
    assert wilson(rows, rows).low < least


def test_the_page_says_how_many_rows_it_takes():
    page = (Path(__file__).parents[3] / "docs/explanation/classification.md").read_text(encoding="utf-8")
    said = re.findall(r"(0\.\d+) takes (\d+)", " ".join(page.split()))
    assert len(said) == 4
    for least, rows in said:
        assert judge(int(rows), int(rows), float(least)).outcome == "passed"
        assert judge(int(rows) - 1, int(rows) - 1, float(least)).outcome == "too_few"


def test_it_says_how_many_rows_it_takes():
    with pytest.raises(RequestError, match="take 35 or more"):
        check_rows(30, 0.9)
    check_rows(35, 0.9)
    with pytest.raises(RequestError, match="cannot show") as refusal:
        check_rows(100_000, 0.99999)
    assert refusal.value.param == "gate.min_agreement"
