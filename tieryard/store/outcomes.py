"""How good answers were: scores as they are told, what they are held against, and what the router made of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tieryard.errors import ConflictError, NotFoundError
from tieryard.ids import public
from tieryard.job import FINAL, State
from tieryard.routing.outcomes import MOST_OUTCOMES, Predicted, Scored, Verdict, verdict
from tieryard.store.connection import Connection, Store

# The decision that led to the answer is the last one: each later one is of a later fence.
_ANSWERED = """
SELECT job.state, job.deployment, job.category, decided.features, decided.body
FROM job LEFT JOIN LATERAL (
    SELECT decision.features, routing_snapshot.body
    FROM decision JOIN routing_snapshot ON routing_snapshot.id = decision.snapshot_id
    WHERE decision.job_id = job.id ORDER BY decision.fence DESC LIMIT 1
) AS decided ON true
WHERE job.id = %(id)s AND job.tenant_id = %(tenant)s
"""

# Whoever scores one answer under a thousand names has one word on its deployment.
_SCORE = """
INSERT INTO outcome (job_id, source, score, deployment, category, predicted, rules_predicted, quality_model)
VALUES (%(id)s, %(source)s, %(score)s, %(deployment)s, %(category)s, %(predicted)s, %(rules)s, %(quality_model)s)
ON CONFLICT (job_id, source) DO UPDATE SET score = excluded.score, scored_at = now()
RETURNING scored_at, predicted, rules_predicted,
          NOT EXISTS (SELECT FROM outcome AS earlier WHERE earlier.job_id = %(id)s)
"""

# By what was routed last, whichever process did it: a file may be another on each machine.
_IN_FORCE = "SELECT body ->> 'quality_model' FROM routing_snapshot ORDER BY id DESC LIMIT 1"

_LAST = """
SELECT quality_model, since, until, why FROM step_back WHERE quality_model = %(quality_model)s
ORDER BY id DESC LIMIT 1
"""

# The latest, by `outcome_by_model`. A job that several sources have scored is one outcome.
_LATEST = """
SELECT avg(score), min(predicted), min(rules_predicted) FROM (
    SELECT job_id, score, predicted, rules_predicted, scored_at FROM outcome
    WHERE predicted IS NOT NULL AND quality_model = %(quality_model)s AND scored_at > %(after)s
    ORDER BY scored_at DESC LIMIT %(most)s
) AS latest GROUP BY job_id ORDER BY max(scored_at), job_id
"""

# What profiles would say, had Redis not forgotten: of the latest scores of each, the first of each job.
_QUALITIES = """
SELECT deployment, category, count(*), avg(score) FROM (
    SELECT deployment, category, score,
           row_number() OVER (PARTITION BY deployment, category ORDER BY scored_at DESC) AS place
    FROM (
        SELECT DISTINCT ON (job_id) deployment, category, score, scored_at FROM outcome
        WHERE deployment IS NOT NULL AND category IS NOT NULL AND scored_at > %(after)s ORDER BY job_id, scored_at
    ) AS first
) AS latest WHERE place <= %(most)s GROUP BY deployment, category
"""

_END_OTHERS = """
UPDATE step_back SET until = now() WHERE until IS NULL AND quality_model IS DISTINCT FROM %(quality_model)s
RETURNING quality_model
"""

_ALWAYS = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Answered:
    """A job that has an answer. `features` and `snapshot` are of the decision that led to it, None where there was
    none: the answer is another job's."""

    deployment: str | None
    category: str | None
    features: dict[str, Any] | None
    snapshot: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A score as it is kept. `first`: the job had none, of any source."""

    scored_at: datetime
    predicted: float | None
    rules_predicted: float | None
    first: bool


@dataclass(frozen=True, slots=True)
class SteppedBack:
    """A time in which the router went by its rules instead of this quality model; `until` is None while it does."""

    quality_model: str
    since: datetime
    until: datetime | None
    why: str

    @property
    def over(self) -> bool:
        return self.until is not None


@dataclass(frozen=True, slots=True)
class Standing:
    """How the quality model in force stands, by its hash; `quality_model` is empty where what was routed last had none.
    `last` is the latest time in which the router went by its rules instead, over or not, and `verdict` what the
    outcomes that it had predicted say since that last changed."""

    quality_model: str
    last: SteppedBack | None
    verdict: Verdict


def answered(store: Store, job_id: int, *, tenant_id: int) -> Answered:
    """Raises NotFoundError, also for another tenant's job, and ConflictError where there is no answer, or none yet."""
    rows = store.fetch(_ANSWERED, {"id": job_id, "tenant": tenant_id})
    if not rows:
        raise NotFoundError(f"no job '{public('job', job_id)}'", param="job")
    state, *rest = rows[0]
    if state not in FINAL:
        raise ConflictError(f"{public('job', job_id)} is {state}: score it when it is final")
    if state != State.SUCCEEDED:
        raise ConflictError(f"{public('job', job_id)} is {state}: there is no answer to score")
    return Answered(*rest)


def save_outcome(
    store: Store,
    job_id: int,
    *,
    source: str,
    score: float,
    job: Answered,
    expected: Predicted | None,
) -> Outcome:
    """One for each job and source; a later score replaces the earlier one, and not what it is held against. Six digits
    are kept: a REAL refuses what is all but 0."""
    predicted, rules, quality_model = expected if expected is not None else (None, None, None)
    wanted = {
        "id": job_id,
        "source": source,
        "score": round(score, 6),
        "deployment": job.deployment,
        "category": job.category,
        "predicted": None if predicted is None else round(predicted, 6),
        "rules": None if rules is None else round(rules, 6),
        "quality_model": quality_model,
    }
    return Outcome(*store.fetch(_SCORE, wanted)[0])


def standing(connection: Connection) -> Standing:
    """Of the quality model in force: what another had predicted says nothing of it."""
    found = connection.execute(_IN_FORCE).fetchone()
    quality_model: str = (found and found[0]) or ""
    row = connection.execute(_LAST, {"quality_model": quality_model}).fetchone()
    last = SteppedBack(*row) if row else None
    after = _ALWAYS if last is None else last.until or last.since
    wanted = {"quality_model": quality_model, "after": after, "most": MOST_OUTCOMES}
    scored = [Scored(*row) for row in connection.execute(_LATEST, wanted)]
    return Standing(quality_model, last, verdict(scored))


def qualities(connection: Connection, *, after: datetime, most: int) -> list[tuple[str, str, int, float]]:
    """(deployment, category, n, mean score) of the latest `most` scores of each since then."""
    rows = connection.execute(_QUALITIES, {"after": after, "most": most})
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def step_back(connection: Connection, quality_model: str, why: str) -> None:
    connection.execute("INSERT INTO step_back (quality_model, why) VALUES (%s, %s)", [quality_model, why])


def come_back(connection: Connection, quality_model: str) -> None:
    connection.execute("UPDATE step_back SET until = now() WHERE until IS NULL AND quality_model = %s", [quality_model])


def end_others(connection: Connection, quality_model: str) -> list[str]:
    """Ends the step-backs from other models than this one: which. An empty name is of before they were kept."""
    ended = connection.execute(_END_OTHERS, {"quality_model": quality_model})
    return [row[0] or "" for row in ended]


def stepped_back(connection: Connection) -> dict[str, str]:
    """By quality model, why the router goes by its rules instead of it now."""
    rows = connection.execute(
        "SELECT quality_model, why FROM step_back WHERE until IS NULL AND quality_model IS NOT NULL"
    )
    return dict(rows.fetchall())
