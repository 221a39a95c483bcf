"""Total cost of ownership: two ways to have the same work done, month by month. Formulae: docs/reference/costs.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from tieryard.catalog import Price
from tieryard.catalog.base import Strict, misfit
from tieryard.catalog.price_book import BookUsd
from tieryard.catalog.reading import parse_as, read_text
from tieryard.costs.planning import DAYS_A_MONTH, HOURS_A_DAY, Workload
from tieryard.errors import UserError

SHORTEST, LONGEST = 6, 12
"""Months: what a comparison may look ahead."""

Hours = Annotated[Decimal, Field(ge=0, max_digits=10, decimal_places=2)]


class Rent(Strict):
    """Instances that are rented around the clock."""

    usd_per_h: BookUsd = Field(gt=0, description="For one.")
    instances: int = Field(default=1, gt=0)

    def month_usd(self) -> Decimal:
        """USD an hour × instances × 24 × 30."""
        return self.usd_per_h * self.instances * HOURS_A_DAY * DAYS_A_MONTH


class Effort(Strict):
    """What an option takes besides tokens or rent. The first four once, the others each month."""

    evaluation_usd: BookUsd = Field(default=Decimal(0), description="Golden runs, judges, labels.")
    engineering_hours: Hours = Field(default=Decimal(0), description="To build it, or to move to it.")
    prompt_migration_hours: Hours = Field(default=Decimal(0), description="To rewrite prompts for the other model.")
    setup_usd: BookUsd = Field(default=Decimal(0), description="Anything else that is paid once.")
    model_update_hours: Hours = Field(default=Decimal(0), description="A month: to try and take on new versions.")
    maintenance_hours: Hours = Field(default=Decimal(0), description="A month.")
    monitoring_usd: BookUsd = Field(default=Decimal(0), description="A month.")

    @property
    def has_hours(self) -> bool:
        hours = (self.engineering_hours, self.prompt_migration_hours, self.model_update_hours, self.maintenance_hours)
        return any(hours)


NO_EFFORT = Effort()


class OptionFile(Effort):
    """An option as it stands in a file: tokens that are bought, or a rent, and what it takes besides."""

    name: str = Field(min_length=1, max_length=100)
    tokens: Price | None = None
    rent: Rent | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.tokens is None) == (self.rent is None):
            raise misfit("give `tokens` or `rent`, one of both")
        return self


@dataclass(frozen=True, slots=True)
class Line:
    """One sum of an option, in USD."""

    what: str
    once_usd: Decimal = Decimal(0)
    month_usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Option:
    """`running`: the price of tokens that are bought, or the rent of what runs them."""

    name: str
    running: Price | Rent
    effort: Effort = NO_EFFORT

    def lines(self, workload: Workload, usd_per_hour: Decimal) -> list[Line]:
        """All that it costs. Hours cost `usd_per_hour`."""
        effort = self.effort
        if isinstance(self.running, Rent):
            runs = Line("rent", month_usd=self.running.month_usd())
        else:
            runs = Line("tokens", month_usd=workload.month_usd(self.running))
        return [
            runs,
            Line("evaluation", once_usd=effort.evaluation_usd),
            Line("engineering", once_usd=effort.engineering_hours * usd_per_hour),
            Line("prompt migration", once_usd=effort.prompt_migration_hours * usd_per_hour),
            Line("setup", once_usd=effort.setup_usd),
            Line("model updates", month_usd=effort.model_update_hours * usd_per_hour),
            Line("maintenance", month_usd=effort.maintenance_hours * usd_per_hour),
            Line("monitoring", month_usd=effort.monitoring_usd),
        ]


def read_option(path: Path) -> Option:
    """An option from a YAML file. Raises CatalogError: line, field, what was expected."""
    given = parse_as(OptionFile, read_text(path), name=str(path), kind="an option", fields="name, tokens or rent")
    running = given.tokens or given.rent
    assert running is not None
    effort = Effort(**{name: getattr(given, name) for name in Effort.model_fields})
    return Option(given.name, running, effort)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of A, which is left or not taken, with B. `payback_month`: the first whole month at whose end B has cost no more,
    and stays so; None where there is none. It may lie beyond `months`."""

    a: tuple[Line, ...]
    b: tuple[Line, ...]
    months: int
    payback_month: int | None

    def spent(self, month: int) -> tuple[Decimal, Decimal]:
        """USD that A and B have cost at the end of a month: once + months × a month."""
        return _once(self.a) + month * _monthly(self.a), _once(self.b) + month * _monthly(self.b)


def compare(a: Option, b: Option, workload: Workload, *, months: int, usd_per_hour: Decimal) -> Comparison:
    """Raises UserError for a horizon or a rate that is none.

    B − A after m months is (once B − once A) − m × (a month of A − a month of B). It is 0 at m = more once ÷ less each
    month; where B is not cheaper each month it never pays back, unless it is so from the start and stays so."""
    if not SHORTEST <= months <= LONGEST:
        raise UserError(f"must be {SHORTEST} to {LONGEST}, not {months}", param="--months")
    if not usd_per_hour.is_finite() or usd_per_hour < 0:
        raise UserError(f"must not be below 0, not {usd_per_hour}", param="--hourly-rate")
    mine, theirs = tuple(a.lines(workload, usd_per_hour)), tuple(b.lines(workload, usd_per_hour))
    more_once = _once(theirs) - _once(mine)
    less_monthly = _monthly(mine) - _monthly(theirs)
    return Comparison(mine, theirs, months, _payback(more_once, less_monthly))


def _payback(more_once_usd: Decimal, less_monthly_usd: Decimal) -> int | None:
    if less_monthly_usd > 0:
        return max(1, math.ceil(more_once_usd / less_monthly_usd))
    return 1 if less_monthly_usd == 0 and more_once_usd <= 0 else None


def _once(lines: tuple[Line, ...]) -> Decimal:
    return sum((line.once_usd for line in lines), Decimal(0))


def _monthly(lines: tuple[Line, ...]) -> Decimal:
    return sum((line.month_usd for line in lines), Decimal(0))
