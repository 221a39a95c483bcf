"""Users' answers that a judge is asked about: which, what they are, and what the judge said."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from tieryard.store.benchmarks import BENCHMARK_TENANT
from tieryard.store.connection import Connection, Store, storable
from tieryard.store.shadows import SHADOW_TENANT

_CHANCE_FOR = 6053
"""What a job's chance is for: another one than for copies and for exploring."""

_OURS = [BENCHMARK_TENANT, SHADOW_TENANT]

# From the time's BRIN, and jobs are looked up one by one for just the share: a join might read all that a tenant has.
# The chance is `tieryard.ids.draw` of the id, the same whenever it is looked at. Lines and results are read of those
# chosen, and of no others.
_CHOSEN = """
WITH recent AS MATERIALIZED (
    SELECT job_id, fence, ended_at FROM timing
    WHERE ended_at > now() - %(within)s * interval '1 second' AND outcome = 'succeeded'
      AND deployment <> ALL(%(passed)s)
      AND mod(job_id::numeric * %(salt)s * 11400714819323198485, 18446744073709551616) < %(below)s
), chosen AS MATERIALIZED (
    SELECT agreed.id, agreed.source_id, agreed.line_no FROM recent CROSS JOIN LATERAL (
        SELECT job.id, job.source_id, job.line_no FROM job
        WHERE job.id = recent.job_id AND job.fence = recent.fence AND job.state = 'succeeded'
          AND job.tenant_id = ANY(
              ARRAY(SELECT id FROM tenant WHERE name = ANY(%(tenants)s) AND name <> ALL(%(ours)s)))
          AND (SELECT v.job_id FROM live_verdict v WHERE v.job_id = recent.job_id) IS NULL
        OFFSET 0
    ) AS agreed
    ORDER BY recent.ended_at DESC LIMIT %(most)s
)
SELECT chosen.id, line.body, result.output FROM chosen
JOIN line ON line.source_id = chosen.source_id AND line.line_no = chosen.line_no
JOIN result ON result.job_id = chosen.id
WHERE result.output IS NOT NULL AND result.finish_reason = 'stop' ORDER BY chosen.id
"""

_SAVE = """
INSERT INTO live_verdict (job_id, judge, question_id)
SELECT t.job_id, %(judge)s, t.question_id FROM unnest(%(jobs)s::bigint[], %(questions)s::bigint[])
    AS t (job_id, question_id)
"""

# By `live_verdict_open`, of which there are few.
_SAID = """
SELECT v.job_id, v.judge, job.tenant_id, question.state, result.output, coalesce(result.error, result.error_kind)
FROM live_verdict v
JOIN job question ON question.id = v.question_id AND question.finished_at IS NOT NULL
JOIN job ON job.id = v.job_id
LEFT JOIN result ON result.job_id = v.question_id
WHERE v.settled_at IS NULL ORDER BY v.question_id
"""

_SETTLE = """
UPDATE live_verdict v SET settled_at = now(), why = t.why
FROM unnest(%(jobs)s::bigint[], %(whys)s::text[]) AS t (job_id, why)
WHERE v.job_id = t.job_id AND v.settled_at IS NULL RETURNING v.job_id
"""


@dataclass(frozen=True, slots=True)
class LiveAnswer:
    """A user's job: its stored line, and what it was answered."""

    job_id: int
    body: str
    output: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said of a user's job, of this tenant. `state` is that of the judge's job; `output` None where it
    has none, and `error` says why."""

    job_id: int
    judge: str
    tenant_id: int
    state: str
    output: str | None
    error: str | None


def waiting(connection: Connection) -> int:
    """How many questions are open."""
    row = connection.execute("SELECT count(*) FROM live_verdict WHERE settled_at IS NULL").fetchone()
    return int(row[0]) if row else 0


def choose(
    connection: Connection,
    *,
    tenants: Collection[str],
    passed: Collection[str],
    share: float,
    within_s: float,
    most: int,
) -> list[LiveAnswer]:
    """Of the answers of the last `within_s` seconds to jobs of these tenants, a share by each job's own chance, the
    latest `most`: not those of the deployments `passed`, nor such as were asked about before. An answer that was cut
    off, or calls a tool, is not one to judge."""
    wanted = {
        "tenants": list(tenants),
        "ours": _OURS,
        "passed": list(passed),
        "salt": _CHANCE_FOR,
        "below": round(share * 2**64),
        "within": within_s,
        "most": most,
    }
    return [LiveAnswer(*row) for row in connection.execute(_CHOSEN, wanted)]


def save(connection: Connection, judge: str, asked: Sequence[tuple[int, int]]) -> None:
    """(user's job, judge's job), in the transaction that makes the latter."""
    jobs, questions = [job for job, _ in asked], [question for _, question in asked]
    connection.execute(_SAVE, {"judge": judge, "jobs": jobs, "questions": questions})


def replies(store: Store) -> list[Reply]:
    """Of the questions that are answered, or never will be."""
    return [Reply(*row) for row in store.fetch(_SAID)]


def settle(store: Store, settled: Iterable[tuple[int, str | None]]) -> None:
    """(user's job, why it has no score)."""
    given = list(settled)
    whys = [None if why is None else storable(why) for _, why in given]
    store.fetch(_SETTLE, {"jobs": [job for job, _ in given], "whys": whys})
