"""A job from acceptance to the engine: save, load a parcel, route it, claim it.

Each is one statement over a whole parcel. `job` is always reached by primary key; the state it must be in
comes from `tieryard.job.sources`, so a nudge that comes twice, late or never finds nothing wrong to do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import orjson

from tieryard.job import MAX_WORKER_DEATHS, Mover, State, sources
from tieryard.routing import JobFeatures, plain
from tieryard.store import budgets, enqueued, idempotency
from tieryard.store.budgets import Need
from tieryard.store.connection import Connection, Store, storable
from tieryard.store.idempotency import Mark
from tieryard.store.telling import job_is_told

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A single job as accepted. `body` is the caller's JSON; `tokens` count against the tenant's cap, if it has one.
    `worst_usd` is reserved of its budgets; None where it has none."""

    tenant_id: int
    tier: str
    body: str
    deadline: datetime
    wants_callback: bool = False
    tokens: int | None = None
    api_key_id: int | None = None
    worst_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued job with its request, for the classifier."""

    id: int
    tenant_id: int
    fence: int
    batch_id: int | None
    tier: str
    created_at: datetime
    deadline: datetime
    body: str


@dataclass(frozen=True, slots=True)
class Routed:
    """A decision to save. `deployment` None refuses the job for `reason`, or has it wait for `defer_s` and be routed
    again; `prefix_key` 0 is none. `extra_usd` is what exploring is expected to cost above the choice, and `canary` the
    candidate for whose canary it counts, if any."""

    job_id: int
    fence: int
    deployment: str | None
    category: str
    reason: str
    features: JobFeatures | None
    prefix_key: int = 0
    defer_s: float = 0.0
    fallback: bool = False
    explored: bool = False
    extra_usd: Decimal = _NOTHING
    canary: str = ""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that this worker, and nobody else, may run: under `fence`. `waited_ms` is since acceptance."""

    id: int
    fence: int
    batch_id: int | None
    tier: str
    category: str | None
    worker_deaths: int
    attempts: int
    waited_ms: float
    claimed_at: datetime
    body: str
    tenant_id: int
    deployment: str


# A single job and its request, together; nudge_at is when rescue would publish it again.
_SAVE = """
WITH request AS (INSERT INTO line (source_id, line_no, body) VALUES (%(id)s, 1, %(body)s))
INSERT INTO job (id, tenant_id, source_id, line_no, tier, state, deadline, wants_callback, enqueued_tokens,
                 api_key_id, nudge_at)
VALUES (%(id)s, %(tenant)s, %(id)s, 1, %(tier)s, 'queued', %(deadline)s, %(callback)s, %(tokens)s,
        %(key)s, now() + %(patience)s * interval '1 second')
RETURNING created_at
"""

# One SELECT a parcel: two index lookups a job.
_LOAD = """
SELECT job.id, job.tenant_id, job.fence, job.batch_id, job.tier, job.created_at, job.deadline, line.body
FROM job JOIN line USING (source_id, line_no)
WHERE job.id = ANY(%(ids)s) AND job.state = ANY(%(from)s)
  AND (job.not_before IS NULL OR job.not_before <= now())
ORDER BY job.id
"""

# One UPDATE a parcel, HOT: none of the columns set is indexed. Decisions come from the rows it moved.
_ROUTE = """
WITH choice AS (
    SELECT * FROM jsonb_to_recordset(%(choices)s::jsonb)
        AS c (job_id bigint, fence int, deployment text, category text, reason text, features jsonb,
              prefix_key bigint, defer_s real, fallback boolean, explored boolean, canary text)
), moved AS (
    UPDATE job SET state = 'routed', deployment = choice.deployment, category = choice.category,
                   prefix_key = nullif(choice.prefix_key, 0),
                   nudge_at = now() + %(patience)s * interval '1 second'
    FROM choice
    WHERE job.id = choice.job_id AND job.fence = choice.fence AND job.state = ANY(%(from)s)
      AND choice.deployment IS NOT NULL
    RETURNING job.id
), refused AS (
    UPDATE job SET state = 'failed', finished_at = now(), category = choice.category
    FROM choice
    WHERE job.id = choice.job_id AND job.fence = choice.fence AND job.state = ANY(%(from_refused)s)
      AND choice.deployment IS NULL AND choice.defer_s = 0
    RETURNING job.id, job.tenant_id, job.wants_callback, job.attended
), deferred AS (
    UPDATE job SET not_before = now() + choice.defer_s * interval '1 second',
                   nudge_at = now() + choice.defer_s * interval '1 second'
    FROM choice
    WHERE job.id = choice.job_id AND job.fence = choice.fence AND job.state = ANY(%(from)s) AND choice.defer_s > 0
    RETURNING job.id
), why AS (
    INSERT INTO result (job_id, error_kind, error)
    SELECT refused.id, 'no_deployment', choice.reason FROM refused JOIN choice ON choice.job_id = refused.id
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id)
    SELECT tenant_id, 'job.failed', id FROM refused WHERE {told}
), kept AS (
    INSERT INTO decision (job_id, fence, snapshot_id, deployment, reason, features, fallback, explored, deferred,
                          canary)
    SELECT choice.job_id, choice.fence, %(snapshot)s, choice.deployment, choice.reason,
           coalesce(choice.features, '{}'), choice.fallback, choice.explored, choice.defer_s > 0,
           nullif(choice.canary, '')
    FROM choice
    WHERE choice.job_id IN (SELECT id FROM moved UNION ALL SELECT id FROM refused UNION ALL SELECT id FROM deferred)
    ON CONFLICT (job_id, fence) DO UPDATE SET snapshot_id = excluded.snapshot_id, reason = excluded.reason,
        deployment = excluded.deployment, features = excluded.features, fallback = excluded.fallback,
        explored = excluded.explored, deferred = decision.deferred OR excluded.deferred, canary = excluded.canary,
        decided_at = now()
)
SELECT id FROM moved
""".replace("{told}", job_is_told("refused", "'job.failed'"))

# The claim: HOT, by primary key, and only while this worker is believed alive. The fence goes up by one.
_CLAIM = """
UPDATE job SET state = 'running', worker_id = %(worker)s, ran_alone = false, fence = job.fence + 1, claimed_at = now()
FROM line
WHERE job.id = ANY(%(ids)s) AND job.state = ANY(%(from)s) AND job.deployment = ANY(%(deployments)s)
  AND (job.not_before IS NULL OR job.not_before <= now())
  AND line.source_id = job.source_id AND line.line_no = job.line_no
  AND EXISTS (SELECT FROM worker WHERE id = %(worker)s AND stopped_at IS NULL)
RETURNING job.id, job.fence, job.batch_id, job.tier, job.category, job.worker_deaths, job.attempts,
          extract(epoch FROM now() - job.created_at) * 1000, job.claimed_at, line.body, job.tenant_id,
          job.deployment
"""

_CLAIMED_BY = """
SELECT job.id, job.fence, job.batch_id, job.tier, job.category, job.worker_deaths, job.attempts,
       extract(epoch FROM job.claimed_at - job.created_at) * 1000, job.claimed_at, line.body, job.tenant_id,
       job.deployment
FROM job JOIN line USING (source_id, line_no)
WHERE job.id = ANY(%(ids)s) AND job.worker_id = %(worker)s AND job.state = 'running'
"""

# A caller's cancel: what waits is final at once; what runs is asked to stop, and its worker posts the bill. The
# lock comes first, so that a job being claimed at this moment is seen as what it becomes, and never as neither.
_CANCEL = """
WITH locked AS (
    SELECT id, state FROM job WHERE id = ANY(%(ids)s) AND tenant_id = %(tenant)s AND finished_at IS NULL
    ORDER BY id FOR UPDATE
), waiting AS (
    UPDATE job SET state = 'cancelled', finished_at = now() FROM locked
    WHERE job.id = locked.id AND locked.state = ANY(%(from)s)
    RETURNING job.id, job.tenant_id, job.wants_callback, job.attended
), asked AS (
    UPDATE job SET stop_requested = 'cancelled' FROM locked
    WHERE job.id = locked.id AND locked.state = 'running' AND job.stop_requested IS NULL
    RETURNING job.id
), why AS (
    INSERT INTO result (job_id, error_kind, error) SELECT id, 'cancelled', 'cancelled before it started' FROM waiting
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id)
    SELECT tenant_id, 'job.cancelled', id FROM waiting WHERE {told}
)
SELECT (SELECT count(*) FROM waiting), (SELECT count(*) FROM asked)
""".replace("{told}", job_is_told("waiting", "'job.cancelled'"))


def save_job(store: Store, job: NewJob, *, patience_s: float, mark: Mark | None = None) -> tuple[int, datetime]:
    """Saves one job and its request: (id, accepted at). Committed when this returns.

    Raises LimitError past the tenant's cap, BudgetError where a budget does not cover it, AlreadyMadeError when
    `mark` has made one.
    """
    job_id = store.next_id()
    with store.transaction() as connection:
        idempotency.claim(connection, mark, job_id)
        if job.tokens is not None:
            enqueued.admit(connection, job.tenant_id, job.tokens)
        row = connection.execute(
            _SAVE,
            {
                "id": job_id,
                "tenant": job.tenant_id,
                "tier": job.tier,
                "body": job.body,
                "deadline": job.deadline,
                "callback": job.wants_callback,
                "tokens": job.tokens,
                "key": job.api_key_id,
                "patience": patience_s,
            },
        ).fetchone()
        assert row is not None
        if job.worst_usd is not None:
            need = Need(job_id, 1, job.worst_usd)
            budgets.reserve(connection, tenant_id=job.tenant_id, api_key_id=job.api_key_id, needs=[need])
    return job_id, row[0]


def load_parcel(connection: Connection, ids: list[int]) -> list[Waiting]:
    """Those of `ids` that still wait to be routed."""
    rows = connection.execute(_LOAD, {"ids": ids, "from": sources(State.ROUTED, Mover.CLASSIFY)})
    return [Waiting(*row) for row in rows]


def save_decisions(connection: Connection, decisions: list[Routed], *, snapshot_id: int, patience_s: float) -> set[int]:
    """Moves queued jobs to routed, or to failed where no deployment fits; others are to wait: the ids now routed."""
    decisions = [d if d.deployment else replace(d, reason=storable(d.reason)) for d in decisions]
    decisions.sort(key=lambda d: d.job_id)  # rows are locked in id order, here as elsewhere
    rows = connection.execute(
        _ROUTE,
        {
            "choices": orjson.dumps([_choice(d) for d in decisions], default=plain).decode(),
            "snapshot": snapshot_id,
            "patience": patience_s,
            "from": sources(State.ROUTED, Mover.CLASSIFY),
            "from_refused": sources(State.FAILED, Mover.CLASSIFY),
        },
    )
    return {row[0] for row in rows}


def _choice(decision: Routed) -> dict[str, Any]:
    features = decision.features.stored() if decision.features is not None else {}
    return {name: getattr(decision, name) for name in _CHOICE} | {"features": features}


_CHOICE = (
    "job_id", "fence", "deployment", "category", "reason", "prefix_key", "defer_s", "fallback", "explored", "canary",
)  # fmt: skip


def save_snapshot(connection: Connection, body: bytes) -> int:
    """Stores what the router knows (JSON): its id."""
    row = connection.execute(
        "INSERT INTO routing_snapshot (body) VALUES (%s::jsonb) RETURNING id", [body.decode()]
    ).fetchone()
    assert row is not None
    return int(row[0])


def claim(connection: Connection, ids: list[int], *, worker_id: int, deployments: list[str]) -> list[Claimed]:
    """Those of `ids` that this worker now runs, in this order; an empty list when they went elsewhere or it is
    not alive. `deployments` are those that its engine serves."""
    rows = connection.execute(
        _CLAIM,
        {
            "ids": ids,
            "worker": worker_id,
            "deployments": deployments,
            "from": sources(State.RUNNING, Mover.INFER),
        },
    )
    place = {number: at for at, number in enumerate(ids)}  # jobs that begin alike stay together
    return sorted((Claimed(*row) for row in rows), key=lambda job: place[job.id])


def claimed_by(store: Store, ids: list[int], worker_id: int) -> list[Claimed]:
    """Those of `ids` that run under this worker: what a claim whose answer was lost has done."""
    rows = store.fetch(_CLAIMED_BY, {"ids": ids, "worker": worker_id})
    return [Claimed(*row) for row in rows]


def starts_alone(job: Claimed) -> bool:
    """Whether one more worker death would be this job's last: then nothing else may be at risk beside it."""
    return job.worker_deaths >= MAX_WORKER_DEATHS - 1


def mark_alone(store: Store, job: Claimed) -> bool:
    """Before a suspect's lone start: whether it is still this worker's."""
    return bool(
        store.fetch(
            "UPDATE job SET ran_alone = true "
            "WHERE id = %(id)s AND fence = %(fence)s AND state = 'running' RETURNING id",
            {"id": job.id, "fence": job.fence},
        )
    )


def cancel(store: Store, ids: list[int], *, tenant_id: int) -> tuple[int, int]:
    """(how many are cancelled, how many are running and were asked to stop)."""
    rows = store.fetch(_CANCEL, {"ids": ids, "tenant": tenant_id, "from": sources(State.CANCELLED, Mover.CALLER)})
    return rows[0][0], rows[0][1]


def stops_requested(store: Store, ids: list[int]) -> dict[int, str]:
    """Of these running jobs, those that should stop, and as what: `cancelled` or `expired`."""
    rows = store.fetch(
        "SELECT id, stop_requested FROM job WHERE id = ANY(%(ids)s) AND stop_requested IS NOT NULL",
        {"ids": ids},
    )
    return {row[0]: row[1] for row in rows}
