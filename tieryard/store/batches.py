"""Batches: saved whole as raw lines, expanded into jobs chunk by chunk, released window by window, closed.

A batch's ids are one block: the batch itself, then a job for each line. So a job row follows from its line
number, expansion is unique on (batch, line) by the primary key, and any part of a batch is one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Self

import orjson

from tieryard.errors import NotFoundError
from tieryard.ids import public
from tieryard.store import budgets, enqueued, idempotency, quotes
from tieryard.store.benchmarks import BENCHMARK_TENANT
from tieryard.store.budgets import Need
from tieryard.store.connection import Connection, Store
from tieryard.store.idempotency import Mark
from tieryard.store.schema import File
from tieryard.store.telling import is_told

_PART = 500  # lines that are reserved, and settled, together
_MOST_BEHIND = 64  # jobs of a batch that is behind, released and not final


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What batches of both kinds are accepted with. `tokens` count against the tenant's cap; None where it has none.
    `quote_id`: the quote that it is to be held against; None takes the newest of its file, if it has one.
    `worst` is reserved of its budgets, a part for so many lines each: (lines, USD); None where it has none."""

    tenant_id: int
    tier: str
    deadline: datetime
    callback_url: str | None = None
    tokens: int | None = None
    quote_id: int | None = None
    api_key_id: int | None = None
    worst: Sequence[tuple[int, Decimal]] | None = None


@dataclass(frozen=True, slots=True)
class FileBatch:
    """What a batch made from a file has beside: `fault` says why no line of it can be read."""

    file: File
    endpoint: str
    window: str
    metadata: dict[str, str] | None = None
    reuse: bool = False
    output_expires_after: timedelta | None = None
    fault: dict[str, Any] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that is not finished, for the feeder. `deadline` is its window's end, or its tier's own if that is
    earlier. Counts are lines; `outstanding` are released, not final, and `resting` those of them that are to wait a
    while before they are routed again. `behind`: it is the system's own, and gets what others leave."""

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
    stopping: bool = False
    resting: int = 0
    behind: bool = False

    def released_further(self, n: int) -> Self:
        """The same batch with `n` more lines released."""
        return replace(self, released_to=self.released_to + n, outstanding=self.outstanding + n)

    @property
    def releasable(self) -> int:
        """Nothing more goes out once it is cancelled or past its window: what waits is rescue's to end. Of one that is
        behind there is little at a time, for what has been released counts as load where others are routed."""
        if self.stopping:
            return 0
        left = self.expanded_to - self.released_to
        return max(0, min(left, _MOST_BEHIND - self.outstanding)) if self.behind else left

    @property
    def done(self) -> bool:
        return self.released_to == self.total and self.outstanding == 0


# `floor` is the lowest job id of each batch that was unfinished at the last look: a scan from the batch's first
# job would walk over the index entries of everything that has finished since.
_OPEN = """
SELECT b.id, b.tenant_id, b.tier, b.first_job_id, b.total, b.expanded_to, b.released_to,
       least(b.deadline, b.created_at + wish.seconds * interval '1 second') AS due,
       w.outstanding, w.lowest, b.cancelling_at IS NOT NULL OR b.deadline < now(), w.resting,
       b.tenant_id = ANY (ARRAY(SELECT id FROM tenant WHERE name = %(last)s)) AS behind
FROM batch b
LEFT JOIN unnest(%(ids)s::bigint[], %(floors)s::bigint[]) AS f (id, floor) ON f.id = b.id
LEFT JOIN unnest(%(tiers)s::text[], %(wishes)s::float8[]) AS wish (tier, seconds) ON wish.tier = b.tier
CROSS JOIN LATERAL (
    SELECT count(*) AS outstanding, min(job.id) AS lowest, count(*) FILTER (WHERE job.not_before > now()) AS resting
    FROM job
    WHERE job.batch_id = b.id AND job.finished_at IS NULL
      AND job.id >= coalesce(f.floor, b.first_job_id) AND job.id < b.first_job_id + b.released_to
) w
WHERE b.finished_at IS NULL AND b.finalizing_at IS NULL
ORDER BY behind, due, b.id
"""

# All jobs are final. A list is finished with that; a file's batch when its output has been measured (`close`).
_COMPLETE = """
WITH ready AS (
    SELECT id, first_job_id, total FROM batch
    WHERE id = ANY(%(ids)s) AND finished_at IS NULL AND finalizing_at IS NULL AND released_to = total
      AND NOT EXISTS (SELECT FROM job WHERE job.batch_id = batch.id AND job.finished_at IS NULL)
    FOR UPDATE
), counted AS (
    SELECT id, (SELECT coalesce(jsonb_object_agg(state, n), '{}') FROM (
        SELECT state, count(*) AS n FROM job
        WHERE job.id >= first_job_id AND job.id < first_job_id + total GROUP BY state
    ) by_state) AS counts FROM ready
), done AS (
    UPDATE batch b SET finalizing_at = now(), counts = counted.counts,
        finished_at = CASE WHEN b.endpoint IS NULL THEN now() END,
        outcome = CASE WHEN b.endpoint IS NULL THEN {outcome} END
    FROM counted WHERE b.id = counted.id
    RETURNING b.id, b.tenant_id, b.callback_url, b.outcome
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, url)
    SELECT tenant_id, 'batch.' || outcome, id, callback_url FROM done
    WHERE outcome IS NOT NULL AND (callback_url IS NOT NULL OR {told})
)
SELECT id, outcome IS NOT NULL FROM done
""".replace(
    "{outcome}",
    "CASE WHEN b.cancelling_at IS NOT NULL THEN 'cancelled' WHEN counted.counts ? 'expired' THEN 'expired' "
    "ELSE 'completed' END",
).replace("{told}", is_told("'batch.' || outcome", tenant="done.tenant_id"))

_TO_CLOSE = """
SELECT id, tenant_id FROM batch WHERE finished_at IS NULL AND finalizing_at IS NOT NULL ORDER BY total
"""

# The end of a file's batch: its outcome, its files, and who is told, together. Guarded, so two closers do it once.
_CLOSE = """
WITH ended AS (
    UPDATE batch SET finished_at = now(), output_file_id = %(output_id)s, error_file_id = %(errors_id)s,
        outcome = CASE WHEN cancelling_at IS NOT NULL THEN 'cancelled'
                       WHEN counts ? 'expired' THEN 'expired' ELSE 'completed' END
    WHERE id = %(batch)s AND finished_at IS NULL
    RETURNING id, tenant_id, outcome, callback_url, output_expires_s
), files AS (
    INSERT INTO file (id, tenant_id, purpose, filename, bytes, batch_id, expires_at)
    SELECT f.id, tenant_id, 'batch_output', 'batch_' || ended.id || f.suffix, f.bytes, ended.id,
           now() + output_expires_s * interval '1 second'
    FROM ended, (VALUES (%(output_id)s::bigint, '_output.jsonl', %(output_bytes)s::bigint),
                        (%(errors_id)s::bigint, '_error.jsonl', %(errors_bytes)s::bigint)) AS f (id, suffix, bytes)
    WHERE f.id IS NOT NULL
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, url)
    SELECT tenant_id, 'batch.' || outcome, id, callback_url FROM ended WHERE callback_url IS NOT NULL OR {told}
)
SELECT outcome FROM ended
""".replace("{told}", is_told("'batch.' || outcome", tenant="ended.tenant_id"))

_CANCEL = """
UPDATE batch SET cancelling_at = now()
WHERE id = %(id)s AND finished_at IS NULL AND finalizing_at IS NULL AND cancelling_at IS NULL
RETURNING id
"""

_INSERT = """
WITH owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, url)
    SELECT %(tenant)s, 'batch.failed', %(id)s, %(callback)s
    WHERE %(fault)s::text IS NOT NULL AND (%(callback)s::text IS NOT NULL OR {told})
)
INSERT INTO batch (id, tenant_id, tier, source_id, first_job_id, total, requests, deadline, callback_url,
                   enqueued_tokens, api_key_id, endpoint, "window", metadata, reuse, output_expires_s, fault, outcome,
                   finished_at)
VALUES (%(id)s, %(tenant)s, %(tier)s, %(source)s, %(id)s + 1, %(total)s, %(requests)s, %(deadline)s, %(callback)s,
        %(tokens)s, %(key)s, %(endpoint)s, %(window)s, %(metadata)s::jsonb, %(reuse)s, %(expires_s)s, %(fault)s,
        CASE WHEN %(fault)s::text IS NOT NULL THEN 'failed' END, CASE WHEN %(fault)s::text IS NOT NULL THEN now() END)
""".replace("{told}", is_told("'batch.failed'", tenant="%(tenant)s"))


def save_batch(store: Store, new: NewBatch, lines: list[str], *, mark: Mark | None = None) -> int:
    """Saves a list of native jobs, each line one: the batch's id. Its jobs are `id + 1 … id + len(lines)`.

    Raises LimitError past the tenant's cap, BudgetError where a budget does not cover it, AlreadyMadeError when
    `mark` has made one.
    """
    batch_id = store.reserve_ids(len(lines) + 1)
    with store.transaction() as connection:
        put_batch(connection, batch_id, new, lines, mark=mark)
    return batch_id


def put_batch(
    connection: Connection,
    batch_id: int,
    new: NewBatch,
    lines: list[str],
    *,
    mark: Mark | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """`save_batch` in the caller's transaction, under `len(lines) + 1` ids that it has reserved."""
    with connection.cursor().copy("COPY line (source_id, line_no, body) FROM STDIN") as copy:
        for number, body in enumerate(lines, start=1):
            copy.write_row((batch_id, number, body))
    # After the lines: whoever comes with the same key waits for this row's commit, and not for the COPY.
    own = {"source": batch_id, "total": len(lines), "requests": len(lines), "metadata": _json(metadata)}
    _insert(connection, batch_id, new, mark, **own)


def save_file_batch(store: Store, new: NewBatch, made: FileBatch, *, mark: Mark | None = None) -> int:
    """Makes a batch of an uploaded file's lines: its id. Raises as `save_batch` does."""
    file = made.file
    batch_id = store.reserve_ids(file.lines + 1)
    window = made.output_expires_after
    with store.transaction() as connection:
        alive = connection.execute("SELECT FROM file WHERE id = %s AND deleted_at IS NULL FOR SHARE", [file.id])
        if alive.fetchone() is None:
            raise NotFoundError(f"no file '{public('file', file.id)}'", param="input_file_id")
        _insert(
            connection,
            batch_id,
            new,
            mark,
            source=file.id,
            total=file.lines,
            requests=file.requests,
            endpoint=made.endpoint,
            window=made.window,
            metadata=_json(made.metadata),
            reuse=made.reuse,
            expires_s=int(window.total_seconds()) if window else None,
            fault=orjson.dumps(made.fault).decode() if made.fault else None,
        )
    return batch_id


def _json(metadata: dict[str, str] | None) -> str | None:
    return orjson.dumps(metadata).decode() if metadata is not None else None


def _insert(connection: Connection, batch_id: int, new: NewBatch, mark: Mark | None, **own: Any) -> None:
    idempotency.claim(connection, mark, batch_id)
    if new.tokens is not None:
        enqueued.admit(connection, new.tenant_id, new.tokens)
    plain = {"endpoint": None, "window": None, "metadata": None, "reuse": False, "expires_s": None, "fault": None}
    own = plain | own
    connection.execute(
        _INSERT,
        {
            **own,
            "id": batch_id,
            "tenant": new.tenant_id,
            "tier": new.tier,
            "deadline": new.deadline,
            "callback": new.callback_url,
            "tokens": new.tokens,
            "key": new.api_key_id,
        },
    )
    if own["fault"] is None:
        file_id = own["source"] if own["endpoint"] is not None else None
        taken = quotes.Taken(new.quote_id, file_id)
        quotes.take_along(
            connection, taken, tenant_id=new.tenant_id, batch_id=batch_id, tier=new.tier, requests=own["requests"]
        )
    if new.worst is not None and own["fault"] is None:
        needs = _needs(batch_id + 1, new.worst)
        budgets.reserve(connection, tenant_id=new.tenant_id, api_key_id=new.api_key_id, needs=needs)


def in_parts(worst: Sequence[Decimal]) -> list[tuple[int, Decimal]]:
    """What each line can cost at worst, summed over so many lines: (lines, USD)."""
    parts = [worst[at : at + _PART] for at in range(0, len(worst), _PART)]
    return [(len(part), sum(part, Decimal(0))) for part in parts]


def _needs(first_job_id: int, worst: Sequence[tuple[int, Decimal]]) -> list[Need]:
    """Reservations that are settled one by one, as their lines are done."""
    needs = []
    for lines, usd in worst:
        needs.append(Need(first_job_id, lines, usd))
        first_job_id += lines
    return needs


def open_batches(connection: Connection, floors: dict[int, int], wishes: dict[str, float]) -> list[OpenBatch]:
    """Batches with jobs to come or to end, the first due first, benchmarks' behind all others. `floors`: lowest
    unfinished job ids known. `wishes`: seconds from acceptance within which a tier's jobs should be done, where that is
    less than their window."""
    known = {"ids": list(floors), "floors": list(floors.values()), "last": BENCHMARK_TENANT}
    rows = connection.execute(_OPEN, {**known, "tiers": list(wishes), "wishes": list(wishes.values())})
    return [OpenBatch(*row) for row in rows]


def release(connection: Connection, advances: Iterable[tuple[int, int, int]]) -> None:
    """Moves each batch's `released_to`: (batch id, from, to). The caller holds the feeder's lock."""
    connection.cursor().executemany(
        "UPDATE batch SET released_to = %s WHERE id = %s AND released_to = %s",
        [(to, batch_id, before) for batch_id, before, to in advances],
    )


def complete(connection: Connection, batch_ids: list[int]) -> list[tuple[int, bool]]:
    """Marks those of the batches that have no unfinished job: (id, whether that finishes it)."""
    return [(row[0], row[1]) for row in connection.execute(_COMPLETE, {"ids": batch_ids})]


def to_close(store: Store) -> list[tuple[int, int]]:
    """Batches whose output is to be measured: (id, tenant id)."""
    return [(row[0], row[1]) for row in store.fetch(_TO_CLOSE)]


def close(store: Store, batch_id: int, *, output_bytes: int, error_bytes: int) -> str | None:
    """Finishes a batch and gives it its files, those that are not empty: its outcome, None when another closed it."""
    first = store.reserve_ids(2)
    rows = store.fetch(
        _CLOSE,
        {
            "batch": batch_id,
            "output_id": first if output_bytes else None,
            "errors_id": first + 1 if error_bytes else None,
            "output_bytes": output_bytes,
            "errors_bytes": error_bytes,
        },
    )
    return str(rows[0][0]) if rows else None


def unfinished(connection: Connection, released: list[tuple[int, int, int]]) -> dict[int, int]:
    """Of what was released of each batch, (batch id, first job, jobs), how many are not final: {batch id: n}."""
    rows = connection.execute(
        "SELECT r.id, (SELECT count(*) FROM job WHERE job.batch_id = r.id AND job.finished_at IS NULL "
        "              AND job.id >= r.first AND job.id < r.first + r.n) "
        "FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS r (id, first, n)",
        [list(column) for column in zip(*released, strict=True)],
    )
    return {row[0]: row[1] for row in rows}


def cancel(store: Store, batch_id: int) -> bool:
    """Asks for a batch's end: rescue ends what waits, workers what runs. False when it is over, or asked already."""
    return bool(store.fetch(_CANCEL, {"id": batch_id}))
