"""Percentiles are numpy's, and a spread is of what was measured."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.bench.percentiles import Spread, percentile

TIMES = st.floats(min_value=1e-3, max_value=1e6)


@given(st.lists(TIMES, min_size=1, max_size=60))
def test_percentiles_are_numpys(values):
    found = Spread.of(values)
    assert found.n == len(values)
    expected = np.percentile(values, [50, 90, 95, 99])
    assert [found.p50, found.p90, found.p95, found.p99] == pytest.approx(list(expected))
    assert [percentile(values, p) for p in (0, 1)] == [min(values), max(values)]
    assert found.mean == pytest.approx(np.mean(values))
    assert found.ln == pytest.approx(np.mean(np.log(values)))
    assert found.ln2 == pytest.approx(np.mean(np.log(values) ** 2))


@given(st.lists(st.tuples(TIMES, st.integers(0, 8)), max_size=30))
def test_a_weight_is_so_many_values(pairs):
    whole = [value for value, count in pairs for _ in range(count)]
    weighted, plain = Spread.weighted(pairs), Spread.of(whole)
    if not whole:
        assert weighted is plain is None
        return
    for name in ("n", "mean", "p50", "p90", "p95", "p99", "ln", "ln2"):
        assert getattr(weighted, name) == pytest.approx(getattr(plain, name)), name


@given(st.lists(TIMES, min_size=1), st.floats(1.5, 1e3))
def test_scaling_times_scales_their_spread(values, factor):
    one, other = Spread.of(values), Spread.of(value * factor for value in values)
    assert [other.mean, other.p50, other.p99] == pytest.approx([factor * x for x in (one.mean, one.p50, one.p99)])
    assert one.p50 <= one.p90 <= one.p95 <= one.p99
    assert other.ln - one.ln == pytest.approx(math.log(factor), abs=1e-6)


def test_nothing_measured_is_none_and_zero_has_no_logarithm():
    assert Spread.of([]) is Spread.of([None, None]) is percentile([], 0.5) is None
    assert Spread.of([None, 4.0]).n == 1
    assert (Spread.of([0.0, 1.0]).ln, Spread.of([0.0, 1.0]).p50) == (None, 0.5)
