"""Classification runs as their owner moves them: made, given rows, completed, cancelled, resumed.

Rows are taken in order and once: whoever sends some twice, since the answer was lost, has them skipped. Each distinct
text gets a number when its first row comes. Whoever changes a run holds its row, so that uploads, the worker and its
owner pass one after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from tieryard.errors import ConflictError, NotFoundError
from tieryard.ids import public
from tieryard.requests.classification import ClassificationSpec, Row
from tieryard.store import idempotency
from tieryard.store.connection import Connection, Store
from tieryard.store.idempotency import Mark

KIND = "classification"


class RunState(StrEnum):
    """Questions are asked while rows still come. From the first two a run moves to another when nothing is in flight;
    from `stopped` and `failed` it can be resumed."""

    RECEIVING = "receiving"
    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stage(StrEnum):
    """Which of a run's models a text is asked of. A judge that is the larger model too answers as that."""

    FIRST = "first"
    JUDGE = "judge"
    ESCALATE = "escalate"


@dataclass(frozen=True, slots=True)
class NewRun:
    """What a run is made with."""

    tenant_id: int
    api_key_id: int | None
    spec: ClassificationSpec


@dataclass(frozen=True, slots=True)
class ClassificationRun:
    """A run as it is now; the table says what each counter counts. `tenant` is its owner by name, who may have
    `max_enqueued_tokens` waiting (None: any)."""

    id: int
    tenant_id: int
    api_key_id: int | None
    tenant: str
    max_enqueued_tokens: int | None
    spec: ClassificationSpec
    max_cost_usd: Decimal | None
    state: RunState
    ending: RunState | None
    why: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    total: int | None
    received: int
    texts: int
    asked_to: int
    settled_to: int
    final_rows: int
    failed: int
    asked: int
    answered: int
    escalated: int
    forgiven: int
    cost_usd: Decimal
    models: dict[str, dict[str, Any]]
    gate: dict[str, Any] | None
    threshold: float | None
    calibration: dict[str, Any] | None
    rate: float
    paced_at: datetime | None

    @property
    def public_id(self) -> str:
        return public(KIND, self.id)

    @property
    def is_whole(self) -> bool:
        """Whether all its rows are here."""
        return self.total is not None

    @property
    def is_ending(self) -> bool:
        """Whether nothing more is to be asked: it ends, or is over."""
        return self.ending is not None or self.finished_at is not None

    @property
    def gate_failed(self) -> bool:
        return self.gate is not None and self.gate["outcome"] != "passed"

    @property
    def gate_stops(self) -> bool:
        """Whether that was the end of it."""
        return self.gate_failed and self.spec.gate is not None and self.spec.gate.otherwise == "stop"


_COLUMNS = """
c.id, c.tenant_id, c.api_key_id, coalesce(t.name, ''), t.max_enqueued_tokens, c.spec, c.max_cost_usd, c.state, c.ending,
c.why, c.created_at, c.started_at, c.finished_at, c.total, c.received, c.texts, c.asked_to, c.settled_to, c.final_rows,
c.failed, c.asked, c.answered, c.escalated, c.forgiven, c.cost_usd, c.models, c.gate, c.threshold, c.calibration,
c.rate, c.paced_at
"""

_GET = f"""
SELECT {_COLUMNS} FROM classification c LEFT JOIN tenant t ON t.id = c.tenant_id
WHERE c.id = %(id)s AND (%(tenant)s::bigint IS NULL OR c.tenant_id = %(tenant)s)
"""  # noqa: S608  # columns of ours

_HOLD = """
SELECT FROM classification WHERE id = %(id)s AND (%(tenant)s::bigint IS NULL OR tenant_id = %(tenant)s)
FOR NO KEY UPDATE
"""

_LIST = f"""
SELECT {_COLUMNS} FROM classification c LEFT JOIN tenant t ON t.id = c.tenant_id
WHERE c.tenant_id = %(tenant)s AND (%(before)s::bigint IS NULL OR c.id < %(before)s) ORDER BY c.id DESC LIMIT %(limit)s
"""  # noqa: S608  # columns of ours

_INSERT = """
INSERT INTO classification (id, tenant_id, api_key_id, spec, max_cost_usd, state)
VALUES (%(id)s, %(tenant)s, %(key)s, %(spec)s::json, %(cap)s, 'receiving')
"""

# The questions of parts that are under way end with it; rescue ends what waits, workers what runs.
_STOP_BATCHES = """
UPDATE batch SET cancelling_at = now()
WHERE id = ANY(ARRAY(SELECT batch_id FROM classification_part WHERE classification_id = %(id)s AND collected < texts))
  AND finished_at IS NULL AND finalizing_at IS NULL AND cancelling_at IS NULL
"""

# By the digests alone, one index look each, whatever the statistics say: OFFSET 0 keeps all runs' texts from being read
# for them, and `+ 0` the primary key out of it, by which all of this run's would be. No other run has these digests.
_KNOWN = """
SELECT known.digest, known.text_no FROM unnest(%(digests)s::bytea[]) AS of (digest)
CROSS JOIN LATERAL (
    SELECT digest, text_no FROM classification_text t
    WHERE t.digest = of.digest AND t.classification_id + 0 = %(id)s OFFSET 0
) known
"""

_CANCEL = """
UPDATE classification c SET why = %(why)s, ending = CASE WHEN NOT idle.is THEN 'cancelled' END,
    state = CASE WHEN idle.is OR finished_at IS NOT NULL THEN 'cancelled' ELSE state END,
    finished_at = CASE WHEN idle.is THEN coalesce(finished_at, now()) ELSE finished_at END
FROM (SELECT NOT EXISTS (
    SELECT FROM classification_part WHERE classification_id = %(id)s AND collected < texts) AS is) idle
WHERE id = %(id)s
"""

_RESUME = """
UPDATE classification SET ending = NULL, why = NULL, finished_at = NULL, max_cost_usd = %(cap)s,
    forgiven = answered,
    state = CASE WHEN total IS NULL THEN 'receiving' ELSE 'running' END
WHERE id = %(id)s
"""


def create(store: Store, new: NewRun, rows: Sequence[Row] | None, *, mark: Mark | None = None) -> int:
    """Makes a run, complete where its rows are given: its id. Raises AlreadyMadeError when `mark` has made one."""
    run_id = store.next_id()
    with store.transaction() as connection:
        idempotency.claim(connection, mark, run_id)
        values = {"id": run_id, "tenant": new.tenant_id, "key": new.api_key_id}
        connection.execute(_INSERT, {**values, "spec": new.spec.model_dump_json(), "cap": new.spec.max_cost_usd})
        if rows is not None:
            _add(connection, run_id, 0, 0, rows)
            connection.execute("UPDATE classification SET total = received, state = 'running' WHERE id = %s", [run_id])
    return run_id


def get(store: Store, run_id: int, *, tenant_id: int | None = None) -> ClassificationRun:
    """One run. Raises NotFoundError, also for another tenant's; without `tenant_id` anybody's is found."""
    with store.transaction() as connection:
        return find(connection, run_id, tenant_id=tenant_id)


def find(connection: Connection, run_id: int, *, tenant_id: int | None = None) -> ClassificationRun:
    """As `get`, in the caller's transaction."""
    row = connection.execute(_GET, {"id": run_id, "tenant": tenant_id}).fetchone()
    if row is None:
        raise NotFoundError(f"no {KIND} '{public(KIND, run_id)}'", param=KIND)
    return _run(row)


def listing(store: Store, *, tenant_id: int, before: int | None, limit: int) -> list[ClassificationRun]:
    """A page of runs, newest first. `before` is the last id of the page before."""
    return [_run(row) for row in store.fetch(_LIST, {"tenant": tenant_id, "before": before, "limit": limit})]


def add_rows(store: Store, run_id: int, first: int, rows: Sequence[Row], *, tenant_id: int) -> int:
    """Takes rows `first`, `first + 1`, …; those that are here already are skipped: how many rows there are then. Raises
    ConflictError where rows between are missing, or no more may come."""
    with store.transaction() as connection:
        run = hold(connection, run_id, tenant_id=tenant_id)
        if first > run.received + 1:
            raise ConflictError(
                f"row {run.received + 1} comes next, and this begins with row {first}: send those between first",
                param="first",
            )
        new = rows[run.received + 1 - first :]
        if not new:
            return run.received
        if run.total is not None:
            raise ConflictError(f"it was completed with {run.total} rows: no more can come", param="first")
        if (ends := run.ending or run.state) in (RunState.CANCELLED, RunState.FAILED):
            raise ConflictError(f"it is {ends}: no more rows are taken", param=KIND)
        return _add(connection, run_id, run.received, run.texts, new)


def complete(store: Store, run_id: int, rows: int, *, tenant_id: int) -> None:
    """Says that there are `rows` rows, and no more come; twice is once. Raises ConflictError where others are here."""
    with store.transaction() as connection:
        run = hold(connection, run_id, tenant_id=tenant_id)
        known = run.total if run.total is not None else run.received
        if known != rows:
            said = "completed with" if run.total is not None else "has received"
            raise ConflictError(f"it {said} {known} rows, not {rows}", param="rows")
        connection.execute(
            "UPDATE classification SET total = %(rows)s, "
            "state = CASE WHEN state = 'receiving' THEN 'running' ELSE state END WHERE id = %(id)s",
            {"id": run_id, "rows": rows},
        )


def cancel(store: Store, run_id: int, *, tenant_id: int) -> None:
    """Ends a run: nothing more is asked, what waits is dropped, what runs is stopped and billed. Raises ConflictError
    for one that is over."""
    with store.transaction() as connection:
        run = hold(connection, run_id, tenant_id=tenant_id)
        if RunState.CANCELLED in (run.state, run.ending):
            return
        if run.state is RunState.COMPLETED:
            raise ConflictError("cannot cancel a classification that is completed", param=KIND)
        connection.execute(_STOP_BATCHES, {"id": run_id})
        connection.execute(_CANCEL, {"id": run_id, "why": "cancelled by its owner"})


def resume(store: Store, run_id: int, *, tenant_id: int, cap: Decimal | None, keep_cap: bool) -> None:
    """Goes on with a run that has stopped or failed, under another cap (None lifts it) or the one it had. What was
    answered is not asked again. Raises ConflictError for one that cannot go on."""
    with store.transaction() as connection:
        run = hold(connection, run_id, tenant_id=tenant_id)
        if (run.ending or run.state) not in (RunState.STOPPED, RunState.FAILED):
            raise ConflictError(f"cannot resume a classification that is {run.ending or run.state}", param=KIND)
        if run.gate_stops:
            raise ConflictError(f"its gate has not passed: {run.why}; make another run", param=KIND)
        wanted = run.max_cost_usd if keep_cap else cap
        if wanted is not None and wanted <= run.cost_usd:
            raise ConflictError(
                f"it has cost {run.cost_usd:f} USD, and its cap is {wanted:f}: give a higher one", param="max_cost_usd"
            )
        connection.execute(_RESUME, {"id": run_id, "cap": wanted})


def hold(connection: Connection, run_id: int, *, tenant_id: int | None = None) -> ClassificationRun:
    """The run, which nobody else changes until this transaction is over. Raises NotFoundError."""
    connection.execute(_HOLD, {"id": run_id, "tenant": tenant_id})
    return find(connection, run_id, tenant_id=tenant_id)  # as it is now that it is ours


def _add(connection: Connection, run_id: int, received: int, texts: int, rows: Sequence[Row]) -> int:
    """Appends rows, whose run is held: how many there are then."""
    digests = [_digest(run_id, row.text) for row in rows]
    known = connection.execute(_KNOWN, {"digests": list(set(digests)), "id": run_id})
    numbers = {bytes(digest): int(number) for digest, number in known}
    with connection.cursor().copy(
        "COPY classification_text (classification_id, text_no, first_row, digest, body, truth) FROM STDIN"
    ) as copy:
        for row_no, (row, digest) in enumerate(zip(rows, digests, strict=True), start=received + 1):
            if digest in numbers:
                continue
            texts += 1
            numbers[digest] = texts
            truth = list(row.answer) if row.answer is not None else None
            copy.write_row((run_id, texts, row_no, digest, row.text, truth))
    with connection.cursor().copy("COPY classification_row (classification_id, row_no, text_no) FROM STDIN") as copy:
        for row_no, digest in enumerate(digests, start=received + 1):
            copy.write_row((run_id, row_no, numbers[digest]))
    connection.execute(
        "UPDATE classification SET received = %s, texts = %s WHERE id = %s", [received + len(rows), texts, run_id]
    )
    return received + len(rows)


def _digest(run_id: int, text: str) -> bytes:
    """Salted by the run: else a text of a file that is classified fifty times would be looked for among fifty."""
    return hashlib.blake2b(text.encode(), digest_size=16, salt=run_id.to_bytes(8)).digest()


def _run(row: Sequence[Any]) -> ClassificationRun:
    (number, tenant_id, key_id, tenant, most, spec, cap, state, ending, *rest) = row
    parsed = ClassificationSpec.model_validate(spec)
    ends = RunState(ending) if ending is not None else None
    return ClassificationRun(number, tenant_id, key_id, tenant, most, parsed, cap, RunState(state), ends, *rest)
