"""What the fleet is: its catalogs, tenants and their keys, its processes."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from sqlalchemy import BigInteger, Column, Identity, LargeBinary, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Field, SQLModel

from tieryard.store.schema.columns import time_column


class CatalogVersion(SQLModel, table=True):
    """A catalog that was applied, as its file was; the newest row is in force. `hash` is as the software of that day
    read it. `rolled_back_to` is the version whose body this applies again."""

    __tablename__: ClassVar[str] = "catalog_version"

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    hash: str = Field(sa_column=Column(Text, nullable=False))
    body: str = Field(sa_column=Column(Text, nullable=False))
    applied_at: datetime = Field(sa_column=time_column(now=True))
    note: str | None = Field(default=None, sa_column=Column(Text))
    rolled_back_to: int | None = Field(default=None, sa_column=Column(BigInteger))


class Tenant(SQLModel, table=True):
    """Who owns rows."""

    __tablename__: ClassVar[str] = "tenant"

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    created_at: datetime = Field(sa_column=time_column(now=True))
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
    created_at: datetime = Field(sa_column=time_column(now=True))
    revoked_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))


class IdCounter(SQLModel, table=True):
    """The next free id of a kind; blocks are reserved by one UPDATE, so they are contiguous."""

    __tablename__: ClassVar[str] = "id_counter"
    __table_args__ = {"postgresql_with": {"fillfactor": 10}}

    name: str = Field(sa_column=Column(Text, primary_key=True))
    next: int = Field(sa_column=Column(BigInteger, nullable=False))


class Worker(SQLModel, table=True):
    """A process that holds a lease: one heartbeat for all its jobs. `stopped_at` set means it holds nothing.

    `catalog_version` is the one that it goes by, empty where it follows none, and `catalog_fault` what keeps it from
    the newest; both as of its last heartbeat. `place` is where an infer process stands, of which one at a time is
    rented.
    """

    __tablename__: ClassVar[str] = "worker"
    __table_args__ = {"postgresql_with": {"fillfactor": 50}}

    id: int = Field(sa_column=Column(BigInteger, Identity(), primary_key=True))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    host: str = Field(sa_column=Column(Text, nullable=False))
    pid: int = Field(sa_column=Column(BigInteger, nullable=False))
    started_at: datetime = Field(sa_column=time_column(now=True))
    lease_until: datetime = Field(sa_column=time_column())
    stopped_at: datetime | None = Field(default=None, sa_column=time_column(nullable=True))
    catalog_version: int | None = Field(default=None, sa_column=Column(BigInteger))
    catalog_fault: str | None = Field(default=None, sa_column=Column(Text))
    place: str | None = Field(default=None, sa_column=Column(Text))
