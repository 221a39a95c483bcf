"""What watches models while they serve, simulated: how often it sees what is there, and what is not. Seeded."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.bench.test_bench_canary import NOTHING_ALLOWED, canary
from tests.unit.routing.test_outcomes import day
from tieryard.routing.outcomes import LEAST_OUTCOMES, verdict


def rate(truth: str, n: int, *, seeds: int = 200) -> float:
    """How often the outcomes of a day contradict the model."""
    return sum(verdict(day(seed, n, truth)).contradicts for seed in range(seeds)) / seeds


def test_outcomes_that_contradict_the_model_are_enough_and_those_that_agree_never() -> None:
    assert rate("opposite", 200) == 1.0
    assert rate("rules", 400) > 0.95, "noise that it takes for knowledge does harm"
    assert rate("learned", 200) == 0.0
    assert rate("learned", LEAST_OUTCOMES) <= 0.01


@pytest.mark.parametrize("n", [LEAST_OUTCOMES, 500])
def test_where_neither_is_better_it_is_called_worse_about_as_often_as_promised(n: int) -> None:
    """The truth is half way between the two, so that their squared errors are the same on average."""
    assert rate("between", n) <= 0.07


def test_false_alarms_over_a_whole_canary_of_equals_are_within_alpha() -> None:
    """With nothing allowed, and at the very edge of what is allowed of latency."""
    rng = np.random.default_rng(6)
    runs = 400
    alarms = sum(canary(rng, errors=(0.03, 0.03)) is not None for _ in range(runs))
    assert alarms <= NOTHING_ALLOWED.alpha * runs
