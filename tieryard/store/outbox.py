"""Callbacks owed. Rows are written by the statements that end jobs and batches, and settled here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tieryard.store.connection import Store


@dataclass(frozen=True, slots=True)
class Owed:
    """One delivery to try now. `attempt` is 1 the first time."""

    id: int
    event: str
    subject_id: int
    url: str
    attempt: int
    created_at: datetime
    data: dict[str, Any] | None = None


# Taking a row moves it out of sight for a while, so a worker that dies with it delays it and loses nothing. A
# job's address stands in its line, and is read here in Python: Postgres refuses JSON that callers may send (NUL).
_TAKE = """
WITH due AS (
    SELECT id FROM outbox WHERE settled_at IS NULL AND next_at <= now()
    ORDER BY next_at LIMIT %(most)s FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE outbox SET attempts = attempts + 1, next_at = now() + %(hold)s * interval '1 second'
    FROM due WHERE outbox.id = due.id
    RETURNING outbox.id, outbox.event, outbox.subject_id, outbox.url, outbox.attempts, outbox.created_at, outbox.data
)
SELECT taken.*, line.body FROM taken
LEFT JOIN job ON taken.url IS NULL AND job.id = taken.subject_id LEFT JOIN line USING (source_id, line_no)
"""


def take_due(store: Store, *, most: int = 64, hold_s: float = 60.0) -> list[Owed]:
    rows = store.fetch(_TAKE, {"most": most, "hold": hold_s})
    return [
        Owed(number, event, subject, url or str(json.loads(body)["callback_url"]), attempt, created_at, data)
        for number, event, subject, url, attempt, created_at, data, body in rows
    ]


def settle(store: Store, owed_id: int, *, status: int | None, error: str | None, retry_in_s: float | None) -> None:
    """Delivered (no error), to be tried again (`retry_in_s`), or given up (an error and no retry)."""
    store.fetch(
        """
        UPDATE outbox SET last_status = %(status)s, last_error = %(error)s,
            delivered_at = CASE WHEN %(error)s::text IS NULL THEN now() END,
            settled_at = CASE WHEN %(retry)s::float8 IS NULL THEN now() END,
            next_at = now() + coalesce(%(retry)s::float8, 0) * interval '1 second'
        WHERE id = %(id)s RETURNING id
        """,
        {"id": owed_id, "status": status, "error": error, "retry": retry_in_s},
    )
