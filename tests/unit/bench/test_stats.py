"""Intervals, tests and numbers of items agree with published values, with scipy, and with brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, binomtest, bootstrap, multinomial

from tieryard.bench.stats import (
    Interval,
    cohen_kappa,
    drop_p,
    holm,
    items_needed,
    items_to_accept,
    mcnemar_exact,
    paired_bootstrap,
    rate_difference,
    resample,
    sign_flip,
    swap_consistency,
    wilson,
)
from tieryard.errors import UserError


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 40), (7, 10), (81, 263), (500, 500)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    mine, theirs = wilson(successes, n), binomtest(successes, n).proportion_ci(0.95, "wilson")
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert mine.low <= mine.value <= mine.high


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_no_share_is_refused(successes: int, n: int) -> None:
    with pytest.raises(UserError, match=f"{successes} of {n} is no share"):
        wilson(successes, n)


def test_mcnemar() -> None:
    assert mcnemar_exact(0, 0).two_sided == mcnemar_exact(0, 0).worse == 1
    assert mcnemar_exact(1, 7).worse == pytest.approx(9 / 256)
    assert mcnemar_exact(1, 7).two_sided == pytest.approx(18 / 256)
    assert mcnemar_exact(7, 1).worse == pytest.approx(255 / 256)


def test_holm_adjusts_in_steps() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(("better", "worse", "n"), [(5, 15, 100), (0, 0, 80), (3, 3, 30), (0, 9, 60), (20, 4, 50)])
def test_the_interval_ends_where_the_test_does(better: int, worse: int, n: int) -> None:
    found = rate_difference(better, worse, n, 0.90)
    assert found.low <= found.value == (better - worse) / n <= found.high
    assert drop_p(better, worse, n, -found.low) == pytest.approx(0.05, abs=1e-6)
    turned = rate_difference(worse, better, n, 0.90)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_the_interval_at_its_ends() -> None:
    assert rate_difference(0, 3, 3).low == -1
    assert rate_difference(0, 50, 50).low == -1
    assert rate_difference(50, 0, 50).high == 1


def wrongly_accepted(n: int, drop: float, discordance: float) -> float:
    """The exact share of samples that `drop_p` lets pass at 5 %, when the drop is just what is not allowed."""
    worse, better = (discordance + drop) / 2, (discordance - drop) / 2
    passing = [
        (b, w)
        for b in range(int(n * better + 6 * math.sqrt(n * better) + 6))
        for w in range(n - b + 1)
        if w - b < n * drop and drop_p(b, w, n, drop) <= 0.05
    ]
    counts = [(b, w, n - b - w) for b, w in passing]
    return float(multinomial.pmf(counts, n, [better, worse, 1 - better - worse]).sum()) if counts else 0.0


def test_a_drop_that_is_not_allowed_passes_seldom() -> None:
    """The corners where the uncorrected score test accepts up to 7.2 %; all of n = 20–500 were searched once."""
    corners = [*product((20, 25, 30, 60, 120), (0.1,), (0.1, 0.3, 0.8)), *product((60, 100, 150), (0.05,), (0.05, 0.2))]
    shares = {corner: wrongly_accepted(*corner) for corner in corners}
    assert max(shares.values()) <= 0.05, shares


def test_the_bootstrap_is_scipys_where_n_is_large() -> None:
    """Student's quantiles are the normal ones there, and what is left is BCa."""
    values = np.random.default_rng(3).exponential(size=400)
    theirs = bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=5).confidence_interval
    mine = resample(values).interval(0.95)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert mine.value == pytest.approx(values.mean())


def test_the_bootstrap_is_deterministic_and_paired() -> None:
    before = np.random.default_rng(1).random(120)
    after = before - 0.05
    first, second = (paired_bootstrap(before, after, resamples=500, seed=9) for _ in range(2))
    assert first == second
    assert (first.low, first.value, first.high) == pytest.approx(
        (-0.05, -0.05, -0.05)
    )  # the items' spread is not in it
    with pytest.raises(UserError, match="120 scores before and 119 after"):
        paired_bootstrap(before, after[1:])
    with pytest.raises(UserError, match="1 items cannot be resampled"):
        resample([0.5])


def test_bounds_and_p_values_are_one_thing() -> None:
    skewed = resample(np.random.default_rng(2).exponential(size=60))
    for level in (0.01, 0.05, 0.5, 0.95, 0.99):
        at = skewed.bound(level)
        assert skewed.p_above(at) == pytest.approx(level, abs=0.003)
        assert skewed.p_below(at) == pytest.approx(1 - level, abs=0.003)
    alike = resample([-0.1] * 40)
    assert alike.p_below(0) < 0.001 < 0.999 < alike.p_above(0)
    assert alike.interval(0.95) == Interval(*[pytest.approx(-0.1)] * 3)


def test_more_resamples_than_are_held_at_once() -> None:
    values = np.random.default_rng(4).random(3000)
    assert resample(values, resamples=3000).interval(0.9).value == pytest.approx(values.mean())


def test_thrown_signs_are_mcnemars_test() -> None:
    signs = [-1.0] * 12 + [1.0] * 3 + [0.0] * 85
    assert sign_flip(signs, resamples=20_000) == pytest.approx(mcnemar_exact(3, 12).worse, abs=0.004)
    assert sign_flip([0.0] * 50) == 1


def test_kappa() -> None:
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = cohen_kappa(a, b)
    assert found is not None
    assert found.value == pytest.approx(0.4)  # agreement 0.7, by chance 0.5
    assert 0.1 < found.low < 0.4 < found.high < 0.65
    perfect = cohen_kappa([0, 1, 2] * 10, [0, 1, 2] * 10)
    assert perfect is not None
    assert (perfect.value, perfect.high) == pytest.approx((1, 1))
    assert 0.7 < perfect.low < 0.9  # 30 items do not prove it
    assert cohen_kappa([1, 1, 1], [1, 1, 1]) is None
    with pytest.raises(UserError, match="2 labels and 1 labels"):
        cohen_kappa([1, 2], [1])


def test_swaps() -> None:
    found = swap_consistency(["a", "b", "a", "tie", "a", "b"], ["a", "b", "b", "tie", "tie", "a"])
    assert (found.n, found.consistent.value) == (6, 0.5)
    assert (found.prefers_first, found.prefers_second) == (1, 1)
    with pytest.raises(UserError, match="not of one list"):
        swap_consistency(["a"], [])


def test_items_needed_by_brute_force() -> None:
    n = items_needed(0.15, 0.3, 0.8, 0.05)

    def power(n: int) -> float:
        discordant = range(n + 1)
        shown = [
            sum(binom.pmf([w for w in range(m + 1) if mcnemar_exact(m - w, w).worse <= 0.05], m, 0.75))
            for m in discordant
        ]
        return float(sum(binom.pmf(discordant, n, 0.3) * shown))

    assert power(n) >= 0.8 > power(n - 1)


def test_items_to_accept_by_brute_force() -> None:
    n = items_to_accept(0.15, 0.3)
    pairs = [(b, w) for b in range(n + 1) for w in range(n + 1 - b) if drop_p(b, w, n, 0.15) <= 0.05]
    power = multinomial.pmf([(b, w, n - b - w) for b, w in pairs], n, [0.15, 0.15, 0.7]).sum()
    assert 0.8 <= power < 0.83


def test_more_is_needed_for_less() -> None:
    assert items_needed(0.02, 0.2) > items_needed(0.05, 0.2) > items_needed(0.1, 0.2)
    assert items_needed(0.05, 0.3) > items_needed(0.05, 0.1)
    assert items_needed(0.05, 0.2, 0.95) > items_needed(0.05, 0.2) < items_needed(0.05, 0.2, alpha=0.01)
    assert items_to_accept(0.05, 0.0) < items_to_accept(0.05, 0.1) < items_to_accept(0.02, 0.1)
    assert items_to_accept(0.001, 0.2) > 1_000_000  # by the approximation
    for drop, discordance in ((0.2, 0.1), (0.0, 0.1), (0.1, 1.5)):
        with pytest.raises(UserError, match="0 < drop ≤ discordance ≤ 1"):
            items_needed(drop, discordance)
