"""What everything costs: the ledger, prices and rent by their days, budgets and what is reserved of them, quotes."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    Identity,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import Field, SQLModel

from tieryard.store.schema.columns import time_column


def _usd(*, nullable: bool = False, default: str | None = None) -> Any:
    return Column(Numeric, nullable=nullable, server_default=default)


class Ledger(SQLModel, table=True):
    """Money, append-only: nothing else says what something cost. One row per (job, fence, kind); the kinds are those of
    `tieryard.costs.windows.Kind`, and `job_id` is a benchmark's or a rent window's where the row is of one.

    `window_id` is the rent window that a row belongs to: the rows of a closed one sum to its rent. `large_usd` and
    `hosted_usd` are what the same tokens would have cost at the catalog's baseline and at the cheapest hosted price.
    `note` says why, of an adjustment by hand.
    """

    __tablename__: ClassVar[str] = "ledger"
    __table_args__ = (
        CheckConstraint("cost_usd >= 0 OR kind IN ('idle', 'adjustment')", name="ledger_cost_not_negative"),
        Index("ledger_by_window", "window_id", postgresql_where=text("window_id IS NOT NULL")),
        Index("ledger_by_day", "posted_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )

    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    fence: int = Field(primary_key=True)
    kind: str = Field(sa_column=Column(Text, primary_key=True))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    api_key_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    batch_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    window_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    posted_at: datetime = Field(sa_column=time_column(now=True))
    prompt_tokens: int
    cached_tokens: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    completion_tokens: int
    cost_usd: Decimal = Field(sa_column=_usd())
    large_usd: Decimal | None = Field(default=None, sa_column=_usd(nullable=True))
    hosted_usd: Decimal | None = Field(default=None, sa_column=_usd(nullable=True))
    tier: str | None = Field(default=None, sa_column=Column(Text))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    category: str | None = Field(default=None, sa_column=Column(Text))
    catalog: str = Field(sa_column=Column(Text, nullable=False))
    note: str | None = Field(default=None, sa_column=Column(Text))


class Price(SQLModel, table=True):
    """A row of a price book, append-only. It holds from its first day until the next row of the same thing; one whose
    prices are all empty says that the thing is offered no more."""

    __tablename__: ClassVar[str] = "price"
    __table_args__ = (
        UniqueConstraint("kind", "provider", "name", "region", "purchase", "valid_from", name="price_one_a_day"),
    )

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    provider: str = Field(sa_column=Column(Text, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    region: str = Field(default="", sa_column=Column(Text, nullable=False, server_default=""))
    purchase: str = Field(default="", sa_column=Column(Text, nullable=False, server_default=""))
    valid_from: date = Field(sa_column=Column(Date, nullable=False))
    input_usd_per_1m: Decimal | None = Field(default=None, sa_column=_usd(nullable=True))
    output_usd_per_1m: Decimal | None = Field(default=None, sa_column=_usd(nullable=True))
    cached_input_usd_per_1m: Decimal | None = Field(default=None, sa_column=_usd(nullable=True))
    usd_per_hour: Decimal | None = Field(default=None, sa_column=_usd(nullable=True))
    gpus: int | None = None
    source: str = Field(sa_column=Column(Text, nullable=False))
    read_on: date = Field(sa_column=Column(Date, nullable=False))
    status: str = Field(sa_column=Column(Text, nullable=False))
    loaded_at: datetime = Field(sa_column=time_column(now=True))


class RentWindow(SQLModel, table=True):
    """What is rented at one place at one price, from a start to a stop: a replica of a deployment, or, where
    `deployment` is empty, a host that serves no model. Its `id` is the job_id of the rows that are its own.

    `served_at` is when its engine first served, `closed_at` when what was left of its rent was posted. The standard
    price is what its jobs are charged at; `measured_by` are the speed runs that it comes from.
    """

    __tablename__: ClassVar[str] = "rent_window"
    __table_args__ = (
        CheckConstraint("stopped_at >= started_at", name="rent_window_stops_after_its_start"),
        CheckConstraint("(closed_at IS NOT NULL) <= (stopped_at IS NOT NULL)", name="rent_window_closed_has_stopped"),
        CheckConstraint("usd_per_hour >= 0", name="rent_window_rent_not_negative"),
        Index("rent_window_standing", "place", unique=True, postgresql_where=text("stopped_at IS NULL")),
        Index("rent_window_by_worker", "worker_id", postgresql_where=text("stopped_at IS NULL")),
        Index("rent_window_unclosed", "stopped_at", postgresql_where=text("closed_at IS NULL")),
        Index("rent_window_by_time", "started_at"),
        {"postgresql_with": {"fillfactor": 50}},
    )

    id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    place: str = Field(sa_column=Column(Text, nullable=False))
    worker_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    started_at: datetime = Field(sa_column=time_column(now=True))
    served_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    stopped_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    closed_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    usd_per_hour: Decimal = Field(sa_column=_usd())
    gpus: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    purchase: str = Field(sa_column=Column(Text, nullable=False))
    price_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    input_usd_per_1m: Decimal = Field(sa_column=_usd(default="0"))
    output_usd_per_1m: Decimal = Field(sa_column=_usd(default="0"))
    measured_by: list[int] | None = Field(default=None, sa_column=Column(ARRAY(BigInteger)))
    catalog: str = Field(sa_column=Column(Text, nullable=False))


class Budget(SQLModel, table=True):
    """What a tenant, or one of its keys, may spend in a UTC day or month. A hard one refuses what it cannot cover."""

    __tablename__: ClassVar[str] = "budget"
    __table_args__ = (
        CheckConstraint("period IN ('day', 'month')", name="budget_period_known"),
        CheckConstraint("limit_usd >= 0", name="budget_limit_not_negative"),
        UniqueConstraint(
            "tenant_id", "api_key_id", "period", name="budget_one_a_period", postgresql_nulls_not_distinct=True
        ),
    )

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    api_key_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    period: str = Field(sa_column=Column(Text, nullable=False))
    limit_usd: Decimal = Field(sa_column=_usd())
    hard: bool
    alert_url: str | None = Field(default=None, sa_column=Column(Text))
    created_at: datetime = Field(sa_column=time_column(now=True))


class BudgetPeriod(SQLModel, table=True):
    """One day or month of a budget: what is spent, by the ledger, and reserved for jobs that are not final. `told` is
    the highest mark, in per cent, that its owner has been told of."""

    __tablename__: ClassVar[str] = "budget_period"
    __table_args__ = {"postgresql_with": {"fillfactor": 50}}

    budget_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    starts_on: date = Field(sa_column=Column(Date, primary_key=True))
    reserved_usd: Decimal = Field(sa_column=_usd(default="0"))
    spent_usd: Decimal = Field(sa_column=_usd(default="0"))
    told: int = Field(default=0, sa_column=Column(SmallInteger, nullable=False, server_default="0"))


class Reservation(SQLModel, table=True):
    """The worst that jobs `first_job_id` to `first_job_id + n - 1` can cost, kept from a budget until all are final."""

    __tablename__: ClassVar[str] = "reservation"

    first_job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    budget_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    n: int = Field(sa_column=Column(Integer, nullable=False))
    starts_on: date = Field(sa_column=Column(Date, nullable=False))
    usd: Decimal = Field(sa_column=_usd())


class Quote(SQLModel, table=True):
    """What a batch was said to cost and take, tier by tier, before it ran. `batch_id` is the one that then did, `tier`
    where, `actual` what came of it."""

    __tablename__: ClassVar[str] = "quote"
    __table_args__ = (
        Index("quote_unsettled", "batch_id", postgresql_where=text("batch_id IS NOT NULL AND settled_at IS NULL")),
        Index("quote_by_tenant", "tenant_id", "id"),
        Index("quote_of_file", "file_id", "id", postgresql_where=text("file_id IS NOT NULL AND batch_id IS NULL")),
        Index("quote_settled", "settled_at", postgresql_where=text("settled_at IS NOT NULL")),
    )

    id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    file_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    requests: int
    prompt_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    offers: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    created_at: datetime = Field(sa_column=time_column(now=True))
    batch_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    tier: str | None = Field(default=None, sa_column=Column(Text))
    actual: dict[str, Any] | None = Field(default=None, sa_column=Column(JSONB))
    settled_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
