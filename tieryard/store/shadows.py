"""Copies of jobs for another deployment, saved beside the decision that made them, and how the two came out.

They belong to a tenant of the system's own, that has no keys: so no owner lists them, and none pays for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import orjson

from tieryard.store.connection import Connection, Store

SHADOW_TENANT = "tieryard-shadow"


@dataclass(frozen=True, slots=True)
class Copy:
    """A job to save: `body` is a request that is pinned to `deployment`."""

    id: int
    of_job_id: int
    deployment: str
    category: str
    body: str


# One statement a parcel, the first of all included, which makes the tenant. A job is copied to a deployment once,
# however often it is routed, and a copy never is: looked up one by one, where a join might read all there are. A nudge
# that is lost may stay so for a while: nobody waits.
_SHADOW = """
WITH copy AS (
    SELECT * FROM jsonb_to_recordset(%(copies)s::jsonb)
        AS c (id bigint, of_job_id bigint, deployment text, category text, body text)
), known AS (
    SELECT id FROM tenant WHERE name = %(tenant)s
), made AS (
    INSERT INTO tenant (name) SELECT %(tenant)s WHERE NOT EXISTS (SELECT FROM known)
    ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id
), fresh AS (
    SELECT copy.*, owner.id AS tenant_id FROM copy, (SELECT id FROM known UNION ALL SELECT id FROM made) AS owner
    WHERE (SELECT job_id FROM shadow WHERE job_id = copy.of_job_id) IS NULL
      AND (SELECT job_id FROM shadow WHERE of_job_id = copy.of_job_id AND deployment = copy.deployment) IS NULL
), request AS (
    INSERT INTO line (source_id, line_no, body) SELECT id, 1, body FROM fresh
), copied AS (
    INSERT INTO job (id, tenant_id, source_id, line_no, tier, state, deployment, category, deadline, nudge_at)
    SELECT id, tenant_id, id, 1, %(tier)s, 'routed', deployment, category,
           now() + %(window)s * interval '1 second', now() + %(patience)s * interval '1 second' FROM fresh
)
INSERT INTO shadow (job_id, of_job_id, deployment) SELECT id, of_job_id, deployment FROM fresh RETURNING job_id
"""

_SAME = "lower(regexp_replace(btrim({}, E' \\t\\n\\r'), '\\s+', ' ', 'g'))"

# From the time's BRIN to jobs, results, timings and money by primary key.
_PAIRS = """
WITH pair AS (
    SELECT original.deployment AS original, shadow.deployment AS copy,
           original.finished_at IS NOT NULL AND job.finished_at IS NOT NULL AS finished,
           original.state = 'succeeded' AND job.state = 'succeeded' AS answered, job.state = 'failed' AS copy_failed,
           nullif({said}, '') AS said, nullif({copy_said}, '') AS copy_said,
           ran.latency_ms AS ms, copy_ran.latency_ms AS copy_ms,
           (SELECT sum(cost_usd) FROM ledger WHERE job_id = original.id AND ledger.kind = 'inference') AS usd,
           (SELECT sum(cost_usd) FROM ledger WHERE job_id = job.id AND ledger.kind = 'inference') AS copy_usd
    FROM shadow
    JOIN job ON job.id = shadow.job_id
    JOIN job original ON original.id = shadow.of_job_id
    LEFT JOIN result answer ON answer.job_id = original.id
    LEFT JOIN result copy_answer ON copy_answer.job_id = job.id
    LEFT JOIN timing ran ON ran.job_id = original.id AND ran.fence = original.fence
    LEFT JOIN timing copy_ran ON copy_ran.job_id = job.id AND copy_ran.fence = job.fence
    WHERE shadow.copied_at >= %(since)s
)
SELECT original, copy, count(*), count(*) FILTER (WHERE finished), count(*) FILTER (WHERE finished AND copy_failed),
       count(*) FILTER (WHERE answered AND said IS NOT NULL AND copy_said IS NOT NULL),
       count(*) FILTER (WHERE answered AND said = copy_said),
       percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY ms) FILTER (WHERE answered AND copy_ms IS NOT NULL),
       percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY copy_ms) FILTER (WHERE answered AND ms IS NOT NULL),
       coalesce(sum(usd) FILTER (WHERE answered), 0), coalesce(sum(copy_usd) FILTER (WHERE answered), 0),
       count(*) FILTER (WHERE answered)
FROM pair GROUP BY original, copy ORDER BY original, copy
""".replace("{said}", _SAME.format("answer.output")).replace("{copy_said}", _SAME.format("copy_answer.output"))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Jobs of one deployment beside their copies at another. `answered` pairs succeeded on both sides: times (p50 and
    p95, None where there are none) and costs are sums and percentiles of these. `compared` pairs have text on both
    sides; `agreed` ones the same, but for case and white space."""

    original: str | None
    copy: str
    copies: int
    finished: int
    copies_failed: int
    compared: int
    agreed: int
    latency_ms: tuple[float, float] | None
    copy_latency_ms: tuple[float, float] | None
    cost_usd: Decimal
    copy_cost_usd: Decimal
    answered: int

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.compared if self.compared else None


def save_copies(
    connection: Connection, copies: list[Copy], *, tier: str, window_s: float, patience_s: float
) -> set[int]:
    """Saves them, routed already, in the transaction of the decisions: the ids of those that are new."""
    rows = connection.execute(
        _SHADOW,
        {
            "copies": orjson.dumps(copies).decode(),
            "tenant": SHADOW_TENANT,
            "tier": tier,
            "window": window_s,
            "patience": patience_s,
        },
    )
    return {row[0] for row in rows}


def compare(store: Store, *, since: datetime) -> list[Comparison]:
    """By deployments, of the copies that were made since then."""
    rows = store.fetch(_PAIRS, {"since": since})
    return [Comparison(**dict(zip(Comparison.__slots__, map(_plain, row), strict=True))) for row in rows]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
