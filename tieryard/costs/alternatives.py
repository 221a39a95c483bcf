"""What a job's tokens would have cost elsewhere: at the catalog's baseline, and at the cheapest hosted equivalent.

They take the job's own token counts: another model's tokenizer and length of answer are not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from typing import NamedTuple, Self

from tieryard.catalog import Catalog, Price, SizeClass

_SMALLEST_USD = Decimal("1E-12")  # a token at the lowest price


class _Rates(NamedTuple):
    """In the smallest amount, whole: so a cost is three products of integers, and exact."""

    input: int
    cached: int
    output: int


class Alternatives:
    """Of one catalog on one day. Made once a day, asked at each ending."""

    def __init__(self, large: Price | None, hosted: Iterable[tuple[SizeClass | None, Price]]) -> None:
        """`hosted`: what each can do the work of (None: any), and its price."""
        rows = [(size, _rates(price)) for size, price in hosted]
        self._large = () if large is None else (_rates(large),)
        self._any = _undominated(rates for _, rates in rows)
        self._hosted = {
            asked: _undominated(rates for size, rates in rows if size is None or size in asked.at_least)
            for asked in SizeClass
        }

    @classmethod
    def of(cls, catalog: Catalog, day: date) -> Self:
        """The baseline at the catalog's price of it, and the book's hosted models whose rows hold on that day."""
        baseline = catalog.baseline_on(day)
        return cls(
            None if baseline is None else catalog.price_of(baseline, day),
            [(row.size_class, row.price()) for row in catalog.price_book.hosted_on(day) if row.is_sound],
        )

    def large_usd(self, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> Decimal | None:
        """USD at the baseline; None where the catalog has none."""
        return _least_usd(self._large, prompt_tokens, cached_tokens, completion_tokens)

    def hosted_usd(
        self, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int, size_class: SizeClass | None = None
    ) -> Decimal | None:
        """USD at the cheapest hosted model, for these tokens, of what can do the work of this size class: those of the
        same or a larger one, and those of which the book does not say. None where there is none."""
        rows = self._any if size_class is None else self._hosted[size_class]
        return _least_usd(rows, prompt_tokens, cached_tokens, completion_tokens)


def _rates(price: Price) -> _Rates:
    cached = price.input_usd_per_1m if price.cached_input_usd_per_1m is None else price.cached_input_usd_per_1m
    return _Rates(*(int(usd.scaleb(6)) for usd in (price.input_usd_per_1m, cached, price.output_usd_per_1m)))


def _undominated(rows: Iterable[_Rates]) -> tuple[_Rates, ...]:
    """Without those that another beats or equals whatever the mix."""
    kept = sorted(set(rows))
    return tuple(
        one
        for one in kept
        if not any(other != one and all(a <= b for a, b in zip(other, one, strict=True)) for other in kept)
    )


def _least_usd(
    rows: tuple[_Rates, ...], prompt_tokens: int, cached_tokens: int, completion_tokens: int
) -> Decimal | None:
    """At the cheapest of them; a loop, as this is asked at each ending."""
    least: int | None = None
    cached_tokens = min(cached_tokens, prompt_tokens)
    fresh = prompt_tokens - cached_tokens
    for input_rate, cached_rate, output_rate in rows:
        cost = input_rate * fresh + cached_rate * cached_tokens + output_rate * completion_tokens
        if least is None or cost < least:
            least = cost
    return None if least is None else Decimal(least) * _SMALLEST_USD
