"""The gate, simulated: how often it is wrong where nothing differs, and where as much is lost as is not allowed; and
whether it finds what it should on as many items as it asks for. Seeded; figures are printed (`pytest -s`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tieryard.bench.gate import Outcome, Rule, Scores, judge_scores
from tieryard.bench.stats import Floats, items_needed

Draw = Callable[[np.random.Generator, int], Scores]
RESAMPLES = 1000


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Many small products: threads of BLAS would take more time to meet than to multiply."""
    with threadpool_limits(1):
        yield


def graded(rng: np.random.Generator, n: int, *, correlation: float = 0.7, noise: float = 0.25) -> Scores:
    """Scores that a hard item pulls down on both sides: within-item correlation about 0.7; some 65 % pass."""
    item = math.sqrt(correlation) * rng.standard_normal(n)

    def side() -> Floats:
        own = math.sqrt(1 - correlation) * rng.standard_normal(n)
        return np.clip(0.8 + noise * (item + own), 0, 1)

    return Scores(side(), side())


def passed(rng: np.random.Generator, n: int, *, discordance: float, drop: float = 0.0) -> Scores:
    """0 or 1 for each side, so that a share of items is passed by one of both only."""
    worse, better = (discordance + drop) / 2, (discordance - drop) / 2
    kinds = rng.choice(4, size=n, p=[0.9 - worse - better, worse, better, 0.1])
    return Scores((kinds < 2).astype(float), ((kinds == 0) | (kinds == 2)).astype(float))


def lowered(rng: np.random.Generator, n: int, *, drop: float) -> Scores:
    """Nobody fails, but every score is lower by some."""
    before = rng.uniform(0.85, 1.0, n)
    return Scores(before, before - drop + 0.03 * rng.standard_normal(n).clip(-1.5, 1.5))


def spoilt(rng: np.random.Generator, n: int, *, drop: float) -> Scores:
    """Most scores stay, a few are lower by 0.27: the skewed case that is hard for a bootstrap."""
    before = rng.uniform(0.97, 0.99, n)
    return Scores(before, before - np.where(rng.random(n) < drop / 0.27, 0.27, 0.0) + rng.uniform(-0.005, 0.005, n))


def outcomes(draws: Mapping[str, Draw], n: int, *, rule: Rule, runs: int, seed: int) -> Counter[Outcome]:
    rng = np.random.default_rng(seed)
    return Counter(
        judge_scores({category: draw(rng, n) for category, draw in draws.items()}, rule).outcome for _ in range(runs)
    )


def margin(share: float, runs: int) -> float:
    """Two and a half binomial standard errors: what chance may do to a simulated share."""
    return 2.5 * math.sqrt(share * (1 - share) / runs)


def mixed(categories: int) -> dict[str, Draw]:
    """Graded and pass/fail categories in turn, with 20 and 6 % discordance."""
    sparse: Draw = lambda rng, n: passed(rng, n, discordance=0.06)  # noqa: E731
    dense: Draw = lambda rng, n: passed(rng, n, discordance=0.2)  # noqa: E731
    kinds = [graded, dense, sparse]
    return {f"c{at}": kinds[at % len(kinds)] for at in range(categories)}


@pytest.mark.parametrize("n", [100, 300, 500])
@pytest.mark.parametrize("categories", [1, 6])
def test_false_alarms(categories: int, n: int) -> None:
    found = outcomes(mixed(categories), n, rule=Rule(0.05, resamples=RESAMPLES), runs=1000, seed=n + categories)
    print(f"\nA/A, {categories} categories of {n} items: {dict(found)}")
    assert found[Outcome.WORSE] <= 50


WRONG: dict[str, tuple[float, Draw]] = {
    "5 points at 10 %": (0.05, lambda rng, n: passed(rng, n, discordance=0.1, drop=0.05)),
    "5 points at 30 %": (0.05, lambda rng, n: passed(rng, n, discordance=0.3, drop=0.05)),
    "10 points, all discordance": (0.1, lambda rng, n: passed(rng, n, discordance=0.1, drop=0.1)),
    "5 points of every score": (0.05, lambda rng, n: lowered(rng, n, drop=0.05)),
    "5 points on a few items": (0.05, lambda rng, n: spoilt(rng, n, drop=0.05)),
}


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_allowed_is_seldom_accepted(case: str, n: int) -> None:
    drop, draw = WRONG[case]
    found = outcomes({"c": draw}, n, rule=Rule(drop, resamples=RESAMPLES), runs=1000, seed=n)
    print(f"\na drop of {case}, {n} items: {found[Outcome.ACCEPTED] / 10:.1f} % accepted")
    assert found[Outcome.ACCEPTED] / 1000 <= 0.05 + margin(0.05, 1000)  # 6.7 %


@pytest.mark.parametrize(("drop", "discordance", "categories"), [(0.1, 0.2, 1), (0.05, 0.1, 1), (0.1, 0.2, 6)])
def test_a_drop_is_shown_on_as_many_items_as_are_asked_for(drop: float, discordance: float, categories: int) -> None:
    """One category drops, the others do not. Two tests a category share alpha."""
    n = items_needed(drop, discordance, 0.8, 0.05 / (2 * categories))
    same: Draw = lambda rng, n: passed(rng, n, discordance=discordance)  # noqa: E731
    draws = {f"c{at}": same for at in range(1, categories)}
    draws["c0"] = lambda rng, n: passed(rng, n, discordance=discordance, drop=drop)
    found = outcomes(draws, n, rule=Rule(drop, resamples=RESAMPLES), runs=800, seed=1)
    power = found[Outcome.WORSE] / 800
    print(f"\n{drop:.0%} dropped at {discordance:.0%}, {categories} categories of {n} items: {power:.1%} worse")
    assert power >= 0.8 - margin(0.8, 800)


CASES: list[tuple[float, int, Draw]] = [
    (0.05, 1, lambda rng, n: passed(rng, n, discordance=0.1)),
    (0.1, 1, lambda rng, n: passed(rng, n, discordance=0.2)),
    (0.1, 6, lambda rng, n: passed(rng, n, discordance=0.2)),
    (0.05, 1, graded),
]


@pytest.mark.parametrize(("allowed", "categories", "draw"), CASES)
def test_an_equal_candidate_is_accepted_on_as_many_items(allowed: float, categories: int, draw: Draw) -> None:
    """The gate says how many, from a look at many items whose discordance and spread are those of all."""
    rule = Rule(allowed, resamples=RESAMPLES)
    look = draw(np.random.default_rng(4), 20_000)
    first = judge_scores({f"c{at}": look for at in range(categories)}, Rule(allowed, resamples=10)).categories[0]
    assert first.items_needed is not None
    found = outcomes({f"c{at}": draw for at in range(categories)}, first.items_needed, rule=rule, runs=800, seed=2)
    power, seen = found[Outcome.ACCEPTED] / 800, (first.better + first.worse) / first.n
    asked = f"{categories} categories of {first.items_needed}"
    print(f"\nequal, {allowed:.0%} allowed, {seen:.1%} discordant, {asked}: {power:.1%} accepted")
    assert power >= 0.8 - margin(0.8, 800)
