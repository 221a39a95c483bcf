"""A canary's watch: it sees what is worse, and seldom what is not there, however often it looks."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import fisher_exact

from tieryard.bench.canary import FEWEST, SLOWER, Limits, Look, Side, is_due, look, worse_p

LIMITS = Limits(max_error_rate=0.01, allowed_drop=0.05)
NOTHING_ALLOWED = Limits(max_error_rate=0.0, allowed_drop=0.0)
"""So that every difference that is shown is a breach."""


def side(n: int, *, failed: int = 0, missed: int = 0, ms: float = 100.0, scored: int = 0, passed: int = 0) -> Side:
    return Side(n, failed, missed, [ms + i for i in range(n - failed)], scored, passed)


def test_the_test_is_fishers() -> None:
    rng = random.Random(1)
    for _ in range(50):
        n, other_n = rng.randint(1, 60), rng.randint(1, 60)
        bad, other_bad = rng.randint(0, n), rng.randint(0, other_n)
        table = [[bad, n - bad], [other_bad, other_n - other_bad]]
        assert worse_p(bad, n, other_bad, other_n) == pytest.approx(fisher_exact(table, alternative="greater").pvalue)


def test_looks_are_due_as_the_sample_grows() -> None:
    assert not is_due(0, FEWEST - 1, 100)
    assert not is_due(0, 100, FEWEST - 1)
    assert is_due(0, FEWEST, FEWEST)
    assert not is_due(100, 49, 100)
    assert is_due(100, 50, 100)


def test_what_the_looks_may_use_adds_up_to_alpha() -> None:
    looks = [look(k, side(20), side(20), LIMITS) for k in range(1, 2000)]
    assert sum(found.alpha * len(found.measures) for found in looks) == pytest.approx(LIMITS.alpha, rel=1e-3)
    assert not any(found.breach for found in looks)


@pytest.mark.parametrize(
    ("candidate", "serving", "said"),
    [
        (side(10, failed=10), side(10), "100.0% of 10 of its starts fail, 0.0% of 10"),
        (side(200, missed=60), side(200, missed=4), "30.0% of 200 of its answers miss their SLO"),
        (side(400, ms=2000), side(400, ms=200), "its p95 of latency is 2,379 ms, 579 ms"),
        (side(200, scored=150, passed=75), side(200, scored=150, passed=120), "50.0% of 150 of its scored answers"),
    ],
)
def test_a_breach_says_what_is_worse(candidate: Side, serving: Side, said: str) -> None:
    found = look(1, candidate, serving, LIMITS)
    assert said in found.breach
    assert not look(1, serving, candidate, LIMITS).breach, "better is no breach"


def test_what_is_shown_and_allowed_is_no_breach() -> None:
    many = 200_000
    found = look(1, Side(many, 1500, 0, []), Side(many, 200, 0, []), LIMITS)
    assert found.measures[0].p < 1e-9
    assert found.breach == "", "0.75 % is below the ceiling of 1 %"
    found = look(1, Side(10, 0, 0, [], many, many // 2 - 8000), Side(10, 0, 0, [], many, many // 2), LIMITS)
    assert found.measures[3].p < 1e-9
    assert found.breach == "", "4 points are allowed"


def canary(rng: np.random.Generator, *, errors: tuple[float, float], most: int = 2000) -> Look | None:
    """A whole canary of two alike sides, but for their errors: the look that ends it."""
    failed, served = (rng.random(most) < rate for rate in errors)
    slow = SLOWER * rng.lognormal(5, 1, most), rng.lognormal(5, 1, most)  # just as slow as is allowed
    bar = np.percentile(slow[0], 90)
    missed = slow[0] > bar, rng.random(most) < 0.1
    passed = rng.random(most) < 0.7, rng.random(most) < 0.7
    n = number = 0
    while n < most:
        n, number = min(most, max(FEWEST, n + max(1, -(-n // 2)))), number + 1
        sides = [
            Side(n, int(f[:n].sum()), int(m[:n].sum()), ms[:n].tolist(), n // 4, int(p[: n // 4].sum()))
            for f, m, ms, p in zip((failed, served), missed, slow, passed, strict=True)
        ]
        if (found := look(number, *sides, NOTHING_ALLOWED)).breach:
            return found
    return None


def test_what_fails_more_often_is_ended() -> None:
    rng = np.random.default_rng(7)
    found = [canary(rng, errors=(0.1, 0.02)) for _ in range(40)]
    assert sum(one is not None for one in found) >= 39
