"""What people made of answers: the answers there are to label, the labels, and the judge's scores beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson

from tieryard.store.connection import Store

_ANSWERS = """
SELECT run.id, run.created_at, item.body::text, result.output
FROM benchmark run
JOIN golden_score score ON score.benchmark_id = run.id
JOIN golden_item item ON item.set_id = run.golden_set_id AND item.item_id = score.item_id
JOIN job ON job.id = score.job_id AND job.state = 'succeeded'
JOIN result ON result.job_id = score.job_id AND result.output IS NOT NULL
WHERE run.id = ANY(%(runs)s) ORDER BY run.id, item.position
"""

_ITEMS = """
SELECT run.id, run.created_at, score.item_id FROM benchmark run
JOIN golden_score score ON score.benchmark_id = run.id WHERE run.kind = 'quality' AND run.state = 'succeeded'
"""

_SAVE = """
INSERT INTO human_label (benchmark_id, item_id, reviewer, score)
SELECT l.run_id, l.item_id, %(reviewer)s, l.score
FROM jsonb_to_recordset(%(labels)s::jsonb) AS l (run_id bigint, item_id text, score real)
ON CONFLICT (benchmark_id, item_id, reviewer) DO UPDATE SET score = excluded.score, labelled_at = now()
RETURNING item_id
"""

_LABELLED = """
SELECT score.benchmark_id, score.item_id, score.category, score.score, score.judge,
       array_agg(label.score ORDER BY label.reviewer), array_agg(label.reviewer ORDER BY label.reviewer)
FROM golden_score score
JOIN human_label label ON label.benchmark_id = score.benchmark_id AND label.item_id = score.item_id
WHERE score.benchmark_id = ANY(%(runs)s) AND score.score IS NOT NULL
GROUP BY score.benchmark_id, score.item_id ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """What a run answered to an item, which is JSON."""

    run_id: int
    made_at: datetime
    item: str
    output: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """An item's score in a run, by a `judge` or (None) its scorer, and those of people."""

    run_id: int
    item_id: str
    category: str
    score: float
    judge: str | None
    people: list[float]
    reviewers: list[str]


def given_answers(store: Store, run_ids: Sequence[int]) -> list[GivenAnswer]:
    """Of these runs, in the order of their sets."""
    return [GivenAnswer(*row) for row in store.fetch(_ANSWERS, {"runs": list(run_ids)})]


def items_of_runs(store: Store) -> list[tuple[int, datetime, str]]:
    """(run, when it was made, item) of all quality runs that have succeeded."""
    return [(row[0], row[1], row[2]) for row in store.fetch(_ITEMS)]


def save_labels(store: Store, labels: Iterable[tuple[int, str, float]], *, reviewer: str) -> int:
    """(run, item, score), all or none: how many. A reviewer's later word takes the place of the earlier one."""
    rows = [{"run_id": run_id, "item_id": item_id, "score": round(score, 6)} for run_id, item_id, score in labels]
    return len(store.fetch(_SAVE, {"reviewer": reviewer, "labels": orjson.dumps(rows).decode()}))


def labelled(store: Store, run_ids: Sequence[int]) -> list[Labelled]:
    """The items of these runs that have a score and a label."""
    return [Labelled(*row) for row in store.fetch(_LABELLED, {"runs": list(run_ids)})]
