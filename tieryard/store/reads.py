"""What callers see: jobs, batches, and a job's whole story. Ordinary reads, with SQLModel."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from tieryard.errors import NotFoundError
from tieryard.ids import public
from tieryard.job import State
from tieryard.store.connection import Store
from tieryard.store.schema import Batch, Decision, Job, Ledger, Line, Outcome, Result, RoutingSnapshot, Timing

CHARGED = "inference"
"""The kind of the ledger's rows that callers pay: a job's one."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job with its request, its last start and what it was charged."""

    job: Job
    body: str
    result: Result | None
    timing: Timing | None
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that is kept of a job."""

    row: JobRow
    decisions: list[tuple[Decision, dict[str, Any]]]
    starts: list[Timing]
    money: list[Ledger]
    outcomes: list[Outcome]


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch and how far it is. `states` counts its jobs that exist; `cost_usd` is what they cost, if asked."""

    batch: Batch
    states: dict[str, int]
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class JobFilter:
    state: str | None = None
    tier: str | None = None
    deployment: str | None = None
    batch_id: int | None = None


def list_jobs(store: Store, *, tenant_id: int, wanted: JobFilter, after: int | None, limit: int) -> list[JobRow]:
    """A page of jobs: a batch's in input order, else newest first. `after` is the last id of the page before."""
    statement = select(Job).where(Job.tenant_id == tenant_id).limit(limit)
    for name in ("state", "tier", "deployment"):
        if (value := getattr(wanted, name)) is not None:
            statement = statement.where(getattr(Job, name) == value)
    with store.session() as session:
        if wanted.batch_id is not None:
            batch = _batch(session, wanted.batch_id, tenant_id)
            last = batch.first_job_id + batch.total - 1
            first = batch.first_job_id if after is None else after + 1
            statement = statement.where(col(Job.id).between(first, last)).order_by(col(Job.id))
        else:
            if after is not None:
                statement = statement.where(col(Job.id) < after)
            statement = statement.order_by(col(Job.id).desc())
        return _with_details(session, list(session.exec(statement)))


def get_job(store: Store, job_id: int, *, tenant_id: int) -> JobRow:
    """One job. Raises NotFoundError, also for another tenant's."""
    with store.session() as session:
        return _with_details(session, [_job(session, job_id, tenant_id)])[0]


def get_story(store: Store, job_id: int, *, tenant_id: int) -> Story:
    with store.session() as session:
        [row] = _with_details(session, [_job(session, job_id, tenant_id)])
        decisions = session.exec(
            select(Decision, RoutingSnapshot.body)
            .join(RoutingSnapshot, col(RoutingSnapshot.id) == col(Decision.snapshot_id), isouter=True)
            .where(Decision.job_id == job_id)
            .order_by(col(Decision.fence))
        )
        starts = session.exec(select(Timing).where(Timing.job_id == job_id).order_by(col(Timing.fence)))
        money = session.exec(
            select(Ledger).where(Ledger.job_id == job_id).order_by(col(Ledger.fence), col(Ledger.kind).desc())
        )
        scores = session.exec(select(Outcome).where(Outcome.job_id == job_id).order_by(col(Outcome.scored_at)))
        made = [(decision, dict(body or {})) for decision, body in decisions]
        story = Story(row, made, list(starts), list(money), list(scores))
        session.expunge_all()
        return story


def get_batch(store: Store, batch_id: int, *, tenant_id: int) -> BatchRow:
    """One batch with live counts. Raises NotFoundError, also for another tenant's."""
    with store.session() as session:
        batch = _batch(session, batch_id, tenant_id)
        states = _states(session, batch)
        first, last = batch.first_job_id, batch.first_job_id + batch.total - 1
        cost = session.exec(
            select(func.coalesce(func.sum(Ledger.cost_usd), 0)).where(
                col(Ledger.job_id).between(first, last), Ledger.kind == CHARGED
            )
        ).one()
        session.expunge_all()
        return BatchRow(batch, states, Decimal(cost))


def list_batches(store: Store, *, tenant_id: int, after: int | None, limit: int) -> list[BatchRow]:
    """A page of batches, newest first, without their costs. `after` is the last id of the page before."""
    statement = select(Batch).where(Batch.tenant_id == tenant_id).order_by(col(Batch.id).desc()).limit(limit)
    if after is not None:
        statement = statement.where(col(Batch.id) < after)
    with store.session() as session:
        found = [BatchRow(batch, _states(session, batch), None) for batch in session.exec(statement)]
        session.expunge_all()
        return found


def _states(session: Session, batch: Batch) -> dict[str, int]:
    """Jobs by state: as they were when the last one ended, or counted now."""
    counts = batch.counts
    if counts is None:
        last = batch.first_job_id + batch.total - 1
        ids = col(Job.id).between(batch.first_job_id, last)
        counts = dict(session.exec(select(Job.state, func.count()).where(ids).group_by(col(Job.state))).all())
    return {str(state): 0 for state in State} | counts


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """What a deployment's prefix caches did for the starts that succeeded. `prefill_ms_per_token` is an estimate, None
    where too little is known."""

    deployment: str
    starts: int
    prompt_tokens: int
    cached_tokens: int
    prefill_ms_per_token: float | None

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def saved_prefill_s(self) -> float | None:
        """Seconds of an engine's prefill that the cached tokens would have taken: an estimate."""
        if self.prefill_ms_per_token is None:
            return None
        return self.cached_tokens * self.prefill_ms_per_token / 1000


# The slope of TTFT over the tokens that were computed: what a token more costs, less what every request waits. It is
# believed where the two go together, over enough starts to say so.
_PREFIX_CACHE = """
SELECT deployment, count(*), sum(prompt_tokens), sum(cached_tokens),
       CASE WHEN regr_count(ttft_ms, prompt_tokens - cached_tokens) >= 30
             AND corr(ttft_ms, prompt_tokens - cached_tokens) >= 0.3
            THEN regr_slope(ttft_ms, prompt_tokens - cached_tokens) END
FROM timing WHERE ended_at >= %(since)s AND outcome = 'succeeded' AND prompt_tokens > 0
GROUP BY deployment ORDER BY deployment
"""


def prefix_cache(store: Store, *, since: datetime) -> list[PrefixCache]:
    """By deployment, of the starts that ended since then, which `timing_by_end` finds."""
    rows = store.fetch(_PREFIX_CACHE, {"since": since})
    return [PrefixCache(name, starts, int(read), int(cached), slope) for name, starts, read, cached, slope in rows]


def live_workers(store: Store) -> list[tuple[int, str, str | None, str, int, datetime]]:
    """(id, kind, deployment, host, pid, lease until) of every worker whose lease holds."""
    return store.fetch(
        "SELECT id, kind, deployment, host, pid, lease_until FROM worker "
        "WHERE stopped_at IS NULL AND lease_until > now() ORDER BY kind, deployment, id"
    )


def _job(session: Session, job_id: int, tenant_id: int) -> Job:
    job = session.exec(select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)).first()
    if job is None:
        raise NotFoundError(f"no job '{public('job', job_id)}'", param="job")
    return job


def _batch(session: Session, batch_id: int, tenant_id: int) -> Batch:
    batch = session.exec(select(Batch).where(Batch.id == batch_id, Batch.tenant_id == tenant_id)).first()
    if batch is None:
        raise NotFoundError(f"no batch '{public('batch', batch_id)}'", param="batch")
    return batch


def _with_details(session: Session, jobs: list[Job]) -> list[JobRow]:
    """Four statements for the page, whatever its length."""
    ids = [job.id for job in jobs]
    bodies = {
        (line.source_id, line.line_no): line.body
        for line in session.exec(
            select(Line)
            .join(Job, (col(Job.source_id) == col(Line.source_id)) & (col(Job.line_no) == col(Line.line_no)))
            .where(col(Job.id).in_(ids))
        )
    }
    results = {r.job_id: r for r in session.exec(select(Result).where(col(Result.job_id).in_(ids)))}
    timings = {
        t.job_id: t for t in session.exec(select(Timing).where(col(Timing.job_id).in_(ids)).order_by(col(Timing.fence)))
    }
    costs = dict(
        session.exec(
            select(Ledger.job_id, func.sum(Ledger.cost_usd))
            .where(col(Ledger.job_id).in_(ids), Ledger.kind == CHARGED)
            .group_by(col(Ledger.job_id))
        ).all()
    )
    session.expunge_all()
    return [
        JobRow(
            job,
            bodies[job.source_id, job.line_no],
            results.get(job.id),
            timings.get(job.id),
            costs.get(job.id),
        )
        for job in jobs
    ]
