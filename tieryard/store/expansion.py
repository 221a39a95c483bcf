"""A batch's lines become jobs, a chunk a transaction. Job ids follow from line numbers; a blank line has no job.

A line that is refused becomes a job too, one that is failed from the start, so that line and job numbers always
agree. So does one whose batch was stopped before its turn, and one whose answer an earlier batch has given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from psycopg.rows import TupleRow

from tieryard.job import State
from tieryard.store.connection import Connection, Store, storable
from tieryard.store.telling import is_told

_CHUNK = 2000  # lines
_CHUNK_BYTES = 16 * 2**20  # of those lines, and one at least


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation says of one line: `error` None makes it a job, otherwise a failed one."""

    error: str | None = None
    wants_callback: bool = False


Judge = Callable[[str, str | None, str, str], Verdict]
"""`judge(line, endpoint, tier, tenant's name)`: endpoint None is a native job's line."""

# The batch that has come least far goes first: a short file does not wait for a long one. One expander a batch, by an
# advisory lock: its row stays free while its lines are validated, so that the feeder can release what is expanded
# already. (The two-key form cannot meet the roles of `leader.py`.) Only by the newest catalog: a line that an older one
# refuses may be what the newest was applied for.
_EXPANDABLE = """
SELECT id FROM (
    SELECT id FROM batch WHERE finished_at IS NULL AND expanded_to < total AND id <> ALL(%(not)s)
      AND (%(version)s::bigint IS NULL OR %(version)s >= (SELECT coalesce(max(id), 0) FROM catalog_version))
    ORDER BY expanded_to, id OFFSET 0
) waiting
WHERE pg_try_advisory_xact_lock(hashtext('tieryard.expand'), (id %% 2147483647)::int) LIMIT 1
"""

_BATCH = """
SELECT batch.id, batch.tenant_id, batch.tier, batch.source_id, batch.first_job_id, batch.total, batch.expanded_to,
       batch.deadline, batch.created_at, batch.api_key_id, batch.endpoint, batch.reuse, coalesce(file.duplicates, '{}'),
       CASE WHEN cancelling_at IS NOT NULL THEN 'cancelled' WHEN deadline < now() THEN 'expired' END,
       coalesce(tenant.name, '')
FROM batch LEFT JOIN file ON file.id = batch.source_id LEFT JOIN tenant ON tenant.id = batch.tenant_id
WHERE batch.id = %(id)s AND batch.expanded_to < batch.total
"""

_LINES = """
SELECT line_no, body, hash FROM (
    SELECT line_no, body, hash, row_number() OVER w AS n, sum(octet_length(body)) OVER w AS bytes
    FROM line WHERE source_id = %(source)s AND line_no > %(after)s
    WINDOW w AS (ORDER BY line_no) ORDER BY line_no LIMIT %(most)s
) next WHERE bytes <= %(bytes)s OR n = 1 ORDER BY line_no
"""

# What earlier batches of this tenant were answered to the same request, by a deployment that is still the same.
_EARLIER = """
SELECT DISTINCT ON (line.hash) line.hash, job.id, job.deployment, job.category
FROM line
JOIN batch ON batch.source_id = line.source_id AND batch.tenant_id = %(tenant)s
JOIN job ON job.id = batch.first_job_id + line.line_no - 1 AND job.state = 'succeeded'
JOIN result ON result.job_id = job.id
JOIN LATERAL (
    SELECT revision FROM timing WHERE timing.job_id = coalesce(result.reused_from, job.id) ORDER BY fence DESC LIMIT 1
) last ON true
JOIN unnest(%(deployments)s::text[], %(revisions)s::text[]) AS known (deployment, revision)
  ON known.deployment = job.deployment AND known.revision = last.revision
WHERE line.hash = ANY(%(hashes)s)
ORDER BY line.hash, job.id DESC
"""

_COPY = (
    "COPY job (id, batch_id, tenant_id, source_id, line_no, tier, state, deadline, created_at, api_key_id, "
    "wants_callback, deployment, category, finished_at) FROM STDIN"
)

_OWE = f"""
INSERT INTO outbox (tenant_id, event, subject_id)
SELECT %(tenant)s, event, id FROM unnest(%(events)s::text[], %(ids)s::bigint[], %(wanted)s::bool[])
    AS ended (event, id, wanted)
WHERE wanted OR {is_told("event", tenant="%(tenant)s")}
"""  # noqa: S608  # a part of ours

_REASONS = {
    State.CANCELLED: "cancelled with its batch",
    State.EXPIRED: "not finished within its completion window",
}


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The batch whose turn it is, and where."""

    id: int
    tenant_id: int
    tier: str
    source_id: int
    first_job_id: int
    total: int
    expanded_to: int
    deadline: object
    created_at: object
    api_key_id: int | None
    endpoint: str | None
    reuse: bool
    duplicates: list[int]
    stopped: str | None
    tenant: str


@dataclass(slots=True)
class _Final:
    """Jobs of a chunk that start out final: how each `ended` and why, whose answer it has `reused`; and (event,
    job id, whether it was asked for) of all, where somebody may be `owed` a word."""

    ended: list[tuple[int, str, str]] = field(default_factory=list)
    reused: list[tuple[int, int]] = field(default_factory=list)
    owed: list[tuple[str, int, bool]] = field(default_factory=list)


def expand_chunk(
    store: Store, judge: Judge, *, revisions: Mapping[str, str] | None = None, version: int | None = None
) -> tuple[int, int] | None:
    """Turns the next chunk of unexpanded lines into jobs: (batch id, lines done), or None when none wait.

    `revisions` are today's deployments with what they serve, for batches that reuse answers; `version` is the catalog's
    by which lines are judged, and nothing is done where there is a newer one. Restartable: a chunk and the batch's
    `expanded_to` commit together.
    """
    with store.transaction() as connection:
        batch = _lock_batch(connection, version)
        if batch is None:
            return None
        lines = connection.execute(
            _LINES, {"source": batch.source_id, "after": batch.expanded_to, "most": _CHUNK, "bytes": _CHUNK_BYTES}
        ).fetchall()
        earlier = _earlier(connection, batch, lines, revisions or {})
        _save_results(connection, batch, _copy_jobs(connection, batch, lines, judge, earlier))
        done = batch.expanded_to + len(lines)
        connection.execute(
            "UPDATE batch SET expanded_to = %(to)s, expanded_at = CASE WHEN total = %(to)s THEN now() END "
            "WHERE id = %(id)s",
            {"to": done, "id": batch.id},
        )
    return batch.id, len(lines)


def _copy_jobs(
    connection: Connection,
    batch: _Chunk,
    lines: list[TupleRow],
    judge: Judge,
    earlier: Mapping[bytes, tuple[int, str, str]],
) -> _Final:
    """A job for each line that is not blank: what of them starts out final."""
    final, duplicates = _Final(), set(batch.duplicates)
    with connection.cursor().copy(_COPY) as copy:
        for number, body, digest in lines:
            if not body.strip():
                continue
            job_id = batch.first_job_id + number - 1
            found = earlier.get(digest) if digest is not None else None
            state, why, called_back = _judged(
                batch, number, body, judge, known=found is not None, duplicates=duplicates
            )
            deployment, category = None, None
            if state is State.SUCCEEDED and found is not None:
                source, deployment, category = found
                final.reused.append((job_id, source))
            elif state is not State.QUEUED:
                final.ended.append((job_id, "invalid_request" if state is State.FAILED else str(state), why))
            if state is not State.QUEUED:
                event = "job.completed" if state is State.SUCCEEDED else f"job.{state}"
                final.owed.append((event, job_id, called_back))
            finished_at = None if state is State.QUEUED else batch.created_at
            copy.write_row(
                (job_id, batch.id, batch.tenant_id, batch.source_id, number, batch.tier, str(state), batch.deadline,
                 batch.created_at, batch.api_key_id, called_back, deployment, category, finished_at)
            )  # fmt: skip
    return final


def _judged(
    batch: _Chunk, number: int, body: str, judge: Judge, *, known: bool, duplicates: set[int]
) -> tuple[State, str, bool]:
    """(the state that this line's job starts in, why if it is final, whether its end is told)."""
    if batch.stopped is not None:
        state = State(batch.stopped)
        return state, _REASONS[state], judge(body, batch.endpoint, batch.tier, batch.tenant).wants_callback
    if number in duplicates:
        return State.FAILED, "custom_id: stands above already; it must be unique in the file", False
    verdict = judge(body, batch.endpoint, batch.tier, batch.tenant)
    if verdict.error is not None:
        return State.FAILED, verdict.error, verdict.wants_callback
    return (State.SUCCEEDED if known else State.QUEUED), "", verdict.wants_callback


def _earlier(
    connection: Connection, batch: _Chunk, lines: list[TupleRow], revisions: Mapping[str, str]
) -> dict[bytes, tuple[int, str, str]]:
    """By request hash: the earlier job, its deployment and category. Empty where the batch did not ask for that."""
    hashes = [bytes(digest) for _, _, digest in lines if digest is not None]
    if not batch.reuse or not hashes:
        return {}
    rows = connection.execute(
        _EARLIER,
        {
            "tenant": batch.tenant_id,
            "hashes": hashes,
            "deployments": list(revisions),
            "revisions": list(revisions.values()),
        },
    )
    return {bytes(row[0]): (row[1], row[2], row[3]) for row in rows}


def _save_results(connection: Connection, batch: _Chunk, final: _Final) -> None:
    if final.owed:
        events, ids, wanted = map(list, zip(*final.owed, strict=True))
        connection.execute(_OWE, {"tenant": batch.tenant_id, "events": events, "ids": ids, "wanted": wanted})
    if final.ended:
        connection.cursor().executemany(
            "INSERT INTO result (job_id, error_kind, error) VALUES (%s, %s, %s)",
            [(job_id, kind, storable(why)) for job_id, kind, why in final.ended],
        )
    if final.reused:
        connection.execute(
            "INSERT INTO result (job_id, output, finish_reason, extra, reused_from) "
            "SELECT t.id, r.output, r.finish_reason, r.extra, coalesce(r.reused_from, r.job_id) "
            "FROM unnest(%s::bigint[], %s::bigint[]) AS t (id, source) JOIN result r ON r.job_id = t.source",
            [[job_id for job_id, _ in final.reused], [source for _, source in final.reused]],
        )


def _lock_batch(connection: Connection, version: int | None) -> _Chunk | None:
    """The first batch with lines to expand that nobody else expands, as it is now that it is ours."""
    passed: list[int] = []
    while (locked := connection.execute(_EXPANDABLE, {"not": passed, "version": version}).fetchone()) is not None:
        # Read after the lock: another expander may have committed a chunk, or the last one, just before it.
        found = connection.execute(_BATCH, {"id": locked[0]}).fetchone()
        if found is not None:
            return _Chunk(*found)
        passed.append(locked[0])
    return None
