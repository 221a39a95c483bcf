"""What a golden set's size allows to be said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tieryard.golden.items import GoldenSet

if TYPE_CHECKING:
    from tieryard.bench.stats import Interval

FEWEST = 100
MOST = 500


def advice(golden: GoldenSet) -> list[str]:
    """A sentence for each category with fewer or more than 100–500 items; none where all is well."""
    return [said for category, n in golden.counts.items() if (said := _said(category, n)) is not None]


def _said(category: str, n: int) -> str | None:
    if n > MOST:
        most = _width(MOST)
        return f"{category}: {n} items; {MOST} already tell a pass rate to within {most:.0f} points, more cost time"
    if n >= FEWEST:
        return None
    interval = _widest(n)
    return (
        f"{category}: {n} {'item' if n == 1 else 'items'}; {FEWEST} to {MOST} is the advice. "
        f"A measured pass rate of {interval.value:.0%} would mean {interval.low:.0%} to {interval.high:.0%} "
        f"(95 %, Wilson): smaller differences cannot be claimed"
    )


def _width(n: int) -> float:
    """Half the interval, in points."""
    interval = _widest(n)
    return (interval.high - interval.low) * 50


def _widest(n: int) -> Interval:
    """Of about one half, where an interval is widest."""
    from tieryard.bench.stats import wilson  # brings SciPy, which no other command is to wait for

    return wilson(n // 2, n)
