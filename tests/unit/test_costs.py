"""Money is Decimal, exact to the last digit, and never a float."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tieryard.catalog import Price
from tieryard.costs import token_cost

usd = st.decimals(min_value=0, max_value=10_000, places=6)
tokens = st.integers(min_value=0, max_value=10_000_000)


def price(into: Decimal, out: Decimal) -> Price:
    return Price(input_usd_per_1m=into, output_usd_per_1m=out)


def test_a_million_tokens_cost_their_price() -> None:
    assert token_cost(price(Decimal("0.15"), Decimal("0.6")), prompt_tokens=10**6, completion_tokens=0) == Decimal(
        "0.15"
    )
    assert token_cost(price(Decimal("0.15"), Decimal("0.6")), prompt_tokens=7, completion_tokens=3) == Decimal(
        "0.00000285"
    )


def test_cached_input_has_a_price_of_its_own_where_there_is_one() -> None:
    rate = price(Decimal("2.50"), Decimal(10))
    used = {"prompt_tokens": 1_000_000, "cached_tokens": 600_000, "completion_tokens": 0}
    assert token_cost(rate, **used) == Decimal("2.50")
    rate = rate.model_copy(update={"cached_input_usd_per_1m": Decimal("1.25")})
    assert token_cost(rate, **used) == Decimal("1.75")  # 0.4 × 2.50 + 0.6 × 1.25
    assert token_cost(rate, prompt_tokens=10, cached_tokens=11, completion_tokens=0) == Decimal("0.0000125")


@given(usd, usd, st.lists(st.tuples(tokens, tokens), max_size=20))
def test_the_sum_of_costs_is_the_cost_of_the_sum(into: Decimal, out: Decimal, used: list[tuple[int, int]]) -> None:
    rate = price(into, out)
    parts = [token_cost(rate, prompt_tokens=p, completion_tokens=c) for p, c in used]
    whole = token_cost(rate, prompt_tokens=sum(p for p, _ in used), completion_tokens=sum(c for _, c in used))
    assert sum(parts) == whole
    assert all(cost >= 0 and -cost.as_tuple().exponent <= 12 for cost in parts)


def test_a_price_is_what_the_file_says_and_not_its_nearest_float() -> None:
    assert price(0.1, 0.3).input_usd_per_1m == Decimal("0.1")
