"""Rent windows: what a rented replica costs while it stands, what its tokens are charged at, and what is posted to it.

Each formula stands in docs/reference/costs.md with its assumptions; how windows live in Postgres, in decision 0022.
Every amount is a multiple of 10⁻¹² USD, as the ledger's token costs are: so sums of them are exact in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from fractions import Fraction

from tieryard.catalog import Price
from tieryard.costs import token_cost
from tieryard.errors import UserError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MICROSECONDS_AN_HOUR = 3_600_000_000
_LEAST_USD = Decimal("1E-12")  # a token at the lowest price: 6 digits after the point, by the million
_LEAST_OF_A_USD = 1_000_000_000_000
_PRICE_STEP = Decimal("0.000001")
_LEAST_CONTRAST = 2


class Kind(StrEnum):
    """What a posting is for. Only an idle share or an adjustment may be negative."""

    INFERENCE = "inference"
    """A job, once, at its final ending."""
    RETRY = "retry"
    """A start that used tokens and did not end its job."""
    BENCHMARK = "benchmark"
    """A speed or capacity run."""
    WARMUP = "warmup"
    """The rent until the replica first served."""
    IDLE = "idle"
    """What of a window's rent nothing else was posted for."""
    OVERHEAD = "overhead"
    """Hosts that serve no model."""
    ADJUSTMENT = "adjustment"
    """The balance of what was posted to a closed window; or what somebody put right by hand."""


def rent_usd(usd_per_hour: Decimal, start: datetime, stop: datetime) -> Decimal:
    """USD from `start` to `stop`, to the microsecond.

    What an hour's price makes of a microsecond need not end, so the rent is a difference of two readings of one meter,
    which began in 1970 and is rounded down to 10⁻¹² USD. So the parts of a window add up to it wherever it is cut.
    """
    return (_meter(usd_per_hour, stop) - _meter(usd_per_hour, start)) * _LEAST_USD


def replica_usd_per_hour(usd_per_hour: Decimal, *, machine_gpus: int, gpus: int) -> Decimal:
    """A replica's share of a machine's price: price × its GPUs ÷ the machine's, rounded to 10⁻⁶ USD."""
    _check_rent(usd_per_hour)
    if not 1 <= gpus <= machine_gpus:
        raise UserError(f"{gpus} GPUs of a machine with {machine_gpus}: give 1 to {machine_gpus}", param="gpus")
    return (usd_per_hour * gpus / machine_gpus).quantize(_PRICE_STEP, ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True)
class WindowPrice:
    """What who ends a job on a rented replica must know: the window that stands there, and its standard price."""

    window_id: int
    price: Price


@dataclass(frozen=True, slots=True)
class FullLoad:
    """One replica's throughput in a speed run that kept it full, tokens a second. Prompt tokens that came from a prefix
    cache are in neither: nothing computed them. Raises UserError for what is no throughput."""

    prefill_tps: Decimal
    decode_tps: Decimal

    def __post_init__(self) -> None:
        for name, tps in (("prefill_tps", self.prefill_tps), ("decode_tps", self.decode_tps)):
            if not tps.is_finite() or tps < 0:
                raise UserError(f"{tps} tokens a second is no throughput: give 0 or more", param=name)
        if not self.prefill_tps + self.decode_tps:
            raise UserError("a run without tokens measures nothing: give one that succeeded", param="decode_tps")

    def weighted_tps(self, prefill_weight: Decimal) -> Decimal:
        """Weighted tokens a second: a decoded token counts 1, a prefilled one `prefill_weight`."""
        return self.decode_tps + prefill_weight * self.prefill_tps


def prefill_weight(one: FullLoad, other: FullLoad) -> Decimal:
    """What a prefilled token counts beside a decoded one, from full loads of two mixes.

    Derivation: let a second of the full replica do as many weighted tokens whatever the mix. Then
    d₁ + w p₁ = d₂ + w p₂, so w = (d₂ − d₁) ÷ (p₁ − p₂), with p prefilled and d decoded tokens a second.
    Raises UserError where the mixes are alike, or one run did more of both, so that the other was not full.
    """
    crossed = sorted((one.prefill_tps * other.decode_tps, other.prefill_tps * one.decode_tps))
    if crossed[1] < _LEAST_CONTRAST * crossed[0] or not crossed[1]:
        raise UserError(
            "the two runs' mixes are too alike to tell prefill from decode: "
            f"let one have at least {_LEAST_CONTRAST} times as many prompt tokens to an output token as the other",
            param="prefill_tps",
        )
    prefill, decode = one.prefill_tps - other.prefill_tps, other.decode_tps - one.decode_tps
    if not prefill * decode > 0:
        raise UserError(
            "one run did as much as the other or more, of prompt and of output tokens: the other did not keep the "
            "replica full; run it again under full load",
            param="decode_tps",
        )
    return decode / prefill


def standard_price(usd_per_hour: Decimal, load: FullLoad, prefill_weight: Decimal) -> Price:
    """What a rented replica's tokens are charged at: rent an hour ÷ weighted tokens an hour under full load, for a
    decoded token; `prefill_weight` times that for a prefilled one. As a price of a million, of 6 digits after the
    point, so that charges are exact; what that rounds away is in the idle share. Raises UserError."""
    _check_rent(usd_per_hour)
    if not prefill_weight.is_finite() or prefill_weight <= 0:
        raise UserError(f"{prefill_weight} is no weight: give more than 0", param="prefill_weight")
    decode_usd_per_1m = usd_per_hour * 1_000_000 / (3600 * load.weighted_tps(prefill_weight))
    return Price(
        input_usd_per_1m=(prefill_weight * decode_usd_per_1m).quantize(_PRICE_STEP, ROUND_HALF_EVEN),
        output_usd_per_1m=decode_usd_per_1m.quantize(_PRICE_STEP, ROUND_HALF_EVEN),
    )


def charge_usd(standard: Price, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> Decimal:
    """What a job is charged on a rented replica, exact: weighted tokens × standard rate. What a prefix cache saved is
    not charged."""
    prefilled = max(0, prompt_tokens - cached_tokens)
    return token_cost(standard, prompt_tokens=prefilled, completion_tokens=completion_tokens)


def _check_rent(usd_per_hour: Decimal) -> None:
    if not usd_per_hour.is_finite() or usd_per_hour < 0:
        raise UserError(f"{usd_per_hour} is no rent: give USD an hour, 0 or more", param="usd_per_hour")


def _meter(usd_per_hour: Decimal, at: datetime) -> int:
    """10⁻¹² USD since 1970, rounded down."""
    elapsed = (at - _EPOCH) // _MICROSECOND
    usd = Fraction(usd_per_hour) * elapsed / _MICROSECONDS_AN_HOUR
    return usd.numerator * _LEAST_OF_A_USD // usd.denominator
