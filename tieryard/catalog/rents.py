"""What a replica or a host is rented for: USD an hour, or an instance of the price book."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tieryard.catalog.base import Strict, misfit
from tieryard.catalog.price_book import BookUsd


class Rent(Strict):
    """What is due by the hour, whether it works or not."""

    usd_per_hour: BookUsd | None = Field(default=None, description="A replica's, of all its GPUs; or `instance`.")
    instance: str | None = Field(
        default=None, min_length=1, max_length=201, description="`provider/name` of an instance of the price book."
    )
    region: str | None = Field(default=None, min_length=1, description="Which of the instance's rows, by region.")
    purchase: Literal["on_demand", "spot"] = Field(default="on_demand", description="How it is bought.")
    gpus: int | None = Field(
        default=None, ge=1, description="Of the instance's, those that the replica has. Default: all of them."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.usd_per_hour is None) == (self.instance is None):
            raise misfit("give `usd_per_hour` or `instance`, one of both")
        if self.instance is None and self.region is not None:
            raise misfit("is an instance's: leave it out beside `usd_per_hour`", "region")
        return self


class Host(Strict):
    """A machine that serves no model, such as a router, Redis or Postgres: its rent is `overhead`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,62}$")] = Field(description="Its own among the hosts.")
    rent: Rent = Field(description="What is due for it by the hour.")
