"""One pool of connections, for the written statements (psycopg) and for ordinary reads (SQLModel)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, cast

import psycopg
import sqlalchemy
from psycopg.rows import TupleRow
from sqlmodel import Session

from tieryard.errors import StoreError
from tieryard.ids import Run

Connection = psycopg.Connection[TupleRow]

_BLOCK = 64

_AWAY = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction)  # gone, or failed over
TOO_MUCH = (
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
    psycopg.errors.TooManyColumns,
    psycopg.errors.TooManyArguments,
)
"""SQLSTATE class 54: a statement's data is past what Postgres can do, now and whenever it is tried again. psycopg
counts these among the OperationalErrors all the same."""

CONNECT_ARGS: dict[str, Any] = {
    # A cached generic plan made while a table was empty would scan it for ever after. And a session of a host that
    # vanished must not keep its locks (the feeder's among them) for the two hours that TCP would give it.
    "options": "-c plan_cache_mode=force_custom_plan -c timezone=UTC "
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


def storable(text: str) -> str:
    """Text as Postgres can keep it: no NUL, no lone surrogates. For what callers or engines may have worded."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def storable_json(value: Any) -> Any:
    """The same of every text in a JSON value."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [storable_json(item) for item in value]
    if isinstance(value, dict):
        return {storable(name): storable_json(item) for name, item in value.items()}
    return value


def reserve_ids(connection: Connection, n: int) -> int:
    """As `Store.reserve_ids`, in this transaction. Until it is over nobody else gets an id: end it soon."""
    row = connection.execute(
        "INSERT INTO id_counter (name, next) VALUES ('id', 1 + %(n)s) "
        "ON CONFLICT (name) DO UPDATE SET next = id_counter.next + %(n)s RETURNING next - %(n)s",
        {"n": n},
    ).fetchone()
    assert row is not None
    return int(row[0])


class Store:
    """The database of one fleet. Connects on first use; safe to share between threads.

    With `lock_timeout_s` a statement that waits longer for a lock raises StoreError; with `timeout_s` one that takes
    longer, and a transaction that does nothing for so long ends.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 4,
        overflow: int = 16,
        lock_timeout_s: float | None = None,
        timeout_s: float | None = None,
    ) -> None:
        _, _, rest = url.partition("://")
        arguments = dict(CONNECT_ARGS)
        if lock_timeout_s is not None:
            arguments["options"] += f" -c lock_timeout={round(lock_timeout_s * 1000)}"
        if timeout_s is not None:
            for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
                arguments["options"] += f" -c {name}={round(timeout_s * 1000)}"
        self.url = f"postgresql://{rest}"
        self.engine = sqlalchemy.create_engine(
            f"postgresql+psycopg://{rest}",
            pool_size=pool_size,
            max_overflow=overflow,
            pool_pre_ping=True,
            connect_args=arguments,
        )
        self._block: Run = (0, 0)
        self._block_lock = threading.Lock()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A psycopg connection in a transaction: commits at the end, rolls back on an exception.

        Raises StoreError when Postgres is away; errors of a statement stay psycopg's.
        """
        try:
            pooled = self.engine.raw_connection()
        except (psycopg.OperationalError, sqlalchemy.exc.OperationalError, sqlalchemy.exc.TimeoutError) as error:
            raise StoreError(f"Postgres is away: {error}") from error
        try:
            yield cast("Connection", pooled.driver_connection)
            pooled.commit()
        except BaseException as error:
            if isinstance(error, _AWAY) and not isinstance(error, TOO_MUCH):
                pooled.invalidate()
                raise StoreError(f"Postgres went away: {error}") from error
            try:
                pooled.rollback()
            except psycopg.Error:  # the connection is gone too; what went wrong first is what matters
                pooled.invalidate()
            raise
        finally:
            pooled.close()

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """An SQLModel session for ordinary reads and small writes; commits at the end."""
        try:
            with Session(self.engine) as session, session.begin():
                yield session
        except (psycopg.OperationalError, sqlalchemy.exc.OperationalError, sqlalchemy.exc.TimeoutError) as error:
            raise StoreError(f"Postgres is away: {error}") from error

    def fetch(self, statement: str, parameters: dict[str, Any] | None = None) -> list[TupleRow]:
        """One statement in a transaction of its own."""
        with self.transaction() as connection:
            return connection.execute(statement, parameters).fetchall()

    def reserve_ids(self, n: int) -> int:
        """The first of `n` contiguous ids that nobody else will get."""
        with self.transaction() as connection:
            return reserve_ids(connection, n)

    def next_id(self) -> int:
        """One id, from a block that this process has reserved."""
        with self._block_lock:
            first, left = self._block
            if left == 0:
                first, left = self.reserve_ids(_BLOCK), _BLOCK
            self._block = (first + 1, left - 1)
            return first

    def close(self) -> None:
        self.engine.dispose()
