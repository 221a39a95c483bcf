"""Thresholds and gates of classification runs, simulated: how often a threshold loses more than is allowed, how much
it escalates beside the best that could be known, and how often a gate lets a model pass that it should not. Seeded;
figures are printed (`pytest -s`) and stand in docs/explanation/classification.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import binom

from tieryard.bench.stats import Floats
from tieryard.classification.gates import judge
from tieryard.classification.thresholds import ESCALATE_ALL, Calibration, Sample, calibrate

RUNS = 1000


class Drawn(NamedTuple):
    """Texts: confidence, and the probabilities that each model is right, which are independent given the text."""

    confidence: Floats
    cheap: Floats
    large: Floats


Draw = Callable[[np.random.Generator, int], Drawn]


def honest(rng: np.random.Generator, n: int) -> Drawn:
    """A confidence of c is right in a share c of texts; the larger model is right in 95 %."""
    confidence = rng.beta(4, 1, n)
    return Drawn(confidence, confidence, np.full(n, 0.95))


def vain(rng: np.random.Generator, n: int) -> Drawn:
    """Far too sure of itself, but surer where it is right; large right in 90 %."""
    skill = rng.beta(3, 1.5, n)
    return Drawn(1 - (1 - skill) ** 4 / 10, skill, np.full(n, 0.9))


def blind(rng: np.random.Generator, n: int) -> Drawn:
    """A confidence that says nothing, 82 % right beside 90 %: at most a quarter may be kept for two points."""
    return Drawn(rng.random(n), np.full(n, 0.82), np.full(n, 0.9))


def inverted(rng: np.random.Generator, n: int) -> Drawn:
    """The surer, the more often wrong: the surest are kept first, so little may be."""
    confidence = rng.random(n)
    return Drawn(confidence, 0.95 - 0.3 * confidence, np.full(n, 0.95))


def stepwise(rng: np.random.Generator, n: int) -> Drawn:
    """Three confidences only, so that whole steps are ties: 0.99 as good as the larger model, the others are not."""
    confidence = rng.choice([0.5, 0.8, 0.99], n, p=[0.3, 0.3, 0.4])
    return Drawn(confidence, np.select([confidence > 0.9, confidence > 0.7], [0.94, 0.86], 0.5), np.full(n, 0.94))


def equal(rng: np.random.Generator, n: int) -> Drawn:
    """The cheap model is as good: everything may be kept."""
    skill = rng.beta(8, 1, n)
    return Drawn(skill, skill, skill)


def as_samples(rng: np.random.Generator, drawn: Drawn) -> list[Sample]:
    sides = (rng.random(len(side)) < side for side in (drawn.cheap, drawn.large))
    return [Sample(float(c), bool(a), bool(b)) for c, a, b in zip(drawn.confidence, *sides, strict=True)]


@lru_cache(maxsize=1)
def true_drops(draw: Draw) -> tuple[Floats, Floats, Floats]:
    """Thresholds, the true drop at each, and the share escalated: from a population of a million."""
    drawn = draw(np.random.default_rng(99), 1_000_000)
    order = np.argsort(-drawn.confidence)
    drop = np.cumsum((drawn.large - drawn.cheap)[order]) / len(order)
    return drawn.confidence[order], drop, 1 - (np.arange(len(order)) + 1) / len(order)


def simulate(draw: Draw, n: int, max_drop: float, *, runs: int = RUNS) -> dict[str, float]:
    thresholds, drops, escalated = true_drops(draw)
    rng = np.random.default_rng([n, round(1000 * max_drop)])
    lost, shares, undecided = 0, [], 0
    for _ in range(runs):
        found: Calibration = calibrate(as_samples(rng, draw(rng, n)), max_drop)
        undecided += found.threshold == ESCALATE_ALL
        kept = int(np.searchsorted(-thresholds, -found.threshold, side="right"))
        lost += bool(kept and drops[kept - 1] > max_drop + 1e-3)  # the population is a sample itself
        shares.append(escalated[kept - 1] if kept else 1.0)
    return {
        "lost": lost / runs,
        "escalated": float(np.mean(shares)),
        "best": _best(thresholds, drops, escalated, max_drop),
        "all": undecided / runs,
    }


def _best(thresholds: Floats, drops: Floats, escalated: Floats, max_drop: float) -> float:
    """The share that is escalated by who knows the true drops and, as `calibrate`, goes down until one is too large."""
    ends = np.append(thresholds[1:] != thresholds[:-1], True)  # equals go together
    too_far = np.flatnonzero(ends & (drops > max_drop + 1e-3))
    held = np.flatnonzero(ends[: too_far[0]]) if len(too_far) else np.array([len(drops) - 1])
    return float(escalated[held[-1]]) if len(held) else 1.0


@pytest.mark.parametrize("n", [200, 500, 2000])
@pytest.mark.parametrize("max_drop", [0.02, 0.05])
@pytest.mark.parametrize("draw", [honest, vain, blind, inverted, stepwise, equal])
def test_a_threshold_seldom_loses_more_than_is_allowed(draw, n, max_drop):
    seen = simulate(draw, n, max_drop)
    print(
        f"\n{draw.__name__:9} n {n:5} drop {max_drop:.0%}: loses more in {seen['lost']:.1%}, escalates"
        f" {seen['escalated']:.1%} (best {seen['best']:.1%}), everything in {seen['all']:.1%}"
    )
    assert seen["lost"] <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / RUNS)
    assert seen["escalated"] >= seen["best"] - 0.05


def test_more_texts_escalate_less_where_less_is_needed():
    """Or the bounds above would hold for who escalates everything."""
    few, many = (simulate(honest, n, 0.05, runs=200)["escalated"] for n in (200, 2000))
    assert many < few < 1
    assert simulate(equal, 2000, 0.05, runs=50)["escalated"] < 0.01


@pytest.mark.parametrize("wanted", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [50, 100, 200, 500, 1000, 2000])
def test_a_gate_seldom_passes_who_should_not(n, wanted):
    """Exact: the probabilities of all counts that pass, summed."""
    passing = np.array([agreed for agreed in range(n + 1) if judge(n, agreed, wanted).outcome == "passed"])

    def passes(true: float) -> float:
        return float(binom.pmf(passing, n, true).sum()) if len(passing) else 0.0

    better = {share: passes(wanted + share * (1 - wanted)) for share in (0.25, 0.5, 0.75)}
    print(
        f"\ngate {wanted:.0%} n {n:5}: passes at {wanted:.0%} exactly in {passes(wanted):.2%}; a quarter, half,"
        f" three quarters of the way to 100 %: {', '.join(f'{one:.0%}' for one in better.values())}"
    )
    assert passes(wanted) <= 0.026
    assert passes(wanted - 0.05) < passes(wanted) or not len(passing)
    assert list(better.values()) == pytest.approx(sorted(better.values()))
