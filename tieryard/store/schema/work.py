"""What is to be done: files, batches, jobs and their requests."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, LargeBinary, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import Field, SQLModel

from tieryard.job import FINAL, State
from tieryard.store.schema.columns import time_column

_FINAL_SQL = ", ".join(f"'{state}'" for state in sorted(FINAL))
_STATES_SQL = ", ".join(f"'{state}'" for state in State)


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
    created_at: datetime = Field(sa_column=time_column(now=True))
    expires_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    deleted_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))


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
    api_key_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    output_expires_s: int | None = None
    expanded_to: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    released_to: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    mark_to: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    mark_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    callback_url: str | None = Field(default=None, sa_column=Column(Text))
    created_at: datetime = Field(sa_column=time_column(now=True))
    deadline: datetime = Field(sa_column=time_column())
    expanded_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    cancelling_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    finalizing_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    finished_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    counts: dict[str, int] | None = Field(default=None, sa_column=Column(JSONB))
    outcome: str | None = Field(default=None, sa_column=Column(Text))
    fault: str | None = Field(default=None, sa_column=Column(Text))
    output_file_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    error_file_id: int | None = Field(default=None, sa_column=Column(BigInteger))


class Job(SQLModel, table=True):
    """One request for one completion.

    `ran_alone` is set before a suspect's lone start: only after it can one more worker death be its last. `attended`:
    its caller waits on a connection to the API process that runs it, so nobody else ever will. `prefix_key` is what
    it shares with jobs that begin alike, from when it is routed; `api_key_id` the key that it came with, if any.
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
    api_key_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    prefix_key: int | None = Field(default=None, sa_column=Column(BigInteger))
    created_at: datetime = Field(sa_column=time_column(now=True))
    deadline: datetime = Field(sa_column=time_column())
    nudge_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    not_before: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    claimed_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    finished_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    tier: str = Field(sa_column=Column(Text, nullable=False))
    state: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    category: str | None = Field(default=None, sa_column=Column(Text))
    stop_requested: str | None = Field(default=None, sa_column=Column(Text))


class Idempotency(SQLModel, table=True):
    """What an Idempotency-Key has made, for a day. Inserted with it, in one transaction: so there is one."""

    __tablename__: ClassVar[str] = "idempotency"
    __table_args__ = (Index("idempotency_by_age", "created_at"),)

    tenant_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    key: str = Field(sa_column=Column(Text, primary_key=True))
    fingerprint: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    subject_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    created_at: datetime = Field(sa_column=time_column(now=True))
