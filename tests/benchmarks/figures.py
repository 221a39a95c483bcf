"""A measured figure, beside its peer's from the same run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Figure:
    """`value` over `n` measurements, beside `peer_value` over as many; `ratio` is the one over the other.

    A throughput is the median of its rounds, with `spread` = (max - min) / median. A percentile has no spread.
    """

    figure: str
    unit: str
    value: float
    spread: float | None
    peer: str
    peer_value: float
    ratio: float
    n: int

    @classmethod
    def median(cls, figure: str, unit: str, values: list[float], *, peer: str, peer_values: list[float]) -> Self:
        """Of rounds."""
        value = statistics.median(values)
        spread = round((max(values) - min(values)) / value, 3)
        return cls._beside(figure, unit, value, spread, peer, statistics.median(peer_values), len(values))

    @classmethod
    def percentile(
        cls, figure: str, unit: str, p: int, values: list[float], *, peer: str, peer_values: list[float]
    ) -> Self:
        """The p-th percentile of single measurements."""
        value, other = (statistics.quantiles(v, n=100, method="inclusive")[p - 1] for v in (values, peer_values))
        return cls._beside(figure, unit, value, None, peer, other, len(values))

    @classmethod
    def _beside(
        cls, figure: str, unit: str, value: float, spread: float | None, peer: str, peer_value: float, n: int
    ) -> Self:
        ratio = round(value / peer_value, 3)
        return cls(figure, unit, round(value, 2), spread, peer, round(peer_value, 2), ratio, n)
