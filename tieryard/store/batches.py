"""Batches: saved whole as raw lines, expanded into jobs chunk by chunk, released window by window.

A batch's ids are one block: the batch itself, then a job for each line. So a job row follows from its line
number, expansion is unique on (batch, line) by the primary key, and any part of a batch is one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from psycopg.rows import TupleRow

from tieryard.store.connection import Connection, Store, storable

_CHUNK = 2000


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A list or file as accepted. `lines` are the callers' JSON objects, one a job."""

    tenant_id: int
    tier: str
    lines: list[str]
    deadline: datetime
    callback_url: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation says of one line: `error` None makes it a job, otherwise a failed one."""

    error: str | None = None
    wants_callback: bool = False


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that is not finished, for the feeder. Counts are lines; `outstanding` are released, not final."""

    id: int
    tenant_id: int
    tier: str
    first_job_id: int
    total: int
    expanded_to: int
    released_to: int
    deadline: datetime
    outstanding: int
    lowest: int | None

    def released_further(self, n: int) -> Self:
        """The same batch with `n` more lines released."""
        return replace(self, released_to=self.released_to + n, outstanding=self.outstanding + n)

    @property
    def releasable(self) -> int:
        return self.expanded_to - self.released_to

    @property
    def done(self) -> bool:
        return self.released_to == self.total and self.outstanding == 0


# `floor` is the lowest job id of each batch that was unfinished at the last look: a scan from the batch's first
# job would walk over the index entries of everything that has finished since.
_OPEN = """
SELECT b.id, b.tenant_id, b.tier, b.first_job_id, b.total, b.expanded_to, b.released_to, b.deadline,
       w.outstanding, w.lowest
FROM batch b
LEFT JOIN unnest(%(ids)s::bigint[], %(floors)s::bigint[]) AS f (id, floor) ON f.id = b.id
CROSS JOIN LATERAL (
    SELECT count(*) AS outstanding, min(job.id) AS lowest
    FROM job
    WHERE job.batch_id = b.id AND job.finished_at IS NULL
      AND job.id >= coalesce(f.floor, b.first_job_id) AND job.id < b.first_job_id + b.released_to
) w
WHERE b.finished_at IS NULL
ORDER BY b.deadline, b.id
"""

# One expander a batch, by an advisory lock: the batch's row stays free while its lines are validated, so that the
# feeder can release what is expanded already. (The two-key form cannot meet the roles of `leader.py`.)
_EXPANDABLE = """
SELECT id FROM (
    SELECT id FROM batch WHERE finished_at IS NULL AND expanded_to < total AND id <> ALL(%(not)s) ORDER BY id OFFSET 0
) waiting
WHERE pg_try_advisory_xact_lock(hashtext('tieryard.expand'), (id %% 2147483647)::int) LIMIT 1
"""

_COMPLETE = """
WITH done AS (
    UPDATE batch b SET finished_at = now(), outcome = 'completed'
    WHERE b.id = ANY(%(ids)s) AND b.finished_at IS NULL AND b.released_to = b.total
      AND NOT EXISTS (SELECT FROM job WHERE job.batch_id = b.id AND job.finished_at IS NULL)
    RETURNING b.id, b.tenant_id, b.callback_url
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, url)
    SELECT tenant_id, 'batch.completed', id, callback_url FROM done WHERE callback_url IS NOT NULL
)
SELECT id FROM done
"""


def save_batch(store: Store, batch: NewBatch) -> int:
    """Saves a batch and its raw lines in one transaction: its id. Its jobs are `id + 1 … id + len(lines)`."""
    batch_id = store.reserve_ids(len(batch.lines) + 1)
    with store.transaction() as connection:
        connection.execute(
            "INSERT INTO batch (id, tenant_id, tier, source_id, first_job_id, total, requests, deadline, callback_url) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                batch_id,
                batch.tenant_id,
                batch.tier,
                batch_id,
                batch_id + 1,
                len(batch.lines),
                len(batch.lines),
                batch.deadline,
                batch.callback_url,
            ],
        )
        with connection.cursor().copy("COPY line (source_id, line_no, body) FROM STDIN") as copy:
            for number, body in enumerate(batch.lines, start=1):
                copy.write_row((batch_id, number, body))
    return batch_id


def expand_chunk(store: Store, judge: Callable[[str], Verdict]) -> tuple[int, int] | None:
    """Turns the next chunk of unexpanded lines into jobs: (batch id, lines done), or None when none wait.

    `judge(line)` validates one line. Restartable: a chunk and the batch's `expanded_to` commit together.
    """
    with store.transaction() as connection:
        found = _lock_batch(connection)
        if found is None:
            return None
        batch_id, tenant_id, tier, source_id, first_job_id, expanded_to, deadline, created_at = found
        lines = connection.execute(
            "SELECT line_no, body FROM line WHERE source_id = %s AND line_no > %s ORDER BY line_no LIMIT %s",
            [source_id, expanded_to, _CHUNK],
        ).fetchall()
        refused: list[tuple[int, str]] = []
        with connection.cursor().copy(
            "COPY job (id, batch_id, tenant_id, source_id, line_no, tier, state, deadline, created_at, "
            "wants_callback, finished_at) FROM STDIN"
        ) as copy:
            for number, body in lines:
                verdict = judge(body)
                job_id = first_job_id + number - 1
                state, finished_at = ("queued", None) if verdict.error is None else ("failed", created_at)
                if verdict.error is not None:
                    refused.append((job_id, storable(verdict.error)))
                copy.write_row(
                    (job_id, batch_id, tenant_id, source_id, number, tier, state, deadline, created_at,
                     verdict.wants_callback, finished_at)
                )  # fmt: skip
        if refused:
            connection.cursor().executemany(
                "INSERT INTO result (job_id, error_kind, error) VALUES (%s, 'invalid_request', %s)", refused
            )
        connection.execute("UPDATE batch SET expanded_to = %s WHERE id = %s", [expanded_to + len(lines), batch_id])
    return batch_id, len(lines)


def _lock_batch(connection: Connection) -> TupleRow | None:
    """The first batch with lines to expand that nobody else expands, as it is now that it is ours."""
    passed: list[int] = []
    while (locked := connection.execute(_EXPANDABLE, {"not": passed}).fetchone()) is not None:
        # Read after the lock: another expander may have committed a chunk, or the last one, just before it.
        found = connection.execute(
            "SELECT id, tenant_id, tier, source_id, first_job_id, expanded_to, deadline, created_at FROM batch "
            "WHERE id = %s AND expanded_to < total",
            [locked[0]],
        ).fetchone()
        if found is not None:
            return found
        passed.append(locked[0])
    return None


def open_batches(connection: Connection, floors: dict[int, int]) -> list[OpenBatch]:
    """Unfinished batches, earliest deadline first. `floors`: lowest unfinished job id known per batch."""
    rows = connection.execute(_OPEN, {"ids": list(floors), "floors": list(floors.values())})
    return [OpenBatch(*row) for row in rows]


def release(connection: Connection, advances: Iterable[tuple[int, int, int]]) -> None:
    """Moves each batch's `released_to`: (batch id, from, to). The caller holds the feeder's lock."""
    connection.cursor().executemany(
        "UPDATE batch SET released_to = %s WHERE id = %s AND released_to = %s",
        [(to, batch_id, before) for batch_id, before, to in advances],
    )


def complete(connection: Connection, batch_ids: list[int]) -> list[int]:
    """Marks those of the batches finished that have no unfinished job: their ids."""
    return [row[0] for row in connection.execute(_COMPLETE, {"ids": batch_ids})]
