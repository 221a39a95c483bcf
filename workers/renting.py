"""Receives rescue's tick. Once a minute, opens rent windows where something is rented and none stands, cuts those whose
day, rent or standard price has ended, and closes those that stopped a while ago.
Next: reports read what was posted; processes hear of a cut with their heartbeat."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta

from tieryard.costs.terms import Terms
from tieryard.store import Connection, prices, windows
from tieryard.store.connection import reserve_ids
from tieryard.store.leader import lead
from tieryard.store.windows import Standing
from tieryard.telemetry import Event
from workers.yard import Yard

_LOOK_EVERY_S = 60.0

_NOW = """
SELECT now(), date_trunc('day', now(), 'UTC'), (SELECT coalesce(max(id), 0) FROM catalog_version)
"""


class Renting:
    """Of one process; one in the fleet leads."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._every_s = min(_LOOK_EVERY_S, yard.settings.rent_grace_s)
        self._look_at = 0.0

    def tick(self) -> None:
        """Looks, unless it has looked a moment ago. Raises StoreError."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + self._every_s
            look(self._yard)


def look(yard: Yard) -> None:
    """One pass. Skipped when another process is in the middle of one. Raises StoreError."""
    with lead(yard.store, "rent") as connection:
        if connection is None:
            return
        windows.stop_left(connection)
        now, midnight, newest = connection.execute(_NOW).fetchall()[0]
        if newest == yard.in_force.number:  # only whoever knows the newest catalog may say what is rented
            _keep(yard, connection, now=now, midnight=midnight)
        if closed := windows.close_due(connection, yard.settings.rent_grace_s):
            yard.log.info(Event.WINDOWS_CLOSED, windows=closed)


def _keep(yard: Yard, connection: Connection, *, now: datetime, midnight: datetime) -> None:
    """Makes what stands be what is rented, on the terms that hold now."""
    catalog = yard.catalog
    terms = {name: prices.terms_of(connection, catalog, name) for name in catalog.hosts}
    hosts = prices.host_terms(connection, catalog)
    stands = windows.standing(connection)
    for window in stands:
        wanted = _wanted(window, terms, hosts)
        if wanted is None:
            windows.stop(connection, window.id)
            yard.log.info(Event.RENT_CHANGED, place=window.place, rented=False)
        elif _cut(connection, window, wanted, now=now, midnight=midnight):
            yard.log.info(Event.RENT_CHANGED, place=window.place, usd_per_hour=str(wanted.usd_per_hour))
    for place in hosts.keys() - {window.place for window in stands}:
        _open(connection, hosts[place], place)
    for one in windows.unrented(connection):
        if (rent := terms.get(one.deployment)) is None:
            continue
        if one.taken_by is not None:
            todo = "give each replica of a deployment on one host a number: `workers infer NAME --replica N`"
            yard.log.error(Event.PLACE_TAKEN, worker=one.worker_id, place=one.place, by=one.taken_by, todo=todo)
            continue
        _open(connection, rent, one.place, one.worker_id, one.deployment)


def _open(
    connection: Connection, terms: Terms, place: str, worker_id: int | None = None, deployment: str | None = None
) -> None:
    window_id = reserve_ids(connection, 1)  # in autocommit: nobody waits for it
    windows.open_window(connection, window_id, place=place, worker_id=worker_id, deployment=deployment, terms=terms)


def _wanted(window: Standing, terms: Mapping[str, Terms | None], hosts: Mapping[str, Terms]) -> Terms | None:
    """The terms that hold now; None where it is not rented any more. A deployment that the catalog has lost costs what
    it did until its process is gone."""
    if window.deployment is None:
        return hosts.get(window.place)
    return terms.get(window.deployment, window.terms)


def _cut(connection: Connection, window: Standing, wanted: Terms, *, now: datetime, midnight: datetime) -> bool:
    """At each midnight since it began, so that a day can be reported on the next, and where its terms have changed:
    whether these have."""
    at, window_id, terms = window.started_at, window.id, window.terms
    while at < midnight:
        at = _next_midnight(at)
        terms = wanted if at == midnight else window.terms
        following = windows.cut(connection, window_id, at, terms)
        if following is None:  # it has just stopped
            return False
        window_id = following
    if _same(terms, wanted):
        return not _same(window.terms, wanted)
    return windows.cut(connection, window_id, now, wanted) is not None


def _next_midnight(at: datetime) -> datetime:
    return (at + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)


def _same(one: Terms, other: Terms) -> bool:
    """Whether nothing is charged otherwise: another catalog may say the same."""
    return _charged(one) == _charged(other)


def _charged(terms: Terms) -> tuple[object, ...]:
    price = terms.price.input_usd_per_1m, terms.price.output_usd_per_1m
    return terms.usd_per_hour, terms.gpus, terms.purchase, terms.price_id, price, terms.measured_by
