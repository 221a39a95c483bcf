"""Calls that wait: a job is born `running` under the API process's own worker row, and may change its deployment.

Each is one statement. Both ask whether this process still holds its lease, as a claim does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import orjson

from tieryard.errors import LeaseLostError
from tieryard.routing import JobFeatures, plain
from tieryard.store import budgets, idempotency, jobs
from tieryard.store.budgets import Need
from tieryard.store.connection import Connection, Store, storable
from tieryard.store.idempotency import Mark
from tieryard.store.jobs import Claimed

FIRST_FENCE = 1

TRANSIENT = (
    "engine_busy",
    "engine_down",
    "engine_timeout",
    "expired",
    "store_away",
    "worker_died",
    "worker_stopped",
)
"""How a call may fail so that the same one may well succeed: the kinds that are answered with 503."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a call goes: the decision, and the snapshot that it was made on. `snapshot_id` where that is stored.
    `extra_usd`: what it costs above the router's choice, where it explores. `canary`: the candidate for whose canary it
    counts, if any."""

    deployment: str
    reason: str
    features: JobFeatures
    snapshot: bytes
    snapshot_id: int | None = None
    fallback: bool = False
    explored: bool = False
    extra_usd: Decimal = Decimal(0)
    canary: str = ""


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call as accepted `waited_ms` ago. `body` is a line of a batch file, but for its custom_id. `worst_usd` is
    reserved of its budgets, for all its starts; None where it has none."""

    id: int
    tenant_id: int
    tier: str
    body: str
    window_s: float
    waited_ms: float
    choice: Choice
    worker_id: int
    mark: Mark | None = None
    api_key_id: int | None = None
    worst_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A start that is committed, with the snapshot's id for decisions to come."""

    created_at: datetime
    claimed_at: datetime
    snapshot_id: int


# The decision is from before the first claim, hence its fence of 0.
_START = """
WITH mine AS (
    SELECT FROM worker WHERE id = %(worker)s AND stopped_at IS NULL
), request AS (
    INSERT INTO line (source_id, line_no, body) SELECT %(id)s::bigint, 1, %(body)s::text FROM mine
), decided AS (
    INSERT INTO decision (job_id, fence, snapshot_id, deployment, reason, features, fallback, explored, canary)
    SELECT %(id)s::bigint, 0, %(snapshot)s::bigint, %(deployment)s::text, %(reason)s::text, %(features)s::jsonb,
           %(fallback)s::boolean, %(explored)s::boolean, nullif(%(canary)s::text, '')
    FROM mine
)
INSERT INTO job (id, tenant_id, source_id, line_no, tier, state, fence, worker_id, attended, deployment, category,
                 api_key_id, created_at, claimed_at, deadline)
SELECT %(id)s::bigint, %(tenant)s::bigint, %(id)s::bigint, 1, %(tier)s::text, 'running', %(fence)s::int,
       %(worker)s::bigint, true, %(deployment)s::text, %(category)s::text, %(key)s::bigint, accepted.at, now(),
       accepted.at + %(window)s * interval '1 second'
FROM mine, (SELECT now() - %(waited)s * interval '1 millisecond' AS at) accepted
RETURNING created_at, claimed_at
"""

# The start that failed leaves its timing; nothing of it is charged, since its answer had not begun.
_RESTART = """
WITH moved AS (
    UPDATE job SET fence = fence + 1, deployment = %(deployment)s, claimed_at = now()
    WHERE id = %(id)s AND fence = %(fence)s AND state = 'running' AND worker_id = %(worker)s
      AND EXISTS (SELECT FROM worker WHERE id = %(worker)s AND stopped_at IS NULL)
    RETURNING created_at, claimed_at
), timed AS (
    INSERT INTO timing (job_id, fence, worker_id, deployment, outcome, claimed_at, wait_ms, latency_ms, error)
    SELECT %(id)s::bigint, %(fence)s::int, %(worker)s::bigint, %(before)s::text, 'rerouted', %(claimed)s::timestamptz,
           %(wait)s::real, %(latency)s::real, %(error)s::text FROM moved
), decided AS (
    INSERT INTO decision (job_id, fence, snapshot_id, deployment, reason, features, fallback, explored, canary)
    SELECT %(id)s::bigint, %(fence)s::int, %(snapshot)s::bigint, %(deployment)s::text, %(reason)s::text,
           %(features)s::jsonb, %(fallback)s::boolean, %(explored)s::boolean, nullif(%(canary)s::text, '') FROM moved
)
SELECT created_at, claimed_at FROM moved
"""

# By the index of single jobs that are not final.
_RUNNING = """
SELECT id, fence, batch_id, tier, category, worker_deaths, attempts,
       extract(epoch FROM claimed_at - created_at)::float8 * 1000, claimed_at, '', tenant_id, deployment
FROM job
WHERE batch_id IS NULL AND finished_at IS NULL AND state = 'running' AND attended AND worker_id = %(worker)s
"""


@dataclass(frozen=True, slots=True)
class FailedStart:
    """The start that a re-route gives up."""

    job: Claimed
    deployment: str
    latency_ms: float
    error: str


def start(store: Store, call: NewCall) -> Started:
    """Saves a call as running. Raises AlreadyMadeError, ConflictError, BudgetError, or LeaseLostError."""
    with store.transaction() as connection:
        idempotency.claim(connection, call.mark, call.id)
        wanted = {
            **_decision(connection, call.choice),
            "id": call.id,
            "tenant": call.tenant_id,
            "tier": call.tier,
            "body": call.body,
            "fence": FIRST_FENCE,
            "worker": call.worker_id,
            "category": call.choice.features.text.category,
            "waited": call.waited_ms,
            "window": call.window_s,
            "key": call.api_key_id,
        }
        started = _started(connection, _START, wanted)
        if call.worst_usd is not None:
            need = Need(call.id, 1, call.worst_usd)
            budgets.reserve(connection, tenant_id=call.tenant_id, api_key_id=call.api_key_id, needs=[need])
        return started


def restart(store: Store, failed: FailedStart, choice: Choice, *, worker_id: int) -> Started:
    """Gives a running call to another deployment, under the next fence. Raises LeaseLostError when it is not ours."""
    with store.transaction() as connection:
        wanted = {
            **_decision(connection, choice),
            "id": failed.job.id,
            "fence": failed.job.fence,
            "worker": worker_id,
            "before": failed.deployment,
            "claimed": failed.job.claimed_at,
            "wait": failed.job.waited_ms,
            "latency": failed.latency_ms,
            "error": storable(failed.error),
        }
        return _started(connection, _RESTART, wanted)


def running(store: Store, worker_id: int) -> list[Claimed]:
    """This process's calls as the store knows them, without their bodies."""
    return [Claimed(*row) for row in store.fetch(_RUNNING, {"worker": worker_id})]


def finals(store: Store, ids: list[int]) -> set[int]:
    """Those of `ids` that are final."""
    rows = store.fetch("SELECT id FROM job WHERE id = ANY(%(ids)s) AND finished_at IS NOT NULL", {"ids": ids})
    return {row[0] for row in rows}


def _decision(connection: Connection, choice: Choice) -> dict[str, object]:
    return {
        "snapshot": choice.snapshot_id or jobs.save_snapshot(connection, choice.snapshot),
        "deployment": choice.deployment,
        "reason": storable(choice.reason),
        "features": orjson.dumps(choice.features.stored(), default=plain).decode(),
        "fallback": choice.fallback,
        "explored": choice.explored,
        "canary": choice.canary,
    }


def _started(connection: Connection, statement: str, wanted: dict[str, object]) -> Started:
    row = connection.execute(statement, wanted).fetchone()
    if row is None:
        raise LeaseLostError(f"worker {wanted['worker']} is not this job's any more")
    snapshot_id = wanted["snapshot"]
    assert isinstance(snapshot_id, int)
    return Started(row[0], row[1], snapshot_id)


def release_abandoned(store: Store, mark: Mark) -> None:
    """Frees a key whose call was given up by its caller, or failed for no fault of its own: whoever comes again with it
    wants an answer, and was told to come again. What would fail in the same way keeps its key."""
    store.fetch(
        "DELETE FROM idempotency i USING job WHERE i.tenant_id = %(tenant)s AND i.key = %(key)s "
        "AND job.id = i.subject_id AND job.attended AND (job.state = 'cancelled' OR job.state IN ('failed', 'expired') "
        "AND EXISTS (SELECT FROM result WHERE job_id = job.id AND error_kind = ANY(%(transient)s))) RETURNING i.key",
        {"tenant": mark.tenant_id, "key": mark.key, "transient": list(TRANSIENT)},
    )
