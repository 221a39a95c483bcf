"""How good and how fast deployments are, as the fleet has measured; and what was promoted, or is on trial, by it."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, CheckConstraint, Column, Identity, Index, Integer, Numeric, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL
from sqlmodel import Field, SQLModel

from tieryard.store.schema.columns import time_column

_OPEN_SQL = "'queued', 'running'"


class Benchmark(SQLModel, table=True):
    """One run on one deployment. `spec` is what was asked, by its kind; `report` what it found. `fence` is its claim
    number, as a job's. `batch_id` is the batch by which its questions go through the fleet, where they do.
    `fingerprint` is what answered, as far as the server tells. `slot` is the time of the schedule that asked for it.
    """

    __tablename__: ClassVar[str] = "benchmark"
    __table_args__ = (
        CheckConstraint(f"(state IN ({_OPEN_SQL})) = (finished_at IS NULL)", name="benchmark_final_is_finished"),
        CheckConstraint("kind IN ('speed', 'capacity', 'quality', 'pairwise')", name="benchmark_kind_known"),
        Index("benchmark_open", "id", postgresql_where=text("finished_at IS NULL")),
        Index("benchmark_by_deployment", "deployment", "id"),
        Index("benchmark_by_slot", "schedule", "slot", "deployment", "golden_set_id", unique=True,
              postgresql_where=text("schedule IS NOT NULL"), postgresql_nulls_not_distinct=True),
    )  # fmt: skip

    id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str = Field(sa_column=Column(Text, nullable=False))
    spec: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    state: str = Field(sa_column=Column(Text, nullable=False, server_default="queued"))
    fence: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    worker_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    schedule: str | None = Field(default=None, sa_column=Column(Text))
    slot: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    golden_set_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    batch_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    callback_url: str | None = Field(default=None, sa_column=Column(Text))
    created_at: datetime = Field(sa_column=time_column(now=True))
    not_before: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    started_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    finished_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    cancelling_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    why: str | None = Field(default=None, sa_column=Column(Text))
    pinned: str | None = Field(default=None, sa_column=Column(Text))
    fingerprint: dict[str, Any] | None = Field(default=None, sa_column=Column(JSONB))
    regressed: str | None = Field(default=None, sa_column=Column(Text))
    report: dict[str, Any] | None = Field(default=None, sa_column=Column(JSONB))
    posting_ids: list[int] | None = Field(default=None, sa_column=Column(ARRAY(BigInteger)))


class BenchmarkProfile(SQLModel, table=True):
    """A dated profile: all figures of one run on one category."""

    __tablename__: ClassVar[str] = "profile"
    __table_args__ = (Index("profile_by_deployment", "deployment", "category", "measured_at"),)

    benchmark_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    category: str = Field(sa_column=Column(Text, primary_key=True))
    deployment: str = Field(sa_column=Column(Text, nullable=False))
    measured_at: datetime = Field(sa_column=time_column())
    figures: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))


class GoldenSet(SQLModel, table=True):
    """A set as it was imported: the same name with other content is another row, and the newest is meant by the
    name. `counts` are items by category."""

    __tablename__: ClassVar[str] = "golden_set"
    __table_args__ = (Index("golden_set_by_name", "name", "hash", unique=True),)

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False))
    hash: str = Field(sa_column=Column(Text, nullable=False))
    counts: dict[str, int] = Field(sa_column=Column(JSONB, nullable=False))
    imported_at: datetime = Field(sa_column=time_column(now=True))


class GoldenItem(SQLModel, table=True):
    """One item, as `tieryard.golden.Item` writes itself. Not JSONB, which would sort the fields of the schemas that
    answers are constrained to: models write them in that order."""

    __tablename__: ClassVar[str] = "golden_item"
    __table_args__ = (Index("golden_item_by_name", "set_id", "item_id", unique=True),)

    set_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    position: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    item_id: str = Field(sa_column=Column(Text, nullable=False))
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class GoldenScore(SQLModel, table=True):
    """An item's answer in one quality run. `score` is None where there was no answer, or no verdict, and `why` says
    why; `judge` is the deployment that judged, None for a scorer."""

    __tablename__: ClassVar[str] = "golden_score"
    __table_args__ = (CheckConstraint("score BETWEEN 0 AND 1", name="golden_score_is_a_share"),)

    benchmark_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    item_id: str = Field(sa_column=Column(Text, primary_key=True))
    category: str = Field(sa_column=Column(Text, nullable=False))
    input_hash: str = Field(sa_column=Column(Text, nullable=False))
    job_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    score: float | None = Field(default=None, sa_column=Column(REAL))
    why: str = Field(default="", sa_column=Column(Text, nullable=False, server_default=""))
    judge: str | None = Field(default=None, sa_column=Column(Text))
    counts: list[int] | None = Field(default=None, sa_column=Column(ARRAY(Integer)))
    latency_ms: float | None = Field(default=None, sa_column=Column(REAL))
    cost_usd: Decimal | None = Field(default=None, sa_column=Column(Numeric))


class HumanLabel(SQLModel, table=True):
    """What a person made of an answer, blind to whose it was."""

    __tablename__: ClassVar[str] = "human_label"
    __table_args__ = (CheckConstraint("score BETWEEN 0 AND 1", name="human_label_is_a_share"),)

    benchmark_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    item_id: str = Field(sa_column=Column(Text, primary_key=True))
    reviewer: str = Field(sa_column=Column(Text, primary_key=True))
    score: float = Field(sa_column=Column(REAL, nullable=False))
    labelled_at: datetime = Field(sa_column=time_column(now=True))


class Preference(SQLModel, table=True):
    """A judge's word on two answers to one item, asked in both orders: `a`, `b` or `tie` by who they are, not by where
    they stood; None where there was no verdict."""

    __tablename__: ClassVar[str] = "preference"

    benchmark_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    item_id: str = Field(sa_column=Column(Text, primary_key=True))
    category: str = Field(sa_column=Column(Text, nullable=False))
    forward: str | None = Field(default=None, sa_column=Column(Text))
    swapped: str | None = Field(default=None, sa_column=Column(Text))


class LiveVerdict(SQLModel, table=True):
    """A user's answer that was sent to a judge: once, and `question_id` is the judge's job. When its reply was read
    (`settled_at`) the score became an outcome, or `why` says why there is none."""

    __tablename__: ClassVar[str] = "live_verdict"
    __table_args__ = (Index("live_verdict_open", "question_id", postgresql_where=text("settled_at IS NULL")),)

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    judge: str = Field(sa_column=Column(Text, nullable=False))
    question_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    asked_at: datetime = Field(sa_column=time_column(now=True))
    settled_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    why: str | None = Field(default=None, sa_column=Column(Text))


class Promotion(SQLModel, table=True):
    """Categories in which a candidate was shown not worse than what serves, so that it takes jobs there. It holds for
    just this candidate: `pinned` is its model, revision and build as they were. The newest row of a candidate that has
    not ended is in force."""

    __tablename__: ClassVar[str] = "promotion"
    __table_args__ = (Index("promotion_in_force", "candidate", unique=True, postgresql_where=text("ended_at IS NULL")),)

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    candidate: str = Field(sa_column=Column(Text, nullable=False))
    serving: str = Field(sa_column=Column(Text, nullable=False))
    pinned: str = Field(sa_column=Column(Text, nullable=False))
    categories: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    verdict: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    note: str | None = Field(default=None, sa_column=Column(Text))
    promoted_at: datetime = Field(sa_column=time_column(now=True))
    ended_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    ended_why: str | None = Field(default=None, sa_column=Column(Text))


class Canary(SQLModel, table=True):
    """A candidate that takes a share of what would go to the serving deployment, in all categories or some, until
    `ended_at`."""

    __tablename__: ClassVar[str] = "canary"
    __table_args__ = (Index("canary_in_force", "candidate", unique=True, postgresql_where=text("ended_at IS NULL")),)

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    candidate: str = Field(sa_column=Column(Text, nullable=False))
    serving: str = Field(sa_column=Column(Text, nullable=False))
    pinned: str = Field(sa_column=Column(Text, nullable=False))
    categories: list[str] | None = Field(default=None, sa_column=Column(ARRAY(Text)))
    share: float = Field(sa_column=Column(REAL, nullable=False))
    started_at: datetime = Field(sa_column=time_column(now=True))
    ended_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    ended_why: str | None = Field(default=None, sa_column=Column(Text))
    breached: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    report: dict[str, Any] | None = Field(default=None, sa_column=Column(JSONB))
