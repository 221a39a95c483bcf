"""A measured figure, beside its peer's from the same run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Figure:
    """`value` is the median of `n` rounds, `spread` their (max - min) / median; `ratio` is value over peer."""

    figure: str
    unit: str
    value: float
    spread: float
    peer: str | None
    peer_value: float | None
    ratio: float | None
    n: int

    @classmethod
    def of(
        cls,
        figure: str,
        unit: str,
        values: list[float],
        *,
        peer: str | None = None,
        peer_values: list[float] | None = None,
    ) -> Self:
        value = statistics.median(values)
        peer_value = statistics.median(peer_values) if peer_values else None
        return cls(
            figure,
            unit,
            round(value, 2),
            round((max(values) - min(values)) / value, 3) if value else 0.0,
            peer,
            round(peer_value, 2) if peer_value is not None else None,
            round(value / peer_value, 2) if peer_value else None,
            len(values),
        )
