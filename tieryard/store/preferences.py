"""Two quality runs side by side: the answers that both gave to the same items, and whose a judge preferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import orjson

from tieryard.store.connection import Store

Winner = Literal["a", "b", "tie"]

# From the items by primary key to scores, results and jobs by theirs.
_PAIRS = """
SELECT item.item_id, a.category, item.body::text, answer_a.output, answer_b.output
FROM golden_item item
JOIN golden_score a ON a.benchmark_id = %(a)s AND a.item_id = item.item_id
JOIN golden_score b ON b.benchmark_id = %(b)s AND b.item_id = item.item_id AND b.input_hash = a.input_hash
JOIN job job_a ON job_a.id = a.job_id AND job_a.state = 'succeeded'
JOIN job job_b ON job_b.id = b.job_id AND job_b.state = 'succeeded'
JOIN result answer_a ON answer_a.job_id = a.job_id AND answer_a.output IS NOT NULL
JOIN result answer_b ON answer_b.job_id = b.job_id AND answer_b.output IS NOT NULL
WHERE item.set_id = %(set)s ORDER BY item.position
"""

# Once for each item: another process that took the run over reads the same verdicts.
_SAVE = """
INSERT INTO preference (benchmark_id, item_id, category, forward, swapped)
SELECT %(run)s, p.item_id, p.category, p.forward, p.swapped
FROM jsonb_to_recordset(%(rows)s::jsonb) AS p (item_id text, category text, forward text, swapped text)
ON CONFLICT (benchmark_id, item_id) DO NOTHING RETURNING item_id
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """An item, as JSON, with the answers that two runs had for it."""

    item_id: str
    category: str
    item: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Preferred:
    """Whose answer a judge preferred, with a's shown first and with b's; None where it gave no verdict."""

    item_id: str
    category: str
    forward: Winner | None
    swapped: Winner | None


def pairs(store: Store, a: int, b: int, *, golden_set_id: int) -> list[Pair]:
    """Of the items that both runs have answered, in the set's order."""
    return [Pair(*row) for row in store.fetch(_PAIRS, {"a": a, "b": b, "set": golden_set_id})]


def save(store: Store, run_id: int, preferred: Sequence[Preferred]) -> None:
    rows = orjson.dumps([asdict(row) for row in preferred]).decode()
    store.fetch(_SAVE, {"run": run_id, "rows": rows})
