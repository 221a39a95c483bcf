"""Deliveries on their way: taken a few from each lane, and how each attempt went.

A taken delivery is out of sight for a while, so a worker that dies with it delays it and loses nothing. Rows are locked
in one order by all who change several: endpoints, lanes, deliveries, each by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from tieryard.store.connection import Connection, storable


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery to try now, for the `attempt`th time in all. `due_for_s` is how long ago it was due first, `failures`
    how often it has failed since.

    `secrets` are the endpoint's active ones, the newest first; a callback address has none of its own. `off` says why
    nothing is to be sent after all. A `result` that cannot fit into any payload is `too_long` and was not read.
    """

    id: int
    outbox_id: int
    lane_id: int
    endpoint_id: int | None
    lane_failures: int
    lane_steady: bool
    attempt: int
    failures: int
    due_for_s: float
    url: str
    event: str
    subject_id: int
    created_at: datetime
    data: dict[str, Any] | None
    secrets: tuple[str, ...] = field(repr=False, default=())
    off: str | None = None
    result: dict[str, Any] | None = field(repr=False, default=None)
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class Tried:
    """How an attempt went. No `error`: it was delivered. `retry_in_s` None with an error: it is given up.

    `steady`: the receiver answered well and soon. `rest_s` is how long its lane rests.
    """

    due: Due
    at: datetime
    latency_ms: float | None = None
    status: int | None = None
    error: str | None = None
    answer: str | None = None
    address: str | None = None
    retry_in_s: float | None = None
    steady: bool = False
    rest_s: float = 0.0
    counts: bool = True
    """Whether anything was tried: no word on the lane otherwise."""


# The oldest of each lane, by `delivery_due`; then all that an attempt needs, by primary keys. How many a lane gives the
# planner cannot know: it takes them for many, and would read whole tables. So each is looked up by itself (LIMIT 1).
# Results that are long in any case are not fetched: characters are never more than bytes.
_TAKE = """
WITH room AS (
    SELECT * FROM unnest(%(lanes)s::bigint[], %(shares)s::int[]) AS room (lane_id, n)
), due AS MATERIALIZED (
    SELECT oldest.id FROM room CROSS JOIN LATERAL (
        SELECT id FROM delivery
        WHERE delivery.lane_id = room.lane_id AND settled_at IS NULL AND next_at <= now()
        ORDER BY next_at LIMIT room.n FOR UPDATE SKIP LOCKED) AS oldest
), taken AS (
    UPDATE delivery SET attempts = attempts + 1, next_at = now() + %(hold)s * interval '1 second'
    WHERE delivery.id = ANY(ARRAY(SELECT id FROM due))
    RETURNING delivery.*
)
SELECT taken.id, taken.outbox_id, taken.lane_id, taken.endpoint_id, lane.failures, lane.steady, taken.attempts,
       taken.failures, extract(epoch FROM now() - taken.first_due_at)::float8, coalesce(taken.url, e.url), outbox.event,
       outbox.subject_id, outbox.created_at, outbox.data, e.secret,
       CASE WHEN e.previous_secret_until > now() THEN e.previous_secret END,
       CASE WHEN taken.url IS NOT NULL THEN NULL WHEN e.id IS NULL OR e.deleted_at IS NOT NULL THEN 'removed'
            WHEN e.disabled_at IS NOT NULL THEN 'disabled' END,
       CASE WHEN r.job_id IS NOT NULL
                 AND length(coalesce(r.output, '')) + length(coalesce(r.extra::text, '')) < %(short)s
            THEN jsonb_build_object('output', r.output, 'finish_reason', r.finish_reason, 'extra', r.extra, 'error',
                CASE WHEN r.error_kind IS NOT NULL
                     THEN jsonb_build_object('kind', r.error_kind, 'message', r.error) END) END,
       r.job_id IS NOT NULL
FROM taken
CROSS JOIN LATERAL (SELECT * FROM outbox WHERE outbox.id = taken.outbox_id LIMIT 1) AS outbox
CROSS JOIN LATERAL (SELECT * FROM delivery_lane WHERE delivery_lane.id = taken.lane_id LIMIT 1) AS lane
LEFT JOIN LATERAL (SELECT * FROM webhook_endpoint WHERE webhook_endpoint.id = taken.endpoint_id LIMIT 1) AS e ON true
LEFT JOIN LATERAL (
    SELECT * FROM result
    WHERE e.include_result AND outbox.event LIKE 'job.%%' AND result.job_id = outbox.subject_id LIMIT 1
) AS r ON true
ORDER BY taken.id
"""

# A success settles whoever else has the delivery by now; a failure is only its latest attempt's word.
_RECORD = """
WITH tried AS (
    SELECT * FROM jsonb_to_recordset(%(tried)s::jsonb)
    AS t (id bigint, attempt int, at timestamptz, status int, latency_ms real, error text, answer text, address text,
          retry_in_s float8, counts boolean)
), kept AS (
    INSERT INTO delivery_attempt (delivery_id, attempt, at, status, latency_ms, error, answer, address)
    SELECT id, attempt, at, status, latency_ms, error, answer, address FROM tried WHERE counts
    ON CONFLICT DO NOTHING
), locked AS MATERIALIZED (
    SELECT delivery.id FROM delivery JOIN tried USING (id) ORDER BY delivery.id FOR NO KEY UPDATE OF delivery
)
UPDATE delivery SET last_status = tried.status, last_error = tried.error,
    failures = failures + (tried.error IS NOT NULL)::int,
    delivered_at = CASE WHEN tried.error IS NULL THEN now() END,
    settled_at = CASE WHEN tried.retry_in_s IS NULL THEN now() END,
    next_at = now() + coalesce(tried.retry_in_s, 0) * interval '1 second'
FROM tried JOIN locked USING (id)
WHERE delivery.id = tried.id AND delivery.delivered_at IS NULL
  AND (tried.error IS NULL OR (delivery.settled_at IS NULL AND delivery.attempts = tried.attempt))
"""

# What goes on as it was is not written, and that is most often all.
_ENDPOINTS = """
WITH said AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(failing)s::bool[], %(succeeded)s::bool[]) AS s (id, failing, succeeded)
), locked AS MATERIALIZED (
    SELECT e.id FROM webhook_endpoint e JOIN said USING (id)
    WHERE said.failing OR e.failing_since IS NOT NULL ORDER BY e.id FOR NO KEY UPDATE OF e
)
UPDATE webhook_endpoint e SET failing_since = CASE WHEN NOT said.failing THEN NULL
    WHEN said.succeeded THEN now() ELSE coalesce(e.failing_since, now()) END
FROM said JOIN locked USING (id)
WHERE e.id = said.id AND (said.succeeded OR e.failing_since IS NULL)
"""

# A rest that a receiver has asked for is not cut short by what was in flight beside it, however that went.
_LANES = """
WITH said AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(failures)s::int[], %(succeeded)s::bool[], %(steady)s::bool[],
                         %(rest_s)s::float8[]) AS s (id, failures, succeeded, steady, rest_s)
), locked AS MATERIALIZED (
    SELECT lane.id FROM delivery_lane lane JOIN said USING (id)
    WHERE lane.steady <> said.steady OR said.failures > 0 OR lane.failures > 0 OR said.rest_s > 0
    ORDER BY lane.id FOR NO KEY UPDATE OF lane
)
UPDATE delivery_lane lane SET steady = said.steady,
    failures = CASE WHEN said.succeeded THEN 0 ELSE lane.failures END + said.failures,
    resting_until = greatest(lane.resting_until, now() + nullif(said.rest_s, 0) * interval '1 second')
FROM said JOIN locked USING (id) WHERE lane.id = said.id
"""

# A receiver that fails is tried now and then, which may be less often than it is owed something new.
_GIVE_UP = """
WITH late AS MATERIALIZED (
    SELECT d.id FROM delivery d JOIN delivery_lane lane ON lane.id = d.lane_id
    WHERE d.settled_at IS NULL AND d.next_at <= now() AND d.first_due_at < now() - %(after)s * interval '1 second'
      AND lane.failures > 0
    ORDER BY d.id LIMIT %(most)s FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE delivery SET settled_at = now(),
    last_error = coalesce(last_error || '; ', '') || 'given up: its receiver has failed ever since'
WHERE id = ANY(ARRAY(SELECT id FROM late)) RETURNING id
"""

_HOPELESS = """
SELECT id FROM webhook_endpoint
WHERE id = ANY(%(ids)s) AND failing_since < now() - %(after)s * interval '1 second' AND disabled_at IS NULL
"""


def take(connection: Connection, shares: Mapping[int, int], *, hold_s: float, short: int = 20_000) -> list[Due]:
    """At most so many of each lane, the oldest first. They are due again in `hold_s`, if nothing is heard of them.
    Results of `short` characters or more are not read."""
    if not shares:
        return []
    wanted = {"lanes": list(shares), "shares": list(shares.values()), "hold": hold_s, "short": short}
    return [_due(*row) for row in connection.execute(_TAKE, wanted)]


def _due(*row: Any) -> Due:
    secret, previous, off, result, has_result = row[-5:]
    secrets = tuple(one for one in (secret, previous) if one is not None)
    told = None if result is None else {name: value for name, value in result.items() if value is not None}
    fields = [*row[:-5], secrets, off, told, has_result and result is None]
    return Due(*fields)


def record(connection: Connection, tried: Sequence[Tried]) -> None:
    """Writes down attempts, and what they say of their lanes and endpoints."""
    if not tried:
        return
    said = [one for one in tried if one.counts]
    _record_endpoints(connection, said)
    _record_lanes(connection, said)
    connection.execute(_RECORD, {"tried": orjson.dumps([_row(one) for one in tried], default=str).decode()})


def hopeless(connection: Connection, endpoint_ids: Iterable[int | None], *, after_s: float) -> list[int]:
    """Those of these endpoints that have had no success for so long since they began to fail."""
    wanted = {"ids": sorted({n for n in endpoint_ids if n is not None}), "after": after_s}
    return [row[0] for row in connection.execute(_HOPELESS, wanted)]


def give_up_late(connection: Connection, *, after_s: float, most: int = 5000) -> bool:
    """Settles what was due first so long ago and waits behind others of a lane that fails: whether more may remain."""
    return len(connection.execute(_GIVE_UP, {"after": after_s, "most": most}).fetchall()) == most


def _row(one: Tried) -> dict[str, Any]:
    return {
        "id": one.due.id,
        "attempt": one.due.attempt,
        "at": one.at,
        "status": one.status,
        "latency_ms": one.latency_ms,
        "error": None if one.error is None else storable(one.error),
        "answer": None if one.answer is None else storable(one.answer),
        "address": one.address,
        "retry_in_s": one.retry_in_s,
        "counts": one.counts,
    }


def _record_endpoints(connection: Connection, said: Sequence[Tried]) -> None:
    found: dict[int, tuple[bool, bool]] = {}
    for one in said:
        if (endpoint_id := one.due.endpoint_id) is not None:
            _, succeeded = found.get(endpoint_id, (False, False))
            found[endpoint_id] = (one.error is not None, succeeded or one.error is None)
    if not found:
        return
    ids = sorted(found)
    wanted = {"ids": ids, "failing": [found[n][0] for n in ids], "succeeded": [found[n][1] for n in ids]}
    connection.execute(_ENDPOINTS, wanted)


def _record_lanes(connection: Connection, said: Sequence[Tried]) -> None:
    """The last attempt of each lane has the last word, failures before a success are forgotten, and the longest rest
    counts."""
    failures: dict[int, int] = {}
    succeeded: dict[int, bool] = {}
    last: dict[int, Tried] = {}
    rest_s: dict[int, float] = {}
    for one in said:
        lane_id = one.due.lane_id
        last[lane_id] = one
        failures[lane_id] = 0 if one.error is None else failures.get(lane_id, 0) + 1
        succeeded[lane_id] = succeeded.get(lane_id, False) or one.error is None
        rest_s[lane_id] = max(rest_s.get(lane_id, 0.0), one.rest_s)
    ids = sorted(last)
    if not ids:
        return
    connection.execute(
        _LANES,
        {
            "ids": ids,
            "failures": [failures[n] for n in ids],
            "succeeded": [succeeded[n] for n in ids],
            "steady": [last[n].steady for n in ids],
            "rest_s": [rest_s[n] for n in ids],
        },
    )
