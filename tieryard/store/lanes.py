"""Lanes of deliveries: which have something due, how each has done, and what all of them owe."""

from __future__ import annotations

from dataclasses import dataclass

from tieryard.store.connection import Connection

# A loose scan of `delivery_due`: one look-up a lane, whatever waits in it, and the oldest of each.
_WAITING = """
WITH RECURSIVE waiting AS (
    (SELECT lane_id, next_at FROM delivery WHERE settled_at IS NULL ORDER BY lane_id, next_at LIMIT 1)
    UNION ALL
    SELECT next.lane_id, next.next_at FROM waiting CROSS JOIN LATERAL (
        SELECT lane_id, next_at FROM delivery WHERE settled_at IS NULL AND lane_id > waiting.lane_id
        ORDER BY lane_id, next_at LIMIT 1) AS next
)
SELECT lane.id, lane.tenant_id, lane.failures, lane.steady,
       extract(epoch FROM greatest(waiting.next_at, lane.resting_until) - now())::float8
FROM waiting JOIN delivery_lane lane ON lane.id = waiting.lane_id
"""

_OWING = """
WITH open AS (
    SELECT lane.id, count(*) AS n, min(d.first_due_at) AS since, lane.failures
    FROM delivery d JOIN delivery_lane lane ON lane.id = d.lane_id WHERE d.settled_at IS NULL GROUP BY lane.id
), unfanned AS (
    SELECT count(*) AS n, min(created_at) AS since FROM outbox WHERE fanned_at IS NULL
)
SELECT (unfanned.n + coalesce((SELECT sum(n) FROM open), 0))::bigint,
       coalesce(extract(epoch FROM now() - least(
           unfanned.since, (SELECT min(since) FROM open WHERE failures = 0)))::float8, 0),
       (SELECT count(*) FROM open WHERE failures > 0),
       (SELECT count(*) FROM webhook_endpoint WHERE disabled_at IS NOT NULL AND deleted_at IS NULL)
FROM unfanned
"""


@dataclass(frozen=True, slots=True)
class LaneRow:
    """A lane with unsettled deliveries; `due_in_s` is below 0 where one may be sent now."""

    lane_id: int
    tenant_id: int
    failures: int
    steady: bool
    due_in_s: float


@dataclass(frozen=True, slots=True)
class Owing:
    """What is owed in all, deliveries and events; the age of the oldest that is owed to a receiver that is well; lanes
    that fail and are owed something; endpoints that are disabled."""

    owed: int
    oldest_s: float
    failing_lanes: int
    disabled_endpoints: int


def waiting(connection: Connection) -> list[LaneRow]:
    """All lanes with something unsettled, by `_WAITING`."""
    return [LaneRow(*row) for row in connection.execute(_WAITING)]


def owing(connection: Connection) -> Owing:
    row = connection.execute(_OWING).fetchone()
    assert row is not None
    return Owing(*row)
