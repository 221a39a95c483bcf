"""Why a job went where it did: decisions, what they were made on, and what was tried beside them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, Identity, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from tieryard.store.schema.columns import time_column


class RoutingSnapshot(SQLModel, table=True):
    """What the router knew: catalog, measurements and load. Stored once, shared by the decisions made on it."""

    __tablename__: ClassVar[str] = "routing_snapshot"

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    taken_at: datetime = Field(sa_column=time_column(now=True))
    body: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))


class Decision(SQLModel, table=True):
    """Which deployment a job was given, from which features. `fence` is the job's at that time. `fallback` and
    `explored` are the router's words. `deferred`: the job has waited for a cheaper deployment; while it has none, it
    still does. `canary` is the candidate for whose canary it counts, on either side.
    """

    __tablename__: ClassVar[str] = "decision"
    __table_args__ = (
        Index("decision_by_time", "decided_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
        Index("decision_by_canary", "canary", "deployment", "decided_at", postgresql_where=text("canary IS NOT NULL")),
    )

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    fence: int = Field(primary_key=True)
    snapshot_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    decided_at: datetime = Field(sa_column=time_column(now=True))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    reason: str = Field(sa_column=Column(Text, nullable=False))
    features: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    fallback: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    explored: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    deferred: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    canary: str | None = Field(default=None, sa_column=Column(Text))


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
    copied_at: datetime = Field(sa_column=time_column(now=True))


class StepBack(SQLModel, table=True):
    """A time in which the router went by its rules, since measured outcomes contradicted the learned model; `until` is
    empty while it does. `quality_model` is that model's hash, which rows of old do not have."""

    __tablename__: ClassVar[str] = "step_back"

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    since: datetime = Field(sa_column=time_column(now=True))
    until: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    why: str = Field(sa_column=Column(Text, nullable=False))
    quality_model: str | None = Field(default=None, sa_column=Column(Text))
