"""The questions of classification runs: parts under way, and the answers that are collected from them.

A part is a batch of its owner's. It is saved with the batch in one transaction, while the run is as its maker has read
it: of two processes that would ask the same only one can commit. Answers are inserted with the part's `collected` and
the run's counters, under their primary key: none is read twice, whoever dies when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson

from tieryard.ids import public
from tieryard.store.batches import NewBatch, put_batch
from tieryard.store.classification_progress import paced
from tieryard.store.classifications import KIND, ClassificationRun, Stage, hold
from tieryard.store.connection import Connection, Store, storable

SLICE = 500
"""Texts whose worst case stands together in a part: what is left of it is known so finely."""


@dataclass(frozen=True, slots=True)
class Part:
    """Texts asked together, of which `collected` have been read. `worst_usd` is by slices of SLICE."""

    part_no: int
    stage: Stage
    batch_id: int
    texts: int
    worst_usd: list[Decimal] | None
    collected: int
    followed: bool

    @property
    def open(self) -> bool:
        return self.collected < self.texts

    @property
    def worst_left_usd(self) -> Decimal:
        """The most that can yet be charged for it, beyond what was collected."""
        return sum((self.worst_usd or [])[self.collected // SLICE :], Decimal(0)) if self.open else Decimal(0)


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that is not over. `version` is another one whenever anything was written to it; `busy`: questions of it are
    under way."""

    id: int
    version: str
    busy: bool


@dataclass(frozen=True, slots=True)
class NewPart:
    """A part to make of `lines`, one for each of `text_nos`. `follows` is the first part whose texts it escalates,
    `asked_to` how far the run's texts are then asked; None where it says nothing of that."""

    stage: Stage
    text_nos: Sequence[int]
    lines: list[str]
    worst_usd: list[Decimal] | None = None
    follows: int | None = None
    asked_to: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A final job of a part. `body` is what it answered, None where it did not, and `why` then says why."""

    job_id: int
    text_no: int
    deployment: str | None
    output: str | None
    finish_reason: str | None
    extra: dict[str, Any] | None
    why: str | None
    cost_usd: Decimal

    @property
    def body(self) -> dict[str, Any] | None:
        """The answer as a chat completion, as far as labels are read from it."""
        if self.why is not None:
            return None
        message = {"role": "assistant", "content": self.output}
        logprobs = (self.extra or {}).get("logprobs")
        return {"choices": [{"message": message, "finish_reason": self.finish_reason, "logprobs": logprobs}]}


@dataclass(frozen=True, slots=True)
class Found:
    """An answer as it is kept: `labels`, or None and the `error`."""

    job_id: int
    text_no: int
    stage: Stage
    model: str | None
    cost_usd: Decimal
    labels: tuple[str, ...] | None = None
    confidence: float | None = None
    error: str | None = None


_OPEN_RUNS = """
SELECT id, c.xmin::text,
       EXISTS (SELECT FROM classification_part p WHERE p.classification_id = c.id AND p.collected < p.texts)
FROM classification c WHERE finished_at IS NULL ORDER BY id
"""

_PARTS = """
SELECT part_no, stage, batch_id, texts, worst_usd, collected, followed FROM classification_part
WHERE classification_id = %(id)s AND (collected < texts OR NOT followed) ORDER BY part_no
"""

# The jobs of a batch end about in the order of their lines, so those before the first that has not ended are read. One
# look at the work index a part, from where it was read to: not over the entries of all that has ended since.
_PROGRESS = """
SELECT b.id, least(b.expanded_to, coalesce(
    (SELECT min(job.id) FROM job WHERE job.batch_id = b.id AND job.finished_at IS NULL AND job.id > b.id + p.collected
     AND job.id <= b.id + b.total)
    - b.first_job_id, b.expanded_to))
FROM unnest(%(batches)s::bigint[], %(collected)s::int[]) AS p (id, collected) JOIN batch b ON b.id = p.id
"""

# By primary keys. What a job is charged is its `inference`; retries are paid by nobody.
_ENDED = """
SELECT job.id, t.text_no, job.deployment, job.state, result.output, result.finish_reason, result.extra::text,
       coalesce(result.error, result.error_kind),
       (SELECT coalesce(sum(cost_usd), 0) FROM ledger WHERE ledger.job_id = job.id AND ledger.kind = 'inference')
FROM classification_part p
CROSS JOIN LATERAL unnest(p.text_nos[%(from)s::int + 1:%(to)s]) WITH ORDINALITY AS t (text_no, n)
JOIN job ON job.id = p.batch_id + %(from)s + t.n
LEFT JOIN result ON result.job_id = job.id
WHERE p.classification_id = %(id)s AND p.part_no = %(part)s ORDER BY job.id
"""

# Probabilities of tokens are most of an answer's size (some 5 kB of 6), and of no use once a confidence was made of
# them: a run of a million rows would leave gigabytes of them.
_FORGET = """
UPDATE result SET extra = nullif(extra - 'logprobs', '{}') WHERE job_id = ANY(%(jobs)s) AND extra ? 'logprobs'
"""

_COLLECTED = """
UPDATE classification_part SET collected = %(to)s
WHERE classification_id = %(id)s AND part_no = %(part)s AND collected = %(from)s RETURNING part_no
"""


def open_runs(store: Store) -> list[OpenRun]:
    """Those that are not over, the oldest first."""
    return [OpenRun(*row) for row in store.fetch(_OPEN_RUNS)]


def parts(store: Store, run_id: int) -> list[Part]:
    """Those that are open, or were not followed yet."""
    rows = store.fetch(_PARTS, {"id": run_id})
    return [Part(row[0], Stage(row[1]), *row[2:]) for row in rows]


def progress(store: Store, open_parts: Sequence[Part]) -> dict[int, int]:
    """How many jobs of each part have ended, from the first on without a gap: by batch."""
    asked = {"batches": [p.batch_id for p in open_parts], "collected": [p.collected for p in open_parts]}
    return {row[0]: row[1] for row in store.fetch(_PROGRESS, asked)}


def ended(store: Store, run_id: int, part: Part, to: int) -> list[Ended]:
    """The jobs of a part after those collected, up to the `to`-th, in order."""
    rows = store.fetch(_ENDED, {"id": run_id, "part": part.part_no, "from": part.collected, "to": to})
    found = []
    for job_id, text_no, deployment, state, output, reason, extra, error, cost_usd in rows:
        answered = state == "succeeded" and output is not None
        why = None if answered else f"{state}: {error or 'no text'}"
        read = orjson.loads(extra) if extra else None
        found.append(Ended(job_id, text_no, deployment, output, reason, read, why, cost_usd))
    return found


def collect(store: Store, run_id: int, part: Part, found: Sequence[Found]) -> bool:
    """Keeps the answers that follow those collected: False where another process has."""
    with store.transaction() as connection:
        run = hold(connection, run_id)
        to = part.collected + len(found)
        about = {"id": run_id, "part": part.part_no, "from": part.collected, "to": to}
        if connection.execute(_COLLECTED, about).fetchone() is None:
            return False
        with connection.cursor().copy(
            "COPY classification_answer (classification_id, text_no, stage, job_id, labels, confidence, model, "
            "cost_usd, error) FROM STDIN"
        ) as copy:
            for one in found:
                labels = list(one.labels) if one.labels is not None else None
                error = storable(one.error)[:500] if one.error is not None else None
                copy.write_row(
                    (run_id, one.text_no, one.stage, one.job_id, labels, one.confidence, one.model, one.cost_usd, error)
                )
        connection.execute(_FORGET, {"jobs": [one.job_id for one in found]})
        _count(connection, run, found)
    return True


def _count(connection: Connection, run: ClassificationRun, found: Sequence[Found]) -> None:
    """Adds answers to the run's counters. `models` has a tally of each deployment."""
    models = dict(run.models)
    for one in found:
        if one.model is not None:
            tally = models.get(one.model) or {"labelled": 0, "failed": 0, "cost_usd": "0"}
            field = "labelled" if one.labels is not None else "failed"
            models[one.model] = {
                **tally,
                field: tally[field] + 1,
                "cost_usd": f"{Decimal(tally['cost_usd']) + one.cost_usd:f}",
            }
    [[now]] = connection.execute("SELECT clock_timestamp()").fetchall()
    connection.execute(
        "UPDATE classification SET answered = answered + %(n)s, cost_usd = cost_usd + %(usd)s, models = %(models)s, "
        "rate = %(rate)s, paced_at = %(now)s WHERE id = %(id)s",
        {
            "id": run.id,
            "n": len(found),
            "usd": sum((one.cost_usd for one in found), Decimal(0)),
            "models": orjson.dumps(models).decode(),
            "rate": paced(run.rate, len(found), run.paced_at or run.started_at or now, now),
            "now": now,
        },
    )


# Numbered as it is saved: who holds the run is alone with it.
_PUT_PART = """
INSERT INTO classification_part (classification_id, part_no, stage, batch_id, text_nos, texts, worst_usd, followed)
SELECT %(id)s, coalesce(max(part_no), 0) + 1, %(stage)s, %(batch)s, %(nos)s, %(n)s, %(worst)s::numeric[], %(followed)s
FROM classification_part WHERE classification_id = %(id)s RETURNING part_no
"""

_ASKED = """
UPDATE classification SET asked = asked + %(n)s, escalated = escalated + %(up)s, why = NULL,
    asked_to = coalesce(%(to)s::int, asked_to), started_at = coalesce(started_at, now())
WHERE id = %(id)s
"""


def put_part(store: Store, run: ClassificationRun, new: NewPart, batch: NewBatch) -> int | None:
    """Saves a part and its batch: the part's number. None where nothing more is to be asked, or another process has
    asked or collected since `run` was read: these texts may be asked already then, or not be covered by the cap.
    Raises LimitError and BudgetError as any batch does."""
    n, first = len(new.lines), new.stage is Stage.FIRST
    batch_id = store.reserve_ids(n + 1)
    with store.transaction() as connection:
        now = hold(connection, run.id)
        if now.is_ending or (now.asked, now.answered) != (run.asked, run.answered):
            return None
        part = {"id": run.id, "stage": new.stage, "batch": batch_id, "nos": list(new.text_nos), "n": n}
        [[part_no]] = connection.execute(_PUT_PART, {**part, "worst": new.worst_usd, "followed": not first}).fetchall()
        connection.execute(_ASKED, {"id": run.id, "n": n, "up": 0 if first else n, "to": new.asked_to})
        if new.follows is not None:
            _follow(connection, run.id, new.follows)
        noted = {KIND: public(KIND, run.id), "stage": str(new.stage), "part": str(part_no)}
        put_batch(connection, batch_id, batch, new.lines, metadata=noted)  # last: others wait for its budgets
    return int(part_no)


def follow(store: Store, run_id: int, part_no: int) -> None:
    """Nothing of this first part is to be escalated."""
    with store.transaction() as connection:
        _follow(connection, run_id, part_no)


def _follow(connection: Connection, run_id: int, part_no: int) -> None:
    connection.execute(
        "UPDATE classification_part SET followed = true WHERE classification_id = %s AND part_no = %s",
        [run_id, part_no],
    )


def in_slices(worst: Sequence[Decimal]) -> list[Decimal]:
    """The worst case of each SLICE of texts."""
    return list(_slices(worst))


def _slices(worst: Sequence[Decimal]) -> Iterator[Decimal]:
    for at in range(0, len(worst), SLICE):
        yield sum(worst[at : at + SLICE], Decimal(0))
