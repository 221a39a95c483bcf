"""What came of it: answers, times and scores."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB, REAL
from sqlmodel import Field, SQLModel

from tieryard.store.schema.columns import time_column


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
    __table_args__ = (
        Index("timing_by_end", "ended_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    fence: int = Field(primary_key=True)
    worker_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    claimed_at: datetime = Field(sa_column=time_column())
    ended_at: datetime = Field(sa_column=time_column(now=True))
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


class Outcome(SQLModel, table=True):
    """How good an answer was, by somebody's word, beside what was expected of it: `predicted` for this very prompt,
    None where the learned model had no word on it, and `rules_predicted` for any of its category. `quality_model` is
    the hash of the model that had."""

    __tablename__: ClassVar[str] = "outcome"
    __table_args__ = (
        CheckConstraint("score BETWEEN 0 AND 1", name="outcome_score_is_a_share"),
        Index("outcome_by_deployment", "deployment", "scored_at"),
        Index("outcome_by_model", "quality_model", "scored_at", postgresql_where=text("predicted IS NOT NULL")),
    )

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    source: str = Field(sa_column=Column(Text, primary_key=True))
    score: float = Field(sa_column=Column(REAL, nullable=False))
    predicted: float | None = Field(default=None, sa_column=Column(REAL))
    rules_predicted: float | None = Field(default=None, sa_column=Column(REAL))
    scored_at: datetime = Field(sa_column=time_column(now=True))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    category: str | None = Field(default=None, sa_column=Column(Text))
    quality_model: str | None = Field(default=None, sa_column=Column(Text))
