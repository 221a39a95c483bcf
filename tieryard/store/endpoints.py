"""Registered webhook endpoints, each of one tenant."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from tieryard.ids import public
from tieryard.store.connection import Connection

KIND = "webhook"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One as it stands. `events` is empty where it hears of all; `fleet`: also of what is no tenant's."""

    id: int
    tenant_id: int
    url: str
    events: tuple[str, ...]
    description: str | None
    include_result: bool
    fleet: bool
    created_at: datetime
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_why: str | None
    secret: str = field(repr=False)
    previous_secret: str | None = field(default=None, repr=False)
    previous_secret_until: datetime | None = None

    @property
    def name(self) -> str:
        """Its public id."""
        return public(KIND, self.id)


_COLUMNS = (
    "id, tenant_id, url, events, description, include_result, fleet, created_at, failing_since, disabled_at, "
    "disabled_why, secret, previous_secret, previous_secret_until"
)

# What it was still owed is given up with it, and can be delivered again later.
_DISABLE = """
WITH off AS (
    UPDATE webhook_endpoint SET disabled_at = now(), disabled_why = %(why)s
    WHERE id = %(id)s AND disabled_at IS NULL AND deleted_at IS NULL
    RETURNING id, tenant_id, url
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, data)
    SELECT tenant_id, 'webhook.disabled', id, jsonb_build_object('why', %(why)s::text, 'endpoint', url) FROM off
), given_up AS (
    UPDATE delivery SET settled_at = now(), last_error = coalesce(last_error || '; ', '') || 'the endpoint was disabled'
    FROM delivery_lane lane
    WHERE lane.endpoint_id = %(id)s AND delivery.lane_id = lane.id AND delivery.settled_at IS NULL
      AND EXISTS (SELECT FROM off)
)
SELECT id FROM off
"""


def get(connection: Connection, endpoint_id: int, *, tenant_id: int) -> Endpoint | None:
    """One of this tenant's that was not removed."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM webhook_endpoint WHERE id = %s AND tenant_id = %s AND deleted_at IS NULL",  # noqa: S608  # columns of ours
        [endpoint_id, tenant_id],
    ).fetchone()
    return None if row is None else Endpoint(*row[:3], tuple(row[3]), *row[4:])


def disable(connection: Connection, endpoint_id: int, why: str) -> bool:
    """Sends nothing there any more, gives up what is owed to it, and tells the tenant's other endpoints: whether it
    was enabled."""
    return connection.execute(_DISABLE, {"id": endpoint_id, "why": why}).fetchone() is not None
