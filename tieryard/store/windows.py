"""Rent windows in Postgres: opened with a process, stopped with it, cut where what they cost changes, and closed.

Decision 0022 says why it is so, and docs/reference/costs.md by which formulas. A window's row is locked by whoever
posts to it (FOR KEY SHARE, any number at once) and by whoever closes it (FOR UPDATE, alone); nothing else keeps the sum
of its postings equal to its rent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from tieryard.catalog import Price
from tieryard.costs.terms import Terms
from tieryard.costs.windows import WindowPrice
from tieryard.store.connection import Connection, reserve_ids
from tieryard.store.system_tenants import system_tenant

RENT_TENANT = "tieryard-rent"

_TRIES = 10  # at a place that another takes at the same moment

_COLUMNS = (
    "id, worker_id, deployment, place, started_at, input_usd_per_1m, output_usd_per_1m, usd_per_hour, gpus, purchase, "
    "price_id, measured_by, catalog, served_at IS NOT NULL"
)

# Whoever stood at the place has gone, whether rescue has seen that or not: its rent ends with its lease, or now.
_STOP_AT = """
UPDATE rent_window w SET stopped_at = greatest(w.started_at, least(now(), coalesce(
    (SELECT lease_until FROM worker WHERE worker.id = w.worker_id), now())))
WHERE place = %(place)s AND w.stopped_at IS NULL
"""

# Not before what stood there stopped, which may be after this transaction began.
_OPEN = """
INSERT INTO rent_window (id, place, worker_id, deployment, started_at, usd_per_hour, gpus, purchase, price_id,
                         input_usd_per_1m, output_usd_per_1m, measured_by, catalog)
VALUES (%(id)s, %(place)s, %(worker)s, %(deployment)s,
        greatest(now(), (SELECT max(stopped_at) FROM rent_window
                         WHERE place = %(place)s AND closed_at IS NULL AND stopped_at > now())),
        %(usd_per_hour)s, %(gpus)s, %(purchase)s, %(price_id)s, %(input)s, %(output)s, %(measured_by)s, %(catalog)s)
ON CONFLICT (place) WHERE stopped_at IS NULL DO NOTHING RETURNING id
"""

_CUT = """
WITH cut AS (
    UPDATE rent_window SET stopped_at = %(at)s
    WHERE id = %(id)s AND stopped_at IS NULL AND started_at < %(at)s RETURNING *
)
INSERT INTO rent_window (id, place, worker_id, deployment, started_at, served_at, usd_per_hour, gpus, purchase,
                         price_id, input_usd_per_1m, output_usd_per_1m, measured_by, catalog)
SELECT %(next)s::bigint, place, worker_id, deployment, stopped_at, served_at, %(usd_per_hour)s::numeric, %(gpus)s::int,
       %(purchase)s::text, %(price_id)s::bigint, %(input)s::numeric, %(output)s::numeric, %(measured_by)s::bigint[],
       %(catalog)s::text
FROM cut RETURNING id
"""

_DUE = """
SELECT id FROM rent_window WHERE closed_at IS NULL AND stopped_at < now() - %(grace)s * interval '1 second'
ORDER BY stopped_at LIMIT 1 FOR UPDATE SKIP LOCKED
"""


def meter(at: str) -> str:
    """USD since 1970 at a time. `div` cuts off exactly, where `/` would round to a scale of its own choice: the digits
    are those of `tieryard.costs.windows.rent_usd`."""
    return f"div(usd_per_hour * extract(epoch FROM {at}) * 1000000000000, 3600) * 0.000000000001"


# Not in the statement that locks: its sum would be of a snapshot from before the lock, and miss what it waited for.
_CLOSE = f"""
WITH closed AS (
    UPDATE rent_window SET closed_at = now() WHERE id = %(id)s AND closed_at IS NULL RETURNING *
), share AS (
    SELECT closed.*, {meter("stopped_at")} - {meter("started_at")} AS rent_usd,
           CASE WHEN deployment IS NULL THEN 0
                ELSE {meter("greatest(least(coalesce(served_at, stopped_at), stopped_at), started_at)")}
                     - {meter("started_at")} END AS warmup_usd,
           (SELECT coalesce(sum(cost_usd), 0) FROM ledger WHERE window_id = closed.id) AS posted_usd
    FROM closed
)
INSERT INTO ledger (job_id, fence, kind, tenant_id, window_id, prompt_tokens, completion_tokens, cost_usd, deployment,
                    catalog)
SELECT id, 0, bill.kind, %(tenant)s, id, 0, 0, bill.usd, deployment, catalog FROM share,
LATERAL (VALUES ('warmup', warmup_usd),
                (CASE WHEN deployment IS NULL THEN 'overhead' ELSE 'idle' END, rent_usd - posted_usd - warmup_usd))
    AS bill (kind, usd)
WHERE bill.kind <> 'warmup' OR bill.usd <> 0
"""  # noqa: S608  # parts of ours

# Those whose worker is silent are rescue's to stop: at its lease's end, which a cut must not be after.
_STANDING = f"""
SELECT {_COLUMNS} FROM rent_window
WHERE stopped_at IS NULL AND (worker_id IS NULL OR EXISTS (
    SELECT FROM worker WHERE worker.id = worker_id AND worker.stopped_at IS NULL AND lease_until > now()))
ORDER BY place
"""  # noqa: S608  # columns of ours

# A cut, or an opening, that is committed while a process leaves begins a window which its leaving cannot see.
_STOP_LEFT = """
UPDATE rent_window w SET stopped_at = greatest(w.started_at, least(worker.stopped_at, worker.lease_until)) FROM worker
WHERE worker.id = w.worker_id AND w.stopped_at IS NULL AND worker.stopped_at IS NOT NULL
"""

_WITHOUT = """
SELECT worker.id, worker.deployment, worker.place, taken.worker_id
FROM worker LEFT JOIN rent_window taken ON taken.place = worker.place AND taken.stopped_at IS NULL
WHERE worker.kind = 'infer' AND worker.stopped_at IS NULL AND worker.lease_until > now() AND worker.place IS NOT NULL
  AND taken.worker_id IS DISTINCT FROM worker.id
ORDER BY worker.id
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """A window that has not stopped. `deployment` and `worker_id` are None where a host is rented that serves no model;
    `served`: its engine has served. `terms` are those that it was opened with."""

    id: int
    worker_id: int | None
    deployment: str | None
    place: str
    started_at: datetime
    terms: Terms
    served: bool

    @property
    def price(self) -> Price:
        """The standard price, at which its jobs are charged."""
        return self.terms.price

    @property
    def charging(self) -> WindowPrice:
        return WindowPrice(self.id, self.price)


@dataclass(frozen=True, slots=True)
class Unrented:
    """A live infer process without a standing window. `taken_by` is the process that has one at its place, if any."""

    worker_id: int
    deployment: str
    place: str
    taken_by: int | None


def open_window(
    connection: Connection,
    window_id: int,
    *,
    place: str,
    worker_id: int | None,
    deployment: str | None,
    terms: Terms,
) -> int:
    """Opens a window that starts now, and stops one that still stands at the place: its id. That is reserved before,
    and not in this transaction: this may wait for whoever else is at the place, and ids must not wait with it."""
    wanted = _columns(terms) | {"id": window_id, "place": place, "worker": worker_id, "deployment": deployment}
    for _ in range(_TRIES):
        connection.execute(_STOP_AT, {"place": place})
        if (row := connection.execute(_OPEN, wanted).fetchone()) is not None:
            return int(row[0])
    raise RuntimeError(f"others open windows at {place} all the time")


def stop(connection: Connection, window_id: int) -> bool:
    """Stops a window now: whether it stood."""
    found = connection.execute(
        "UPDATE rent_window SET stopped_at = greatest(started_at, now()) WHERE id = %s AND stopped_at IS NULL "
        "RETURNING id",
        [window_id],
    )
    return found.fetchone() is not None


def stop_left(connection: Connection) -> None:
    """Stops what still stands of processes that have gone, with them."""
    connection.execute(_STOP_LEFT)


def cut(connection: Connection, window_id: int, at: datetime, terms: Terms) -> int | None:
    """Stops a window at this moment and begins the next there, on these terms: its id. None where it does not stand any
    more, or did not begin before. In autocommit, else nobody gets an id until the commit."""
    wanted = _columns(terms) | {"next": reserve_ids(connection, 1), "id": window_id, "at": at}
    row = connection.execute(_CUT, wanted).fetchone()
    return None if row is None else int(row[0])


def close_due(connection: Connection, grace_s: float) -> int:
    """Closes what has stopped longer than the grace ago, each in a transaction of its own: how many. What somebody
    posts to at this moment is left for the next time."""
    n = 0
    while _close_one(connection, grace_s):
        n += 1
    return n


def standing(connection: Connection) -> list[Standing]:
    """Windows of live processes and of hosts."""
    return [_read(row) for row in connection.execute(_STANDING)]


def unrented(connection: Connection) -> list[Unrented]:
    """Live infer processes without a window."""
    return [Unrented(*row) for row in connection.execute(_WITHOUT)]


def _close_one(connection: Connection, grace_s: float) -> bool:
    with connection.transaction():
        due = connection.execute(_DUE, {"grace": grace_s}).fetchone()
        if due is not None:
            connection.execute(_CLOSE, {"id": due[0], "tenant": system_tenant(connection, RENT_TENANT)})
    return due is not None


def _columns(terms: Terms) -> dict[str, Any]:
    return {
        "usd_per_hour": terms.usd_per_hour,
        "gpus": terms.gpus,
        "purchase": terms.purchase,
        "price_id": terms.price_id,
        "input": terms.price.input_usd_per_1m,
        "output": terms.price.output_usd_per_1m,
        "measured_by": list(terms.measured_by) or None,
        "catalog": terms.catalog,
    }


def _read(row: tuple[Any, ...]) -> Standing:
    window_id, worker_id, deployment, place, started_at, input_usd, output_usd, *rent, measured_by, catalog, served = (
        row
    )
    usd_per_hour, gpus, purchase, price_id = rent
    price = Price(input_usd_per_1m=Decimal(input_usd), output_usd_per_1m=Decimal(output_usd))
    terms = Terms(usd_per_hour, gpus, purchase, price, catalog, price_id, tuple(measured_by or ()))
    return Standing(window_id, worker_id, deployment, place, started_at, terms, served)
