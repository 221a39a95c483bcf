"""Classification runs: their rows, the distinct texts of these, what was asked about them, and what was answered.

A text and its answers are only ever inserted: what a run has done is told by counters of its own row, which move in
the transactions that insert. That a text is asked once of a model is a primary key.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, CheckConstraint, Column, Index, Integer, LargeBinary, Numeric, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB, REAL
from sqlmodel import Field, SQLModel

from tieryard.store.schema.columns import time_column

_OPEN_SQL = "'receiving', 'running'"


def _counter() -> Any:
    return Column(Integer, nullable=False, server_default="0")


class Classification(SQLModel, table=True):
    """One run. `spec` is what was asked, in the order in which it was written. `ending` is the state that it will have
    when what is in flight has ended.

    `received` counts rows, `texts` distinct ones, `total` is the rows there are, once that is known. Texts up to
    `asked_to` were given to the model that takes the most of them, those up to `settled_to` have their last answer, and
    so have all rows up to `final_rows`; `failed` of these texts have none. `asked`, `answered` and `escalated` count
    questions: all, those that are over, and those to larger models; `forgiven` were over when it was resumed. `rate` is
    of answers a second.
    """

    __tablename__: ClassVar[str] = "classification"
    __table_args__ = (
        CheckConstraint(f"(state IN ({_OPEN_SQL})) = (finished_at IS NULL)", name="classification_final_is_finished"),
        CheckConstraint(
            f"state IN ({_OPEN_SQL}, 'completed', 'stopped', 'failed', 'cancelled')", name="classification_state_known"
        ),
        Index("classification_open", "id", postgresql_where=text("finished_at IS NULL")),
        Index("classification_by_tenant", "tenant_id", "id"),
        {"postgresql_with": {"fillfactor": 50}},
    )

    id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    api_key_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    spec: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    max_cost_usd: Decimal | None = Field(default=None, sa_column=Column(Numeric))
    state: str = Field(sa_column=Column(Text, nullable=False))
    ending: str | None = Field(default=None, sa_column=Column(Text))
    why: str | None = Field(default=None, sa_column=Column(Text))
    created_at: datetime = Field(sa_column=time_column(now=True))
    started_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    finished_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    total: int | None = None
    received: int = Field(default=0, sa_column=_counter())
    texts: int = Field(default=0, sa_column=_counter())
    asked_to: int = Field(default=0, sa_column=_counter())
    settled_to: int = Field(default=0, sa_column=_counter())
    final_rows: int = Field(default=0, sa_column=_counter())
    failed: int = Field(default=0, sa_column=_counter())
    asked: int = Field(default=0, sa_column=_counter())
    answered: int = Field(default=0, sa_column=_counter())
    escalated: int = Field(default=0, sa_column=_counter())
    forgiven: int = Field(default=0, sa_column=_counter())
    cost_usd: Decimal = Field(default=Decimal(0), sa_column=Column(Numeric, nullable=False, server_default="0"))
    models: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False, server_default=text("'{}'")))
    gate: dict[str, Any] | None = Field(default=None, sa_column=Column(JSONB))
    threshold: float | None = Field(default=None, sa_column=Column(DOUBLE_PRECISION))
    calibration: dict[str, Any] | None = Field(default=None, sa_column=Column(JSONB))
    rate: float = Field(default=0.0, sa_column=Column(REAL, nullable=False, server_default="0"))
    paced_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))


class ClassificationText(SQLModel, table=True):
    """A distinct text of a run, numbered from 1 in the order of first rows. `truth` is that of `first_row`; `digest` is
    BLAKE2b of the text's UTF-8, salted by the run."""

    __tablename__: ClassVar[str] = "classification_text"
    __table_args__ = (
        # The digest first: by statistics that know nothing of a new run, an index that begins with the run would do as
        # well for whoever looks for a number as the primary key.
        Index("classification_text_by_digest", "digest", "classification_id", unique=True),
        Index(
            "classification_text_with_truth",
            "classification_id",
            "text_no",
            postgresql_where=text("truth IS NOT NULL"),
        ),
    )

    classification_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    text_no: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    first_row: int = Field(sa_column=Column(Integer, nullable=False))
    digest: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    body: str = Field(sa_column=Column(Text, nullable=False))
    truth: list[str] | None = Field(default=None, sa_column=Column(ARRAY(Text)))


class ClassificationRow(SQLModel, table=True):
    """A row, numbered from 1, and the text that it has."""

    __tablename__: ClassVar[str] = "classification_row"

    classification_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    row_no: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    text_no: int = Field(sa_column=Column(Integer, nullable=False))


class ClassificationPart(SQLModel, table=True):
    """Texts that were asked together, as a batch: the job of its n-th text is `batch_id + n`. `collected` of them have
    been read, from the first on. `worst_usd` is the most that each slice of them could cost. `followed`: what of a
    first part was to be escalated has been asked."""

    __tablename__: ClassVar[str] = "classification_part"
    __table_args__ = (CheckConstraint("collected <= texts", name="classification_part_not_more_than_all"),)

    classification_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    part_no: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    stage: str = Field(sa_column=Column(Text, nullable=False))
    batch_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    text_nos: list[int] = Field(sa_column=Column(ARRAY(Integer), nullable=False))
    texts: int
    worst_usd: list[Decimal] | None = Field(default=None, sa_column=Column(ARRAY(Numeric)))
    collected: int = Field(default=0, sa_column=_counter())
    followed: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    created_at: datetime = Field(sa_column=time_column(now=True))


class ClassificationAnswer(SQLModel, table=True):
    """What one model made of one text: labels, or the error that kept it from any. `model` is the deployment that
    answered, `cost_usd` what the ledger says of the job."""

    __tablename__: ClassVar[str] = "classification_answer"

    classification_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    text_no: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    stage: str = Field(sa_column=Column(Text, primary_key=True))
    job_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    labels: list[str] | None = Field(default=None, sa_column=Column(ARRAY(Text)))
    confidence: float | None = Field(default=None, sa_column=Column(DOUBLE_PRECISION))
    model: str | None = Field(default=None, sa_column=Column(Text))
    cost_usd: Decimal = Field(sa_column=Column(Numeric, nullable=False))
    error: str | None = Field(default=None, sa_column=Column(Text))
