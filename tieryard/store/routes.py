"""What reports on routing read: decisions of a time, and what became of them. Nothing here writes.

Decisions of a time are found by `decision_by_time`, a BRIN: it names the pages where that time is, so a slice of time
costs its own pages and a few more, however many decisions there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson

from tieryard.routing import Rules
from tieryard.store.connection import Connection, Store

CHUNK = 1000
"""Decisions that are read at once."""

_FIRST_SLICE = timedelta(seconds=1)
_LEAST_SLICE = timedelta(milliseconds=1)
_BEFORE_ALL = (0, -1)  # any job's first decision


@dataclass(frozen=True, slots=True)
class Made:
    """A job's newest decision, with what became of the job: the start that came of it, and the bill. Times are in
    milliseconds, None where it did not start or has not ended; `waited_ms` is from acceptance to the claim."""

    decided_at: datetime
    job_id: int
    fence: int
    snapshot_id: int
    deployment: str | None
    features: dict[str, Any]
    superseded: bool
    tier: str
    tenant_id: int
    finished_at: datetime | None
    outcome: str | None
    waited_ms: float | None
    ttft_ms: float | None
    latency_ms: float | None
    cost_usd: Decimal | None
    prompt_tokens: int | None
    completion_tokens: int | None


# By key, so that no row is read twice. A start has the fence after its decision's. All that is joined is looked up by
# primary key, row by row: hence LIMIT in the last one, which the planner could turn into a scan.
_MADE = """
WITH made AS MATERIALIZED (
    SELECT decided_at, job_id, fence, snapshot_id, deployment, features FROM decision
    WHERE decided_at >= %(at)s AND decided_at < %(end)s
      AND (decided_at, job_id, fence) > (%(at)s, %(job)s, %(fence)s)
    ORDER BY decided_at, job_id, fence LIMIT %(most)s
)
SELECT made.*, later.one IS NOT NULL, job.tier, job.tenant_id, job.finished_at, timing.outcome, timing.wait_ms,
       timing.ttft_ms, timing.latency_ms, ledger.cost_usd, ledger.prompt_tokens, ledger.completion_tokens
FROM made
JOIN job ON job.id = made.job_id
LEFT JOIN timing ON timing.job_id = made.job_id AND timing.fence = made.fence + 1
LEFT JOIN ledger ON ledger.job_id = made.job_id AND ledger.fence = made.fence + 1 AND ledger.kind = 'inference'
LEFT JOIN LATERAL (
    SELECT 1 AS one FROM decision next WHERE next.job_id = made.job_id AND next.fence > made.fence LIMIT 1
) later ON true
ORDER BY made.decided_at, made.job_id, made.fence
"""

# The oldest ones: a sweep's worth. Decisions keep their choice, reason and features.
_FORGET = """
DELETE FROM routing_snapshot WHERE id IN (
    SELECT id FROM (SELECT id, taken_at FROM routing_snapshot ORDER BY id LIMIT %(most)s) AS oldest
    WHERE taken_at < now() - %(days)s * interval '1 day')
"""
_MOST_FORGOTTEN = 200

_SNAPSHOTS = "SELECT id, body::text FROM routing_snapshot WHERE id = ANY(%(ids)s)"


def window(store: Store, length: timedelta) -> tuple[datetime, datetime]:
    """(since, until): the last so long, by the database's clock."""
    [row] = store.fetch("SELECT now() - %(length)s, now()", {"length": length})
    return row[0], row[1]


def decisions(store: Store, since: datetime, until: datetime, *, most: int = CHUNK) -> Iterator[list[Made]]:
    """All of that time in the order in which they were made, in chunks. The slices of time that are asked for follow
    the traffic, so that each gives about a chunk; between two of them no transaction is open."""
    at, (job, fence), length = since, _BEFORE_ALL, _FIRST_SLICE
    while at < until:
        end = min(until, at + length)
        rows = store.fetch(_MADE, {"at": at, "end": end, "job": job, "fence": fence, "most": most})
        found = [Made(*row) for row in rows]
        if len(found) == most:
            length = max(2 * (found[-1].decided_at - at), _LEAST_SLICE)
            at, job, fence = found[-1].decided_at, found[-1].job_id, found[-1].fence
        else:
            at, (job, fence) = end, _BEFORE_ALL
            if 2 * len(found) < most:
                length *= 2
        if found:
            yield found


def forget_snapshots(connection: Connection, *, days: float) -> None:
    """Deletes the oldest of those that are older than this."""
    connection.execute(_FORGET, {"most": _MOST_FORGOTTEN, "days": days})


def snapshots(store: Store, ids: Collection[int]) -> dict[int, str]:
    """Stored snapshots as JSON, by id."""
    return {row[0]: row[1] for row in store.fetch(_SNAPSHOTS, {"ids": list(ids)})} if ids else {}


@dataclass(frozen=True, slots=True)
class Routes:
    """Decisions of one tier for one deployment; `deployment` None: refused, or waiting. Those `deferred` had waited
    for a cheaper deployment before. `measured` starts succeeded, and `missed` of these their tier's SLO."""

    tier: str
    deployment: str | None
    decisions: int
    fallbacks: int
    explored: int
    deferred: int
    measured: int
    missed: int


# Starts are found by `timing_by_end`: one that came of a decision of that time ended in it.
_SUMMARY = """
SELECT coalesce(made.features->>'tier', ''), made.deployment, count(*), count(*) FILTER (WHERE made.fallback),
       count(*) FILTER (WHERE made.explored), count(*) FILTER (WHERE made.deferred),
       count(start.latency_ms),
       count(*) FILTER (
           WHERE start.ttft_ms + CASE WHEN slo.from_claim THEN 0 ELSE start.wait_ms END > slo.max_ttft_ms
              OR start.latency_ms + CASE WHEN slo.from_claim THEN 0 ELSE start.wait_ms END > slo.max_latency_ms)
FROM decision made
LEFT JOIN timing start ON start.job_id = made.job_id AND start.fence = made.fence + 1
                      AND start.outcome = 'succeeded' AND start.ended_at >= %(since)s
LEFT JOIN unnest(%(tiers)s::text[], %(ttft)s::float8[], %(latency)s::float8[], %(claimed)s::boolean[])
       AS slo (tier, max_ttft_ms, max_latency_ms, from_claim) ON slo.tier = made.features->>'tier'
WHERE made.decided_at >= %(since)s AND made.decided_at < %(until)s
GROUP BY 1, 2 ORDER BY 1, 2
"""


def summary(store: Store, since: datetime, until: datetime) -> list[Routes]:
    """By tier and deployment. A job that was routed twice counts twice. Misses are of the tiers' SLOs as the newest
    snapshot has them."""
    tiers = sorted(_newest_rules(store).tiers.items())
    wanted = {
        "since": since,
        "until": until,
        "tiers": [name for name, _ in tiers],
        "ttft": [tier.bounds.max_ttft_ms for _, tier in tiers],
        "latency": [tier.bounds.max_latency_ms for _, tier in tiers],
        "claimed": [tier.from_claim for _, tier in tiers],
    }
    return [Routes(*row) for row in store.fetch(_SUMMARY, wanted)]


def _newest_rules(store: Store) -> Rules:
    rows = store.fetch("SELECT (body->'rules')::text FROM routing_snapshot ORDER BY id DESC LIMIT 1")
    return Rules.from_dict(orjson.loads(rows[0][0])) if rows and rows[0][0] else Rules()
