"""The learned model is held to outcomes: it steps back where they contradict it, and seldom where they do not."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from tests import factories as make
from tieryard.routing import Profile, Rules, decide
from tieryard.routing.outcomes import LEAST_OUTCOMES, MOST_OUTCOMES, Predicted, Scored, predicted_for, verdict

RATED = make.candidate("one", profiles={"chat": Profile(samples=9, timestamp=1.0, quality_score=0.5)})
LEARNED = make.snapshot(RATED, rules=Rules(classifier="learned"))


def day(seed: int, n: int, truth: str, *, spread: float = 0.8) -> list[Scored]:
    """Answers that were right or wrong by what the learned model said of each prompt (`learned`), by its opposite
    (`opposite`), by the category's mean (`rules`), or half way between the two (`between`)."""
    rng = random.Random(seed)
    scored = []
    for _ in range(n):
        hardness = rng.gauss(0.0, spread)
        learned, rules = 1 / (1 + math.exp(hardness)), 0.5
        chance = {"learned": learned, "opposite": 1 - learned, "rules": rules, "between": (learned + rules) / 2}[truth]
        scored.append(Scored(float(rng.random() < chance), learned, rules))
    return scored


def test_what_was_expected_is_worked_out_as_the_decision_had_it() -> None:
    hard = make.features(hardness=1.0)
    found = predicted_for("one", hard, LEARNED)
    assert found is not None
    assert found.learned == decide(hard, LEARNED).judged[0].quality == pytest.approx(1 / (1 + math.e))
    assert found.rules == 0.5
    assert predicted_for("one", make.features(), LEARNED) == Predicted(None, 0.5), "no word on this prompt"
    assert predicted_for("gone", hard, LEARNED) is None
    named = replace(LEARNED, quality_model="a1b2")
    assert [p.quality_model for job in (hard, make.features()) if (p := predicted_for("one", job, named))] == [
        "a1b2",
        None,
    ], "whose word it was"
    stepped_back = replace(LEARNED, rules=Rules(classifier="rules", step_back="contradicted"))
    assert predicted_for("one", hard, stepped_back) == found, "else it could never come back"


def test_few_outcomes_say_nothing_and_none_are_no_fault() -> None:
    few = verdict(day(1, LEAST_OUTCOMES - 1, "opposite"))
    assert few.p < 0.05
    assert not few.contradicts
    assert not verdict(day(1, LEAST_OUTCOMES - 1, "learned")).agrees
    assert verdict([]) == verdict([])
    assert not verdict([]).contradicts
    assert verdict([Scored(1.0, 0.5, 0.5)] * 60).p == 1.0


def test_the_same_outcomes_give_the_same_verdict_and_agreeing_ones_agree() -> None:
    scored = day(7, MOST_OUTCOMES, "opposite")
    assert verdict(scored) == verdict(scored)
    assert "on 2,000 outcomes its squared error is" in str(verdict(scored))
    good = verdict(day(7, 300, "learned"))
    assert good.agrees
    assert good.learned_error < good.rules_error
    assert not verdict(day(7, 300, "opposite")).agrees
