"""A summary of measured values: their mean and percentiles, with how many there were."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Self


@dataclass(frozen=True, slots=True)
class Spread:
    """Of `n` values. Percentiles interpolate linearly between the two values next to them: type 7 of Hyndman and Fan
    (1996), as numpy does. `ln` and `ln2` are the means of the logarithm and of its square, by which live traffic keeps
    a profile's 95th percentile; None when a value is not above 0."""

    n: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    ln: float | None
    ln2: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """None of nothing. What is None was not measured."""
        return cls.weighted((value, 1) for value in values if value is not None)

    @classmethod
    def weighted(cls, pairs: Iterable[tuple[float, int]]) -> Self | None:
        """Of (value, how often it occurs)."""
        ranked = sorted((value, count) for value, count in pairs if count > 0)
        if not ranked:
            return None
        values = [value for value, _ in ranked]
        ends = list(accumulate(count for _, count in ranked))
        n = ends[-1]
        p50, p90, p95, p99 = (_at(values, ends, p) for p in (0.50, 0.90, 0.95, 0.99))
        logs = [(math.log(value), count) for value, count in ranked] if values[0] > 0 else []
        return cls(
            n=n,
            mean=math.fsum(value * count for value, count in ranked) / n,
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            ln=math.fsum(x * count for x, count in logs) / n if logs else None,
            ln2=math.fsum(x * x * count for x, count in logs) / n if logs else None,
        )


def percentile(values: Iterable[float], p: float) -> float | None:
    """The value below which a share `p` (0 to 1) lies, as `Spread` has it; None of nothing."""
    ranked = sorted(values)
    return _at(ranked, range(1, len(ranked) + 1), p) if ranked else None


def _at(values: list[float], ends: list[int] | range, p: float) -> float:
    """`values` rise, and value `i` has the ranks below `ends[i]`, from 0, that those before it have not."""
    rank = (ends[-1] - 1) * p
    low = values[bisect_right(ends, math.floor(rank))]
    high = values[bisect_right(ends, math.ceil(rank))]
    return low + (high - low) * (rank - math.floor(rank))
