"""The tables, declared with SQLModel. Migrations in `migrations/` make them; a test holds the two equal.

Shape follows the write path. `job` is narrow, with room left on each page (fillfactor 40), and the columns
that change (state, fence, worker, deployment) are in no index and no index predicate: so classify and claim
are HOT updates that touch one page and no index. Request bodies live in `line` and answers in `result`.
The hot tables carry no foreign keys: each would lock and look up a parent row per insert, and every row is
written by one statement that has just seen its parent.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL
from sqlmodel import Field, SQLModel

from tieryard.job import FINAL, State

_FINAL_SQL = ", ".join(f"'{state}'" for state in sorted(FINAL))
_STATES_SQL = ", ".join(f"'{state}'" for state in State)


def _time(*, nullable: bool = False, now: bool = False) -> Any:
    return Column(DateTime(timezone=True), nullable=nullable, server_default=func.now() if now else None)


class CatalogVersion(SQLModel, table=True):
    """A catalog that was applied, as its file was; the newest row is in force. `hash` is as the software of that day
    read it. `rolled_back_to` is the version whose body this applies again."""

    __tablename__: ClassVar[str] = "catalog_version"

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    hash: str = Field(sa_column=Column(Text, nullable=False))
    body: str = Field(sa_column=Column(Text, nullable=False))
    applied_at: datetime = Field(sa_column=_time(now=True))
    note: str | None = Field(default=None, sa_column=Column(Text))
    rolled_back_to: int | None = Field(default=None, sa_column=Column(BigInteger))


class Tenant(SQLModel, table=True):
    """Who owns rows."""

    __tablename__: ClassVar[str] = "tenant"

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    created_at: datetime = Field(sa_column=_time(now=True))
    max_enqueued_tokens: int | None = Field(default=None, sa_column=Column(BigInteger))


class ApiKey(SQLModel, table=True):
    """A bearer key: only its SHA-256 is kept, and a prefix to tell keys apart by. Limits that are empty do not bind."""

    __tablename__: ClassVar[str] = "api_key"

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    prefix: str = Field(sa_column=Column(Text, nullable=False))
    digest: bytes = Field(sa_column=Column(LargeBinary, nullable=False, unique=True))
    scopes: list[str] = Field(
        sa_column=Column(ARRAY(Text), nullable=False, server_default=text("'{infer,batch,read}'::text[]"))
    )
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    created_at: datetime = Field(sa_column=_time(now=True))
    revoked_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))


class IdCounter(SQLModel, table=True):
    """The next free id of a kind; blocks are reserved by one UPDATE, so they are contiguous."""

    __tablename__: ClassVar[str] = "id_counter"
    __table_args__ = {"postgresql_with": {"fillfactor": 10}}

    name: str = Field(sa_column=Column(Text, primary_key=True))
    next: int = Field(sa_column=Column(BigInteger, nullable=False))


class Worker(SQLModel, table=True):
    """A process that holds a lease: one heartbeat for all its jobs. `stopped_at` set means it holds nothing."""

    __tablename__: ClassVar[str] = "worker"
    __table_args__ = {"postgresql_with": {"fillfactor": 50}}

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    host: str = Field(sa_column=Column(Text, nullable=False))
    pid: int = Field(sa_column=Column(BigInteger, nullable=False))
    started_at: datetime = Field(sa_column=_time(now=True))
    lease_until: datetime = Field(sa_column=_time())
    stopped_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))


class Line(SQLModel, table=True):
    """A request body, as the caller wrote it: a line of a file or list, or line 1 of a single job's own source."""

    __tablename__: ClassVar[str] = "line"
    __table_args__ = (Index("line_by_hash", "hash", postgresql_where=text("hash IS NOT NULL")),)

    source_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    line_no: int = Field(primary_key=True)
    body: str = Field(sa_column=Column(Text, nullable=False))
    hash: bytes | None = Field(default=None, sa_column=Column(LargeBinary))


class File(SQLModel, table=True):
    """A file as its owner sees it. An uploaded one is the rows of `line` under its id, a blank line too.

    A batch's output and errors are files without lines: they are read from its jobs. `bytes` is the exact length of
    the content either way. `duplicates` are the lines whose custom_id stands above them already, and `first_fault`
    says what is wrong when no line is a JSON object.
    """

    __tablename__: ClassVar[str] = "file"
    __table_args__ = (
        Index("file_by_tenant", "tenant_id", "id"),
        Index("file_expiring", "expires_at", postgresql_where=text("deleted_at IS NULL AND expires_at IS NOT NULL")),
    )

    id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    purpose: str = Field(sa_column=Column(Text, nullable=False))
    filename: str = Field(sa_column=Column(Text, nullable=False))
    bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    lines: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    requests: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    ends_open: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    duplicates: list[int] | None = Field(default=None, sa_column=Column(ARRAY(Integer)))
    first_fault: str | None = Field(default=None, sa_column=Column(Text))
    batch_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    created_at: datetime = Field(sa_column=_time(now=True))
    expires_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    deleted_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))


class Batch(SQLModel, table=True):
    """A list or file of jobs. Job of line n has id `first_job_id + n - 1`; a blank line has none.

    `expanded_to` and `released_to` count lines: those that have job rows, and those given to the tier queue.
    `mark_to` / `mark_at` remember an earlier `released_to`, by which rescue tells lost nudges from waiting ones.
    `endpoint` is set for a file in OpenAI's format; `counts` (jobs by state) when all jobs are final, `outcome` when
    the batch is.
    """

    __tablename__: ClassVar[str] = "batch"
    __table_args__ = (
        CheckConstraint("(outcome IS NOT NULL) = (finished_at IS NOT NULL)", name="batch_finished_has_outcome"),
        Index("batch_open", "id", postgresql_where=text("finished_at IS NULL")),
        Index("batch_by_tenant", "tenant_id", "id"),
        Index("batch_by_source", "source_id"),
        {"postgresql_with": {"fillfactor": 50}},
    )

    id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    tier: str = Field(sa_column=Column(Text, nullable=False))
    source_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    first_job_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    total: int
    requests: int
    endpoint: str | None = Field(default=None, sa_column=Column(Text))
    window: str | None = Field(default=None, sa_column=Column(Text))
    notes: dict[str, str] | None = Field(default=None, sa_column=Column("metadata", JSONB))
    reuse: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    enqueued_tokens: int | None = Field(default=None, sa_column=Column(BigInteger))
    output_expires_s: int | None = None
    expanded_to: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    released_to: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    mark_to: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    mark_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    callback_url: str | None = Field(default=None, sa_column=Column(Text))
    created_at: datetime = Field(sa_column=_time(now=True))
    deadline: datetime = Field(sa_column=_time())
    expanded_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    cancelling_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    finalizing_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    finished_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    counts: dict[str, int] | None = Field(default=None, sa_column=Column(JSONB))
    outcome: str | None = Field(default=None, sa_column=Column(Text))
    fault: str | None = Field(default=None, sa_column=Column(Text))
    output_file_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    error_file_id: int | None = Field(default=None, sa_column=Column(BigInteger))


class Job(SQLModel, table=True):
    """One request for one completion.

    `ran_alone` is set before a suspect's lone start: only after it can one more worker death be its last. `attended`:
    its caller waits on a connection to the API process that runs it, so nobody else ever will. `prefix_key` is what
    it shares with jobs that begin alike, from when it is routed.
    """

    __tablename__: ClassVar[str] = "job"
    __table_args__ = (
        CheckConstraint(f"state IN ({_STATES_SQL})", name="job_state_known"),
        CheckConstraint(f"(state IN ({_FINAL_SQL})) = (finished_at IS NOT NULL)", name="job_final_is_finished"),
        CheckConstraint("(state = 'running') <= (worker_id IS NOT NULL)", name="job_running_has_worker"),
        # The one work index: what is not final, in a batch or (batch_id NULL) single.
        Index("job_work", "batch_id", "id", postgresql_where=text("finished_at IS NULL")),
        Index("job_by_tenant", "tenant_id", "id"),
        {"postgresql_with": {"fillfactor": 40}},
    )

    id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    batch_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    source_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    line_no: int
    fence: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    attempts: int = Field(default=0, sa_column=Column(SmallInteger, nullable=False, server_default="0"))
    worker_deaths: int = Field(default=0, sa_column=Column(SmallInteger, nullable=False, server_default="0"))
    wants_callback: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    ran_alone: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    attended: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    enqueued_tokens: int | None = None
    worker_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    prefix_key: int | None = Field(default=None, sa_column=Column(BigInteger))
    created_at: datetime = Field(sa_column=_time(now=True))
    deadline: datetime = Field(sa_column=_time())
    nudge_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    not_before: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    claimed_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    finished_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    tier: str = Field(sa_column=Column(Text, nullable=False))
    state: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    category: str | None = Field(default=None, sa_column=Column(Text))
    stop_requested: str | None = Field(default=None, sa_column=Column(Text))


class RoutingSnapshot(SQLModel, table=True):
    """What the router knew: catalog, measurements and load. Stored once, shared by the decisions made on it."""

    __tablename__: ClassVar[str] = "routing_snapshot"

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    taken_at: datetime = Field(sa_column=_time(now=True))
    body: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))


class Decision(SQLModel, table=True):
    """Which deployment a job was given, from which features. `fence` is the job's at that time. `fallback` and
    `explored` are the router's words. `deferred`: the job has waited for a cheaper deployment; while it has none, it
    still does.
    """

    __tablename__: ClassVar[str] = "decision"
    __table_args__ = (
        Index("decision_by_time", "decided_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    fence: int = Field(primary_key=True)
    snapshot_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    decided_at: datetime = Field(sa_column=_time(now=True))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    reason: str = Field(sa_column=Column(Text, nullable=False))
    features: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    fallback: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    explored: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    deferred: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})


class Shadow(SQLModel, table=True):
    """A copy of a job that another deployment runs too; its answer is nobody's but the operator's."""

    __tablename__: ClassVar[str] = "shadow"
    __table_args__ = (
        Index("shadow_by_original", "of_job_id", "deployment", unique=True),
        Index(
            "shadow_by_time",
            "copied_at",
            postgresql_using="brin",
            postgresql_with={"autosummarize": "on"},
        ),
    )

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    of_job_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    deployment: str = Field(sa_column=Column(Text, nullable=False))
    copied_at: datetime = Field(sa_column=_time(now=True))


class Outcome(SQLModel, table=True):
    """How good an answer was, by somebody's word, beside what was expected of it: `predicted` for this very prompt,
    None where the learned model had no word on it, and `rules_predicted` for any of its category."""

    __tablename__: ClassVar[str] = "outcome"
    __table_args__ = (
        CheckConstraint("score BETWEEN 0 AND 1", name="outcome_score_is_a_share"),
        Index("outcome_predicted", "scored_at", postgresql_where=text("predicted IS NOT NULL")),
    )

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    source: str = Field(sa_column=Column(Text, primary_key=True))
    score: float = Field(sa_column=Column(REAL, nullable=False))
    predicted: float | None = Field(default=None, sa_column=Column(REAL))
    rules_predicted: float | None = Field(default=None, sa_column=Column(REAL))
    scored_at: datetime = Field(sa_column=_time(now=True))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    category: str | None = Field(default=None, sa_column=Column(Text))


class StepBack(SQLModel, table=True):
    """A time in which the router went by its rules, since measured outcomes contradicted the learned model; `until` is
    empty while it does."""

    __tablename__: ClassVar[str] = "step_back"

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    since: datetime = Field(sa_column=_time(now=True))
    until: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    why: str = Field(sa_column=Column(Text, nullable=False))


class Result(SQLModel, table=True):
    """A final job's answer, or why there is none. `extra` holds what is not text: tool calls, logprobs, embeddings.

    `reused_from` is the job whose answer this is, where the batch asked for that.
    """

    __tablename__: ClassVar[str] = "result"

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    output: str | None = Field(default=None, sa_column=Column(Text))
    finish_reason: str | None = Field(default=None, sa_column=Column(Text))
    error_kind: str | None = Field(default=None, sa_column=Column(Text))
    error: str | None = Field(default=None, sa_column=Column(Text))
    extra: dict[str, Any] | None = Field(default=None, sa_column=Column(JSONB))
    reused_from: int | None = Field(default=None, sa_column=Column(BigInteger))


class Timing(SQLModel, table=True):
    """One start of a job, under one fence: how it ended, how long it took, the tokens it used."""

    __tablename__: ClassVar[str] = "timing"
    __table_args__ = (Index("timing_by_end", "ended_at", postgresql_using="brin"),)

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    fence: int = Field(primary_key=True)
    worker_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    claimed_at: datetime = Field(sa_column=_time())
    ended_at: datetime = Field(sa_column=_time(now=True))
    wait_ms: float = Field(sa_column=Column(REAL, nullable=False))
    ttft_ms: float | None = Field(default=None, sa_column=Column(REAL))
    latency_ms: float | None = Field(default=None, sa_column=Column(REAL))
    prompt_tokens: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    cached_tokens: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    completion_tokens: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    deployment: str = Field(sa_column=Column(Text, nullable=False))
    outcome: str = Field(sa_column=Column(Text, nullable=False))
    error: str | None = Field(default=None, sa_column=Column(Text))
    fingerprint: str | None = Field(default=None, sa_column=Column(Text))
    revision: str | None = Field(default=None, sa_column=Column(Text))


class Idempotency(SQLModel, table=True):
    """What an Idempotency-Key has made, for a day. Inserted with it, in one transaction: so there is one."""

    __tablename__: ClassVar[str] = "idempotency"
    __table_args__ = (Index("idempotency_by_age", "created_at"),)

    tenant_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    key: str = Field(sa_column=Column(Text, primary_key=True))
    fingerprint: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    subject_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    created_at: datetime = Field(sa_column=_time(now=True))


class Ledger(SQLModel, table=True):
    """Money, append-only: nothing else says what something cost. One row per (job, fence, kind)."""

    __tablename__: ClassVar[str] = "ledger"
    __table_args__ = (CheckConstraint("cost_usd >= 0", name="ledger_cost_not_negative"),)

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    fence: int = Field(primary_key=True)
    kind: str = Field(sa_column=Column(Text, primary_key=True))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    batch_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    posted_at: datetime = Field(sa_column=_time(now=True))
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal = Field(sa_column=Column(Numeric, nullable=False))
    tier: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str = Field(sa_column=Column(Text, nullable=False))
    category: str | None = Field(default=None, sa_column=Column(Text))
    catalog: str = Field(sa_column=Column(Text, nullable=False))


class Outbox(SQLModel, table=True):
    """A callback owed, written with the fact it tells of. Delivered, given up, or due at `next_at`.

    `url` is a batch's; a job's stands in its line, where it is read when it is due: no statement that ends jobs
    parses what a caller wrote.
    """

    __tablename__: ClassVar[str] = "outbox"
    __table_args__ = (
        Index("outbox_due", "next_at", postgresql_where=text("settled_at IS NULL")),
        {"postgresql_with": {"fillfactor": 70}},
    )

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    event: str = Field(sa_column=Column(Text, nullable=False))
    subject_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    url: str | None = Field(default=None, sa_column=Column(Text))
    created_at: datetime = Field(sa_column=_time(now=True))
    next_at: datetime = Field(sa_column=_time(now=True))
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    last_status: int | None = None
    last_error: str | None = Field(default=None, sa_column=Column(Text))
    delivered_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    settled_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
