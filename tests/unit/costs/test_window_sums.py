"""What a rented replica costs, and what its tokens are charged at. That postings add up to the rent is
tests/integration/test_rent_adds_up.py's: the statements that post are in Postgres."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tieryard.catalog import Price
from tieryard.costs.windows import (
    FullLoad,
    charge_usd,
    prefill_weight,
    rent_usd,
    replica_usd_per_hour,
    standard_price,
)
from tieryard.errors import UserError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

rents = st.decimals(min_value=0, max_value=1000, places=6)
moments = st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
spells = st.timedeltas(min_value=timedelta(), max_value=timedelta(days=40))
tps = st.decimals(min_value=Decimal("0.01"), max_value=100_000, places=3)
weights = st.decimals(min_value=Decimal("0.001"), max_value=2, places=4)


# --- rent ---------------------------------------------------------------------------------------------


def test_an_hour_costs_the_price_of_an_hour() -> None:
    assert rent_usd(Decimal("1.006"), NOON, NOON + timedelta(hours=1)) == Decimal("1.006")
    assert rent_usd(Decimal("1.006"), NOON, NOON) == 0


@given(rents, moments, spells)
def test_the_rent_is_the_price_of_the_time_within_the_last_digit(
    usd: Decimal, start: datetime, spell: timedelta
) -> None:
    found = rent_usd(usd, start, start + spell)
    exact = usd * (spell // timedelta(microseconds=1)) / 3_600_000_000
    assert abs(found - exact) < Decimal("1.000001E-12")
    assert found.as_tuple().exponent == -12
    assert found >= 0


@given(rents, moments, st.lists(spells, min_size=1, max_size=8))
def test_the_parts_of_a_window_add_up_to_it_wherever_it_is_cut(
    usd: Decimal, start: datetime, parts: list[timedelta]
) -> None:
    stop = start + sum(parts, timedelta())
    edges = [start]
    for part in parts:
        edges.append(edges[-1] + part)
    pieces = [rent_usd(usd, one, other) for one, other in pairwise(edges)]
    assert sum(pieces) == rent_usd(usd, start, stop)


def test_a_replica_pays_for_its_gpus_of_a_machine() -> None:
    assert replica_usd_per_hour(Decimal("5.672"), machine_gpus=4, gpus=1) == Decimal("1.418")
    assert replica_usd_per_hour(Decimal(10), machine_gpus=3, gpus=1) == Decimal("3.333333")
    with pytest.raises(UserError, match="gpus: 5 GPUs of a machine with 4"):
        replica_usd_per_hour(Decimal(1), machine_gpus=4, gpus=5)


@pytest.mark.parametrize("usd", ["-0.01", "NaN", "Infinity"])
def test_what_is_no_rent_is_refused_with_its_field(usd: str) -> None:
    load, asked = FullLoad(Decimal(1), Decimal(1)), Decimal(usd)
    with pytest.raises(UserError, match="is no rent") as refused:
        standard_price(asked, load, Decimal(1))
    assert refused.value.param == "usd_per_hour"
    with pytest.raises(UserError, match="is no rent"):
        replica_usd_per_hour(asked, machine_gpus=1, gpus=1)


# --- the standard price -------------------------------------------------------------------------------


def test_two_mixes_tell_prefill_from_decode() -> None:
    """A replica that takes 0.05 ms for a prefilled token and 0.5 ms for a decoded one: weight 0.1."""
    long, short = FullLoad(Decimal(10_000), Decimal(1000)), FullLoad(Decimal(2000), Decimal(1800))
    assert prefill_weight(long, short) == prefill_weight(short, long) == Decimal("0.1")
    assert long.weighted_tps(Decimal("0.1")) == short.weighted_tps(Decimal("0.1")) == 2000
    price = standard_price(Decimal("1.8"), long, Decimal("0.1"))
    assert (price.input_usd_per_1m, price.output_usd_per_1m) == (Decimal("0.025"), Decimal("0.25"))


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 99), st.integers(1, 99))
def test_the_weight_is_that_of_the_replica(prefill_ns: int, decode_ns: int, one: int, other: int) -> None:
    """From the shares of a second that two runs spend on prefill, in hundredths."""
    loads = [
        FullLoad(Decimal(share * 10**7) / prefill_ns, Decimal((100 - share) * 10**7) / decode_ns)
        for share in (one, other)
    ]
    crossed = sorted((one * (100 - other), other * (100 - one)))
    assume(crossed[1] > 2 * crossed[0])
    true = Decimal(prefill_ns) / decode_ns
    assert abs(prefill_weight(*loads) / true - 1) < Decimal("1E-20")


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ((1000, 100), (1000, 100), "too alike"),
        ((1900, 100), (1000, 100), "too alike"),
        ((1000, 0), (2000, 0), "too alike"),
        ((4000, 500), (1000, 400), "did not keep"),
        ((1000, 100), (1000, 400), "did not keep"),
    ],
)
def test_two_runs_that_tell_nothing_are_refused(one: tuple[int, int], other: tuple[int, int], why: str) -> None:
    with pytest.raises(UserError, match=why):
        prefill_weight(FullLoad(*map(Decimal, one)), FullLoad(*map(Decimal, other)))


@pytest.mark.parametrize(("prefill", "decode"), [("-1", "1"), ("1", "-1"), ("NaN", "1"), ("0", "0"), ("Infinity", "1")])
def test_what_is_no_throughput_is_refused(prefill: str, decode: str) -> None:
    with pytest.raises(UserError, match="_tps"):
        FullLoad(Decimal(prefill), Decimal(decode))


@pytest.mark.parametrize("weight", ["0", "-0.1", "NaN"])
def test_what_is_no_weight_is_refused(weight: str) -> None:
    with pytest.raises(UserError, match="prefill_weight"):
        standard_price(Decimal(1), FullLoad(Decimal(1), Decimal(1)), Decimal(weight))


@given(rents, tps, tps, weights)
def test_an_hour_of_full_load_is_charged_about_the_rent(
    usd: Decimal, prefill: Decimal, decode: Decimal, w: Decimal
) -> None:
    """Off by what the price's last digit makes of the hour's tokens, and no more."""
    price = standard_price(usd, FullLoad(prefill, decode), w)
    prompts, completions = int(prefill * 3600), int(decode * 3600)
    charged = charge_usd(price, prompt_tokens=prompts, cached_tokens=0, completion_tokens=completions)
    step = Decimal("0.0000005") / 1_000_000
    whole_tokens = price.input_usd_per_1m + price.output_usd_per_1m  # a token of each that rounding down left out
    assert abs(charged - usd) <= step * (prompts + completions + 2) + whole_tokens / 1_000_000


def test_what_a_prefix_cache_saved_is_not_charged() -> None:
    price = Price(input_usd_per_1m=Decimal("0.025"), output_usd_per_1m=Decimal("0.25"))
    assert charge_usd(price, prompt_tokens=1000, cached_tokens=800, completion_tokens=10) == Decimal("0.0000075")
    assert charge_usd(price, prompt_tokens=10, cached_tokens=800, completion_tokens=0) == 0
