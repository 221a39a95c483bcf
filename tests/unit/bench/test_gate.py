"""The gate's outcomes, its sentences, and what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tieryard.bench.gate import Outcome, Paired, Rule, Scores, Verdict, judge_gate, judge_scores, rate_power
from tieryard.bench.stats import items_needed, items_to_accept, wilson
from tieryard.errors import UserError


def pairs(category: str, *, both: int, worse: int = 0, better: int = 0, neither: int = 0) -> list[Paired]:
    kinds = [(1.0, 1.0)] * both + [(1.0, 0.0)] * worse + [(0.0, 1.0)] * better + [(0.0, 0.0)] * neither
    return [Paired(f"{category}-{at}", category, *scores) for at, scores in enumerate(kinds)]


def judged(items: Iterable[Paired], **more: object) -> Verdict:
    return judge_gate(items, **{"allowed_drop": 0.05, **more})  # type: ignore[arg-type]


def test_a_candidate_that_is_the_same_is_accepted() -> None:
    verdict = judged(pairs("code", both=240, worse=12, better=12, neither=36))
    [code] = verdict.categories
    assert verdict.outcome is code.outcome is Outcome.ACCEPTED
    assert (code.n, code.better, code.worse) == (300, 12, 12)
    assert code.serving_rate == code.candidate_rate == wilson(252, 300)
    assert code.rate_difference.value == code.score_difference.value == 0
    assert -0.05 < code.rate_at_least < 0
    assert -0.05 < code.score_at_least < 0
    assert code.p_mcnemar == 1
    assert code.sentence.startswith(
        "code: accepted: 84.0% pass against 84.0% of 300 items; a drop of 5 points is ruled out: at most "
    )
    assert verdict.sentence == "accepted: shown not worse than allowed in every category (code)"


def test_a_candidate_that_is_worse_is_told_so() -> None:
    verdict = judged([*pairs("code", both=240, worse=50, better=10), *pairs("chat", both=290, worse=5, better=5)])
    chat, code = verdict.categories
    assert (chat.outcome, code.outcome, verdict.outcome) == (Outcome.ACCEPTED, Outcome.WORSE, Outcome.WORSE)
    assert code.p_worse < 0.001
    assert code.rate_difference.high < 0
    assert "pass rate -13.3 (-" in code.sentence
    assert verdict.sentence == "worse: shown to be worse in code"


def test_too_few_items_prove_nothing_and_say_how_many_would() -> None:
    verdict = judged([*pairs("code", both=70, worse=10, better=10, neither=10), *pairs("chat", both=300)])
    chat, code = verdict.categories
    assert (chat.outcome, code.outcome, verdict.outcome) == (Outcome.ACCEPTED, Outcome.UNPROVEN, Outcome.UNPROVEN)
    assert code.items_needed is not None
    assert 600 < code.items_needed < 900  # more than for one category alone: both are to be accepted
    assert code.more_needed == code.items_needed - 100
    assert (
        f"an equal candidate needs {code.items_needed} items to be accepted, {code.more_needed} more" in code.sentence
    )
    assert verdict.sentence == "unproven: not shown to be as good in code, nor to be worse in any category"


def test_enough_items_may_still_prove_nothing() -> None:
    verdict = judged(pairs("code", both=240, worse=19, better=11, neither=30))
    [code] = verdict.categories
    assert (code.outcome, code.more_needed) == (Outcome.UNPROVEN, 0)
    assert code.sentence.endswith(f"an equal candidate is accepted on {code.items_needed} items with a power of 80%")


def test_a_drop_that_is_shown_and_allowed_is_accepted() -> None:
    [code] = judged(pairs("code", both=3900, worse=70, better=30)).categories
    assert (code.outcome, code.p_worse < 0.05) == (Outcome.ACCEPTED, True)
    assert code.sentence.endswith("which is shown to be a drop, and an allowed one")


def test_nothing_may_be_lost() -> None:
    [same] = judged(pairs("code", both=400), allowed_drop=0).categories
    assert (same.outcome, same.items_needed, same.more_needed) == (Outcome.UNPROVEN, None, None)
    assert "only a candidate that is shown to be better is accepted" in same.sentence
    assert judged(pairs("code", both=380, better=20), allowed_drop=0).outcome is Outcome.ACCEPTED


def test_scores_can_be_worse_where_as_many_pass() -> None:
    rng = np.random.default_rng(1)
    before = rng.uniform(0.85, 1.0, 200)
    verdict = judge_scores({"chat": Scores(before, before - rng.uniform(0.05, 0.15, 200))}, Rule(0.05))
    [chat] = verdict.categories
    assert (chat.better, chat.worse, chat.outcome) == (0, 0, Outcome.WORSE)
    assert chat.score_difference.high < -0.05


def test_below_thirty_items_scores_prove_nothing() -> None:
    few = [Paired(str(at), "chat", 1.0, 0.9) for at in range(29)]
    assert judged(few, allowed_drop=0.5).outcome is Outcome.UNPROVEN
    assert judged([*few, Paired("29", "chat", 1.0, 0.9)], allowed_drop=0.5).outcome is Outcome.ACCEPTED
    assert judged(pairs("chat", both=10, worse=15)).outcome is Outcome.WORSE  # McNemar's test is exact at any n


def test_floors() -> None:
    good = pairs("code", both=180, neither=120)
    verdict = judged(good, floors={"code": 0.7})
    assert verdict.outcome is Outcome.WORSE
    assert verdict.categories[0].sentence.endswith("the mean score of 0.600 is below the floor of 0.7")
    near = judged(good, floors={"code": 0.58})
    assert near.outcome is Outcome.UNPROVEN
    assert "is not shown to be above the floor of 0.58" in near.sentence + near.categories[0].sentence
    assert judged(good, floors={"code": 0.5}).outcome is Outcome.ACCEPTED


def test_the_pass_mark() -> None:
    items = [Paired(str(at), "chat", 0.8, 0.75) for at in range(100)]
    assert judged(items, allowed_drop=0.1).categories[0].worse == 0
    assert judged(items, allowed_drop=0.1, pass_mark=0.78).categories[0].worse == 100


def test_the_order_of_items_does_not_matter_to_the_outcome() -> None:
    items = [*pairs("code", both=240, worse=30, better=10), *pairs("chat", both=100, worse=3)]
    one, other = judged(items), judged(reversed(items))
    assert [c.category for c in one.categories] == [c.category for c in other.categories] == ["chat", "code"]
    assert [c.outcome for c in one.categories] == [c.outcome for c in other.categories]
    assert judged(items) == one


ROW = re.compile(r"^\| (\d+) points \| (\d+) % \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


def test_the_pages_numbers_of_items() -> None:
    page = Path(__file__).parents[3] / "docs/explanation/gates.md"
    rows = [[int(cell) for cell in row] for row in ROW.findall(page.read_text(encoding="utf-8"))]
    assert [tuple(row[:2]) for row in rows] == [(drop, share) for drop in (2, 5, 10) for share in (10, 20, 30)]
    for points, percent, *told in rows:
        drop, discordance = points / 100, percent / 100
        accepting = [items_to_accept(drop, discordance, rate_power(0.8 ** (1 / m))) for m in (1, 6)]
        assert told == accepting + [items_needed(drop, discordance, 0.8, 0.05 / (2 * m)) for m in (1, 6)]


GOOD = Paired("a", "chat", 1.0, 1.0)


@pytest.mark.parametrize(
    ("items", "more", "message"),
    [
        ([GOOD, Paired("b", "chat", 1.0, None)], {}, "item b: has no score of the candidate one"),
        ([GOOD, Paired("b", "chat", None, 1.0)], {}, "item b: has no score of the serving one"),
        ([GOOD, Paired("b", "chat", 1.0, math.nan)], {}, "item b: has a candidate score of nan"),
        ([GOOD, Paired("b", "chat", 1.2, 1.0)], {}, "item b: has a serving score of 1.2"),
        ([GOOD, Paired("a", "code", 1.0, 1.0)], {}, "item a: stands twice"),
        ([GOOD, Paired("b", " ", 1.0, 1.0)], {}, "item b: has no category"),
        ([GOOD], {"categories": ["code", "chat"]}, "category code: has no items"),
        ([GOOD], {"floors": {"code": 0.5}}, "category code: has no items"),
        ([GOOD], {}, "category chat: has one item only"),
        ([], {}, "pairs: has no items"),
        ([GOOD], {"allowed_drop": 1.0}, "allowed_drop: is 1"),
        ([GOOD], {"alpha": 0.0}, "alpha: is 0"),
        ([GOOD], {"floors": {"chat": 7.0}}, "floor of chat: is 7"),
    ],
)
def test_what_is_refused(items: list[Paired], more: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as refused:
        judged(items, **more)
    assert str(refused.value).startswith(message)
