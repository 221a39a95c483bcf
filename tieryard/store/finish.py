"""A job's end: result, timing, ledger and outbox rows, all from one guarded UPDATE, in one transaction.

The fence is the guard. A worker that was declared dead, or that reports twice, matches no row; and since
everything else is inserted from that UPDATE's RETURNING, it can neither write, bill nor call back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from tieryard.job import FINAL, MAX_ATTEMPTS, Mover, State, sources
from tieryard.store.connection import Connection


class HandBack(StrEnum):
    """Why a start ended without ending the job. Only a FAULT of the job's own counts as an attempt."""

    FAULT = "fault"
    """The request failed and may do better later: counted, waits with backoff."""
    OUTAGE = "outage"
    """The engine was away or full: not counted."""
    CRASH = "crash"
    """The engine died with the request in flight: counted as a worker death, since it may be the cause."""
    DRAIN = "drain"
    """This worker is stopping: not counted, goes back at once."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How one start ended: `state` is final, or QUEUED with a `hand_back` reason."""

    job_id: int
    fence: int
    state: State
    worker_id: int
    deployment: str
    catalog: str
    claimed_at: datetime
    wait_ms: float
    ttft_ms: float | None = None
    latency_ms: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: Decimal | None = None
    output: str | None = None
    finish_reason: str | None = None
    error_kind: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    hand_back: HandBack | None = None
    retry_in_s: float = 0.0

    def __post_init__(self) -> None:
        if (self.state in FINAL) == (self.hand_back is not None):
            raise ValueError("an ending is final, or hands back for a reason")


# Final endings. `ended` is the guard; the four inserts hang on it. Only the UPDATE's finished_at touches an index.
_FINISH = """
WITH ending AS (
    SELECT * FROM unnest(
        %(job_id)s::bigint[], %(fence)s::int[], %(state)s::text[], %(worker_id)s::bigint[], %(deployment)s::text[],
        %(catalog)s::text[], %(claimed_at)s::timestamptz[], %(wait_ms)s::real[], %(ttft_ms)s::real[],
        %(latency_ms)s::real[], %(prompt_tokens)s::int[], %(cached_tokens)s::int[], %(completion_tokens)s::int[],
        %(cost_usd)s::numeric[], %(output)s::text[], %(finish_reason)s::text[], %(error_kind)s::text[],
        %(error)s::text[], %(fingerprint)s::text[])
    AS e (job_id, fence, state, worker_id, deployment, catalog, claimed_at, wait_ms, ttft_ms, latency_ms,
          prompt_tokens, cached_tokens, completion_tokens, cost_usd, output, finish_reason, error_kind, error,
          fingerprint)
), ended AS (
    UPDATE job SET state = ending.state, finished_at = now()
    FROM ending
    WHERE job.id = ending.job_id AND job.fence = ending.fence AND job.state = ANY(%(from)s)
    RETURNING job.id, job.tenant_id, job.batch_id, job.tier, job.category, job.wants_callback, job.source_id,
              job.line_no, ending.*
), answered AS (
    INSERT INTO result (job_id, output, finish_reason, error_kind, error)
    SELECT id, output, finish_reason, error_kind, error FROM ended
), timed AS (
    INSERT INTO timing (job_id, fence, worker_id, deployment, outcome, claimed_at, wait_ms, ttft_ms, latency_ms,
                        prompt_tokens, cached_tokens, completion_tokens, error, fingerprint)
    SELECT id, fence, worker_id, deployment, state, claimed_at, wait_ms, ttft_ms, latency_ms,
           prompt_tokens, cached_tokens, completion_tokens, error, fingerprint FROM ended
), billed AS (
    INSERT INTO ledger (job_id, fence, kind, tenant_id, batch_id, tier, deployment, category, prompt_tokens,
                        completion_tokens, cost_usd, catalog)
    SELECT id, fence, 'inference', tenant_id, batch_id, tier, deployment, category, prompt_tokens,
           completion_tokens, cost_usd, catalog
    FROM ended WHERE cost_usd IS NOT NULL
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, url)
    SELECT ended.tenant_id, CASE ended.state WHEN 'succeeded' THEN 'job.completed' ELSE 'job.' || ended.state END,
           ended.id, line.body::jsonb ->> 'callback_url'
    FROM ended JOIN line USING (source_id, line_no) WHERE ended.wants_callback
    RETURNING id
)
SELECT id, (SELECT count(*) FROM owed) FROM ended
"""

# Hand-backs: HOT. An attempt is counted only for the job's own fault, a worker death only for a crash.
_HAND_BACK = """
WITH ending AS (
    SELECT * FROM unnest(
        %(job_id)s::bigint[], %(fence)s::int[], %(worker_id)s::bigint[], %(deployment)s::text[],
        %(claimed_at)s::timestamptz[], %(wait_ms)s::real[], %(latency_ms)s::real[], %(hand_back)s::text[],
        %(retry_in_s)s::float8[], %(error)s::text[])
    AS e (job_id, fence, worker_id, deployment, claimed_at, wait_ms, latency_ms, hand_back, retry_in_s, error)
), back AS (
    UPDATE job SET state = 'queued', worker_id = NULL, deployment = NULL,
        attempts = job.attempts + (ending.hand_back = 'fault')::int,
        worker_deaths = job.worker_deaths + (ending.hand_back = 'crash')::int,
        not_before = CASE WHEN ending.retry_in_s > 0 THEN now() + ending.retry_in_s * interval '1 second' END,
        nudge_at = now() + ending.retry_in_s * interval '1 second'
    FROM ending
    WHERE job.id = ending.job_id AND job.fence = ending.fence AND job.state = ANY(%(from)s)
    RETURNING job.id, ending.*
), timed AS (
    INSERT INTO timing (job_id, fence, worker_id, deployment, outcome, claimed_at, wait_ms, latency_ms, error)
    SELECT id, fence, worker_id, deployment, hand_back, claimed_at, wait_ms, latency_ms, error FROM back
)
SELECT id FROM back
"""

_FINAL_COLUMNS = (
    "job_id", "fence", "state", "worker_id", "deployment", "catalog", "claimed_at", "wait_ms", "ttft_ms",
    "latency_ms", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd", "output", "finish_reason",
    "error_kind", "error", "fingerprint",
)  # fmt: skip
_BACK_COLUMNS = (
    "job_id", "fence", "worker_id", "deployment", "claimed_at", "wait_ms", "latency_ms", "hand_back",
    "retry_in_s", "error",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finished:
    """What a flush did: the job ids it ended or handed back, and how many callbacks are now owed."""

    ended: set[int]
    handed_back: set[int]
    callbacks: int


def finish(connection: Connection, endings: list[Ending]) -> Finished:
    """Writes endings of any kind. Those whose fence is stale are silently not among the ids returned."""
    final = [e for e in endings if e.hand_back is None]
    back = [e for e in endings if e.hand_back is not None]
    ended: set[int] = set()
    handed_back: set[int] = set()
    callbacks = 0
    if final:
        wanted = {column: [getattr(e, column) for e in final] for column in _FINAL_COLUMNS}
        from_states = sources(State.SUCCEEDED, Mover.INFER)
        rows = connection.execute(_FINISH, {**wanted, "from": from_states}).fetchall()
        ended = {row[0] for row in rows}
        callbacks = rows[0][1] if rows else 0
    if back:
        wanted = {column: [getattr(e, column) for e in back] for column in _BACK_COLUMNS}
        from_states = sources(State.QUEUED, Mover.INFER)
        rows = connection.execute(_HAND_BACK, {**wanted, "from": from_states}).fetchall()
        handed_back = {row[0] for row in rows}
    return Finished(ended, handed_back, callbacks)


def attempts_left(attempts: int) -> bool:
    """Whether a job that has now failed `attempts` + 1 times by its own fault may start again."""
    return attempts + 1 < MAX_ATTEMPTS
