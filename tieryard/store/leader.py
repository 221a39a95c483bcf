"""Leadership by advisory lock: one process at a time does what must not be done twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg

from tieryard.errors import StoreError
from tieryard.store.connection import CONNECT_ARGS, Connection, Store


@contextlib.contextmanager
def lead(store: Store, role: str) -> Iterator[Connection | None]:
    """A connection that holds the role's lock, in autocommit; None when another process leads.

    The lock lives and dies with the connection, and the leader does its work on that very connection: so a
    leader that has lost the lock cannot write. Raises StoreError when Postgres is away.
    """
    try:
        with psycopg.connect(store.url, autocommit=True, **CONNECT_ARGS) as connection:
            row = connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [f"tieryard.{role}"]).fetchone()
            yield connection if row and row[0] else None
    except psycopg.OperationalError as error:
        raise StoreError(f"Postgres went away: {error}") from error
