"""Quotes: kept when they are made, taken along by the batch that then runs, and held against what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from sqlmodel import col, select

from tieryard.errors import ConflictError, NotFoundError, RequestError
from tieryard.ids import public
from tieryard.store import files, idempotency
from tieryard.store.connection import Connection, Store
from tieryard.store.idempotency import Mark
from tieryard.store.schema import File, Quote

IN_METADATA = "tieryard_quote"
"""The note by which a file's batch names its quote."""

PUBLISHED_DAYS = 30
"""Of settled quotes, for the published error."""

_SETTLED_AT_ONCE = 5  # each reads its batch's part of the ledger

_SAMPLE = """
SELECT line_no, body FROM (
    SELECT line_no, body, row_number() OVER w AS n, sum(octet_length(body)) OVER w AS bytes
    FROM line WHERE source_id = %(file)s AND line_no > %(after)s AND line_no = ANY(%(numbers)s)
    WINDOW w AS (ORDER BY line_no) ORDER BY line_no LIMIT %(rows)s
) next WHERE bytes <= %(bytes)s OR n = 1 ORDER BY line_no
"""

_LINES = """
SELECT line_no, body FROM (
    SELECT line_no, body, row_number() OVER w AS n, sum(octet_length(body)) OVER w AS bytes
    FROM line WHERE source_id = %(file)s AND line_no > %(after)s
    WINDOW w AS (ORDER BY line_no) ORDER BY line_no LIMIT %(rows)s
) next WHERE bytes <= %(bytes)s OR n = 1 ORDER BY line_no
"""

# The newest that was made of the same file and has no batch: whoever quotes a file and runs it means that one.
_OF_FILE = """
UPDATE quote SET batch_id = %(batch)s, tier = %(tier)s WHERE id = (
    SELECT id FROM quote
    WHERE file_id = %(file)s AND batch_id IS NULL AND tenant_id = %(tenant)s AND offers -> 'tiers' ? %(tier)s
    ORDER BY id DESC LIMIT 1
) AND batch_id IS NULL
"""

# What the ledger says of a finished batch's jobs, beside what its tier's offer said. A balance that was posted for a
# late charge is not the batch's: its charge is. In the order of `quote_unsettled`: nearly all quotes are settled.
_SETTLE = """
WITH due AS (
    SELECT q.id, q.offers #> ARRAY['tiers', q.tier] AS said, b.first_job_id, b.total, b.outcome, b.finished_at,
           extract(epoch FROM b.finished_at - b.created_at) AS finish_s
    FROM quote q JOIN batch b ON b.id = q.batch_id
    WHERE q.batch_id IS NOT NULL AND q.settled_at IS NULL AND b.finished_at IS NOT NULL
    ORDER BY q.batch_id LIMIT %(most)s FOR UPDATE OF q SKIP LOCKED
), held AS (
    SELECT due.*, spent.* FROM due CROSS JOIN LATERAL (
        SELECT coalesce(sum(cost_usd), 0) AS cost_usd, coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
               coalesce(sum(completion_tokens), 0) AS completion_tokens
        FROM ledger WHERE job_id >= first_job_id AND job_id < first_job_id + total AND kind = 'inference' OFFSET 0
    ) spent
)
UPDATE quote SET settled_at = now(), actual = jsonb_build_object(
    'outcome', outcome, 'finished_at', finished_at, 'cost_usd', trim_scale(cost_usd)::text,
    'prompt_tokens', held.prompt_tokens, 'completion_tokens', completion_tokens, 'finish_s', round(finish_s, 3),
    'cost', jsonb_build_object(
        'ratio', round(cost_usd / nullif((said #>> '{cost_usd,expected}')::numeric, 0), 6),
        'inside', cost_usd BETWEEN (said #>> '{cost_usd,low}')::numeric AND (said #>> '{cost_usd,worst}')::numeric),
    'finish', jsonb_build_object(
        'ratio', round(finish_s / nullif((said #>> '{finish_s,expected}')::numeric, 0), 6),
        'inside', finish_s BETWEEN (said #>> '{finish_s,low}')::numeric AND (said #>> '{finish_s,worst}')::numeric))
FROM held WHERE quote.id = held.id
RETURNING quote.id, quote.batch_id, quote.actual
"""

_ERRORS = """
SELECT figure, count(ratio), percentile_cont(ARRAY[0.5, 0.9]) WITHIN GROUP (ORDER BY ratio), avg(inside::int)::float8
FROM quote, LATERAL (VALUES ('cost'), ('finish')) AS f (figure), LATERAL (
    SELECT (actual #>> ARRAY[figure, 'ratio'])::float8 AS ratio, (actual #>> ARRAY[figure, 'inside'])::bool AS inside
) seen
WHERE settled_at > now() - %(days)s * interval '1 day' AND actual ->> 'outcome' = 'completed' AND ratio IS NOT NULL
GROUP BY figure
"""


@dataclass(frozen=True, slots=True)
class NewQuote:
    """As it was made: `offers` is what `tieryard.quoting.stored` gives, and its budget."""

    tenant_id: int
    requests: int
    prompt_tokens: int
    offers: dict[str, Any]
    file_id: int | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """The quote that a batch takes along: the one that its caller names, else the newest of its file."""

    quote_id: int | None = None
    file_id: int | None = None


def save(store: Store, new: NewQuote, *, mark: Mark | None = None) -> int:
    """Its id. Raises AlreadyMadeError when `mark` has made one."""
    quote_id = store.next_id()
    with store.transaction() as connection:
        idempotency.claim(connection, mark, quote_id)
        connection.execute(
            "INSERT INTO quote (id, tenant_id, file_id, requests, prompt_tokens, offers) "
            "VALUES (%s, %s, %s, %s, %s, %s::jsonb)",
            [
                quote_id,
                new.tenant_id,
                new.file_id,
                new.requests,
                new.prompt_tokens,
                orjson.dumps(new.offers).decode(),
            ],
        )
    return quote_id


def get(store: Store, quote_id: int, *, tenant_id: int) -> Quote:
    """One quote. Raises NotFoundError, also for another tenant's."""
    with store.session() as session:
        statement = select(Quote).where(Quote.id == quote_id, Quote.tenant_id == tenant_id)
        found = session.exec(statement).first()
        session.expunge_all()
    if found is None:
        raise NotFoundError(f"no quote '{public('quote', quote_id)}'", param="quote")
    return found


def list_quotes(store: Store, *, tenant_id: int, after: int | None, limit: int) -> list[Quote]:
    """A page of quotes, newest first. `after` is the last id of the page before."""
    statement = select(Quote).where(Quote.tenant_id == tenant_id).order_by(col(Quote.id).desc()).limit(limit)
    if after is not None:
        statement = statement.where(col(Quote.id) < after)
    with store.session() as session:
        found = list(session.exec(statement))
        session.expunge_all()
        return found


def read_file(store: Store, file: File, numbers: list[int] | None) -> Iterator[list[tuple[int, str]]]:
    """(line number, line) of an uploaded file, a few megabytes at a time: of these lines, or of all."""
    wanted = {"file": file.id} if numbers is None else {"file": file.id, "numbers": numbers}
    statement = _LINES if numbers is None else _SAMPLE
    for rows in files.chunks(store, statement, wanted, after=0, key=lambda row: int(row[0])):
        yield [(int(number), body) for number, body in rows]


def take_along(
    connection: Connection, taken: Taken, *, tenant_id: int, batch_id: int, tier: str, requests: int
) -> None:
    """In the transaction that saves the batch. Raises NotFoundError, ConflictError where another batch has it, and
    RequestError where it was made for something else."""
    if taken.quote_id is None:
        if taken.file_id is not None:
            connection.execute(_OF_FILE, {"batch": batch_id, "tier": tier, "file": taken.file_id, "tenant": tenant_id})
        return
    name = public("quote", taken.quote_id)
    at = f"metadata.{IN_METADATA}" if taken.file_id is not None else "quote_id"
    row = connection.execute(
        "SELECT requests, batch_id, file_id, offers -> 'tiers' ? %s FROM quote WHERE id = %s AND tenant_id = %s "
        "FOR UPDATE",
        [tier, taken.quote_id, tenant_id],
    ).fetchone()
    if row is None:
        raise NotFoundError(f"no quote '{name}'", param=at)
    if row[1] is not None:
        raise ConflictError(f"{name} is {public('batch', row[1])}'s; ask for another", param=at)
    if row[0] != requests:
        raise RequestError(f"{name} was made for {row[0]} requests, and this batch has {requests}", param=at)
    if row[2] is not None and row[2] != taken.file_id:
        raise RequestError(f"{name} was made for {public('file', row[2])}", param=at)
    if not row[3]:
        raise RequestError(f"{name} has no offer for the tier '{tier}'", param=at)
    connection.execute("UPDATE quote SET batch_id = %s, tier = %s WHERE id = %s", [batch_id, tier, taken.quote_id])


def settle(connection: Connection) -> list[tuple[int, int, dict[str, Any]]]:
    """Holds quotes of finished batches against what came of them, a few at a time: (quote id, batch id, actual)."""
    rows = connection.execute(_SETTLE, {"most": _SETTLED_AT_ONCE})
    return [(int(row[0]), int(row[1]), row[2]) for row in rows]


def errors(connection: Connection) -> dict[str, dict[str, float]]:
    """How far quotes of the last days were off, by figure (`cost`, `finish`): `quotes`, median `p50` and `p90` of
    actual ÷ expected, and `inside`, the share that came out within the quoted range. Of batches that were completed."""
    rows = connection.execute(_ERRORS, {"days": PUBLISHED_DAYS})
    return {
        figure: {
            "quotes": n,
            "p50": quantiles[0],
            "p90": quantiles[1],
            **({"inside": inside} if inside is not None else {}),
        }
        for figure, n, quantiles, inside in rows
    }
