"""Promotions and canaries as they were said, and what became of the jobs that count for a canary.

A row holds for the build that it names, and only while the catalog has just that; whoever reads it asks
`routing.Trials.holding`. What ends is kept: why a model took jobs can be told later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from psycopg.types.json import Jsonb

from tieryard.ids import public
from tieryard.routing.trials import Canary, Promotion, Trials
from tieryard.store import benchmarks
from tieryard.store.connection import Connection, Store, storable, storable_json
from tieryard.store.telling import is_told_fleetwide

MOST_COMPARED = 2000
"""The newest starts of each side that a canary is judged by."""

KIND = "canary"
"""Of its public ids, and what its event begins with."""


@dataclass(frozen=True, slots=True)
class Promoted:
    """A promotion that has not ended. `verdict` is the gate's, as it was then."""

    id: int
    candidate: str
    serving: str
    pinned: str
    categories: list[str]
    verdict: dict[str, Any]
    note: str | None
    promoted_at: datetime

    @property
    def told(self) -> Promotion:
        return Promotion(self.candidate, self.serving, self.pinned, frozenset(self.categories))


@dataclass(frozen=True, slots=True)
class OnTrial:
    """A canary that has not ended, `age_s` seconds old. `report` is what its watch has found so far."""

    id: int
    candidate: str
    serving: str
    pinned: str
    categories: list[str] | None
    share: float
    started_at: datetime
    age_s: float
    report: dict[str, Any] | None

    @property
    def public_id(self) -> str:
        return public(KIND, self.id)

    @property
    def told(self) -> Canary:
        categories = None if self.categories is None else frozenset(self.categories)
        return Canary(self.candidate, self.serving, self.pinned, round(self.share, 6), categories)


@dataclass(frozen=True, slots=True)
class Start:
    """What came of a job that counts for a canary: the start that its decision led to. `taken`: by the candidate."""

    taken: bool
    tier: str
    outcome: str
    wait_ms: float
    ttft_ms: float | None
    latency_ms: float | None
    ended_at: datetime


_PROMOTIONS = """
SELECT id, candidate, serving, pinned, categories, verdict, note, promoted_at FROM promotion
WHERE ended_at IS NULL ORDER BY candidate
"""

_CANARIES = """
SELECT id, candidate, serving, pinned, categories, share, started_at,
       extract(epoch FROM clock_timestamp() - started_at)::float8, report FROM canary
WHERE ended_at IS NULL ORDER BY candidate
"""

_PROMOTE = """
INSERT INTO promotion (candidate, serving, pinned, categories, verdict, note)
VALUES (%(candidate)s, %(serving)s, %(pinned)s, %(categories)s, %(verdict)s, %(note)s)
"""

_START = """
INSERT INTO canary (candidate, serving, pinned, categories, share)
VALUES (%(candidate)s, %(serving)s, %(pinned)s, %(categories)s, %(share)s)
"""

# By `decision_by_canary`, the newest of each side, then their starts by primary key (hence the LIMIT: a join might scan
# them all): a decision leads to the start of the next fence. Starts that were drained, stopped, or met an engine that
# was away, say nothing.
_STARTS = """
SELECT side.taken, coalesce(made.features ->> 'tier', ''), start.*
FROM (VALUES (true, %(candidate)s), (false, %(serving)s)) AS side (taken, deployment)
CROSS JOIN LATERAL (
    SELECT job_id, fence, features FROM decision
    WHERE canary = %(candidate)s AND deployment = side.deployment AND decided_at >= %(since)s
    ORDER BY decided_at DESC LIMIT %(most)s
) AS made
CROSS JOIN LATERAL (
    SELECT outcome, wait_ms, ttft_ms, latency_ms, ended_at FROM timing
    WHERE timing.job_id = made.job_id AND timing.fence = made.fence + 1 LIMIT 1
) AS start
WHERE start.outcome = ANY(%(telling)s)
"""
_TELLING = ["succeeded", "failed", "fault", "crash", "rerouted"]

# By `outcome_by_deployment`; which of them count for the canary is asked by primary key.
_SCORES = """
SELECT side.taken, avg(scored.score)
FROM (VALUES (true, %(candidate)s), (false, %(serving)s)) AS side (taken, deployment)
CROSS JOIN LATERAL (
    SELECT job_id, score FROM outcome WHERE outcome.deployment = side.deployment AND scored_at >= %(since)s
    ORDER BY scored_at DESC LIMIT %(most)s
) AS scored
JOIN LATERAL (
    SELECT canary FROM decision WHERE decision.job_id = scored.job_id ORDER BY fence DESC LIMIT 1
) AS made ON made.canary = %(candidate)s
GROUP BY side.taken, scored.job_id
"""

_END_CANARY = """
WITH ended AS (
    UPDATE canary SET ended_at = now(), ended_why = %(why)s, breached = %(breached)s,
                      report = coalesce(%(report)s::jsonb, report)
    WHERE id = %(id)s AND ended_at IS NULL RETURNING id
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, url)
    SELECT %(tenant)s, 'canary.ended', id, %(url)s::text FROM ended WHERE %(url)s::text IS NOT NULL OR {told}
    RETURNING id
)
SELECT (SELECT count(*) FROM owed) FROM ended
""".replace("{told}", is_told_fleetwide("'canary.ended'"))


def promotions(connection: Connection) -> list[Promoted]:
    """Those that have not ended, by candidate; one of another build than the catalog's holds no more."""
    return [Promoted(*row) for row in connection.execute(_PROMOTIONS)]


def canaries(connection: Connection) -> list[OnTrial]:
    """The same."""
    return [OnTrial(*row) for row in connection.execute(_CANARIES)]


def trials(connection: Connection) -> Trials:
    """All that has not ended, as deciders are told."""
    return Trials(tuple(row.told for row in promotions(connection)), tuple(row.told for row in canaries(connection)))


def promote(connection: Connection, promotion: Promotion, *, verdict: dict[str, Any], note: str | None = None) -> None:
    """In the place of the candidate's last one, which ends."""
    _end_promotion(connection, promotion.candidate, "another took its place")
    wanted = {
        "candidate": promotion.candidate,
        "serving": promotion.serving,
        "pinned": promotion.build,
        "categories": sorted(promotion.categories),
        "verdict": _jsonb(verdict),
        "note": None if note is None else storable(note),
    }
    connection.execute(_PROMOTE, wanted)


def demote(connection: Connection, candidate: str, why: str, *, categories: Collection[str] | None = None) -> list[str]:
    """Ends a candidate's promotion, in these categories (None: in all), and keeps it in the others: those that it lost,
    none where it was not promoted there."""
    held = next((row for row in promotions(connection) if row.candidate == candidate), None)
    lost = [c for c in held.categories if categories is None or c in categories] if held is not None else []
    if held is None or not lost:
        return []
    _end_promotion(connection, candidate, why)
    if left := frozenset(held.categories) - frozenset(lost):
        kept = Promotion(candidate, held.serving, held.pinned, left)
        promote(connection, kept, verdict=held.verdict, note=held.note)
    return lost


def start_canary(connection: Connection, canary: Canary) -> None:
    """In the place of the candidate's last one, which ends."""
    for row in canaries(connection):
        if row.candidate == canary.candidate:
            end_canary(connection, row, "another took its place")
    wanted = {
        "candidate": canary.candidate,
        "serving": canary.serving,
        "pinned": canary.build,
        "categories": None if canary.categories is None else sorted(canary.categories),
        "share": canary.share,
    }
    connection.execute(_START, wanted)


def end_canary(
    connection: Connection,
    canary: OnTrial,
    why: str,
    *,
    breached: bool = False,
    report: dict[str, Any] | None = None,
    callback_url: str | None = None,
) -> int | None:
    """How many callbacks are owed; None where it had ended before."""
    wanted = {
        "id": canary.id,
        "why": storable(why),
        "breached": breached,
        "report": _jsonb(report),
        "url": callback_url,
        "tenant": benchmarks.tenant(connection),
    }
    row = connection.execute(_END_CANARY, wanted).fetchone()
    return None if row is None else int(row[0])


def keep_report(connection: Connection, canary: OnTrial, report: dict[str, Any]) -> None:
    """What its watch has found so far."""
    connection.execute("UPDATE canary SET report = %s WHERE id = %s", [_jsonb(report), canary.id])


def starts(connection: Connection, canary: OnTrial, *, most: int = MOST_COMPARED) -> list[Start]:
    """Of the newest `most` jobs of each side that count for it."""
    wanted = {**_sides(canary), "most": most, "telling": _TELLING}
    return [Start(*row) for row in connection.execute(_STARTS, wanted)]


def scores(connection: Connection, canary: OnTrial, *, most: int = MOST_COMPARED) -> list[tuple[bool, float]]:
    """(whether the candidate answered, the mean of its scores) for each job that counts, of the newest `most` scores of
    each deployment."""
    return [(row[0], row[1]) for row in connection.execute(_SCORES, {**_sides(canary), "most": most})]


def _sides(canary: OnTrial) -> dict[str, Any]:
    return {"candidate": canary.candidate, "serving": canary.serving, "since": canary.started_at}


def ended_canaries(store: Store, *, limit: int = 10) -> list[tuple[str, datetime, bool, str]]:
    """(candidate, when, whether it was a breach, why) of the last ones, newest first."""
    rows = store.fetch(
        "SELECT candidate, ended_at, breached, coalesce(ended_why, '') FROM canary WHERE ended_at IS NOT NULL "
        "ORDER BY id DESC LIMIT %(limit)s",
        {"limit": limit},
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def last_runs(
    connection: Connection,
    deployment: str,
    build: str,
    *,
    kinds: Sequence[str],
    before: int | None = None,
    sound: bool = False,
) -> list[tuple[int, str, int | None, dict[str, Any] | None]]:
    """(id, kind, golden set, fingerprint) of the newest run of each kind and golden set that has succeeded with this
    build, before the run of that id where one is named; of the `sound` ones, that had not regressed."""
    rows = connection.execute(
        "SELECT DISTINCT ON (kind, golden_set_id) id, kind, golden_set_id, fingerprint FROM benchmark "
        "WHERE deployment = %(deployment)s AND pinned = %(build)s AND kind = ANY(%(kinds)s) AND state = 'succeeded' "
        "AND (%(before)s::bigint IS NULL OR id < %(before)s) AND NOT (%(sound)s AND regressed IS NOT NULL) "
        "ORDER BY kind, golden_set_id, id DESC",
        {"deployment": deployment, "build": build, "kinds": list(kinds), "before": before, "sound": sound},
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def fingerprints(connection: Connection, deployment: str) -> list[str]:
    """What servers said of their build and weights with the deployment's answers of the last minutes. By
    `timing_by_end`, and of so many answers at most."""
    found = connection.execute(
        "SELECT DISTINCT fingerprint FROM (SELECT deployment, fingerprint FROM timing "
        "WHERE ended_at > now() - interval '5 minutes' LIMIT 20000) AS late "
        "WHERE deployment = %s AND fingerprint IS NOT NULL ORDER BY fingerprint LIMIT 8",
        [deployment],
    )
    return [row[0] for row in found]


def judges(connection: Connection, run_id: int) -> set[str]:
    """The deployments that have judged answers of this quality run."""
    found = connection.execute(
        "SELECT DISTINCT judge FROM golden_score WHERE benchmark_id = %s AND judge IS NOT NULL", [run_id]
    )
    return {row[0] for row in found}


def _end_promotion(connection: Connection, candidate: str, why: str) -> None:
    connection.execute(
        "UPDATE promotion SET ended_at = now(), ended_why = %s WHERE candidate = %s AND ended_at IS NULL",
        [storable(why), candidate],
    )


def _jsonb(value: dict[str, Any] | None) -> Jsonb | None:
    return None if value is None else Jsonb(storable_json(value), _dumps)


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, default=str)
