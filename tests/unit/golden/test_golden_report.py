"""A quality run's report, from its items' scores."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tieryard.bench.stats import wilson
from tieryard.golden.report import figures, profiles, rankings
from tieryard.store.golden import ItemScore


def scored(score: float | None, category: str = "chat", **fields: Any) -> ItemScore:
    plain: dict[str, Any] = {"latency_ms": 100.0, "cost_usd": Decimal("0.01")}
    return ItemScore("i", category, "h", 1, score, **{**plain, **fields})


def test_figures_over_what_was_scored_and_what_was_answered() -> None:
    failed = scored(None, why="failed: it broke", latency_ms=None, cost_usd=Decimal(9))
    unjudged = scored(None, why="no verdict", latency_ms=300.0, judge="long")
    found = figures([scored(1.0), scored(0.7), scored(0.69, judge="long"), scored(0.0), failed, unjudged])
    counts = {name: found[name] for name in ("n", "answered", "scored", "judged")}
    assert counts == {"n": 6, "answered": 5, "scored": 4, "judged": 1}
    assert found["mean_score"] == pytest.approx(2.39 / 4)
    interval = wilson(2, 4)
    assert found["pass_rate"] == {"value": 0.5, "low": interval.low, "high": interval.high}
    assert found["latency_ms"] == pytest.approx(140)
    assert Decimal(found["cost_usd"]) == Decimal("0.01"), "of an answer; a failed start's bill is no answer's"
    assert found["quality_per_usd"] == pytest.approx(2.39 / 4 / 0.01)
    assert found["unscored"] == {"failed: it broke": 1, "no verdict": 1}
    assert found["micro_f1"] is None


def test_reasons_that_differ_in_figures_alone_are_one() -> None:
    whys = ["failed: 611 tokens exceed 512", "failed: no", "failed: 635 tokens exceed 512"]
    found = figures([scored(None, why=why) for why in whys])
    assert found["unscored"] == {whys[0]: 2, whys[1]: 1}


def test_counts_are_added_up_over_the_set() -> None:
    found = figures([scored(1.0, counts=[1, 0, 0]), scored(0.0, counts=[0, 0, 3]), scored(None, counts=None)])
    assert found["micro_f1"] == pytest.approx(2 / 5), "not the mean of 1 and 0"


def test_what_cannot_be_said_is_none() -> None:
    found = figures([scored(None, latency_ms=None, cost_usd=None)])
    names = ("mean_score", "pass_rate", "latency_ms", "cost_usd", "quality_per_usd", "micro_f1")
    assert {found[name] for name in names} == {None}
    assert figures([scored(1.0, cost_usd=Decimal(0))])["quality_per_usd"] is None, "it costs nothing"
    assert profiles([scored(None, "code"), scored(0.5, "chat")], "mine").keys() == {"chat"}


def test_each_category_has_a_ranking() -> None:
    good = [scored(1.0, "chat"), scored(1.0, "code")] * 40
    found = rankings({"a": good, "b": [scored(None, "chat"), *good[:2] * 20]}, bar=0.8)
    assert [one.category for one in found] == ["chat", "code"]
    assert [(place.standing.model, place.standing.n) for place in found[0].places] == [("a", 40), ("b", 20)]
    assert rankings({"a": [scored(None)]}, bar=0.8) == []
