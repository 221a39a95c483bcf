"""Golden sets, and how their items were answered and scored, run by run.

A set is named, and told from others of its name by its hash: what was imported last is meant by the name, and the runs
on earlier content keep theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any

import orjson

from tieryard.errors import ConflictError, NotFoundError
from tieryard.store.benchmarks import BenchmarkRun
from tieryard.store.connection import Store, storable


@dataclass(frozen=True, slots=True)
class SetRow:
    """A set as it was imported, without its items; `counts` are items by category."""

    id: int
    name: str
    hash: str
    counts: dict[str, int]
    imported_at: datetime

    @property
    def items(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class ItemScore:
    """An item's answer in one run, and its score, 0 to 1: None where there is none, and `why` says why. `judge` is the
    deployment that judged; `counts` are found and right, found and wrong, missed. `latency_ms` is None where there was
    no answer; `cost_usd` is the job's, whatever came of it."""

    item_id: str
    category: str
    input_hash: str
    job_id: int | None
    score: float | None
    why: str = ""
    judge: str | None = None
    counts: list[int] | None = None
    latency_ms: float | None = None
    cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs' scores of one item, asked alike in both."""

    item_id: str
    category: str
    first: float | None
    second: float | None


_SET_COLUMNS = "id, name, hash, counts, imported_at"
_SCORE_COLUMNS = ", ".join(field.name for field in fields(ItemScore))

# Content that was imported before is what the name means again.
_SAVE_SET = f"""
INSERT INTO golden_set (name, hash, counts) VALUES (%(name)s, %(hash)s, %(counts)s::jsonb)
ON CONFLICT (name, hash) DO UPDATE SET imported_at = clock_timestamp()
RETURNING {_SET_COLUMNS}, xmax = 0
"""  # noqa: S608  # columns of ours

_SAVE_SCORES = f"""
INSERT INTO golden_score (benchmark_id, {_SCORE_COLUMNS})
SELECT benchmark.id, s.* FROM benchmark, jsonb_to_recordset(%(scores)s::jsonb) AS s (
    item_id text, category text, input_hash text, job_id bigint, score real, why text, judge text, counts int[],
    latency_ms real, cost_usd numeric)
WHERE benchmark.id = %(id)s AND benchmark.fence = %(fence)s AND benchmark.finished_at IS NULL
ON CONFLICT (benchmark_id, item_id) DO UPDATE SET
    job_id = excluded.job_id, score = excluded.score, why = excluded.why, judge = excluded.judge,
    counts = excluded.counts, latency_ms = excluded.latency_ms, cost_usd = excluded.cost_usd
RETURNING item_id
"""  # noqa: S608  # columns of ours

_PAIRS = """
SELECT a.item_id, a.category, a.score, b.score FROM golden_score a
JOIN golden_score b ON b.benchmark_id = %(second)s AND b.item_id = a.item_id AND b.input_hash = a.input_hash
WHERE a.benchmark_id = %(first)s ORDER BY a.item_id
"""


def save_set(
    store: Store, name: str, content_hash: str, counts: Mapping[str, int], items: Sequence[dict[str, Any]]
) -> tuple[SetRow, bool]:
    """`items` are bodies with their `id`, in order. The set, and whether it is new: the same content under the same
    name is the set that there is."""
    with store.transaction() as connection:
        wanted = {"name": name, "hash": content_hash, "counts": orjson.dumps(dict(counts)).decode()}
        row = connection.execute(_SAVE_SET, wanted).fetchone()
        assert row is not None
        *columns, made = row
        saved = _set(columns)
        if made:
            with connection.cursor().copy("COPY golden_item (set_id, position, item_id, body) FROM STDIN") as copy:
                for position, body in enumerate(items, start=1):
                    copy.write_row((saved.id, position, body["id"], orjson.dumps(body).decode()))
    return saved, bool(made)


def find_set(store: Store, name: str) -> SetRow:
    """The one of this name that was imported last. Raises NotFoundError."""
    rows = store.fetch(
        f"SELECT {_SET_COLUMNS} FROM golden_set WHERE name = %(name)s ORDER BY imported_at DESC, id DESC LIMIT 1",  # noqa: S608
        {"name": storable(name)},
    )
    if not rows:
        raise NotFoundError(f"no golden set '{name}'; `tieryard golden list` shows them", param="golden_set")
    return _set(rows[0])


def get_set(store: Store, set_id: int) -> SetRow:
    """Raises NotFoundError."""
    rows = store.fetch(f"SELECT {_SET_COLUMNS} FROM golden_set WHERE id = %(id)s", {"id": set_id})  # noqa: S608
    if not rows:
        raise NotFoundError(f"no golden set with id {set_id}", param="golden_set")
    return _set(rows[0])


def list_sets(store: Store) -> list[SetRow]:
    """What each name means now, by name."""
    rows = store.fetch(
        f"SELECT DISTINCT ON (name) {_SET_COLUMNS} FROM golden_set ORDER BY name, imported_at DESC, id DESC"  # noqa: S608
    )
    return [_set(row) for row in rows]


def item_bodies(store: Store, set_id: int) -> list[dict[str, Any]]:
    """In the file's order."""
    rows = store.fetch("SELECT body FROM golden_item WHERE set_id = %(id)s ORDER BY position", {"id": set_id})
    return [row[0] for row in rows]


def save_scores(store: Store, run: BenchmarkRun, found: Sequence[ItemScore]) -> None:
    """Later ones of an item take the place of earlier ones. Raises ConflictError when the run is not ours any more."""
    if not found:
        return
    rows = [{f.name: getattr(one, f.name) for f in fields(ItemScore)} | {"why": storable(one.why)} for one in found]
    wanted = {"id": run.id, "fence": run.fence, "scores": orjson.dumps(rows, default=str).decode()}
    if not store.fetch(_SAVE_SCORES, wanted):
        raise ConflictError(f"{run.public_id} is another worker's by now")


def scores(store: Store, run_id: int) -> list[ItemScore]:
    """By item."""
    rows = store.fetch(
        f"SELECT {_SCORE_COLUMNS} FROM golden_score WHERE benchmark_id = %(id)s ORDER BY item_id",  # noqa: S608
        {"id": run_id},
    )
    return [ItemScore(*row) for row in rows]


def pairs(store: Store, first: int, second: int) -> list[Pair]:
    """Items that both runs have, asked alike."""
    return [Pair(*row) for row in store.fetch(_PAIRS, {"first": first, "second": second})]


def _set(row: Sequence[Any]) -> SetRow:
    number, name, content_hash, counts, imported_at = row
    return SetRow(number, name, content_hash, dict(sorted(counts.items())), imported_at)
