"""Quality against cost: how much of the strong model's advantage a router keeps at each share of its calls.

Measures as in RouteLLM (Ong et al., arXiv 2406.18665, section 4.2): PGR at a share of calls is (quality − weak's) ÷
(strong's − weak's); APGR is its mean over all shares, CPT50 and CPT80 are the smallest shares at which PGR reaches 0.5
and 0.8. Rows that a router scores alike are sent in random order, so each gets the mean gain of its tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tieryard.errors import UserError

Array = NDArray[np.float64]

_POINTS = 101
_RESAMPLES = 300
_STEPS = 400  # of the trade between quality and price


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Curve:
    """One router over one set of prompts. `quality` at shares 0, 0.01 … 1 of calls to the strong model."""

    apgr: Interval
    cpt50: Interval
    cpt80: Interval
    quality: list[float]

    def as_dict(self) -> dict[str, Any]:
        return {
            "apgr": self.apgr.as_dict(),
            "cpt50": self.cpt50.as_dict(),
            "cpt80": self.cpt80.as_dict(),
            "quality": self.quality,
        }


def curve(weak: Sequence[float], strong: Sequence[float], need: Sequence[float], *, seed: int = 0) -> Curve:
    """`need`: the router's score for each prompt; the highest goes to the strong model first."""
    low, gain = np.asarray(weak, dtype=np.float64), np.subtract(strong, weak)
    asked = np.asarray(need, dtype=np.float64)
    if gain.sum() <= 0:
        raise UserError(
            f"the strong model scores {np.mean(strong):.3f} and the weak one {np.mean(weak):.3f}: there is nothing to"
            " gain; swap them, or choose others"
        )
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(_RESAMPLES):
        rows = random.integers(0, len(gain), len(gain))
        if gain[rows].sum() > 0:
            drawn.append(_measures(_recovered(gain[rows], asked[rows])))
    spread = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    recovered = _recovered(gain, asked)
    apgr, cpt50, cpt80 = (
        Interval(*(round(float(v), 4) for v in (value, *spread[:, i]))) for i, value in enumerate(_measures(recovered))
    )
    shares = np.linspace(0, 1, _POINTS)
    kept = np.interp(shares, np.linspace(0, 1, len(recovered)), recovered)
    return Curve(apgr, cpt50, cpt80, [round(float(v), 5) for v in low.mean() + kept * gain.mean()])


def _recovered(gain: Array, need: Array) -> Array:
    """PGR when 0, 1 … all rows go to the strong model, the neediest first."""
    order = np.argsort(-need, kind="stable")
    sorted_need, sorted_gain = need[order], gain[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_need[1:] != sorted_need[:-1]]))
    sizes = np.diff(np.append(starts, len(gain)))
    even = np.repeat(np.add.reduceat(sorted_gain, starts) / sizes, sizes)
    recovered: Array = np.concatenate([[0.0], np.cumsum(even)]) / gain.sum()
    return recovered


def _measures(recovered: Array) -> tuple[float, float, float]:
    """APGR by the trapezoid rule, CPT50, CPT80."""
    rows = len(recovered) - 1
    area = float((recovered[1:] + recovered[:-1]).sum() / 2 / rows)
    return area, float(np.argmax(recovered >= 0.5) / rows), float(np.argmax(recovered >= 0.8) / rows)


@dataclass(frozen=True, slots=True)
class Trade:
    """Many models with prices. Costs are shares of what the best model alone costs; None: not reached at any trade."""

    best: str
    qualities: dict[str, float]
    cost_at_95: float | None
    cost_at_100: float | None
    points: list[tuple[float, float]]  # (cost, quality), dearest first

    def as_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "qualities": self.qualities,
            "cost_at_95": self.cost_at_95,
            "cost_at_100": self.cost_at_100,
            "points": self.points,
        }


def trade(scores: Mapping[str, Sequence[float]], prices: Sequence[float], predicted: Array) -> Trade:
    """Each prompt goes to the model with the highest `predicted` quality − rate × price; the rate is swept from nothing
    to all. `predicted` has a row for each prompt and a column for each model, in the order of `scores`."""
    names = list(scores)
    actual = np.array([scores[name] for name in names], dtype=np.float64).T
    price = np.asarray(prices, dtype=np.float64)
    means = actual.mean(axis=0)
    best = int(means.argmax())
    points: list[tuple[float, float]] = []
    for rate in np.concatenate([[0.0], np.geomspace(1e-4, 10, _STEPS)]) / price.max():
        chosen = (predicted - rate * price).argmax(axis=1)
        cost = float(price[chosen].mean() / price[best])
        points.append((round(cost, 4), round(float(actual[np.arange(len(actual)), chosen].mean()), 5)))
    points = sorted(set(points), reverse=True)
    return Trade(
        names[best],
        {name: round(float(mean), 5) for name, mean in zip(names, means, strict=True)},
        _cheapest(points, 0.95 * means[best]),
        _cheapest(points, means[best]),
        points,
    )


def _cheapest(points: list[tuple[float, float]], quality: float) -> float | None:
    return min((cost for cost, reached in points if reached >= quality), default=None)
