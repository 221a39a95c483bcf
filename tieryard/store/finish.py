"""A job's end: result, timing, ledger and outbox rows, all from one guarded UPDATE, in one transaction.

The fence is the guard. A worker that was declared dead, or that reports twice, matches no row; and since
everything else is inserted from that UPDATE's RETURNING, it can neither write, bill nor call back.

What is posted to a rent window holds that window's row, so that its closing sees it or is seen: a flush that comes
after the closing balances what it posts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol

import orjson

from tieryard.job import FINAL, MAX_ATTEMPTS, WAITING, Mover, State, sources
from tieryard.store.connection import Connection
from tieryard.store.telling import job_is_told


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
    """How one start ended: `state` is final, or QUEUED with a `hand_back` reason.

    `extra` is of the answer, what is not text. `revision` is just what ran, as `model@revision`. `cost_usd` is None
    where nothing was used; `window_id` is the rent window at whose price it is, `large_usd` and `hosted_usd` are what
    the same tokens would have cost elsewhere.
    """

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
    window_id: int | None = None
    large_usd: Decimal | None = None
    hosted_usd: Decimal | None = None
    output: str | None = None
    finish_reason: str | None = None
    error_kind: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    extra: dict[str, Any] | None = None
    revision: str | None = None
    hand_back: HandBack | None = None
    retry_in_s: float = 0.0

    def __post_init__(self) -> None:
        if (self.state in FINAL) == (self.hand_back is not None):
            raise ValueError("an ending is final, or hands back for a reason")


# Windows that are posted to, in one order and by their ids as a parameter, which costs the least. FOR KEY SHARE lets
# them be cut, stopped and served meanwhile; only their closing waits, or is waited for, and then seen.
HELD = """held AS MATERIALIZED (
    SELECT id, closed_at IS NOT NULL AS closed FROM rent_window
    WHERE id = ANY(%(windows)s) ORDER BY id FOR KEY SHARE
)"""

_EVENT = "CASE state WHEN 'succeeded' THEN 'job.completed' ELSE 'job.' || state END"

# Final endings. `ended` is the guard; the four inserts hang on it. Only the UPDATE's finished_at touches an index.
_FINISH = f"""
WITH {HELD}, ending AS (
    SELECT * FROM jsonb_to_recordset(%(endings)s::jsonb)
    AS e (job_id bigint, fence int, state text, worker_id bigint, deployment text, catalog text,
          claimed_at timestamptz, wait_ms real, ttft_ms real, latency_ms real, prompt_tokens int,
          cached_tokens int, completion_tokens int, cost_usd numeric, window_id bigint, large_usd numeric,
          hosted_usd numeric, output text, finish_reason text, error_kind text, error text, fingerprint text,
          extra jsonb, revision text)
), ended AS (
    UPDATE job SET state = ending.state, finished_at = now()
    FROM ending
    WHERE job.id = ending.job_id AND job.fence = ending.fence AND job.state = ANY(%(from)s)
    RETURNING job.id, job.tenant_id, job.api_key_id, job.batch_id, job.tier, job.category, job.wants_callback,
              job.attended, ending.*
), answered AS (
    INSERT INTO result (job_id, output, finish_reason, error_kind, error, extra)
    SELECT id, output, finish_reason, error_kind, error, extra FROM ended
), timed AS (
    INSERT INTO timing (job_id, fence, worker_id, deployment, outcome, claimed_at, wait_ms, ttft_ms, latency_ms,
                        prompt_tokens, cached_tokens, completion_tokens, error, fingerprint, revision)
    SELECT id, fence, worker_id, deployment, state, claimed_at, wait_ms, ttft_ms, latency_ms,
           prompt_tokens, cached_tokens, completion_tokens, error, fingerprint, revision FROM ended
), billed AS (
    INSERT INTO ledger (job_id, fence, kind, tenant_id, api_key_id, batch_id, tier, deployment, category, prompt_tokens,
                        cached_tokens, completion_tokens, cost_usd, large_usd, hosted_usd, catalog, window_id)
    SELECT ended.id, fence, 'inference', tenant_id, api_key_id, batch_id, tier, deployment, category, prompt_tokens,
           cached_tokens, completion_tokens, cost_usd, large_usd, hosted_usd, catalog, held.id
    FROM ended LEFT JOIN held ON held.id = ended.window_id WHERE cost_usd IS NOT NULL
), balanced AS (
    INSERT INTO ledger (job_id, fence, kind, tenant_id, api_key_id, batch_id, tier, deployment, category, prompt_tokens,
                        completion_tokens, cost_usd, catalog, window_id)
    SELECT ended.id, fence, 'adjustment', tenant_id, api_key_id, batch_id, tier, deployment, category, 0, 0, -cost_usd,
           catalog, held.id
    FROM ended JOIN held ON held.id = ended.window_id AND held.closed WHERE cost_usd IS NOT NULL
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id)
    SELECT tenant_id, {_EVENT}, id FROM ended WHERE {job_is_told("ended", _EVENT)}
    RETURNING id
)
SELECT id, (SELECT count(*) FROM owed) FROM ended
"""  # noqa: S608  # a part of ours

# Hand-backs: HOT. An attempt is counted only for the job's own fault, a worker death only for a crash. One that was
# asked to stop does not start again: it ends here, as what was asked for. What the start has used is a `retry`, or
# the charge of the job that ends.
_HAND_BACK = f"""
WITH {HELD}, ending AS (
    SELECT * FROM jsonb_to_recordset(%(endings)s::jsonb)
    AS e (job_id bigint, fence int, worker_id bigint, deployment text, catalog text, claimed_at timestamptz,
          wait_ms real, latency_ms real, prompt_tokens int, cached_tokens int, completion_tokens int, cost_usd numeric,
          window_id bigint, large_usd numeric, hosted_usd numeric, hand_back text, retry_in_s float8, error text)
), back AS (
    UPDATE job SET state = coalesce(stop_requested, 'queued'), worker_id = NULL,
        deployment = CASE WHEN stop_requested IS NOT NULL THEN job.deployment END,
        finished_at = CASE WHEN stop_requested IS NOT NULL THEN now() END,
        attempts = job.attempts + (ending.hand_back = 'fault')::int,
        worker_deaths = job.worker_deaths + (ending.hand_back = 'crash')::int,
        not_before = CASE WHEN ending.retry_in_s > 0 THEN now() + ending.retry_in_s * interval '1 second' END,
        nudge_at = now() + ending.retry_in_s * interval '1 second'
    FROM ending
    WHERE job.id = ending.job_id AND job.fence = ending.fence AND job.state = ANY(%(from)s)
    RETURNING job.id, job.tenant_id, job.api_key_id, job.batch_id, job.tier, job.category, job.state,
              job.stop_requested, job.wants_callback, job.attended, ending.*
), timed AS (
    INSERT INTO timing (job_id, fence, worker_id, deployment, outcome, claimed_at, wait_ms, latency_ms,
                        prompt_tokens, cached_tokens, completion_tokens, error)
    SELECT id, fence, worker_id, deployment, hand_back, claimed_at, wait_ms, latency_ms,
           prompt_tokens, cached_tokens, completion_tokens, error FROM back
), billed AS (
    INSERT INTO ledger (job_id, fence, kind, tenant_id, api_key_id, batch_id, tier, deployment, category, prompt_tokens,
                        cached_tokens, completion_tokens, cost_usd, large_usd, hosted_usd, catalog, window_id)
    SELECT back.id, fence, CASE WHEN stop_requested IS NULL THEN 'retry' ELSE 'inference' END, tenant_id, api_key_id,
           batch_id, tier, deployment, category, prompt_tokens, cached_tokens, completion_tokens, cost_usd,
           CASE WHEN stop_requested IS NOT NULL THEN large_usd END,
           CASE WHEN stop_requested IS NOT NULL THEN hosted_usd END, catalog, held.id
    FROM back LEFT JOIN held ON held.id = back.window_id WHERE cost_usd IS NOT NULL
), balanced AS (
    INSERT INTO ledger (job_id, fence, kind, tenant_id, api_key_id, batch_id, tier, deployment, category, prompt_tokens,
                        completion_tokens, cost_usd, catalog, window_id)
    SELECT back.id, fence, 'adjustment', tenant_id, api_key_id, batch_id, tier, deployment, category, 0, 0, -cost_usd,
           catalog, held.id
    FROM back JOIN held ON held.id = back.window_id AND held.closed WHERE cost_usd IS NOT NULL
), answered AS (
    INSERT INTO result (job_id, error_kind, error)
    SELECT id, state, state || ' while it ran' FROM back WHERE stop_requested IS NOT NULL
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id)
    SELECT tenant_id, 'job.' || state, id FROM back
    WHERE stop_requested IS NOT NULL AND {job_is_told("back", "'job.' || state")}
    RETURNING id
)
SELECT id, stop_requested IS NOT NULL, (SELECT count(*) FROM owed) FROM back
"""  # noqa: S608  # a part of ours


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
        from_states = sources(State.SUCCEEDED, Mover.INFER)
        rows = connection.execute(_FINISH, _wanted(final, from_states)).fetchall()
        ended = {row[0] for row in rows}
        callbacks = rows[0][1] if rows else 0
    if back:
        from_states = [state for state in sources(State.QUEUED, Mover.INFER) if state not in WAITING]
        rows = connection.execute(_HAND_BACK, _wanted(back, from_states)).fetchall()
        handed_back = {row[0] for row in rows if not row[1]}
        ended |= {row[0] for row in rows if row[1]}
        callbacks += rows[0][2] if rows else 0
    return Finished(ended, handed_back, callbacks)


def _wanted(endings: list[Ending], from_states: list[str]) -> dict[str, Any]:
    return {"endings": _json(endings), "from": from_states, "windows": windows_of(endings)}


class _Posted(Protocol):
    @property
    def window_id(self) -> int | None: ...


def windows_of(posted: Iterable[_Posted]) -> list[int]:
    """The windows that are posted to, for `HELD`."""
    return sorted({one.window_id for one in posted if one.window_id is not None})


def _json(endings: list[Ending]) -> str:
    """One parameter for all rows: a list for each column cost psycopg four times as much. Money stays exact, as text.

    In id order, as every statement over several jobs locks them.
    """
    return orjson.dumps(sorted(endings, key=lambda e: e.job_id), default=str).decode()


def attempts_left(attempts: int) -> bool:
    """Whether a job that has now failed `attempts` + 1 times by its own fault may start again."""
    return attempts + 1 < MAX_ATTEMPTS
