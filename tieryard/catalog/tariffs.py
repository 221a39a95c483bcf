"""What a catalog's prices and rents are by its price book: which row is meant, whether anything can be computed with
it, and whether it still holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date

from tieryard.catalog.base import misfit
from tieryard.catalog.deployments import Deployment
from tieryard.catalog.price_book import HostedPrice, InstancePrice, PriceBook, in_force
from tieryard.catalog.prices import BookPrice, Price
from tieryard.catalog.rents import Host, Rent
from tieryard.errors import UserError

At = tuple[str | int, ...]
Rows = Sequence[HostedPrice] | Sequence[InstancePrice]


def price_on(book: PriceBook, price: Price | BookPrice, day: date) -> Price:
    """Itself, or the book's on that day: the last one known, where it is offered no more."""
    return in_force(book.hosted_rows(price.book), day).price() if isinstance(price, BookPrice) else price


def instance_on(book: PriceBook, rent: Rent, day: date) -> InstancePrice | None:
    """The book's row that a rent is by on that day; None where the catalog says the rent itself."""
    return None if rent.instance is None else in_force(_instance_rows(book, rent, rent.instance), day)


def check(book: PriceBook, deployments: Mapping[str, Deployment], overhead: Sequence[Host]) -> None:
    """Raises a misfit, with its field, for what the book does not have or nothing can be computed with. What holds on
    which day is not asked: a catalog that was once applied stays readable."""
    for at, rows, rent in _used(book, deployments, overhead):
        for row in rows:
            if row.doubt is not None:
                raise misfit(f"nothing is computed with the price of {row.name}: {row.doubt}", *at)
            if isinstance(row, HostedPrice) and row.output_usd_per_1m is None:
                raise misfit(f"{row.name} has no output price from {row.valid_from} on in the price book", *at)
            if isinstance(row, InstancePrice) and rent is not None and rent.gpus is not None and rent.gpus > row.gpus:
                raise misfit(f"{row.name} has {row.gpus} from {row.valid_from} on", *at[:-1], "gpus")


def lapsed(
    book: PriceBook, deployments: Mapping[str, Deployment], overhead: Sequence[Host], day: date
) -> list[tuple[At, str]]:
    """Where a deployment or a host goes by a price that does not hold on that day, and why: at the end of all of its
    rows' days, before them or between them."""
    found = []
    for at, rows, _ in _used(book, deployments, overhead):
        if not any(row.holds_on(day) for row in rows):
            days = ", ".join(f"{row.valid_from} to {row.valid_until or 'no last day'}" for row in rows)
            found.append((at, f"no price of {rows[0].name} holds on {day}: the price book has {days}"))
    return found


def _used(
    book: PriceBook, deployments: Mapping[str, Deployment], overhead: Sequence[Host]
) -> Iterator[tuple[At, Rows, Rent | None]]:
    """Where the book is named, and the rows that are meant."""
    for name, deployment in deployments.items():
        if isinstance(deployment.price, BookPrice):
            at: At = ("deployments", name, "price", "book")
            yield at, _hosted_rows(book, deployment.price.book, at), None
        if deployment.rent is not None and deployment.rent.instance is not None:
            at = ("deployments", name, "rent", "instance")
            yield at, _rows_at(book, deployment.rent, deployment.rent.instance, at), deployment.rent
    for number, host in enumerate(overhead):
        if host.rent.instance is not None:
            at = ("overhead", number, "rent", "instance")
            yield at, _rows_at(book, host.rent, host.rent.instance, at), host.rent


def _hosted_rows(book: PriceBook, name: str, at: At) -> list[HostedPrice]:
    try:
        return book.hosted_rows(name)
    except UserError as error:
        raise misfit(error.message, *at) from None


def _rows_at(book: PriceBook, rent: Rent, name: str, at: At) -> list[InstancePrice]:
    try:
        return _instance_rows(book, rent, name)
    except UserError as error:
        raise misfit(error.message, *at) from None


def _instance_rows(book: PriceBook, rent: Rent, name: str) -> list[InstancePrice]:
    return book.instance_rows(name, region=rent.region, purchase=rent.purchase)
