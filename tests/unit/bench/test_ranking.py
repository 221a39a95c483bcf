"""Ranking: the bar, ties, free models, the frontier, and a picture whose names can be read."""

from __future__ import annotations

import sys
from dataclasses import replace
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Annotation, Text

from tieryard.bench import ranking
from tieryard.bench.ranking import Standing, frontier, picture, rank
from tieryard.bench.stats import wilson
from tieryard.errors import UserError


def standing(model: str, score: float, cost_usd: str, *, passes: int = 270, n: int = 300) -> Standing:
    return Standing(model, "code", n, score, wilson(passes, n), 800.0, Decimal(cost_usd))


GARBAGE = standing("garbage", 0.2, "0.000001", passes=60)
CHEAP = standing("cheap", 0.8, "0.0001")
GOOD = standing("good", 0.9, "0.0003")
DEAR = standing("dear", 0.85, "0.001")


def test_a_standing_from_answers() -> None:
    made = Standing.of(
        "m", "code", [1.0, 0.7, 0.2], [100.0, 200.0, 600.0], [Decimal("0.1"), Decimal("0.2"), Decimal(0)]
    )
    assert (made.n, made.latency_ms, made.cost_usd) == (3, 300.0, Decimal("0.1"))
    assert made.mean_score == pytest.approx(1.9 / 3)
    assert made.pass_rate == wilson(2, 3)
    assert made.quality_per_usd == pytest.approx(Decimal(made.mean_score) * 10)
    with pytest.raises(UserError, match="m, code: 0 scores"):
        Standing.of("m", "code", [], [], [])
    with pytest.raises(UserError, match="each answer has one of each"):
        Standing.of("m", "code", [1.0], [], [Decimal(1)])


def test_cheap_garbage_is_not_ranked() -> None:
    found = rank([DEAR, GARBAGE, GOOD, CHEAP], bar=0.7)
    assert [(place.rank, place.standing.model) for place in found.places] == [(1, "cheap"), (2, "good"), (3, "dear")]
    assert [(one.standing.model, one.why) for one in found.below] == [
        ("garbage", "passes 20.0%, below the bar of 70%"),
    ]
    assert found.sentence == "code: cheap of 3 above the bar of 70%"


def test_the_bar_must_be_shown_to_be_reached() -> None:
    lucky = standing("lucky", 0.9, "0.00001", passes=16, n=20)
    found = rank([CHEAP, lucky], bar=0.7)
    assert [place.standing for place in found.places] == [CHEAP]
    assert found.below[0].why == (
        "passes 80.0% of 20 items, which may be 58.4% of all: not shown to reach the bar of 70%"
    )


def test_ties_share_a_rank() -> None:
    twin, slower = replace(CHEAP, model="twin"), replace(CHEAP, model="a", latency_ms=900.0)
    found = rank([slower, DEAR, twin, CHEAP], bar=0.7)
    assert [(p.rank, p.standing.model) for p in found.places] == [(1, "cheap"), (1, "twin"), (1, "a"), (4, "dear")]
    assert found.sentence == "code: cheap and twin and a of 4 above the bar of 70%"


def test_free_models_come_first_by_quality() -> None:
    free, better = standing("free", 0.75, "0"), standing("better", 0.8, "0.000")
    assert free.quality_per_usd is None
    found = rank([CHEAP, free, better], bar=0.7)
    assert [(p.rank, p.standing.model) for p in found.places] == [(1, "better"), (2, "free"), (3, "cheap")]


def test_nobody_above_the_bar() -> None:
    found = rank([CHEAP, GARBAGE], bar=0.95)
    assert found.places == ()
    assert [one.standing.model for one in found.below] == ["cheap", "garbage"]
    assert found.sentence == "code: no model is shown to reach the bar of 95%"


def test_the_frontier() -> None:
    assert frontier([DEAR, GARBAGE, GOOD, CHEAP]) == (GARBAGE, CHEAP, GOOD)
    twin = replace(CHEAP, model="twin")
    assert frontier([twin, CHEAP, replace(CHEAP, model="worse", mean_score=0.7)]) == (CHEAP, twin)
    assert frontier([]) == ()


@pytest.mark.parametrize(
    ("standings", "bar", "message"),
    [
        ([], 0.7, "standings: there are no standings"),
        ([CHEAP], 70, "bar: is 70"),
        ([CHEAP, replace(GOOD, category="chat")], 0.7, "standings: are of chat, code"),
        ([CHEAP, replace(GOOD, model="cheap")], 0.7, "model cheap: stands twice"),
        ([replace(CHEAP, cost_usd=Decimal(-1))], 0.7, "model cheap: has a cost of -1"),
    ],
)
def test_what_is_refused(standings: list[Standing], bar: float, message: str) -> None:
    with pytest.raises(UserError) as refused:
        rank(standings, bar=bar)
    assert str(refused.value).startswith(message)


CROWD = [standing(f"Qwen2.5-7B-Instruct-{at}", 0.8 + 0.004 * (at % 3), f"0.0001{at}") for at in range(8)]


@pytest.mark.parametrize(
    "standings", [[DEAR, GARBAGE, GOOD, CHEAP], CROWD, [*CROWD, standing("free", 0.7, "0")], [CHEAP]]
)
def test_names_do_not_overlap(standings: list[Standing]) -> None:
    figure: Any = ranking._drawn(rank(standings, bar=0.7))
    figure.draw_without_rendering()
    [axes] = figure.axes
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    assert {name.get_text() for name in names} == {one.model for one in standings}
    boxes = [Text.get_window_extent(name) for name in names]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_pictures(tmp_path: Path) -> None:
    found = rank([DEAR, GARBAGE, GOOD, CHEAP], bar=0.7)
    for name in ("a.png", "a.svg", "b.svg"):
        picture(found, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "quality (mean score)" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"a picture ends in .svg or .png, not '.gif'"):
        picture(found, tmp_path / "a.gif")


def test_a_picture_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'tieryard\[pictures\]'"):
        picture(rank([CHEAP], bar=0.7), tmp_path / "a.png")
