"""The price book: what hosted models and instances cost, from when to when, and who says so. A price that changes is a
new row; the old one stays, with its last day."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from tieryard.catalog.base import Strict, misfit
from tieryard.catalog.prices import Price, refuse_dear_cache
from tieryard.catalog.sizes import SizeClass
from tieryard.errors import NotFoundError, UserError
from tieryard.requests import Usd

_Name = Annotated[str, Field(min_length=1, max_length=100)]
_Text = Annotated[str, Field(min_length=1, max_length=500)]
_Count = Annotated[int, Field(gt=0)]

BookUsd = Annotated[Usd, Field(le=100_000_000)]
"""So bounded, an amount has 15 digits at most, and YAML's reading of it is the number that was written."""


class PrintedLimits(Strict):
    """What a provider lets one account do in a minute, as a source prints it."""

    usage_tier: _Name = Field(description="Which of the provider's own levels of accounts this is.")
    requests_per_minute: _Count | None = Field(default=None, description="Of all requests.")
    tokens_per_minute: _Count | None = Field(default=None, description="Input and output together.")
    input_tokens_per_minute: _Count | None = Field(default=None, description="Prompts alone.")
    output_tokens_per_minute: _Count | None = Field(default=None, description="Answers alone.")
    source: _Text = Field(description="Who prints it.")


class _Row(Strict):
    """What every price has: its days, both included, and its source."""

    provider: _Name = Field(description="Who is paid.")
    currency: Literal["USD"] = Field(default="USD", description="The only one there is.")
    valid_from: date = Field(description="The first day, in UTC.")
    valid_until: date | None = Field(default=None, description="The last day. Default: no end is known.")
    source: _Text = Field(description="Who says so.")
    read_on: date = Field(description="When the source was read.")
    status: Literal["checked", "as_printed"] = Field(
        description="`checked`: read on the provider's own page; `as_printed`: as somebody else's list has it."
    )
    note: _Text | None = Field(default=None, description="What else to know.")
    doubt: _Text | None = Field(default=None, description="Why it cannot be right. Nothing is computed with it.")

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> Self:
        if self.valid_until is not None and self.valid_until < self.valid_from:
            raise misfit(f"ends before it starts, on {self.valid_from}", "valid_until")
        return self

    def holds_on(self, day: date) -> bool:
        return self.valid_from <= day and (self.valid_until is None or day <= self.valid_until)


class HostedPrice(_Row):
    """What a provider asks for a model's tokens, in USD per million."""

    model: _Name = Field(description="As the provider calls it.")
    input_usd_per_1m: BookUsd = Field(description="USD per million prompt tokens.")
    output_usd_per_1m: BookUsd | None = Field(description="`null` says that no source with a date is known.")
    cached_input_usd_per_1m: BookUsd | None = Field(
        default=None, description="Input that the provider found in its cache."
    )
    size_class: SizeClass | None = Field(default=None, description="Whose work it can do. Default: any.")
    limits: PrintedLimits | None = Field(default=None, description="What one account may do, where a source says so.")

    @model_validator(mode="after")
    def _cached_is_cheaper(self) -> Self:
        refuse_dear_cache(self.input_usd_per_1m, self.cached_input_usd_per_1m)
        return self

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.model}"

    @property
    def is_sound(self) -> bool:
        """Whether anything can be computed with it."""
        return self.doubt is None and self.output_usd_per_1m is not None

    @property
    def same(self) -> tuple[str, ...]:
        """What two rows for the same thing agree in."""
        return (self.provider, self.model)

    def price(self) -> Price:
        """Raises UserError where nothing can be computed with it."""
        _refuse_doubt(self.name, self.doubt)
        if self.output_usd_per_1m is None:
            raise UserError(f"{self.name} has no output price in the price book; give --input-price and --output-price")
        return Price(
            input_usd_per_1m=self.input_usd_per_1m,
            output_usd_per_1m=self.output_usd_per_1m,
            cached_input_usd_per_1m=self.cached_input_usd_per_1m,
        )


class InstancePrice(_Row):
    """What an instance is rented for, in USD an hour, whether it works or not."""

    instance: _Name = Field(alias="name", description="As the provider calls it.")
    region: _Name = Field(description="As the provider calls it.")
    purchase: Literal["on_demand", "spot"] = Field(description="How it is bought.")
    gpus: int = Field(ge=0, description="Of the whole instance.")
    gpu_type: _Name | None = Field(default=None, description="Left out where there are none.")
    usd_per_h: BookUsd = Field(gt=0, description="USD an hour, for the whole instance.")

    @model_validator(mode="after")
    def _gpus_have_a_type(self) -> Self:
        if (self.gpus > 0) != (self.gpu_type is not None):
            raise misfit("give `gpu_type` where there are GPUs, and only there", "gpus")
        return self

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.instance}"

    @property
    def same(self) -> tuple[str, ...]:
        """What two rows for the same thing agree in."""
        return (self.provider, self.instance, self.region, self.purchase)

    def sound(self) -> Self:
        """Itself. Raises UserError where nothing can be computed with it."""
        _refuse_doubt(self.name, self.doubt)
        return self


_Price = TypeVar("_Price", bound=HostedPrice | InstancePrice)


class PriceBook(Strict):
    """Rows of the same thing never hold on the same day."""

    hosted: tuple[HostedPrice, ...] = Field(default=(), description="Models of hosted APIs, by the million tokens.")
    instances: tuple[InstancePrice, ...] = Field(default=(), description="Machines, by the hour.")

    @model_validator(mode="after")
    def _one_price_a_day(self) -> Self:
        _refuse_overlaps("hosted", self.hosted)
        _refuse_overlaps("instances", self.instances)
        return self

    @property
    def rows(self) -> tuple[HostedPrice | InstancePrice, ...]:
        return (*self.hosted, *self.instances)

    def hosted_on(self, day: date) -> list[HostedPrice]:
        """What holds on a day, by name."""
        return sorted((row for row in self.hosted if row.holds_on(day)), key=lambda row: row.name)

    def instances_on(self, day: date) -> list[InstancePrice]:
        """What holds on a day, by name."""
        return sorted((row for row in self.instances if row.holds_on(day)), key=lambda row: row.name)

    def find(self, name: str, day: date) -> HostedPrice | InstancePrice:
        """By `provider/name`, or the name alone where one provider has it. Raises UserError."""
        rows: list[HostedPrice | InstancePrice] = [*self.hosted_on(day), *self.instances_on(day)]
        return _only(name, rows, day)

    def find_hosted(self, name: str, day: date) -> HostedPrice:
        """As `find` does. Raises UserError."""
        return _only(name, self.hosted_on(day), day)

    def hosted_rows(self, name: str) -> list[HostedPrice]:
        """Of one model, whatever their days, oldest first. Raises UserError where there is none, or several have the
        name."""
        return _rows_of(name, self.hosted)

    def instance_rows(self, name: str, *, region: str | None, purchase: str) -> list[InstancePrice]:
        """Of one instance, whatever their days, oldest first. Raises UserError as `hosted_rows` does."""
        rows = [row for row in self.instances if row.purchase == purchase and region in (None, row.region)]
        if not rows and any(_is_called(name, row) for row in self.instances):
            where = "" if region is None else f" in {region}"
            raise NotFoundError(
                f"the price book has no {purchase} price of '{name}'{where}; it has {_listed(self.instances)}"
            )
        return _rows_of(name, rows)

    def find_instance(self, name: str, day: date) -> InstancePrice:
        """As `find` does. Raises UserError."""
        return _only(name, self.instances_on(day), day)


class PriceBookFile(PriceBook):
    """A price book that stands in a file of its own."""

    version: Literal[1]


def in_force(rows: Sequence[_Price], day: date) -> _Price:
    """Of one thing's rows, the one whose price is charged on a day: what holds then, else the last that did, for what
    runs on is paid; before the first, that one."""
    started = [row for row in rows if row.valid_from <= day]
    return max(started, key=lambda row: row.valid_from) if started else min(rows, key=lambda row: row.valid_from)


def _is_called(name: str, row: HostedPrice | InstancePrice) -> bool:
    return name in (row.name, row.name.partition("/")[2])


def _rows_of(name: str, rows: Sequence[_Price]) -> list[_Price]:
    found = sorted((row for row in rows if _is_called(name, row)), key=lambda row: row.valid_from)
    things = {row.same: row for row in found}
    if len(things) > 1:
        raise UserError(f"'{name}' is {_listed(things.values())}: say which")
    if not found:
        raise NotFoundError(f"the price book has no '{name}'; it has {_listed(rows) or 'nothing of the kind'}")
    return found


def _only(name: str, rows: Sequence[_Price], day: date) -> _Price:
    found = [row for row in rows if _is_called(name, row)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"'{name}' is {_listed(found)}: say which, or leave one in the price book")
    raise NotFoundError(f"the price book has no '{name}' on {day}; it has {_listed(rows) or 'nothing'}")


def _listed(rows: Iterable[HostedPrice | InstancePrice]) -> str:
    return ", ".join(
        dict.fromkeys(
            f"{row.name} ({row.purchase}, {row.region})" if isinstance(row, InstancePrice) else row.name for row in rows
        )
    )


def _refuse_doubt(name: str, doubt: str | None) -> None:
    if doubt is not None:
        raise UserError(f"nothing is computed with the price of {name}: {doubt}")


def _refuse_overlaps(part: str, rows: Sequence[HostedPrice | InstancePrice]) -> None:
    dated = sorted(enumerate(rows), key=lambda one: (one[1].same, one[1].valid_from))
    for (first, before), (second, after) in pairwise(dated):
        if before.same == after.same and before.holds_on(after.valid_from):
            ends = before.valid_until or "no last day"
            raise misfit(
                f"overlaps {part}.{first} ({before.name}), from {before.valid_from} to {ends}",
                part,
                second,
                "valid_from",
            )
