"""What routing saved: charges beside what the same tokens would have cost elsewhere, and how good the answers were.

The assumptions are in `ASSUMED`, and printed with the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from tieryard.costs.reporting import share_saved

ASSUMED = (
    "Each counterfactual takes the job's own tokens. Another tokenizer would count others, and another model would "
    "write longer or shorter; neither is known.",
    "Prices are those of the moment at which the job ended: of the baseline its standard or token price, hosted the "
    "cheapest that was in the price book.",
    "Both sides are charges alone. Idle time, warm-up, failed starts and overhead are in neither: always-large would "
    "have them too, and more of them or fewer.",
    "Jobs for which nothing was recorded to compare with are left out of a comparison, on both sides.",
    "The baseline's quality is of golden sets, the routed one of the answers that somebody scored: other prompts, the "
    "same categories.",
)

_SIX = Decimal("1E-6")


@dataclass(frozen=True, slots=True)
class CategorySavings:
    """Charges of one category's jobs beside what else they would have cost, each over the jobs for which that is known;
    and the mean score of those that were scored."""

    category: str | None
    jobs: int
    cost_usd: Decimal
    large_jobs: int
    large_cost_usd: Decimal
    large_usd: Decimal
    hosted_jobs: int
    hosted_cost_usd: Decimal
    hosted_usd: Decimal
    scored: int
    score: Decimal | None


@dataclass(frozen=True, slots=True)
class Measured:
    """A mean score of `n` answers."""

    n: int
    score: Decimal


@dataclass(frozen=True, slots=True)
class Comparison:
    """Charges beside what the same jobs would have cost, over the `jobs` of `of` for which that is known."""

    jobs: int
    of: int
    cost_usd: Decimal
    instead_usd: Decimal

    @property
    def saved_usd(self) -> Decimal:
        return self.instead_usd - self.cost_usd

    @property
    def saved_share(self) -> Decimal | None:
        """0 to 1; below zero where it would have cost less."""
        return share_saved(self.cost_usd, self.instead_usd)


@dataclass(frozen=True, slots=True)
class Savings:
    """By category, with the baseline's measured quality of each where a golden set was asked."""

    rows: Sequence[CategorySavings]
    baseline: str | None
    measured: Mapping[str, Measured]

    def large(self, rows: Sequence[CategorySavings] | None = None) -> Comparison:
        kept = self.rows if rows is None else rows
        return Comparison(
            sum(row.large_jobs for row in kept),
            sum(row.jobs for row in kept),
            _sum(row.large_cost_usd for row in kept),
            _sum(row.large_usd for row in kept),
        )

    def hosted(self, rows: Sequence[CategorySavings] | None = None) -> Comparison:
        kept = self.rows if rows is None else rows
        return Comparison(
            sum(row.hosted_jobs for row in kept),
            sum(row.jobs for row in kept),
            _sum(row.hosted_cost_usd for row in kept),
            _sum(row.hosted_usd for row in kept),
        )

    @property
    def quality(self) -> tuple[Measured, Measured] | None:
        """(routed, baseline) over the categories in which both are measured, each weighted by its scored answers; None
        where there is none."""
        both = [row for row in self.rows if row.scored and row.category in self.measured]
        n = sum(row.scored for row in both)
        if not n:
            return None
        routed = _sum(row.scored * (row.score or Decimal(0)) for row in both) / n
        large = _sum(row.scored * self.measured[str(row.category)].score for row in both) / n
        items = sum(self.measured[str(row.category)].n for row in both)
        return Measured(n, _six(routed)), Measured(items, _six(large))

    def baseline_of(self, category: str | None) -> Measured | None:
        return self.measured.get(category) if category is not None else None


def pooled(found: Sequence[tuple[str, int, float]]) -> dict[str, Measured]:
    """By category, of (category, n, mean score) of several golden sets: the mean over all items."""
    sums: dict[str, tuple[int, Decimal]] = {}
    for category, n, score in found:
        items, total = sums.get(category, (0, Decimal(0)))
        sums[category] = (items + n, total + n * Decimal(str(score)))
    return {category: Measured(n, _six(total / n)) for category, (n, total) in sums.items() if n}


def _sum(values: Iterable[Decimal]) -> Decimal:
    return sum(values, Decimal(0))


def _six(score: Decimal) -> Decimal:
    return score.quantize(_SIX, ROUND_HALF_UP)
