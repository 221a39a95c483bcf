"""What came of the rows of a classification run, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tieryard.store.classification_progress import policy
from tieryard.store.classifications import ClassificationRun
from tieryard.store.connection import Store

# By primary keys: OFFSET 0 keeps each join to one index look a row, whatever the statistics say of a new run. A text's
# cost stands at its first row, so that the rows add up to what the ledger says.
_RESULTS = """
SELECT r.row_no, t.first_row, f.labels, f.confidence, f.model, f.error, j.labels, j.confidence, j.model, j.error,
       l.labels, l.confidence, l.model, l.error,
       coalesce(f.cost_usd, 0) + coalesce(j.cost_usd, 0) + coalesce(l.cost_usd, 0)
FROM classification_row r
CROSS JOIN LATERAL (SELECT * FROM classification_text t WHERE t.classification_id = %(id)s
    AND t.text_no = r.text_no OFFSET 0) t
LEFT JOIN LATERAL (SELECT * FROM classification_answer a WHERE a.classification_id = %(id)s
    AND a.text_no = r.text_no AND a.stage = 'first' OFFSET 0) f ON true
LEFT JOIN LATERAL (SELECT * FROM classification_answer a WHERE a.classification_id = %(id)s
    AND a.text_no = r.text_no AND a.stage = 'judge' OFFSET 0) j ON true
LEFT JOIN LATERAL (SELECT * FROM classification_answer a WHERE a.classification_id = %(id)s
    AND a.text_no = r.text_no AND a.stage = 'escalate' OFFSET 0) l ON true
WHERE r.classification_id = %(id)s AND r.row_no > %(after)s AND r.row_no <= %(last)s
ORDER BY r.row_no LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class RowResult:
    """What came of one row. `labels` None: nothing, and `error` says why. Where both are there, the larger model did
    not answer, and the labels are the first one's. `duplicate_of` is the row whose text it repeats."""

    row: int
    labels: list[str] | None
    confidence: float | None
    model: str | None
    cost_usd: Decimal
    escalated: bool
    error: str | None
    duplicate_of: int | None


@dataclass(frozen=True, slots=True)
class _Answer:
    """One model's; all None where it was not asked."""

    labels: list[str] | None
    confidence: float | None
    model: str | None
    error: str | None


def results(store: Store, run: ClassificationRun, *, after: int, limit: int) -> list[RowResult]:
    """Rows after `after`, in order: those that have their last answer, and all once the run is over."""
    last = run.received if run.finished_at is not None else run.final_rows
    rows = store.fetch(_RESULTS, {"id": run.id, "after": after, "last": last, "limit": limit})
    return [_result(run, row) for row in rows]


def _lacks_larger(run: ClassificationRun, first: _Answer, larger: _Answer) -> bool:
    """Whether the run ended before its larger model was asked, whose word was to be the last."""
    stands = policy(run)
    unsure = stands.below is not None and (first.confidence is None or first.confidence < stands.below)
    return larger.labels is None and (stands.all_larger or unsure)


def _result(run: ClassificationRun, row: Sequence[Any]) -> RowResult:
    row_no, first_row = row[:2]
    first, judged, larger = (_Answer(*row[at : at + 4]) for at in (2, 6, 10))
    # The larger model's word is the last; without one the judge's, which was asked for the gate, then the first one's.
    labelled = [one for one in (larger, judged, first) if one.labels is not None]
    best = labelled[0] if labelled else _Answer(None, None, None, None)
    errors = [one.error for one in (larger, judged, first) if one.error is not None]
    error = errors[0] if errors and (not labelled or larger.error is not None) else None
    if row_no > run.final_rows and error is None and (not labelled or _lacks_larger(run, first, larger)):
        asked = "not asked of the larger model" if labelled else "not asked"
        error = f"{asked}: the run is {run.state}" + (f", {run.why}" if run.why else "")
    first_of_text = row_no == first_row
    return RowResult(
        row=row_no,
        labels=best.labels,
        confidence=best.confidence,
        model=best.model or larger.model or first.model,
        cost_usd=row[14] if first_of_text else Decimal(0),
        escalated=best is not first and best.labels is not None,
        error=error,
        duplicate_of=None if first_of_text else first_row,
    )
