"""Idempotency keys: what a key has made, written in the transaction that made it.

Two requests with one key meet at the primary key: the later one waits for the earlier one's commit, finds the row,
and is told what there is. So there is no moment at which both could make something, and nothing to take over from a
process that died in between.
"""

from __future__ import annotations

from dataclasses import dataclass

from tieryard.errors import ConflictError, TieryardError
from tieryard.store.connection import Connection, Store

KEPT_H = 24


@dataclass(frozen=True, slots=True)
class Mark:
    """A caller's key, and a digest of what was asked with it: method, path and body."""

    tenant_id: int
    key: str
    fingerprint: bytes


class AlreadyMadeError(TieryardError):
    """This key has made something: the transaction must roll back, and the caller gets what there is."""

    def __init__(self, subject_id: int) -> None:
        super().__init__(f"made already: {subject_id}")
        self.subject_id = subject_id


def claim(connection: Connection, mark: Mark | None, subject_id: int) -> None:
    """In the transaction that makes `subject_id`. Raises AlreadyMadeError; ConflictError for a key used otherwise."""
    if mark is None:
        return
    made = connection.execute(
        "INSERT INTO idempotency (tenant_id, key, fingerprint, subject_id) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT DO NOTHING RETURNING subject_id",
        [mark.tenant_id, mark.key, mark.fingerprint, subject_id],
    ).fetchone()
    if made is None and (found := _find(connection, mark)) is not None:
        raise AlreadyMadeError(found)


def find(store: Store, mark: Mark | None) -> int | None:
    """What the key has made, if anything. Raises ConflictError when it was used for another request."""
    if mark is None:
        return None
    with store.transaction() as connection:
        return _find(connection, mark)


def forget_old(connection: Connection) -> None:
    """Keys are kept for a day."""
    connection.execute("DELETE FROM idempotency WHERE created_at < now() - %s * interval '1 hour'", [KEPT_H])


def _find(connection: Connection, mark: Mark) -> int | None:
    row = connection.execute(
        "SELECT subject_id, fingerprint FROM idempotency WHERE tenant_id = %s AND key = %s", [mark.tenant_id, mark.key]
    ).fetchone()
    if row is None:
        return None
    if bytes(row[1]) != mark.fingerprint:
        raise ConflictError("was used for another request", param="Idempotency-Key")
    return int(row[0])
