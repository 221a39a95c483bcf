"""The gate of a run: may the first model take the rest, by how often its first answers agree with the judge?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tieryard.bench.stats import wilson
from tieryard.errors import RequestError, UserError

Outcome = Literal["passed", "failed", "too_few"]

_MOST_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """`low` and `high` are the ends of the share's 95 % interval; `said` is a sentence for people."""

    outcome: Outcome
    low: float
    high: float
    said: str


def judge(n: int, agreed: int, min_agreement: float) -> Verdict:
    """Passed where the lower end of Wilson's 95 % interval is at least `min_agreement`. Too few where even rows that
    all agree would not show so much, which happens where many have no answer or no truth. Raises UserError where
    more agreed than there are."""
    if n == 0:
        return Verdict("too_few", 0.0, 1.0, f"none of the rows could be judged; {_needed(min_agreement)} must be")
    share = wilson(agreed, n)
    seen = f"{agreed} of {n} agree, {share.value:.1%} ({share.low:.1%}–{share.high:.1%})"
    if share.low >= min_agreement:
        return Verdict("passed", share.low, share.high, f"{seen}: shown to be at least {min_agreement:.1%}")
    if wilson(n, n).low < min_agreement:
        needed = _needed(min_agreement)
        return Verdict("too_few", share.low, share.high, f"{seen}: {min_agreement:.1%} takes {needed} rows to show")
    if share.high < min_agreement:
        return Verdict("failed", share.low, share.high, f"{seen}: shown to be below {min_agreement:.1%}")
    return Verdict("failed", share.low, share.high, f"{seen}: not shown to be at least {min_agreement:.1%}")


def check_rows(rows: int, min_agreement: float) -> None:
    """Raises RequestError where so few rows could never pass, and where no number of rows could."""
    try:
        needed = _needed(min_agreement)
    except UserError:
        raise RequestError(
            f"at most {_MOST_ROWS:,} rows are judged, which cannot show {min_agreement:g}", param="gate.min_agreement"
        ) from None
    if rows < needed:
        raise RequestError(
            f"{rows} rows cannot show an agreement of {min_agreement:g} even if all agree; take {needed} or more",
            param="gate.rows",
        )


def _needed(min_agreement: float) -> int:
    """The fewest rows that pass where all agree. Raises UserError where none do."""
    low, high = 0, _MOST_ROWS
    if wilson(high, high).low < min_agreement:
        raise UserError(f"no {high:,} rows show {min_agreement:g}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wilson(middle, middle).low >= min_agreement else (middle, high)
    return high
