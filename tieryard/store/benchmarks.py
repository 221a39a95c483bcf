"""Benchmarks: runs that are asked for, claimed under a fence as jobs are, and finished with all that they found.

They are billed to a tenant of the system's own. A speed run posts ledger rows of the kind `benchmark`; what a quality
run asks goes through the fleet as a batch of that tenant's, and is billed job by job.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

import orjson
from psycopg.types.json import Jsonb

from tieryard.errors import ConflictError, NotFoundError
from tieryard.ids import public
from tieryard.store import idempotency
from tieryard.store.benchmark_postings import BILLED, POSTED, Posting, to_post
from tieryard.store.connection import Connection, Store, storable, storable_json
from tieryard.store.idempotency import Mark
from tieryard.store.system_tenants import system_tenant
from tieryard.store.telling import is_told_fleetwide

BENCHMARK_TENANT = "tieryard-benchmark"

KIND = "benchmark"
"""Of its public ids, its ledger rows, and what its events begin with."""


class RunKind(StrEnum):
    """`speed`: a load, and what it shows. `capacity`: the highest rate that holds. `quality`: a golden set's questions,
    scored. `pairwise`: two quality runs' answers, judged side by side."""

    SPEED = "speed"
    CAPACITY = "capacity"
    QUALITY = "quality"
    PAIRWISE = "pairwise"


class RunState(StrEnum):
    """`queued` and `running` are open, the others final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to make. `spec` is its kind's own, as JSON; `schedule` and `slot` where a schedule asks for it: there is
    one for each slot, deployment and golden set, whoever asks first."""

    kind: RunKind
    deployment: str
    spec: dict[str, Any]
    golden_set_id: int | None = None
    callback_url: str | None = None
    schedule: str | None = None
    slot: datetime | None = None


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """A run as the store knows it; see `schema.Benchmark`."""

    id: int
    kind: str
    deployment: str
    spec: dict[str, Any]
    state: str
    fence: int
    worker_id: int | None
    schedule: str | None
    golden_set_id: int | None
    batch_id: int | None
    callback_url: str | None
    created_at: datetime
    not_before: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    cancelling: bool
    why: str | None
    pinned: str | None
    fingerprint: dict[str, Any] | None
    regressed: str | None
    report: dict[str, Any] | None

    @property
    def public_id(self) -> str:
        return name_of(self.id)


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended. `pinned` is `Deployment.build` of what ran; `profiles` are figures by category, measured at
    `measured_at`; `regressed` says what has become worse, and makes an event of its own."""

    state: RunState
    why: str | None = None
    report: dict[str, Any] | None = None
    pinned: str | None = None
    fingerprint: dict[str, Any] | None = None
    regressed: str | None = None
    measured_at: datetime | None = None
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    postings: tuple[Posting, ...] = ()


_COLUMNS = (
    "id, kind, deployment, spec, state, fence, worker_id, schedule, golden_set_id, batch_id, callback_url, created_at, "
    "not_before, started_at, finished_at, cancelling_at IS NOT NULL, why, pinned, fingerprint, regressed, report"
)

# The unique index on slots makes two processes that look at one schedule ask for one run.
_CREATE = """
INSERT INTO benchmark (id, tenant_id, kind, deployment, spec, golden_set_id, callback_url, schedule, slot)
SELECT r.id, %(tenant)s, r.kind, r.deployment, r.spec, r.golden_set_id, r.callback_url, r.schedule, r.slot
FROM jsonb_to_recordset(%(runs)s::jsonb) AS r (id bigint, kind text, deployment text, spec jsonb, golden_set_id bigint,
                                               callback_url text, schedule text, slot timestamptz)
ON CONFLICT (schedule, slot, deployment, golden_set_id) WHERE schedule IS NOT NULL DO NOTHING
RETURNING id
"""

# By `benchmark_open`, of which there are few. One whose worker has gone starts again.
_CLAIM = f"""
UPDATE benchmark SET state = 'running', fence = fence + 1, worker_id = %(worker)s, not_before = NULL,
                     started_at = coalesce(started_at, now())
WHERE id = (
    SELECT b.id FROM benchmark b
    WHERE b.finished_at IS NULL AND b.kind = ANY(%(kinds)s)
      AND NOT (%(alone)s AND EXISTS (
          SELECT FROM benchmark other JOIN worker ON worker.id = other.worker_id AND worker.stopped_at IS NULL
          WHERE other.finished_at IS NULL AND other.state = 'running' AND other.kind = ANY(%(kinds)s)
            AND other.deployment = b.deployment AND other.id <> b.id))
      AND (b.not_before IS NULL OR b.not_before <= now())
      AND (b.state = 'queued' OR NOT EXISTS (
          SELECT FROM worker WHERE worker.id = b.worker_id AND worker.stopped_at IS NULL))
    ORDER BY b.id LIMIT 1 FOR UPDATE SKIP LOCKED
) AND EXISTS (SELECT FROM worker WHERE id = %(worker)s AND stopped_at IS NULL)
RETURNING {_COLUMNS}
"""  # noqa: S608  # columns of ours

_HAND_BACK = f"""
WITH ended AS (
    UPDATE benchmark SET state = 'queued', worker_id = NULL, why = %(why)s,
                         not_before = now() + %(wait)s * interval '1 second', {POSTED}
    WHERE id = %(id)s AND fence = %(fence)s AND state = 'running' RETURNING id, fence, tenant_id, deployment
), {BILLED}
SELECT id FROM ended
"""  # noqa: S608  # a part of ours

# The fence guards all of it, as it does a job's end.
_FINISH = f"""
WITH ended AS (
    UPDATE benchmark SET state = %(state)s, finished_at = now(), why = %(why)s, report = %(report)s,
                         pinned = coalesce(%(pinned)s, pinned), fingerprint = %(fingerprint)s,
                         regressed = %(regressed)s, {POSTED}
    WHERE id = %(id)s AND fence = %(fence)s AND finished_at IS NULL
    RETURNING id, fence, tenant_id, deployment, state, regressed, coalesce(callback_url, %(url)s) AS url,
              callback_url IS NOT NULL OR schedule IS NOT NULL AS end_is_told
), measured AS (
    INSERT INTO profile (benchmark_id, category, deployment, measured_at, figures)
    SELECT ended.id, p.category, ended.deployment, %(at)s, p.figures
    FROM ended, jsonb_to_recordset(%(profiles)s::jsonb) AS p (category text, figures jsonb)
), {BILLED}, owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, url)
    SELECT tenant_id, event, id, own.url
    FROM ended CROSS JOIN unnest(ARRAY['benchmark.completed', 'benchmark.regressed']) AS event
    CROSS JOIN LATERAL (SELECT CASE WHEN event <> 'benchmark.completed' OR end_is_told THEN ended.url END AS url) own
    WHERE (event = 'benchmark.completed' OR regressed IS NOT NULL)
      AND (own.url IS NOT NULL OR {is_told_fleetwide("event")})
    RETURNING id
)
SELECT id, (SELECT count(*) FROM owed) FROM ended
"""  # noqa: S608  # a part of ours

# One that was handed back may have questions open, which whoever claims it ends.
# By `benchmark_open`. Where there was no room all night, the next night's run is enough.
_OVERTAKEN = """
UPDATE benchmark SET state = 'cancelled', finished_at = now(), why = 'it never found room until its schedule came again'
WHERE finished_at IS NULL AND state = 'queued' AND batch_id IS NULL AND schedule = %(schedule)s AND slot < %(slot)s
"""

_CANCEL = """
UPDATE benchmark SET cancelling_at = coalesce(cancelling_at, now()),
    state = CASE WHEN state = 'queued' AND batch_id IS NULL THEN 'cancelled' ELSE state END,
    finished_at = CASE WHEN state = 'queued' AND batch_id IS NULL THEN now() END
WHERE id = %(id)s AND finished_at IS NULL RETURNING id
"""


def name_of(run_id: int) -> str:
    """Its public id."""
    return public(KIND, run_id)


def tenant(connection: Connection) -> int:
    """The id of the tenant that benchmarks are billed to, made when it is first asked for."""
    return system_tenant(connection, BENCHMARK_TENANT)


def create(store: Store, runs: Sequence[NewRun], *, mark: Mark | None = None) -> list[int]:
    """Saves them as queued: their ids, in order; without those of a slot that has its run already. Raises
    AlreadyMadeError, with the first of the runs that the key has made, or ConflictError."""
    if not runs:
        return []
    rows = [{**asdict(run), "id": store.next_id()} for run in runs]
    with store.transaction() as connection:
        idempotency.claim(connection, mark, int(rows[0]["id"]))
        wanted = {"tenant": tenant(connection), "runs": orjson.dumps(rows, default=str).decode()}
        made = connection.execute(_CREATE, wanted).fetchall()
        for schedule, slot in {(run.schedule, run.slot) for run in runs if run.schedule is not None}:
            connection.execute(_OVERTAKEN, {"schedule": schedule, "slot": slot})
    return sorted(row[0] for row in made)


def made_with(store: Store, run_id: int) -> list[int]:
    """The ids of all that were asked for together with this run."""
    rows = store.fetch(
        "SELECT other.id FROM benchmark one JOIN benchmark other ON other.created_at = one.created_at "
        "AND other.id >= one.id WHERE one.id = %(id)s ORDER BY other.id",
        {"id": run_id},
    )
    return [row[0] for row in rows]


def claim(store: Store, worker_id: int, kinds: Collection[RunKind], *, alone: bool = False) -> BenchmarkRun | None:
    """The oldest run of these kinds that may start, under its next fence. `alone`: not beside another of them at the
    same deployment."""
    wanted = {"worker": worker_id, "kinds": list(kinds), "alone": alone}
    rows = store.fetch(_CLAIM, wanted)
    return BenchmarkRun(*rows[0]) if rows else None


def hand_back(
    store: Store, run: BenchmarkRun, *, why: str, wait_s: float = 0.0, postings: Sequence[Posting] = ()
) -> bool:
    """Queued again, for later, and why: whether it was still ours. `postings` are what it has used until now."""
    wanted = {"id": run.id, "fence": run.fence, "why": storable(why), "wait": wait_s}
    return bool(store.fetch(_HAND_BACK, wanted | to_post(postings)))


def attach_batch(connection: Connection, run: BenchmarkRun, batch_id: int, *, pinned: str | None = None) -> None:
    """The batch by which its questions go, to this build; in the transaction that makes the batch. Raises ConflictError
    when the run is not ours any more, so that there is no batch either."""
    found = connection.execute(
        "UPDATE benchmark SET batch_id = %s, pinned = %s WHERE id = %s AND fence = %s AND finished_at IS NULL "
        "RETURNING id",
        [batch_id, pinned, run.id, run.fence],
    ).fetchone()
    if found is None:
        raise ConflictError(f"{run.public_id} is another worker's by now")


def note(connection: Connection, run: BenchmarkRun, found: dict[str, Any]) -> None:
    """What an open run has to remember, in place of its report until it ends. Raises as `attach_batch` does."""
    kept = connection.execute(
        "UPDATE benchmark SET report = %s WHERE id = %s AND fence = %s AND finished_at IS NULL RETURNING id",
        [_jsonb(found), run.id, run.fence],
    ).fetchone()
    if kept is None:
        raise ConflictError(f"{run.public_id} is another worker's by now")


def finish(connection: Connection, run: BenchmarkRun, end: RunEnd, *, callback_url: str | None = None) -> int | None:
    """Ends it with all that it found: how many callbacks are owed, None when the run was not ours any more and nothing
    was written. `callback_url` is for a run that has none of its own: it is told of the end of a scheduled one, and of
    what has regressed."""
    row = connection.execute(
        _FINISH,
        {
            "id": run.id,
            "fence": run.fence,
            "state": end.state,
            "why": None if end.why is None else storable(end.why),
            "report": _jsonb(end.report),
            "pinned": end.pinned,
            "fingerprint": _jsonb(end.fingerprint),
            "regressed": None if end.regressed is None else storable(end.regressed),
            "url": callback_url,
            "at": end.measured_at,
            "profiles": Jsonb([{"category": name, "figures": found} for name, found in end.profiles.items()], _dumps),
            **to_post(end.postings),
        },
    ).fetchone()
    return None if row is None else int(row[1])


def get(store: Store, run_id: int) -> BenchmarkRun:
    """Raises NotFoundError."""
    rows = store.fetch(f"SELECT {_COLUMNS} FROM benchmark WHERE id = %(id)s", {"id": run_id})  # noqa: S608
    if not rows:
        raise NotFoundError(f"no benchmark '{name_of(run_id)}'", param="benchmark")
    return BenchmarkRun(*rows[0])


def listing(
    store: Store, *, deployment: str | None = None, kind: str | None = None, before: int | None = None, limit: int = 20
) -> list[BenchmarkRun]:
    """Newest first, those with ids below `before`; without their reports."""
    columns = _COLUMNS.removesuffix("report") + "NULL::jsonb"
    rows = store.fetch(
        f"SELECT {columns} FROM benchmark WHERE (%(deployment)s::text IS NULL OR deployment = %(deployment)s) "  # noqa: S608
        "AND (%(kind)s::text IS NULL OR kind = %(kind)s) AND (%(before)s::bigint IS NULL OR id < %(before)s) "
        "ORDER BY id DESC LIMIT %(limit)s",
        {"deployment": deployment, "kind": kind, "before": before, "limit": limit},
    )
    return [BenchmarkRun(*row) for row in rows]


def last(store: Store, deployment: str, kind: RunKind, *, golden_set_id: int | None = None) -> BenchmarkRun | None:
    """The newest run of this kind that succeeded there, on this golden set where one is named."""
    rows = store.fetch(
        f"SELECT {_COLUMNS} FROM benchmark WHERE deployment = %(deployment)s AND kind = %(kind)s "  # noqa: S608
        "AND state = 'succeeded' AND (%(set)s::bigint IS NULL OR golden_set_id = %(set)s) ORDER BY id DESC LIMIT 1",
        {"deployment": deployment, "kind": kind, "set": golden_set_id},
    )
    return BenchmarkRun(*rows[0]) if rows else None


def profiles_of(store: Store, run_id: int) -> dict[str, dict[str, Any]]:
    """What the run has measured, by category."""
    rows = store.fetch(
        "SELECT category, figures FROM profile WHERE benchmark_id = %(id)s ORDER BY category", {"id": run_id}
    )
    return {row[0]: row[1] for row in rows}


def cost_of(store: Store, run: BenchmarkRun) -> Decimal:
    """USD: what it posted itself, and what the jobs of its batch were charged."""
    rows = store.fetch(
        "SELECT (SELECT coalesce(sum(cost_usd), 0) FROM ledger WHERE kind = 'benchmark' AND job_id = ANY("
        "    SELECT unnest(posting_ids || id) FROM benchmark WHERE id = %(id)s)) + "
        "coalesce((SELECT sum(ledger.cost_usd) FROM batch JOIN ledger ON ledger.job_id >= batch.first_job_id "
        "AND ledger.job_id < batch.first_job_id + batch.total AND ledger.kind = 'inference' "
        "WHERE batch.id = %(batch)s), 0)",
        {"id": run.id, "batch": run.batch_id},
    )
    return Decimal(rows[0][0])


def slots(store: Store) -> dict[str, datetime]:
    """The latest slot of each schedule that has had a run."""
    rows = store.fetch("SELECT schedule, max(slot) FROM benchmark WHERE schedule IS NOT NULL GROUP BY schedule")
    return {row[0]: row[1] for row in rows}


def cancel(store: Store, run_id: int) -> BenchmarkRun:
    """Ends a queued run; one that runs, or has asked its questions, is asked to end. A final one stays as it is. Raises
    NotFoundError."""
    store.fetch(_CANCEL, {"id": run_id})
    return get(store, run_id)


def _jsonb(value: dict[str, Any] | None) -> Jsonb | None:
    return None if value is None else Jsonb(storable_json(value), _dumps)


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, default=str)
