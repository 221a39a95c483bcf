"""What happened and is to be told. Rows are written by the statements that end jobs, batches and runs; here deliveries
are made of them, once: one for the event's own address, and one for each endpoint that listens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tieryard.events import FLEET_WIDE
from tieryard.store.connection import Connection
from tieryard.store.telling import hears

_MOST = 500

# A loose scan of `outbox_unfanned`, and of each tenant's the oldest: nobody waits for another's million. How many there
# are the planner cannot know, and would read whole tables: each job is looked up by itself (LIMIT 1). Its address is in
# its line, and is read here in Python: Postgres refuses JSON that callers may send (NUL).
_UNFANNED = """
WITH RECURSIVE owner AS (
    (SELECT tenant_id FROM outbox WHERE fanned_at IS NULL ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT next.tenant_id FROM owner CROSS JOIN LATERAL (
        SELECT tenant_id FROM outbox WHERE fanned_at IS NULL AND tenant_id > owner.tenant_id
        ORDER BY tenant_id LIMIT 1) AS next
), share AS (
    SELECT tenant_id, greatest(%(most)s / count(*) OVER (), 1) AS n FROM owner
), happened AS MATERIALIZED (
    SELECT oldest.*, share.n FROM share CROSS JOIN LATERAL (
        SELECT id, tenant_id, event, subject_id, url FROM outbox
        WHERE outbox.tenant_id = share.tenant_id AND fanned_at IS NULL
        ORDER BY id LIMIT share.n FOR UPDATE SKIP LOCKED) AS oldest
)
SELECT happened.id, happened.tenant_id, happened.url, own.body,
       count(*) OVER (PARTITION BY happened.tenant_id) >= happened.n
FROM happened LEFT JOIN LATERAL (
    SELECT line.body FROM job JOIN line USING (source_id, line_no)
    WHERE happened.url IS NULL AND happened.event LIKE 'job.%%' AND job.id = happened.subject_id AND job.wants_callback
    LIMIT 1
) AS own ON true
ORDER BY happened.id
"""

# In a statement of its own, so that the next one sees also those that another process has just made.
# An endpoint's lane is made with it.
_LANES = """
INSERT INTO delivery_lane (tenant_id, origin)
SELECT DISTINCT tenant_id, origin FROM unnest(%(tenants)s::bigint[], %(origins)s::text[]) AS o (tenant_id, origin)
WHERE NOT EXISTS (SELECT FROM delivery_lane l WHERE l.tenant_id = o.tenant_id AND l.origin = o.origin)
ORDER BY tenant_id, origin ON CONFLICT DO NOTHING
"""

# A test goes to the endpoint that is tested, whatever it listens to; that one was disabled, to all but that one.
_FAN_OUT = f"""
WITH happened AS MATERIALIZED (
    SELECT id, tenant_id, event, subject_id FROM outbox WHERE id = ANY(%(ids)s)
), listening AS (
    SELECT h.id AS outbox_id, e.id AS endpoint_id, e.tenant_id
    FROM happened h JOIN webhook_endpoint e ON e.tenant_id = h.tenant_id
    WHERE h.event <> ALL(%(fleet_wide)s) AND h.event <> 'webhook.test'
      AND e.disabled_at IS NULL AND e.deleted_at IS NULL AND {hears("h.event")}
      AND NOT (h.event = 'webhook.disabled' AND e.id = h.subject_id)
    UNION ALL
    SELECT h.id, e.id, e.tenant_id FROM happened h JOIN webhook_endpoint e ON e.fleet
    WHERE h.event = ANY(%(fleet_wide)s) AND e.disabled_at IS NULL AND e.deleted_at IS NULL AND {hears("h.event")}
    UNION ALL
    SELECT h.id, e.id, e.tenant_id FROM happened h JOIN webhook_endpoint e ON e.id = h.subject_id
    WHERE h.event = 'webhook.test' AND e.tenant_id = h.tenant_id AND e.deleted_at IS NULL
), to_endpoints AS (
    INSERT INTO delivery (tenant_id, outbox_id, lane_id, endpoint_id)
    SELECT l.tenant_id, l.outbox_id, lane.id, l.endpoint_id
    FROM listening l JOIN delivery_lane lane USING (endpoint_id) ORDER BY l.outbox_id
    ON CONFLICT ON CONSTRAINT delivery_once DO NOTHING RETURNING id
), to_own AS (
    INSERT INTO delivery (tenant_id, outbox_id, lane_id, url)
    SELECT o.tenant_id, o.outbox_id, lane.id, o.url
    FROM unnest(%(owns)s::bigint[], %(tenants)s::bigint[], %(origins)s::text[], %(urls)s::text[])
        AS o (outbox_id, tenant_id, origin, url)
    JOIN delivery_lane lane ON lane.tenant_id = o.tenant_id AND lane.origin = o.origin ORDER BY o.outbox_id
    ON CONFLICT ON CONSTRAINT delivery_once DO NOTHING RETURNING id
), fanned AS (
    UPDATE outbox SET fanned_at = now() WHERE id = ANY(%(ids)s)
)
SELECT (SELECT count(*) FROM to_endpoints) + (SELECT count(*) FROM to_own)
"""  # noqa: S608  # parts of ours

# From the oldest on, which by then have long been told.
_FORGET = """
WITH old AS (
    SELECT id FROM (SELECT id, created_at, fanned_at FROM outbox ORDER BY id LIMIT %(most)s) oldest
    WHERE created_at < now() - %(kept)s * interval '1 day' AND fanned_at IS NOT NULL
      AND NOT EXISTS (SELECT FROM delivery d WHERE d.outbox_id = oldest.id AND d.settled_at IS NULL)
), gone AS (
    DELETE FROM delivery USING old WHERE delivery.outbox_id = old.id RETURNING delivery.id
), attempts AS (
    DELETE FROM delivery_attempt USING gone WHERE delivery_attempt.delivery_id = gone.id
)
DELETE FROM outbox USING old WHERE outbox.id = old.id RETURNING outbox.id
"""


@dataclass(frozen=True, slots=True)
class _Own:
    """An event's own address, and the server that it is at."""

    outbox_id: int
    tenant_id: int
    origin: str
    url: str


def fan_out(connection: Connection, origin_of: Callable[[str], str], *, most: int = _MOST) -> tuple[int, bool]:
    """Makes deliveries of each tenant's oldest events that have none, some `most` in all: (how many deliveries, whether
    there may be more events)."""
    rows = connection.execute(_UNFANNED, {"most": most}).fetchall()
    if not rows:
        return 0, False
    own = [
        _Own(number, tenant_id, origin_of(address), address)
        for number, tenant_id, url, body, _ in rows
        if (address := url if url is not None else _address(body)) is not None
    ]
    wanted: dict[str, Any] = {
        "ids": [row[0] for row in rows],
        "fleet_wide": sorted(FLEET_WIDE),
        "owns": [one.outbox_id for one in own],
        "tenants": [one.tenant_id for one in own],
        "origins": [one.origin for one in own],
        "urls": [one.url for one in own],
    }
    if own:
        connection.execute(_LANES, wanted)
    row = connection.execute(_FAN_OUT, wanted).fetchone()
    return (int(row[0]) if row else 0), any(row[-1] for row in rows)


def forget(connection: Connection, *, kept_days: float, most: int) -> int:
    """Lets go of events, with their deliveries, that are older and settled: how many, of the `most` oldest."""
    return len(connection.execute(_FORGET, {"kept": kept_days, "most": most}).fetchall())


def _address(body: str | None) -> str | None:
    """What a job's request names, if its line was read for that."""
    return None if body is None else str(json.loads(body)["callback_url"])
