"""Registered webhook endpoints, each of one tenant: made, changed, disabled and removed. `delivery_log` has what was
delivered to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tieryard.errors import ConflictError, NotFoundError
from tieryard.ids import public
from tieryard.store import idempotency
from tieryard.store.connection import Connection, Store
from tieryard.store.idempotency import Mark

KIND = "webhook"
MOST = 50
"""Endpoints of one tenant: each event makes a delivery for each that listens."""
OVERLAP_H = 24
"""So long does the secret before the last rotation sign, too."""
IN_FLIGHT_S = 120.0
"""A delivery that is due later than this is in nobody's hands: longer than one that is taken is out of sight."""


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

    @property
    def state(self) -> str:
        if self.disabled_at is not None:
            return "disabled"
        return "failing" if self.failing_since is not None else "enabled"


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """One to make; its members are those of `Endpoint`."""

    tenant_id: int
    url: str
    secret: str = field(repr=False)
    events: Sequence[str] = ()
    description: str | None = None
    include_result: bool = False
    fleet: bool = False


_COLUMNS = (
    "id, tenant_id, url, events, description, include_result, fleet, created_at, failing_since, disabled_at, "
    "disabled_why, secret, previous_secret, previous_secret_until"
)

# The tenant's row is what two that are made at once wait at. The count is a statement of its own, which sees what was
# made meanwhile.
_WAIT = "SELECT FROM tenant WHERE id = %(tenant)s FOR NO KEY UPDATE"
_COUNT = "SELECT count(*) FROM webhook_endpoint WHERE tenant_id = %(tenant)s AND deleted_at IS NULL"

_ADD = f"""
WITH made AS (
    INSERT INTO webhook_endpoint (tenant_id, url, events, description, include_result, fleet, secret)
    VALUES (%(tenant)s, %(url)s, %(events)s, %(description)s, %(include_result)s, %(fleet)s, %(secret)s)
    RETURNING *
), lane AS (
    INSERT INTO delivery_lane (tenant_id, endpoint_id) SELECT tenant_id, id FROM made
)
SELECT {_COLUMNS} FROM made
"""  # noqa: S608  # columns of ours

_MINE = "id = %(id)s AND tenant_id = %(tenant)s AND deleted_at IS NULL"

# A new address is a new chance.
_CHANGE = f"""
UPDATE webhook_endpoint SET events = coalesce(%(events)s, events), fleet = coalesce(%(fleet)s, fleet),
    description = CASE WHEN %(describes)s THEN %(description)s ELSE description END,
    include_result = coalesce(%(include_result)s, include_result), url = coalesce(%(url)s, url),
    failing_since = CASE WHEN %(url)s::text <> url THEN NULL ELSE failing_since END
WHERE {_MINE} RETURNING {_COLUMNS}
"""  # noqa: S608

_ROTATE = f"""
UPDATE webhook_endpoint SET secret = %(secret)s, previous_secret = secret,
    previous_secret_until = now() + %(hours)s * interval '1 hour'
WHERE {_MINE} RETURNING {_COLUMNS}
"""  # noqa: S608

_ENABLE = f"""
UPDATE webhook_endpoint SET disabled_at = NULL, disabled_why = NULL, failing_since = NULL
WHERE {_MINE} RETURNING {_COLUMNS}
"""  # noqa: S608

# What waits for a far attempt is tried now. What is in somebody's hands is left alone, or it would be sent twice.
# Whoever changes several rows locks them in one order: endpoints, lanes, deliveries by id; see `deliveries`.
_AFRESH = """
WITH lane AS (
    UPDATE delivery_lane SET failures = 0, steady = false, resting_until = NULL WHERE endpoint_id = %(id)s RETURNING id
), waiting AS MATERIALIZED (
    SELECT d.id FROM lane JOIN delivery d ON d.lane_id = lane.id
    WHERE d.settled_at IS NULL AND d.next_at > now() + %(hands)s * interval '1 second'
    ORDER BY d.id FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE delivery SET next_at = now(), first_due_at = now(), failures = 0 FROM waiting WHERE delivery.id = waiting.id
"""


def _given_up(ended: str, why: str) -> str:
    """Settles what is owed to the endpoints in `ended`; by id, as whoever writes down attempts locks them."""
    return f"""owing AS MATERIALIZED (
    SELECT delivery.id FROM {ended} JOIN delivery_lane lane ON lane.endpoint_id = {ended}.id
    JOIN delivery ON delivery.lane_id = lane.id AND delivery.settled_at IS NULL
    ORDER BY delivery.id FOR NO KEY UPDATE OF delivery
), given_up AS (
    UPDATE delivery SET settled_at = now(),
        last_error = coalesce(delivery.last_error || '; ', '') || 'the endpoint was {why}'
    FROM owing WHERE delivery.id = owing.id
)"""  # noqa: S608  # parts of ours


# What it was still owed is given up with it, and can be delivered again later.
_DISABLE = """
WITH off AS (
    UPDATE webhook_endpoint SET disabled_at = now(), disabled_why = %(why)s
    WHERE id = %(id)s AND disabled_at IS NULL AND deleted_at IS NULL
    RETURNING id, tenant_id, url
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, data)
    SELECT tenant_id, 'webhook.disabled', id, jsonb_build_object('why', %(why)s::text, 'endpoint', url) FROM off
), {owed}
SELECT id FROM off
""".replace("{owed}", _given_up("off", "disabled"))

# Its row stays for the log, which names its address; its secrets do not.
_REMOVE = f"""
WITH gone AS (
    UPDATE webhook_endpoint SET deleted_at = now(), secret = '', previous_secret = NULL, previous_secret_until = NULL
    WHERE {_MINE} RETURNING id
), {_given_up("gone", "removed")}
SELECT id FROM gone
"""  # noqa: S608


def add(store: Store, new: NewEndpoint, *, mark: Mark | None = None) -> Endpoint:
    """Registers it. Raises ConflictError where the tenant has too many, AlreadyMadeError when
    `mark` has made one."""
    wanted = {
        "tenant": new.tenant_id,
        "url": new.url,
        "events": list(new.events),
        "description": new.description,
        "include_result": new.include_result,
        "fleet": new.fleet,
        "secret": new.secret,
    }
    with store.transaction() as connection:
        connection.execute(_WAIT, wanted)
        count = connection.execute(_COUNT, wanted).fetchone()
        assert count is not None
        if count[0] >= MOST:
            raise ConflictError(f"there are {MOST} endpoints already, as many as a tenant may have; remove one first")
        made = _one(connection, _ADD, wanted)
        assert made is not None
        idempotency.claim(connection, mark, made.id)
    return made


def list_endpoints(store: Store, *, tenant_id: int) -> list[Endpoint]:
    """A tenant's, oldest first."""
    rows = store.fetch(
        f"SELECT {_COLUMNS} FROM webhook_endpoint WHERE tenant_id = %(tenant)s AND deleted_at IS NULL ORDER BY id",  # noqa: S608
        {"tenant": tenant_id},
    )
    return [_read(row) for row in rows]


def find(store: Store, endpoint_id: int, *, tenant_id: int) -> Endpoint:
    """As `get`. Raises NotFoundError, also for another tenant's."""
    with store.transaction() as connection:
        return _known(get(connection, endpoint_id, tenant_id=tenant_id), endpoint_id)


def get(connection: Connection, endpoint_id: int, *, tenant_id: int) -> Endpoint | None:
    """One of this tenant's that was not removed."""
    statement = f"SELECT {_COLUMNS} FROM webhook_endpoint WHERE {_MINE}"  # noqa: S608
    return _one(connection, statement, {"id": endpoint_id, "tenant": tenant_id})


def change(store: Store, endpoint_id: int, *, tenant_id: int, **fields: Any) -> Endpoint:
    """Changes `url`, `events`, `description`, `include_result` or `fleet`, those that are given. With a new address
    what waits is tried at once. Raises NotFoundError."""
    given = {"url": None, "events": None, "description": None, "include_result": None, "fleet": None, **fields}
    wanted = {**given, "id": endpoint_id, "tenant": tenant_id, "describes": "description" in fields}
    with store.transaction() as connection:
        before = _known(get(connection, endpoint_id, tenant_id=tenant_id), endpoint_id)
        changed = _known(_one(connection, _CHANGE, wanted), endpoint_id)
        if changed.url != before.url:
            _afresh(connection, endpoint_id)
    return changed


def rotate(store: Store, endpoint_id: int, secret: str, *, tenant_id: int, mark: Mark | None = None) -> Endpoint:
    """Gives it a new secret; the one before signs too for a day, the one before that no more. Raises NotFoundError,
    AlreadyMadeError when `mark` has done so."""
    wanted = {"id": endpoint_id, "tenant": tenant_id, "secret": secret, "hours": OVERLAP_H}
    with store.transaction() as connection:
        found = _known(_one(connection, _ROTATE, wanted), endpoint_id)
        idempotency.claim(connection, mark, endpoint_id)
    return found


def enable(store: Store, endpoint_id: int, *, tenant_id: int) -> Endpoint:
    """Delivers to it again, as if it had never failed; does nothing to one that is well. Raises NotFoundError."""
    with store.transaction() as connection:
        found = _known(_one(connection, _ENABLE, {"id": endpoint_id, "tenant": tenant_id}), endpoint_id)
        _afresh(connection, endpoint_id)
    return found


def disable(connection: Connection, endpoint_id: int, why: str) -> bool:
    """Sends nothing there any more, gives up what is owed to it, and tells the tenant's other endpoints: whether it
    was enabled."""
    return connection.execute(_DISABLE, {"id": endpoint_id, "why": why}).fetchone() is not None


def remove(store: Store, endpoint_id: int, *, tenant_id: int) -> None:
    """Removes it, for good, and gives up what is owed to it. Raises NotFoundError."""
    if not store.fetch(_REMOVE, {"id": endpoint_id, "tenant": tenant_id}):
        raise _unknown(endpoint_id)


def _afresh(connection: Connection, endpoint_id: int) -> None:
    connection.execute(_AFRESH, {"id": endpoint_id, "hands": IN_FLIGHT_S})


def _one(connection: Connection, statement: str, wanted: dict[str, Any]) -> Endpoint | None:
    row = connection.execute(statement, wanted).fetchone()
    return None if row is None else _read(row)


def _read(row: Sequence[Any]) -> Endpoint:
    number, tenant_id, url, events, *rest = row
    return Endpoint(number, tenant_id, url, tuple(events), *rest)


def _known(found: Endpoint | None, endpoint_id: int) -> Endpoint:
    if found is None:
        raise _unknown(endpoint_id)
    return found


def _unknown(endpoint_id: int) -> NotFoundError:
    return NotFoundError(f"no webhook '{public(KIND, endpoint_id)}'", param=KIND)
