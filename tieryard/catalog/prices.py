"""What tokens cost: said outright, or by the name that the price book has it under."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from tieryard.catalog.base import Strict, misfit
from tieryard.requests import Usd


class Price(Strict):
    """What tokens cost, in USD per million."""

    input_usd_per_1m: Usd = Field(description="USD per million prompt tokens.")
    output_usd_per_1m: Usd = Field(description="USD per million completion tokens.")
    cached_input_usd_per_1m: Usd | None = Field(
        default=None,
        description="USD per million prompt tokens that a cache had. Default: as input.",
    )

    @model_validator(mode="after")
    def _cached_is_cheaper(self) -> Self:
        refuse_dear_cache(self.input_usd_per_1m, self.cached_input_usd_per_1m)
        return self


def refuse_dear_cache(input_usd_per_1m: Decimal, cached_usd_per_1m: Decimal | None) -> None:
    """What is reserved for a job takes its whole prompt at the input price. Raises a misfit."""
    if cached_usd_per_1m is not None and cached_usd_per_1m > input_usd_per_1m:
        raise misfit(f"is above the input price, {input_usd_per_1m}", "cached_input_usd_per_1m")


class BookPrice(Strict):
    """A hosted model's price on the day on which its tokens are used."""

    book: str = Field(min_length=1, max_length=201, description="`provider/model` of a hosted row of the price book.")


BY_TOKEN, BY_BOOK = "by_token", "by_book"
"""How a fault's location names the two forms of a price."""


def _form(given: Any) -> str:
    booked = "book" in given if isinstance(given, dict) else isinstance(given, BookPrice)
    return BY_BOOK if booked else BY_TOKEN


AnyPrice = Annotated[Annotated[Price, Tag(BY_TOKEN)] | Annotated[BookPrice, Tag(BY_BOOK)], Discriminator(_form)]
