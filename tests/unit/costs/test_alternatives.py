"""What tokens would have cost elsewhere: exact, at the prices of the day, and by what can do the same work."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.catalog.test_tariffs import TODAY, catalog_of, changed
from tieryard.catalog import Price, SizeClass
from tieryard.costs import token_cost
from tieryard.costs.alternatives import Alternatives

usd = st.decimals(min_value=0, max_value=1000, places=6)
tokens = st.integers(0, 1_000_000)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    into = draw(usd)
    cached = draw(st.none() | st.decimals(min_value=0, max_value=into, places=6))
    return Price(input_usd_per_1m=into, output_usd_per_1m=draw(usd), cached_input_usd_per_1m=cached)


def at(price: Price, prompt: int, cached: int, completion: int) -> Decimal:
    return token_cost(price, prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion)


@given(prices(), st.lists(prices(), min_size=1, max_size=8), tokens, tokens, tokens)
def test_they_are_token_costs_and_the_least_of_them(
    large: Price, hosted: list[Price], prompt: int, cached: int, completion: int
) -> None:
    cached = min(cached, prompt)
    found = Alternatives(large, [(None, price) for price in hosted])
    used = {"prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": completion}
    assert found.large_usd(**used) == at(large, prompt, cached, completion)
    least = min(at(price, prompt, cached, completion) for price in hosted)
    assert found.hosted_usd(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion) == least


def test_an_equivalent_is_of_the_same_size_class_or_a_larger_one() -> None:
    def flat(amount: int) -> Price:
        return Price(input_usd_per_1m=Decimal(amount), output_usd_per_1m=Decimal(amount))

    found = Alternatives(None, [(SizeClass.SMALL, flat(1)), (SizeClass.LARGE, flat(9)), (SizeClass.MEDIUM, flat(4))])

    def least(size: SizeClass | None) -> Decimal | None:
        return found.hosted_usd(prompt_tokens=10**6, cached_tokens=0, completion_tokens=0, size_class=size)

    assert [least(size) for size in (None, *SizeClass)] == [1, 1, 4, 9]
    unsaid = Alternatives(None, [(SizeClass.SMALL, flat(1)), (None, flat(5))])
    assert unsaid.hosted_usd(prompt_tokens=10**6, cached_tokens=0, completion_tokens=0, size_class=SizeClass.LARGE) == 5
    assert Alternatives(None, []).hosted_usd(prompt_tokens=1, cached_tokens=0, completion_tokens=1) is None
    assert found.large_usd(prompt_tokens=1, cached_tokens=0, completion_tokens=1) is None


def test_a_catalogs_are_those_of_the_day() -> None:
    used = {"prompt_tokens": 1_000_000, "cached_tokens": 0, "completion_tokens": 0}
    today, tomorrow = (Alternatives.of(catalog_of(), day) for day in (TODAY, date(2026, 11, 24)))
    assert (today.large_usd(**used), tomorrow.large_usd(**used)) == (Decimal("2.5"), 2)
    known = {"prompt_tokens": 1_000_000, "cached_tokens": 0, "completion_tokens": 0}
    assert Alternatives.of(catalog_of(changed("valid_until: 2026-11-23", "valid_until: 2025-12-31")), TODAY).hosted_usd(
        prompt_tokens=known["prompt_tokens"], cached_tokens=0, completion_tokens=0
    ) is None  # fmt: skip
