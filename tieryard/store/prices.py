"""Prices in Postgres: the price book's rows, append-only, and the terms that rent windows are opened with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from tieryard.catalog import BookPrice, Catalog, Price, Rent
from tieryard.catalog.price_book import HostedPrice, InstancePrice, PriceBook
from tieryard.costs.terms import FullRun, Standard, Terms, rent_of, standard_of
from tieryard.costs.windows import FullLoad
from tieryard.errors import ConflictError
from tieryard.store.connection import Connection

HOSTED, INSTANCE = "hosted", "instance"

_MOST_RUNS = 20

_FREE = Price(input_usd_per_1m=Decimal(0), output_usd_per_1m=Decimal(0))

_COLUMNS = (
    "id, kind, provider, name, region, purchase, valid_from, input_usd_per_1m, output_usd_per_1m, "
    "cached_input_usd_per_1m, usd_per_hour, gpus, source, read_on, status"
)

_BOOK = f"SELECT {_COLUMNS} FROM price ORDER BY kind, provider, name, region, purchase, valid_from"  # noqa: S608  # ours

_ADD = """
INSERT INTO price (kind, provider, name, region, purchase, valid_from, input_usd_per_1m, output_usd_per_1m,
                   cached_input_usd_per_1m, usd_per_hour, gpus, source, read_on, status)
VALUES (%(kind)s, %(provider)s, %(name)s, %(region)s, %(purchase)s, %(valid_from)s, %(input)s, %(output)s, %(cached)s,
        %(usd_per_hour)s, %(gpus)s, %(source)s, %(read_on)s, %(status)s)
"""

_ROW_OF = """
SELECT id FROM price
WHERE kind = 'instance' AND provider = %(provider)s AND name = %(name)s AND region = %(region)s
  AND purchase = %(purchase)s AND valid_from = %(valid_from)s
"""

_TODAY = "SELECT (now() AT TIME ZONE 'UTC')::date"

# By `benchmark_by_deployment`, newest first. Where the tokens that a cache gave are not known, the run says nothing of
# what a prompt token takes.
_FULL_RUNS = """
SELECT id, (report ->> 'replicas')::int, (report -> 'figures' ->> 'requests_per_s')::float8,
       (report -> 'figures' ->> 'prompt_tokens')::float8, (report -> 'figures' ->> 'cached_tokens')::float8,
       (report -> 'figures' ->> 'output_tps')::float8
FROM benchmark
WHERE deployment = %(deployment)s AND kind = 'speed' AND state = 'succeeded' AND pinned = %(build)s
  AND (report ->> 'full')::boolean AND (report ->> 'valid')::boolean
  AND report -> 'figures' ->> 'token_source' = 'server'
  AND report -> 'figures' ->> 'cached_tokens' IS NOT NULL AND report -> 'figures' ->> 'output_tps' IS NOT NULL
ORDER BY id DESC LIMIT %(most)s
"""

# Windows that were opened by a row and stood at or after a day, and charges of a hosted model from a day on.
_RENTED_SINCE = """
SELECT EXISTS (SELECT FROM rent_window WHERE price_id = %(price_id)s
               AND coalesce(stopped_at, now()) > (%(day)s::timestamp AT TIME ZONE 'UTC'))
"""
_CHARGED_SINCE = """
SELECT EXISTS (SELECT FROM ledger WHERE posted_at >= (%(day)s::timestamp AT TIME ZONE 'UTC')
               AND deployment = ANY(%(deployments)s) AND window_id IS NULL AND kind IN ('inference', 'retry'))
"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A row of `price`. It holds until the next of the same thing; where its prices are all None, the thing is offered
    no more."""

    id: int
    kind: str
    provider: str
    name: str
    region: str
    purchase: str
    valid_from: date
    input_usd_per_1m: Decimal | None
    output_usd_per_1m: Decimal | None
    cached_input_usd_per_1m: Decimal | None
    usd_per_hour: Decimal | None
    gpus: int | None
    source: str
    read_on: date
    status: str

    @property
    def thing(self) -> tuple[str, ...]:
        return self.kind, self.provider, self.name, self.region, self.purchase

    @property
    def says(self) -> tuple[Decimal | int | None, ...]:
        """What it costs, and what that buys."""
        return (
            self.input_usd_per_1m,
            self.output_usd_per_1m,
            self.cached_input_usd_per_1m,
            self.usd_per_hour,
            self.gpus,
        )

    @property
    def ends(self) -> bool:
        return self.input_usd_per_1m is None and self.usd_per_hour is None


def load_book(connection: Connection) -> list[Recorded]:
    """All rows that were ever in force or will be, each thing's by its days."""
    return [Recorded(*row) for row in connection.execute(_BOOK)]


def today(connection: Connection) -> date:
    """By the database's clock, in UTC."""
    [(day,)] = connection.execute(_TODAY).fetchall()
    assert isinstance(day, date)
    return day


def record(connection: Connection, catalog: Catalog) -> int:
    """Adds what the catalog's price book says and no row does yet: how many rows. In the transaction that puts the
    catalog in force. What was recorded stays: raises ConflictError, with the field, for a row that says something else
    of a day that has begun, or begins on a day on which something was paid by the row before it.

    A row that has a last day is followed by one without prices. What is to come, such an end or a price, is just what
    the newest catalog says."""
    rows = list(_rows(catalog.price_book))
    known = {(row.thing, row.valid_from): row for row in load_book(connection)}
    day, added = today(connection), 0
    for key in known.keys() - {(wanted.thing, wanted.valid_from) for _, wanted in rows}:
        if known[key].valid_from > day:
            connection.execute("DELETE FROM price WHERE id = %s", [known.pop(key).id])
    for at, wanted in rows:
        key = wanted.thing, wanted.valid_from
        found = known.get(key)
        if found is not None and found.says == wanted.says:
            continue
        if found is not None:
            _refuse_other(found, wanted, day, at)
            connection.execute("DELETE FROM price WHERE id = %s", [found.id])
        elif wanted.valid_from <= day:
            _refuse_late(connection, catalog, list(known.values()), wanted, at)
        connection.execute(_ADD, _values(wanted))
        known[key] = wanted
        added += 1
    return added


def terms_of(connection: Connection, catalog: Catalog, deployment: str) -> Terms | None:
    """What a replica of it is rented for now, and what its tokens are charged at; None where it is not rented."""
    spec = catalog.deployments[deployment]
    if spec.rent is None:
        return None
    day = today(connection)
    instance = catalog.instance_of(spec.rent, day)
    usd_per_hour, gpus = rent_of(spec.rent, instance, gpus=spec.gpus)
    standard = standard_of(
        usd_per_hour, full_runs(connection, deployment, spec.build), catalog.price_of(deployment, day)
    )
    return Terms(
        usd_per_hour=usd_per_hour,
        gpus=gpus,
        purchase=spec.rent.purchase,
        price=standard.price,
        catalog=catalog.hash(),
        price_id=_price_id(connection, instance),
        measured_by=standard.measured_by,
    )


def standard_price_of(connection: Connection, catalog: Catalog, deployment: str) -> Standard | None:
    """The standard price of a rented deployment, with how it was come by; None where it is not rented."""
    spec = catalog.deployments[deployment]
    if spec.rent is None:
        return None
    day = today(connection)
    usd_per_hour, _ = rent_of(spec.rent, catalog.instance_of(spec.rent, day), gpus=spec.gpus)
    return standard_of(usd_per_hour, full_runs(connection, deployment, spec.build), catalog.price_of(deployment, day))


def host_terms(connection: Connection, catalog: Catalog) -> dict[str, Terms]:
    """By the name of each host that serves no model: what it is rented for now. Nothing is charged at its price."""
    if not catalog.overhead:
        return {}
    day = today(connection)
    return {host.name: _terms_of_host(connection, catalog, host.rent, day) for host in catalog.overhead}


def full_runs(connection: Connection, deployment: str, build: str) -> list[FullRun]:
    """The newest valid speed runs of this build that kept its replicas full, newest first: of one replica, tokens a
    second. Prompt tokens that a prefix cache gave are left out."""
    found = []
    wanted = {"deployment": deployment, "build": build, "most": _MOST_RUNS}
    for run_id, replicas, per_s, prompt, cached, output_tps in connection.execute(_FULL_RUNS, wanted):
        prefilled = max(0.0, prompt - cached) * per_s / replicas
        found.append(FullRun(run_id, FullLoad(Decimal(str(prefilled)), Decimal(str(output_tps / replicas)))))
    return found


def _terms_of_host(connection: Connection, catalog: Catalog, rent: Rent, day: date) -> Terms:
    instance = catalog.instance_of(rent, day)
    usd_per_hour, gpus = rent_of(rent, instance, gpus=None)
    price_id = _price_id(connection, instance)
    return Terms(usd_per_hour, gpus, rent.purchase, _FREE, catalog.hash(), price_id)


def _price_id(connection: Connection, instance: InstancePrice | None) -> int | None:
    """Of the row that was recorded for it; None where the catalog was never applied, as in a first process."""
    if instance is None:
        return None
    provider, name, region, purchase = instance.same
    wanted = {"provider": provider, "name": name, "region": region, "purchase": purchase}
    row = connection.execute(_ROW_OF, wanted | {"valid_from": instance.valid_from}).fetchone()
    return None if row is None else int(row[0])


def _rows(book: PriceBook) -> Iterator[tuple[str, Recorded]]:
    """What a book says as rows of `price`, each with its field. What is in doubt is not recorded: nothing is computed
    with it."""
    parts: list[tuple[str, Sequence[HostedPrice | InstancePrice]]]
    parts = [("hosted", book.hosted), ("instances", book.instances)]
    for part, rows in parts:
        first_days = {(row.same, row.valid_from) for row in rows}
        for number, row in enumerate(rows):
            if row.doubt is not None:
                continue
            yield f"price_book.{part}.{number}.valid_from", _recorded(row, row.valid_from)
            if row.valid_until is not None and row.valid_until < date.max:
                after = row.valid_until + timedelta(days=1)
                if (row.same, after) not in first_days:
                    yield f"price_book.{part}.{number}.valid_until", _recorded(row, after, ended=True)


def _recorded(row: HostedPrice | InstancePrice, day: date, *, ended: bool = False) -> Recorded:
    hosted = isinstance(row, HostedPrice)
    provider, name, region, purchase = (*row.same, "", "")[:4]
    nothing = Recorded(
        id=0,
        kind=HOSTED if hosted else INSTANCE,
        provider=provider,
        name=name,
        region=region,
        purchase=purchase,
        valid_from=day,
        input_usd_per_1m=None,
        output_usd_per_1m=None,
        cached_input_usd_per_1m=None,
        usd_per_hour=None,
        gpus=None,
        source=row.source,
        read_on=row.read_on,
        status=row.status,
    )
    if ended:
        return nothing
    if isinstance(row, InstancePrice):
        return replace(nothing, usd_per_hour=row.usd_per_h, gpus=row.gpus)
    return replace(
        nothing,
        input_usd_per_1m=row.input_usd_per_1m,
        output_usd_per_1m=row.output_usd_per_1m,
        cached_input_usd_per_1m=row.cached_input_usd_per_1m,
    )


def _values(row: Recorded) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "provider": row.provider,
        "name": row.name,
        "region": row.region,
        "purchase": row.purchase,
        "valid_from": row.valid_from,
        "input": row.input_usd_per_1m,
        "output": row.output_usd_per_1m,
        "cached": row.cached_input_usd_per_1m,
        "usd_per_hour": row.usd_per_hour,
        "gpus": row.gpus,
        "source": row.source,
        "read_on": row.read_on,
        "status": row.status,
    }


def _refuse_other(found: Recorded, wanted: Recorded, day: date, at: str) -> None:
    """What is to come may still change."""
    if found.valid_from <= day:
        raise ConflictError(
            f"{wanted.provider}/{wanted.name} is recorded from {found.valid_from} with {_said(found)}, and this says "
            f"{_said(wanted)}: a recorded price stays; add a row from a later day, and give this one its last day",
            param=at,
        )


def _refuse_late(
    connection: Connection, catalog: Catalog, known: Sequence[Recorded], wanted: Recorded, at: str
) -> None:
    """A row from a day that has begun, where something was paid since then by the row before it."""
    earlier = [row for row in known if row.thing == wanted.thing and row.valid_from < wanted.valid_from]
    if not earlier:
        return
    before = max(earlier, key=lambda row: row.valid_from)
    if before.says == wanted.says:
        return
    if wanted.kind == INSTANCE:
        asked, what = _RENTED_SINCE, "a window was rented"
    else:
        asked, what = _CHARGED_SINCE, "jobs were charged"
    by = {"price_id": before.id, "deployments": _charged_by(catalog, wanted), "day": wanted.valid_from}
    [(paid,)] = connection.execute(asked, by).fetchall()
    if paid:
        raise ConflictError(
            f"from {wanted.valid_from} on {what} by what {wanted.provider}/{wanted.name} cost before, {_said(before)}: "
            "let this begin on a later day; what is paid stays, and an `adjustment` can settle the difference",
            param=at,
        )


def _charged_by(catalog: Catalog, wanted: Recorded) -> list[str]:
    """The deployments that take their price from this row's thing."""
    found = []
    for name, deployment in catalog.deployments.items():
        if isinstance(deployment.price, BookPrice):
            row = catalog.price_book.hosted_rows(deployment.price.book)[0]
            if row.same == (wanted.provider, wanted.name):
                found.append(name)
    return found


def _said(row: Recorded) -> str:
    if row.ends:
        return "no price, as it is offered no more"
    if row.usd_per_hour is not None:
        return f"{row.usd_per_hour} USD an hour and {row.gpus} GPUs"
    cached = "" if row.cached_input_usd_per_1m is None else f", {row.cached_input_usd_per_1m} cached"
    return f"{row.input_usd_per_1m} in{cached} and {row.output_usd_per_1m} out"
