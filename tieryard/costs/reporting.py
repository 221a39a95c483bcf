"""What a report of costs may be asked, and the figures of its rows. The reports' SQL is in `tieryard/store/costs.py`;
how each is reproduced by hand, in docs/reference/cost-reports.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum
from typing import Any, cast

from tieryard.costs.windows import Kind
from tieryard.errors import RequestError
from tieryard.requests import parse_duration

LONGEST = timedelta(days=400)
"""A report's time: a year, and the month that one is compared in."""
DEFAULT_SINCE = "7d"
FIGURES = (
    "jobs",
    "succeeded",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "other_tokens",
    "cost_usd",
    "usd_per_1k_tokens",
    "usd_per_job",
    "usd_per_successful_job",
    "estimated_usd",
)
KIND_COLUMNS = tuple(f"{kind}_usd" for kind in Kind)
_DAY = timedelta(days=1)
_LAST_DIGIT = Decimal("1E-12")  # the ledger's own
_OF_ONE = Decimal("1E-6")


class Dimension(StrEnum):
    """What costs may be grouped by. Days are UTC; `key` is the API key that a job came with."""

    DAY = "day"
    DEPLOYMENT = "deployment"
    TENANT = "tenant"
    CATEGORY = "category"
    TIER = "tier"
    BATCH = "batch"
    KIND = "kind"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Span:
    """A time, with its start and without its end."""

    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class CostRow:
    """The postings of one group. `group`: its dimensions' values, as they are worded outside.

    `jobs` are those that were charged, `succeeded` those of them that did; tokens are theirs, and `other_tokens` those
    of starts that failed and of benchmarks. `estimated_usd` is the part of `cost_usd` that windows which are not closed
    may still change.
    """

    group: dict[str, str | None]
    jobs: int
    succeeded: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    other_tokens: int
    cost_usd: Decimal
    by_kind: dict[Kind, Decimal]
    estimated_usd: Decimal

    @property
    def usd_per_1k_tokens(self) -> Decimal | None:
        """All that the group cost ÷ prompt and completion tokens of its jobs × 1,000."""
        return quotient(1000 * self.cost_usd, self.prompt_tokens + self.completion_tokens)

    @property
    def usd_per_job(self) -> Decimal | None:
        return quotient(self.cost_usd, self.jobs)

    @property
    def usd_per_successful_job(self) -> Decimal | None:
        return quotient(self.cost_usd, self.succeeded)


@dataclass(frozen=True, slots=True)
class Costs:
    """A report by groups. `open_windows`: how many of its rent windows are not closed; `truncated`: there are more
    rows than were asked for, which the total has all the same."""

    span: Span
    dimensions: tuple[Dimension, ...]
    total: CostRow
    rows: list[CostRow]
    open_windows: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """What a tenant owes for one kind, tier and deployment. An adjustment has no tier, may have no deployment, and
    `note` says why it was made."""

    kind: str
    tier: str | None
    deployment: str | None
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    amount_usd: Decimal
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Invoice:
    """A tenant's month, UTC. `complete`: nothing can be posted to it any more."""

    tenant: str
    month: str
    span: Span
    lines: list[InvoiceLine]
    complete: bool

    @property
    def total_usd(self) -> Decimal:
        return sum((line.amount_usd for line in self.lines), Decimal(0))


@dataclass(frozen=True, slots=True)
class Utilisation:
    """What was rented for one deployment, or for hosts that serve no model (None), and what became of it. `used_usd`
    are charges of jobs; `adjustment_usd` balances those that came late. `estimated_usd`: as of a CostRow."""

    deployment: str | None
    windows: int
    open_windows: int
    rented_s: Decimal
    gpu_s: Decimal
    rent_usd: Decimal
    used_usd: Decimal
    retry_usd: Decimal
    benchmark_usd: Decimal
    warmup_usd: Decimal
    idle_usd: Decimal
    overhead_usd: Decimal
    adjustment_usd: Decimal
    estimated_usd: Decimal

    @property
    def hours(self) -> Decimal:
        return (self.rented_s / 3600).quantize(_OF_ONE, ROUND_HALF_UP)

    @property
    def gpu_hours(self) -> Decimal:
        return (self.gpu_s / 3600).quantize(_OF_ONE, ROUND_HALF_UP)

    def share(self, part: str) -> Decimal | None:
        """Of the rent, 0 to 1 with 6 digits; below 0 for an idle share where the standard price was beaten."""
        usd: Decimal = getattr(self, f"{part}_usd")
        return (usd / self.rent_usd).quantize(_OF_ONE, ROUND_HALF_UP) if self.rent_usd else None


SHARES = ("used", "retry", "benchmark", "warmup", "idle", "overhead")


def quotient(usd: Decimal, by: int) -> Decimal | None:
    """To the ledger's last digit, half up, as Postgres' `round` does; None by nothing."""
    return (usd / by).quantize(_LAST_DIGIT, ROUND_HALF_UP) if by else None


def share_saved(cost_usd: Decimal, instead_usd: Decimal) -> Decimal | None:
    """(instead − cost) ÷ instead, with 6 digits; None where the other is free."""
    return ((instead_usd - cost_usd) / instead_usd).quantize(_OF_ONE, ROUND_HALF_UP) if instead_usd else None


def read_dimensions(text: str, *, param: str) -> tuple[Dimension, ...]:
    """`"day,deployment"`. Raises RequestError for what is none, or stands twice."""
    names = [name.strip() for name in text.split(",")]
    known = [str(one) for one in Dimension]
    for name in names:
        if name not in known:
            raise RequestError(f"'{_quoted(name)}' is none of {', '.join(known)}", param=param)
        if names.count(name) > 1:
            raise RequestError(f"'{name}' stands twice", param=param)
    return tuple(Dimension(name) for name in names)


def read_span(since: str | None, until: str | None, now: datetime, *, prefix: str = "") -> Span:
    """Each is a UTC day, a time (with a zone, else UTC), or a duration back from now; days back begin at midnight, so
    `7d` are today and the six days before. Default: the last 7 days until now. Raises RequestError."""
    start = read_moment(DEFAULT_SINCE if since is None else since, now, param=f"{prefix}since")
    end = now if until is None else read_moment(until, now, param=f"{prefix}until")
    if start >= end:
        shown = (start.isoformat(timespec="seconds"), end.isoformat(timespec="seconds"))
        raise RequestError(f"{shown[0]} is not before {shown[1]}", param=f"{prefix}since")
    if end - start > LONGEST:
        raise RequestError(f"at most {LONGEST.days} days in one report", param=f"{prefix}since")
    return Span(start, end)


def read_month(text: str, now: datetime, *, param: str = "month") -> tuple[str, Span]:
    """`"2026-11"`: the month, and its first moment to the next one's. Raises RequestError, also for one to come."""
    try:
        first = date.fromisoformat(f"{text}-01")
        if text != first.strftime("%Y-%m"):
            raise ValueError
        start = datetime(first.year, first.month, 1, tzinfo=UTC)
        end = (start + 31 * _DAY).replace(day=1)
    except (ValueError, OverflowError):
        raise RequestError(f"expected a month such as 2026-11, not '{_quoted(text)}'", param=param) from None
    if start > now:
        raise RequestError(f"{text} has not begun", param=param)
    return text, Span(start, end)


def figures(row: CostRow) -> dict[str, Any]:
    """A row's figures by their names, as JSON, CSV and Parquet have them: those that do not depend on its kinds."""
    return {name: getattr(row, name) for name in FIGURES}


def flat(rows: Sequence[CostRow]) -> list[Mapping[str, Any]]:
    """Rows for a file: dimensions, figures, and a column for each kind."""
    return [row.group | figures(row) | dict(zip(KIND_COLUMNS, row.by_kind.values(), strict=True)) for row in rows]


def read_moment(text: str, now: datetime, *, param: str) -> datetime:
    """A UTC day, a time, or a duration back: see `read_span`. Raises RequestError."""
    try:
        back = cast("timedelta", parse_duration(text))
    except ValueError as error:
        if str(error).startswith("at most"):
            raise RequestError(str(error), param=param) from None
    else:
        start = now - back
        if text.strip().endswith("d") and not back % _DAY:
            start = (start + _DAY).replace(hour=0, minute=0, second=0, microsecond=0)
        return start
    try:
        found = datetime.fromisoformat(text.strip())
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        said = "expected a day such as 2026-11-22, a time such as 2026-11-22T08:00:00Z, or a duration back such as 7d"
        raise RequestError(f"{said}, not '{_quoted(text)}'", param=param) from None


def _quoted(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
