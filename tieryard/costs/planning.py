"""What a workload costs with hosted models, what it asks of their limits, and from where on renting a GPU is cheaper.
Formulae and assumptions: docs/reference/costs.md."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from tieryard.catalog import Price
from tieryard.catalog.price_book import PrintedLimits
from tieryard.costs import token_cost
from tieryard.errors import UserError

DAYS_A_MONTH = 30
HOURS_A_DAY = 24
PEAK_FACTOR = Decimal(3)
"""How many times the day's average the busiest minute is taken to be, where nobody says better."""

_MINUTES_A_DAY = 1440
_DAY_S = 86_400
_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Workload:
    """Queries a day, and the tokens of each. Raises UserError for none."""

    daily_queries: int
    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        for name in ("daily_queries", "input_tokens", "output_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"must not be below 0, not {getattr(self, name)}", param=_option(name))
        if self.tokens_a_query == 0:
            raise UserError("a query has tokens: give --input-tokens or --output-tokens", param="--input-tokens")

    @property
    def tokens_a_query(self) -> int:
        return self.input_tokens + self.output_tokens

    def query_usd(self, price: Price) -> Decimal:
        return token_cost(price, prompt_tokens=self.input_tokens, completion_tokens=self.output_tokens)

    def month_usd(self, price: Price) -> Decimal:
        """USD, exact: queries a day × (input tokens × input price + output tokens × output price) ÷ 1,000,000 × 30."""
        return self.query_usd(price) * self.daily_queries * DAYS_A_MONTH


@dataclass(frozen=True, slots=True)
class Needed:
    """What the busiest minute asks for, rounded up: the day's average × `peak_factor`."""

    requests: int
    input_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, workload: Workload, peak_factor: Decimal = PEAK_FACTOR) -> Needed:
        """Requests a minute = queries a day ÷ 1,440 × peak factor; tokens = that × tokens a query. Raises UserError for
        a peak below the average."""
        if not peak_factor.is_finite() or peak_factor < 1:
            raise UserError(f"must be 1 or more, not {peak_factor}", param="--peak-factor")
        a_minute = workload.daily_queries * peak_factor / _MINUTES_A_DAY
        return cls(
            math.ceil(a_minute),
            math.ceil(a_minute * workload.input_tokens),
            math.ceil(a_minute * workload.output_tokens),
        )

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def beyond(self, limits: PrintedLimits) -> dict[str, Decimal]:
        """By what factor each limit is too low; empty where all are kept."""
        return {name: Decimal(needed) / most for name, needed, most in self._held_to(limits) if needed > most}

    def _held_to(self, limits: PrintedLimits) -> Iterator[tuple[str, int, int]]:
        for name, needed, most in (
            ("requests", self.requests, limits.requests_per_minute),
            ("tokens", self.tokens, limits.tokens_per_minute),
            ("input tokens", self.input_tokens, limits.input_tokens_per_minute),
            ("output tokens", self.output_tokens, limits.output_tokens_per_minute),
        ):
            if most is not None:
                yield name, needed, most


@dataclass(frozen=True, slots=True)
class Throughput:
    """What the rented GPUs together were measured to do under full load, in tokens a second: reading prompts alone, and
    writing answers alone. `utilization`: the share of the day in which there is work. Raises UserError for none."""

    prefill_tps: Decimal
    decode_tps: Decimal
    utilization: Decimal = Decimal(1)

    def __post_init__(self) -> None:
        for name in ("prefill_tps", "decode_tps", "utilization"):
            value = getattr(self, name)
            if not value.is_finite() or value <= 0:
                raise UserError(f"must be greater than 0, not {value}", param=_option(name))
        if self.utilization > 1:
            raise UserError(f"must be at most 1, not {self.utilization}", param="--utilization")

    def queries_a_day(self, input_tokens: int, output_tokens: int) -> Decimal:
        """86,400 s × utilization ÷ (input tokens ÷ prefill + output tokens ÷ decode): a GPU that reads one token spends
        the time that it could have spent on writing others."""
        busy_s = input_tokens / self.prefill_tps + output_tokens / self.decode_tps
        return _DAY_S * self.utilization / busy_s


@dataclass(frozen=True, slots=True)
class Breakeven:
    """`tokens_a_day` is None where the API is free. `capacity` is in tokens a day, None where no throughput is known;
    `rented_usd_per_1m` what a million costs there at that load."""

    api_usd_per_1m: Decimal
    queries_a_day: Decimal | None
    tokens_a_day: Decimal | None
    capacity: Decimal | None
    rented_usd_per_1m: Decimal | None

    @property
    def is_reached(self) -> bool | None:
        """Whether the GPUs can do as much; None where nobody knows."""
        if self.tokens_a_day is None:
            return False
        return None if self.capacity is None else self.tokens_a_day <= self.capacity


def breakeven(
    *,
    rent_usd_per_day: Decimal,
    input_tokens: int,
    output_tokens: int,
    price: Price,
    throughput: Throughput | None = None,
) -> Breakeven:
    """From how many tokens a day on a rent is below an API's bill.

    The rent R is due whether or not there is work; an API's bill is queries × c, with c the price of one query. They
    are equal at R ÷ c queries, which have R ÷ c × (input + output) tokens. Raises UserError for a rent that is none."""
    if not rent_usd_per_day.is_finite() or rent_usd_per_day <= 0:
        raise UserError(f"must be greater than 0, not {rent_usd_per_day}", param="--rent-per-day")
    one = Workload(1, input_tokens, output_tokens)
    query_usd, a_query = one.query_usd(price), one.tokens_a_query
    queries = rent_usd_per_day / query_usd if query_usd else None
    most = None if throughput is None else throughput.queries_a_day(input_tokens, output_tokens) * a_query
    return Breakeven(
        api_usd_per_1m=query_usd / a_query * _MILLION,
        queries_a_day=queries,
        tokens_a_day=None if queries is None else rent_usd_per_day * a_query / query_usd,
        capacity=most,
        rented_usd_per_1m=None if most is None else rent_usd_per_day / most * _MILLION,
    )


def saved_share(before_usd: Decimal, after_usd: Decimal) -> Decimal | None:
    """(before − after) ÷ before; below 0 where it costs more, None where there was nothing to save."""
    return (before_usd - after_usd) / before_usd if before_usd else None


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
