"""Who is told of what happened, and how each delivery went."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, CheckConstraint, Column, Identity, Index, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL
from sqlmodel import Field, SQLModel

from tieryard.store.schema.columns import time_column

_FALSE = {"server_default": text("false")}


class Outbox(SQLModel, table=True):
    """Something that happened and is to be told, written with the fact itself. `fanned_at` is when deliveries were made
    of it: one for its own address, and one for each endpoint that listens.

    `data` is what is told beside the id, where it must be as it was then. `url` is the own address of a batch or
    benchmark; a job's stands in its line, where it is read when it is due: no statement that ends jobs parses what a
    caller wrote.
    """

    __tablename__: ClassVar[str] = "outbox"
    __table_args__ = (
        Index("outbox_unfanned", "tenant_id", "id", postgresql_where=text("fanned_at IS NULL")),
        {"postgresql_with": {"fillfactor": 70}},
    )

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    event: str = Field(sa_column=Column(Text, nullable=False))
    subject_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    url: str | None = Field(default=None, sa_column=Column(Text))
    data: dict[str, Any] | None = Field(default=None, sa_column=Column(JSONB))
    created_at: datetime = Field(sa_column=time_column(now=True))
    fanned_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))


class WebhookEndpoint(SQLModel, table=True):
    """An address that a tenant has registered, to be told of `events`, or of all where that is empty.

    `fleet`: it also hears of what is no tenant's, as benchmarks; only keys with the scope `benchmark` make such. The
    secrets are kept as they are, since each delivery is signed with them; the previous one signs too until its time is
    over. `failing_since` is the first failure after the last success.
    """

    __tablename__: ClassVar[str] = "webhook_endpoint"
    __table_args__ = (
        CheckConstraint("(disabled_at IS NULL) = (disabled_why IS NULL)", name="webhook_endpoint_disabled_says_why"),
        CheckConstraint(
            "(previous_secret IS NULL) = (previous_secret_until IS NULL)", name="webhook_endpoint_previous_ends"
        ),
        Index(
            "webhook_endpoint_enabled",
            "tenant_id",
            postgresql_where=text("disabled_at IS NULL AND deleted_at IS NULL"),
        ),
        Index("webhook_endpoint_by_tenant", "tenant_id", "id"),
        {"postgresql_with": {"fillfactor": 50}},
    )

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    url: str = Field(sa_column=Column(Text, nullable=False))
    events: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False, server_default=text("'{}'")))
    description: str | None = Field(default=None, sa_column=Column(Text))
    include_result: bool = Field(default=False, sa_column_kwargs=_FALSE)
    fleet: bool = Field(default=False, sa_column_kwargs=_FALSE)
    secret: str = Field(sa_column=Column(Text, nullable=False))
    previous_secret: str | None = Field(default=None, sa_column=Column(Text))
    previous_secret_until: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    created_at: datetime = Field(sa_column=time_column(now=True))
    failing_since: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    disabled_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    disabled_why: str | None = Field(default=None, sa_column=Column(Text))
    deleted_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))


class DeliveryLane(SQLModel, table=True):
    """What is kept apart from all else: an endpoint, or the server (scheme, host and port) of a tenant's callback
    addresses. `failures` are its attempts in a row that failed; a `steady` one answered last, well and soon; nothing
    is sent before `resting_until`."""

    __tablename__: ClassVar[str] = "delivery_lane"
    __table_args__ = (
        CheckConstraint("(endpoint_id IS NULL) <> (origin IS NULL)", name="delivery_lane_has_one_owner"),
        UniqueConstraint("endpoint_id", name="delivery_lane_of_endpoint"),
        UniqueConstraint("tenant_id", "origin", name="delivery_lane_of_origin"),
        {"postgresql_with": {"fillfactor": 50}},
    )

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    endpoint_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    origin: str | None = Field(default=None, sa_column=Column(Text))
    failures: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    steady: bool = Field(default=False, sa_column_kwargs=_FALSE)
    resting_until: datetime | None = Field(default=None, sa_column=time_column(nullable=True))


class Delivery(SQLModel, table=True):
    """One event on its way to one receiver: due at `next_at`, then settled: delivered, or given up.

    An endpoint's address is read when it is due, so `url` is only a callback address. `attempts` counts them all;
    `failures` those since it was `first_due_at`, which a redelivery sets anew.
    """

    __tablename__: ClassVar[str] = "delivery"
    __table_args__ = (
        CheckConstraint("(endpoint_id IS NULL) <> (url IS NULL)", name="delivery_has_one_receiver"),
        CheckConstraint("(delivered_at IS NOT NULL) <= (settled_at IS NOT NULL)", name="delivery_delivered_is_settled"),
        UniqueConstraint("outbox_id", "endpoint_id", name="delivery_once", postgresql_nulls_not_distinct=True),
        Index("delivery_due", "lane_id", "next_at", postgresql_where=text("settled_at IS NULL")),
        Index("delivery_by_tenant", "tenant_id", "id"),
        Index("delivery_by_time", "created_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
        Index("delivery_by_endpoint", "endpoint_id", "id", postgresql_where=text("endpoint_id IS NOT NULL")),
        Index(
            "delivery_failed",
            "tenant_id",
            "id",
            postgresql_where=text("settled_at IS NOT NULL AND delivered_at IS NULL"),
        ),
        {"postgresql_with": {"fillfactor": 70}},
    )

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    tenant_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    outbox_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    lane_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    endpoint_id: int | None = Field(default=None, sa_column=Column(BigInteger))
    url: str | None = Field(default=None, sa_column=Column(Text))
    created_at: datetime = Field(sa_column=time_column(now=True))
    first_due_at: datetime = Field(sa_column=time_column(now=True))
    next_at: datetime = Field(sa_column=time_column(now=True))
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    failures: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    last_status: int | None = None
    last_error: str | None = Field(default=None, sa_column=Column(Text))
    delivered_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    settled_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))


class DeliveryAttempt(SQLModel, table=True):
    """One attempt at a delivery: what the receiver answered, of which the first 1 kB is kept, or why it did not."""

    __tablename__: ClassVar[str] = "delivery_attempt"

    delivery_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    attempt: int = Field(primary_key=True)
    at: datetime = Field(sa_column=time_column(now=True))
    status: int | None = None
    latency_ms: float | None = Field(default=None, sa_column=Column(REAL))
    error: str | None = Field(default=None, sa_column=Column(Text))
    answer: str | None = Field(default=None, sa_column=Column(Text))
    address: str | None = Field(default=None, sa_column=Column(Text))
