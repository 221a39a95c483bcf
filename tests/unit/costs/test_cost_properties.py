"""What must hold of any price book, any window and any plan, whatever the figures."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import combinations
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from tieryard.catalog import Price
from tieryard.costs.planning import Needed, Throughput, Workload, breakeven, saved_share
from tieryard.costs.price_book import parse_price_book
from tieryard.costs.windows import charge_usd, rent_usd
from tieryard.errors import CatalogError

FIRST = date(2026, 1, 1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

usd = st.decimals(min_value=0, max_value=1000, places=6)
some_usd = st.decimals(min_value="0.000001", max_value=1000, places=6)
tokens = st.integers(min_value=0, max_value=2_000_000)
some_tokens = st.integers(min_value=1, max_value=1_000_000)
prices = st.builds(Price, input_usd_per_1m=usd, output_usd_per_1m=usd)
days = st.integers(min_value=0, max_value=30)
spells = st.tuples(days, st.none() | st.integers(min_value=0, max_value=10))
"""Of a row: days after the first, and how many more days it holds; None for no end."""
throughputs = st.builds(
    Throughput,
    *[st.decimals(min_value=1, max_value=100_000, places=2)] * 2,
    st.decimals(min_value="0.01", max_value=1, places=2),
)


# --- price book ---------------------------------------------------------------------------------------


def row(start: int, more: int | None, name: str = "big", **given: Any) -> dict[str, Any]:
    since = FIRST + timedelta(days=start)
    until = {} if more is None else {"valid_until": since + timedelta(days=more)}
    prices = {"input_usd_per_1m": "2.50", "output_usd_per_1m": "10.00"}
    said = {"source": "a list", "read_on": FIRST, "status": "as_printed"}
    return {"provider": "acme", "model": name, **prices, "valid_from": since, **until, **said, **given}


def book_of(rows: list[dict[str, Any]]) -> str:
    lines = ["version: 1", "hosted:" if rows else "hosted: []"]
    for one in rows:
        lines += [f"  {'-' if i == 0 else ' '} {name}: {value}" for i, (name, value) in enumerate(one.items())]
    return "\n".join(lines) + "\n"


def hold_together(one: tuple[int, int | None], other: tuple[int, int | None]) -> bool:
    (first, first_more), (second, _) = sorted((one, other), key=lambda spell: spell[0])
    return first_more is None or second <= first + first_more


def refusal(text: str) -> str:
    """Why a book is refused; nothing where it is taken."""
    try:
        parse_price_book(text, name="p.yaml")
    except CatalogError as error:
        return str(error)
    return ""


@given(st.lists(spells, max_size=6))
def test_rows_of_one_thing_are_refused_where_two_hold_on_a_day_and_only_there(
    rows: list[tuple[int, int | None]],
) -> None:
    why = refusal(book_of([row(start, more) for start, more in rows]))
    assert bool(why) == any(hold_together(*pair) for pair in combinations(rows, 2))
    assert not why or "valid_from: overlaps hosted." in why


@given(st.lists(st.tuples(spells, st.sampled_from(("big", "small", "wide"))), max_size=8), days)
def test_a_day_has_one_price_of_a_thing_or_none(rows: list[tuple[tuple[int, int | None], str]], ahead: int) -> None:
    text = book_of([row(start, more, name) for (start, more), name in rows])
    assume(not refusal(text))
    book = parse_price_book(text)
    day = FIRST + timedelta(days=ahead)
    found = [each.model for each in book.hosted_on(day)]
    assert found == sorted(set(found))
    holding = {name for (start, more), name in rows if start <= ahead and (more is None or ahead <= start + more)}
    assert set(found) == holding
    assert all(book.find_hosted(name, day).holds_on(day) for name in found)


@given(usd, usd, usd)
def test_prices_are_read_to_the_last_digit(into: Decimal, out: Decimal, cached: Decimal) -> None:
    cached, into = sorted((cached, into))
    given = {"input_usd_per_1m": into, "output_usd_per_1m": out, "cached_input_usd_per_1m": cached}
    [found] = parse_price_book(book_of([row(0, None, **given)])).hosted
    assert (found.input_usd_per_1m, found.output_usd_per_1m, found.cached_input_usd_per_1m) == (into, out, cached)


@given(
    st.sampled_from(("input_usd_per_1m", "output_usd_per_1m", "cached_input_usd_per_1m")),
    st.decimals(max_value="-0.000001", min_value=-1000, places=6)
    | st.sampled_from((".nan", ".inf", "-.inf", "0.1234567")),
)
def test_what_is_no_price_is_refused_with_its_field(field: str, value: object) -> None:
    assert f"hosted.0.{field}: " in refusal(book_of([row(0, None, **{field: value})]))


# --- windows ------------------------------------------------------------------------------------------


@given(usd, usd, st.timedeltas(timedelta(), timedelta(days=3)), st.timedeltas(timedelta(), timedelta(days=3)))
def test_rent_never_shrinks_with_time_nor_with_price(
    less: Decimal, more: Decimal, spell: timedelta, longer: timedelta
) -> None:
    less, more = sorted((less, more))
    whole = rent_usd(less, NOON, NOON + spell + longer)
    assert rent_usd(less, NOON, NOON + spell) <= whole
    assert rent_usd(more, NOON, NOON + spell + longer) - whole > -Decimal("1E-12") * 2


@given(prices, tokens, tokens, tokens, tokens)
def test_charges_are_exact_and_add_up(price: Price, prompt: int, cached: int, one: int, other: int) -> None:
    def charge(completion: int, prompt: int = prompt) -> Decimal:
        return charge_usd(price, prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion)

    assert charge(one) + charge(other, prompt=0) == charge(one + other)
    assert charge(one) == charge(one).quantize(Decimal("1E-12"))
    assert 0 <= charge(one) <= charge_usd(price, prompt_tokens=prompt, cached_tokens=0, completion_tokens=one)


# --- planning -----------------------------------------------------------------------------------------


@given(prices, some_tokens, tokens, st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_month_of_two_workloads_is_their_months(price: Price, into: int, out: int, one: int, other: int) -> None:
    def month(queries: int) -> Decimal:
        return Workload(queries, into, out).month_usd(price)

    assert month(one) + month(other) == month(one + other)


@given(st.integers(0, 10**7), some_tokens, tokens, st.decimals(1, 50, places=2), st.decimals(1, 50, places=2))
def test_a_higher_peak_never_needs_less(queries: int, into: int, out: int, low: Decimal, high: Decimal) -> None:
    low, high = sorted((low, high))
    load = Workload(queries, into, out)
    less, more = Needed.of(load, low), Needed.of(load, high)
    assert less.requests <= more.requests
    assert less.tokens <= more.tokens
    assert less.input_tokens >= queries * into * low / 1440 > less.input_tokens - 1


@given(some_usd, some_tokens, some_tokens, some_usd, some_usd, throughputs)
def test_break_even_is_within_capacity_where_renting_is_cheaper_there(
    rent: Decimal, into: int, out: int, input_usd: Decimal, output_usd: Decimal, load: Throughput
) -> None:
    """Both sides of the page say the same: the load at which they are equal can be carried, or a full GPU is dearer."""
    price = Price(input_usd_per_1m=input_usd, output_usd_per_1m=output_usd)
    found = breakeven(rent_usd_per_day=rent, input_tokens=into, output_tokens=out, price=price, throughput=load)
    assert found.rented_usd_per_1m is not None
    apart = abs(found.rented_usd_per_1m / found.api_usd_per_1m - 1)
    assume(apart > Decimal("1E-20"))
    assert found.is_reached == (found.rented_usd_per_1m < found.api_usd_per_1m)


@given(some_usd, some_tokens, some_tokens, some_usd, some_usd, st.integers(2, 50))
def test_twice_the_rent_needs_twice_the_tokens(
    rent: Decimal, into: int, out: int, input_usd: Decimal, output_usd: Decimal, times: int
) -> None:
    def tokens_a_day(rent: Decimal, by: int) -> Decimal:
        price = Price(input_usd_per_1m=input_usd * by, output_usd_per_1m=output_usd * by)
        found = breakeven(rent_usd_per_day=rent, input_tokens=into, output_tokens=out, price=price)
        assert found.tokens_a_day is not None
        return found.tokens_a_day

    once = tokens_a_day(rent, 1)
    assert abs(tokens_a_day(rent * times, 1) / once - times) < Decimal("1E-20")
    assert abs(tokens_a_day(rent * times, times) / once - 1) < Decimal("1E-20")


@given(some_usd, usd)
def test_what_is_saved_is_a_share_of_what_was_paid(before: Decimal, after: Decimal) -> None:
    share = saved_share(before, after)
    assert share is not None
    assert share <= 1
    assert abs(before * (1 - share) - after) < Decimal("1E-18")
    assert saved_share(Decimal(0), after) is None
