"""What was delivered and what was not: deliveries by tenant with their attempts, delivered again on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from tieryard.errors import ConflictError, NotFoundError
from tieryard.events import Told
from tieryard.ids import public
from tieryard.store import endpoints
from tieryard.store.connection import Connection, Store
from tieryard.store.endpoints import IN_FLIGHT_S

KIND = "delivery"
MOST_AT_ONCE = 10_000
"""Deliveries that one request makes due again."""


class Outcome(StrEnum):
    """`pending`: due now or later. `delivered`: a 2xx took it. `failed`: given up."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Logged:
    """A delivery as it stands. `endpoint_id` None: `url` is a callback address. `at` is when the event was written."""

    id: int
    outbox_id: int
    endpoint_id: int | None
    url: str
    event: str
    subject_id: int
    data: dict[str, Any] | None
    at: datetime
    attempts: int
    next_at: datetime
    settled_at: datetime | None
    delivered_at: datetime | None
    last_status: int | None
    last_error: str | None

    @property
    def outcome(self) -> Outcome:
        if self.settled_at is None:
            return Outcome.PENDING
        return Outcome.FAILED if self.delivered_at is None else Outcome.DELIVERED


@dataclass(frozen=True, slots=True)
class Attempted:
    """One attempt: what the receiver answered, the first 1 kB of it, or why it did not."""

    attempt: int
    at: datetime
    status: int | None
    latency_ms: float | None
    error: str | None
    answer: str | None
    address: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which deliveries; what is None does not choose. Times are of the delivery's making, a moment after its event."""

    tenant_id: int
    endpoint_id: int | None = None
    event: str | None = None
    outcome: Outcome | None = None
    since: datetime | None = None
    until: datetime | None = None


_OF_OUTCOME = {
    None: "true",
    Outcome.PENDING: "d.settled_at IS NULL",
    Outcome.DELIVERED: "d.delivered_at IS NOT NULL",
    Outcome.FAILED: "d.settled_at IS NOT NULL AND d.delivered_at IS NULL",
}

_COLUMNS = (
    "d.id, d.outbox_id, d.endpoint_id, coalesce(d.url, e.url), o.event, o.subject_id, o.data, o.created_at, "
    "d.attempts, d.next_at, d.settled_at, d.delivered_at, d.last_status, d.last_error"
)
_FROM = "delivery d JOIN outbox o ON o.id = d.outbox_id LEFT JOIN webhook_endpoint e ON e.id = d.endpoint_id"

# What is due later than any hand could hold it waits for its next attempt: that one may come now.
_FREE = "(d.settled_at IS NOT NULL OR d.next_at > now() + %(hands)s * interval '1 second')"
_REACHABLE = (
    "(d.endpoint_id IS NULL OR EXISTS (SELECT FROM webhook_endpoint e "
    "WHERE e.id = d.endpoint_id AND e.disabled_at IS NULL AND e.deleted_at IS NULL))"
)
_DUE_AGAIN = "settled_at = NULL, delivered_at = NULL, next_at = now(), first_due_at = now(), failures = 0"

_TEST = """
WITH lane AS (
    INSERT INTO delivery_lane (tenant_id, endpoint_id) VALUES (%(tenant)s, %(id)s)
    ON CONFLICT (endpoint_id) DO UPDATE SET endpoint_id = excluded.endpoint_id RETURNING id
), event AS (
    INSERT INTO outbox (tenant_id, event, subject_id, fanned_at) VALUES (%(tenant)s, %(event)s, %(id)s, now())
    RETURNING id
)
INSERT INTO delivery (tenant_id, outbox_id, lane_id, endpoint_id)
SELECT %(tenant)s, event.id, lane.id, %(id)s FROM event, lane RETURNING id
"""


def list_deliveries(store: Store, wanted: Wanted, *, after: int | None, limit: int) -> list[Logged]:
    """A page, newest first. `after` is the last id of the page before."""
    statement = (
        f"SELECT {_COLUMNS} FROM {_FROM} WHERE {_chosen(wanted, after=after)} ORDER BY d.id DESC LIMIT %(limit)s"  # noqa: S608  # conditions of ours
    )
    rows = store.fetch(statement, {**_parameters(wanted), "after": after, "limit": limit})
    return [Logged(*row) for row in rows]


def get(store: Store, delivery_id: int, *, tenant_id: int) -> tuple[Logged, list[Attempted]]:
    """One delivery and its attempts, oldest first. Raises NotFoundError, also for another tenant's."""
    with store.transaction() as connection:
        found = _find(connection, delivery_id, tenant_id)
        rows = connection.execute(
            "SELECT attempt, at, status, latency_ms, error, answer, address FROM delivery_attempt "
            "WHERE delivery_id = %s ORDER BY attempt",
            [delivery_id],
        ).fetchall()
    return found, [Attempted(*row) for row in rows]


def redeliver(store: Store, delivery_id: int, *, tenant_id: int) -> None:
    """Makes one due again, under the same message id. Raises NotFoundError; ConflictError while an attempt is under way
    and where its endpoint is disabled or removed."""
    statement = (
        f"UPDATE delivery d SET {_DUE_AGAIN} WHERE d.id = %(id)s AND d.tenant_id = %(tenant)s "  # noqa: S608
        f"AND {_FREE} AND {_REACHABLE} RETURNING d.id"
    )
    with store.transaction() as connection:
        wanted = {"id": delivery_id, "tenant": tenant_id, "hands": IN_FLIGHT_S}
        if connection.execute(statement, wanted).fetchone() is not None:
            return
        found = _find(connection, delivery_id, tenant_id)
        if found.endpoint_id is not None:
            try:
                _check_reachable(connection, found.endpoint_id, tenant_id)
            except NotFoundError:
                raise ConflictError("its endpoint was removed; nothing can be delivered there", param=KIND) from None
    raise ConflictError(f"{public(KIND, delivery_id)} is being delivered; look again in a minute", param=KIND)


def redeliver_all(store: Store, wanted: Wanted, *, after: int | None = None) -> tuple[int, int | None]:
    """Makes those due again that are settled as wanted, oldest first, and whose endpoint still is there and enabled:
    how many, and the last of them where more may remain, which is `after` of the next part. By their state alone they
    cannot be told apart: what was due again may be settled again by then. Raises NotFoundError and ConflictError for an
    endpoint that is named."""
    later = "AND d.id > %(after)s" if after is not None else ""
    statement = f"""
        UPDATE delivery SET {_DUE_AGAIN} WHERE id IN (
            SELECT d.id FROM delivery d JOIN outbox o ON o.id = d.outbox_id
            WHERE {_chosen(wanted)} {later} AND d.settled_at IS NOT NULL AND {_REACHABLE}
            ORDER BY d.id LIMIT %(limit)s FOR UPDATE OF d SKIP LOCKED
        ) RETURNING id
        """  # noqa: S608
    with store.transaction() as connection:
        if wanted.endpoint_id is not None:
            _check_reachable(connection, wanted.endpoint_id, wanted.tenant_id)
        asked = {**_parameters(wanted), "after": after, "limit": MOST_AT_ONCE}
        found = [row[0] for row in connection.execute(statement, asked)]
    return len(found), max(found) if len(found) == MOST_AT_ONCE else None


def send_test(store: Store, endpoint_id: int, *, tenant_id: int) -> int:
    """Owes an endpoint a `webhook.test`, whatever it listens to: the delivery's id. Raises NotFoundError, ConflictError
    where it is disabled."""
    with store.transaction() as connection:
        _check_reachable(connection, endpoint_id, tenant_id)
        wanted = {"id": endpoint_id, "tenant": tenant_id, "event": str(Told.WEBHOOK_TEST)}
        row = connection.execute(_TEST, wanted).fetchone()
    assert row is not None
    return int(row[0])


def _chosen(wanted: Wanted, *, after: int | None = None) -> str:
    """The condition: only what is asked for stands in it, so that each question has its own plan."""
    asked: Sequence[tuple[Any, str]] = (
        (wanted.endpoint_id, "d.endpoint_id = %(endpoint)s"),
        (wanted.event, "o.event = %(event)s"),
        (wanted.since, "d.created_at >= %(since)s"),
        (wanted.until, "d.created_at < %(until)s"),
        (after, "d.id < %(after)s"),
    )
    chosen = [condition for value, condition in asked if value is not None]
    return " AND ".join(["d.tenant_id = %(tenant)s", _OF_OUTCOME[wanted.outcome], *chosen])


def _parameters(wanted: Wanted) -> dict[str, Any]:
    return {
        "tenant": wanted.tenant_id,
        "endpoint": wanted.endpoint_id,
        "event": wanted.event,
        "since": wanted.since,
        "until": wanted.until,
    }


def _find(connection: Connection, delivery_id: int, tenant_id: int) -> Logged:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM {_FROM} WHERE d.id = %s AND d.tenant_id = %s",  # noqa: S608
        [delivery_id, tenant_id],
    ).fetchone()
    if row is None:
        raise NotFoundError(f"no delivery '{public(KIND, delivery_id)}'", param=KIND)
    return Logged(*row)


def _check_reachable(connection: Connection, endpoint_id: int, tenant_id: int) -> None:
    name = public(endpoints.KIND, endpoint_id)
    found = endpoints.get(connection, endpoint_id, tenant_id=tenant_id)
    if found is None:
        raise NotFoundError(f"no webhook '{name}'", param=endpoints.KIND)
    if found.disabled_at is not None:
        raise ConflictError(f"{name} is disabled ({found.disabled_why}); enable it first", param=endpoints.KIND)
