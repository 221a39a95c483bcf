"""What the jobs of a batch were answered: for benchmarks, whose questions go through the fleet as anybody's do."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from tieryard.job import State
from tieryard.store.connection import Store

_BATCH = "SELECT first_job_id, total, finished_at IS NOT NULL FROM batch WHERE id = %(batch)s"

# By primary keys, in the order of the lines.
_ANSWERS = """
SELECT job.id, job.line_no, job.state, result.output, result.finish_reason, coalesce(result.error, result.error_kind),
       ran.latency_ms, ran.fingerprint, ran.prompt_tokens, ran.completion_tokens,
       coalesce((SELECT sum(cost_usd) FROM ledger WHERE ledger.job_id = job.id AND kind = 'inference'), 0)
FROM job
LEFT JOIN result ON result.job_id = job.id
LEFT JOIN timing ran ON ran.job_id = job.id AND ran.fence = job.fence
WHERE job.id >= %(first)s AND job.id < %(first)s + %(total)s AND job.finished_at IS NOT NULL
ORDER BY job.id
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """A final job of a batch. `line_no` counts from 1; `why` says why there is no answer, where `output` is None."""

    job_id: int
    line_no: int
    state: str
    output: str | None
    finish_reason: str | None
    why: str | None
    latency_ms: float | None
    fingerprint: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: Decimal

    @property
    def answered(self) -> bool:
        return self.state == State.SUCCEEDED and self.output is not None

    @property
    def fault(self) -> str:
        """Why it has no answer, in words; empty where it has one."""
        return "" if self.answered else f"{self.state}: {self.why or 'no text'}"


def answers(store: Store, batch_id: int) -> list[Answer] | None:
    """Of all its lines, in their order; None while the batch is open."""
    first, total, over = store.fetch(_BATCH, {"batch": batch_id})[0]
    return answers_of(store, first, total) if over else None


def answers_of(store: Store, first: int, n: int) -> list[Answer]:
    """Of the jobs `first … first + n − 1`: of those that are final."""
    return [Answer(*row) for row in store.fetch(_ANSWERS, {"first": first, "total": n})]
