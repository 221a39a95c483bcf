"""Files: an upload is COPYed as raw lines while it is read, and read back the same, a few megabytes at a time.

Reading goes by key, chunk after chunk, each a short statement of its own: a slow reader holds neither a
connection nor a snapshot (docs/decisions/0008).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, BinaryIO

import orjson
from psycopg.rows import TupleRow
from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from tieryard.errors import ConflictError, NotFoundError, RequestError
from tieryard.ids import public
from tieryard.store import idempotency
from tieryard.store.connection import Connection, Store
from tieryard.store.idempotency import Mark
from tieryard.store.schema import File

_MOST_LINE_BYTES = 16 * 2**20
_SPARE_LINES = 1000  # a file may have so many blank lines, and one beside each request
CHUNK_BYTES = 2 * 2**20
_NOT_ASKED = {"metadata", "prompt_cache_key"}  # members of a body that change no answer
_LEAST_ROWS, _MOST_ROWS = 16, 2000

# Up to so many rows, and of those as many as are CHUNK_BYTES together: one at least.
_LINES = """
SELECT line_no, body FROM (
    SELECT line_no, body, row_number() OVER w AS n, sum(octet_length(body)) OVER w AS bytes
    FROM line WHERE source_id = %(file)s AND line_no > %(after)s
    WINDOW w AS (ORDER BY line_no) ORDER BY line_no LIMIT %(rows)s
) next WHERE bytes <= %(bytes)s OR n = 1 ORDER BY line_no
"""


@dataclass(frozen=True, slots=True)
class NewFile:
    """An upload as its caller describes it."""

    tenant_id: int
    purpose: str
    filename: str
    expires_after: timedelta | None = None

    def described(self) -> str:
        """All of it that an idempotency key stands for, beside the content."""
        return f"{self.purpose}\0{self.filename}\0{self.expires_after}\0"


def save_file(store: Store, new: NewFile, content: BinaryIO, *, most_lines: int, key: str | None = None) -> int:
    """Saves an upload, whole or not at all: its id. Raises RequestError with the line that cannot be kept, and
    AlreadyMadeError when this idempotency key has brought the same content before."""
    file_id = store.next_id()
    lines = _Lines(new.tenant_id, most_lines, hashlib.sha256(new.described().encode()))
    with store.transaction() as connection:
        with connection.cursor().copy("COPY line (source_id, line_no, body, hash) FROM STDIN") as copy:
            for number, text, digest in lines.read(content):
                copy.write_row((file_id, number, text, digest))
        # Last, when the content is known: two uploads under one key do not wait for each other.
        mark = Mark(new.tenant_id, key, lines.digest.digest()) if key is not None else None
        idempotency.claim(connection, mark, file_id)
        connection.execute(
            "INSERT INTO file (id, tenant_id, purpose, filename, bytes, lines, requests, ends_open, duplicates, "
            "first_fault, expires_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, now() + %s)",
            [
                file_id,
                new.tenant_id,
                new.purpose,
                new.filename,
                lines.size,
                lines.number,
                lines.requests,
                lines.ends_open,
                lines.duplicates or None,
                None if lines.objects else lines.first_fault,
                new.expires_after,
            ],
        )
    return file_id


@dataclass(slots=True)
class _Lines:
    """Reads an upload line by line, and notes what the file's row says of it."""

    tenant_id: int
    most_lines: int
    digest: hashlib._Hash
    number: int = 0
    size: int = 0
    requests: int = 0
    objects: int = 0
    ends_open: bool = False
    first_fault: str | None = None
    duplicates: list[int] = field(default_factory=list)
    _ids: set[bytes] = field(default_factory=set)

    def read(self, content: BinaryIO) -> Iterator[tuple[int, str, bytes | None]]:
        """(line number from 1, its text, what its request is known by) of every line."""
        while raw := content.readline(_MOST_LINE_BYTES + 1):
            self.number += 1
            self.size += len(raw)
            self.digest.update(raw)
            if self.number > 2 * self.most_lines + _SPARE_LINES:
                raise RequestError("has too many blank lines", param="file", line=self.number)
            if len(raw) > _MOST_LINE_BYTES:
                raise RequestError(f"is longer than {_MOST_LINE_BYTES} bytes", param="file", line=self.number)
            self.ends_open = not raw.endswith(b"\n")
            try:
                text = raw.removesuffix(b"\n").decode()
            except UnicodeDecodeError:
                raise RequestError("is not UTF-8", param="file", line=self.number) from None
            if "\x00" in text:
                raise RequestError("holds a NUL character", param="file", line=self.number)
            yield self.number, text, self._known_by(text) if text.strip() else None

    def _known_by(self, text: str) -> bytes | None:
        self.requests += 1
        if self.requests > self.most_lines:
            raise RequestError(f"a batch may have {self.most_lines} requests, and this is one more", line=self.number)
        try:
            found = orjson.loads(text.removeprefix("\ufeff"))
            if not isinstance(found, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            self.first_fault = self.first_fault or f"line {self.number}: not valid JSON: {error}"[:300]
            return None
        self.objects += 1
        if isinstance(custom_id := found.get("custom_id"), str):
            digest = hashlib.blake2b(custom_id.encode("utf-8", "replace"), digest_size=8).digest()
            if digest in self._ids:
                self.duplicates.append(self.number)
            self._ids.add(digest)
        return request_hash(self.tenant_id, found)


def request_hash(tenant_id: int, line: dict[str, Any]) -> bytes | None:
    """Names what a line asks for, whatever its custom_id, metadata and prompt_cache_key: 16 bytes, other ones for other
    tenants."""
    body = line.get("body")
    if not isinstance(body, dict):
        return None
    asked = [tenant_id, line.get("url"), {k: v for k, v in body.items() if k not in _NOT_ASKED}]
    try:
        return hashlib.blake2b(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
    except (orjson.JSONEncodeError, TypeError):  # nested deeper than orjson writes
        return None


def get_file(store: Store, file_id: int, *, tenant_id: int) -> File:
    """One file. Raises NotFoundError, also for another tenant's, a deleted or an expired one."""
    with store.session() as session:
        statement = _theirs(tenant_id).where(col(File.id) == file_id)
        found = session.exec(statement).first()
        session.expunge_all()
    if found is None:
        raise NotFoundError(f"no file '{public('file', file_id)}'", param="file")
    return found


def list_files(
    store: Store, *, tenant_id: int, purpose: str | None, after: int | None, limit: int, ascending: bool
) -> list[File]:
    """A page of files by age."""
    statement = _theirs(tenant_id).limit(limit)
    if purpose is not None:
        statement = statement.where(col(File.purpose) == purpose)
    if after is not None:
        statement = statement.where(col(File.id) > after if ascending else col(File.id) < after)
    with store.session() as session:
        found = list(session.exec(statement.order_by(col(File.id) if ascending else col(File.id).desc())))
        session.expunge_all()
    return found


def fault_of(file: File) -> dict[str, Any] | None:
    """Why no batch can be made of it, as OpenAI's `errors` say it; None where any line is a JSON object."""
    if file.requests == 0:
        return {"code": "empty_file", "message": "the file has no requests", "line": None, "param": None}
    if file.first_fault is not None:
        return {"code": "invalid_file", "message": f"no line is a JSON object; {file.first_fault}", "line": 1}
    return None


def delete_file(store: Store, file_id: int, *, tenant_id: int) -> None:
    """Takes a file out of its owner's sight. Lines that no batch was made from are gone at once; those of a batch
    stay with its jobs. Raises NotFoundError, and ConflictError while a batch works on it."""
    get_file(store, file_id, tenant_id=tenant_id)
    with store.transaction() as connection:
        connection.execute("SELECT FROM file WHERE id = %s FOR UPDATE", [file_id])  # a batch may be made from it
        batches = connection.execute("SELECT id, finished_at FROM batch WHERE source_id = %s", [file_id]).fetchall()
        if running := [public("batch", row[0]) for row in batches if row[1] is None]:
            raise ConflictError(f"{running[0]} works on this file; cancel it, or wait for its end", param="file")
        connection.execute("UPDATE file SET deleted_at = now() WHERE id = %s", [file_id])
        if not batches:
            connection.execute("DELETE FROM line WHERE source_id = %s", [file_id])


def purge_expired(connection: Connection) -> None:
    """Deletes a file that has expired: the lines too, where no batch was made from it. One a call, so that none is
    long."""
    found = connection.execute(
        "SELECT id, EXISTS (SELECT FROM batch WHERE source_id = file.id) FROM file "
        "WHERE expires_at < now() AND deleted_at IS NULL ORDER BY expires_at LIMIT 1 FOR UPDATE SKIP LOCKED"
    ).fetchone()
    if found is None:
        return
    connection.execute("UPDATE file SET deleted_at = now() WHERE id = %s", [found[0]])
    if not found[1]:
        connection.execute("DELETE FROM line WHERE source_id = %s", [found[0]])


def read_lines(store: Store, file: File) -> Iterator[bytes]:
    """An uploaded file's content, byte for byte, in pieces of a few megabytes."""
    read = 0
    for texts in read_texts(store, file):
        read += len(texts)
        ended = read < file.lines or not file.ends_open
        yield ("\n".join(texts) + ("\n" if ended else "")).encode()


def read_texts(store: Store, file: File) -> Iterator[list[str]]:
    """An uploaded file's lines, a few megabytes at a time."""
    for rows in chunks(store, _LINES, {"file": file.id}, after=0, key=lambda row: int(row[0])):
        yield [row[1] for row in rows]


def chunks(
    store: Store, statement: str, parameters: dict[str, Any], *, after: int, key: Callable[[TupleRow], int]
) -> Iterator[list[TupleRow]]:
    """A long read, chunk by chunk: `statement` takes `after`, `rows` and `bytes`, and keeps to both."""
    rows = _LEAST_ROWS
    while found := store.fetch(statement, {**parameters, "after": after, "rows": rows, "bytes": CHUNK_BYTES}):
        yield found
        after = key(found[-1])
        rows = max(_LEAST_ROWS, min(4 * len(found), _MOST_ROWS))


def _theirs(tenant_id: int) -> SelectOfScalar[File]:
    alive = col(File.deleted_at).is_(None) & (col(File.expires_at).is_(None) | (col(File.expires_at) > func.now()))
    return select(File).where(col(File.tenant_id) == tenant_id, alive)
