"""Dated profiles as benchmarks have left them, for Redis when it has lost its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tieryard.ids import public
from tieryard.store.benchmarks import KIND
from tieryard.store.connection import Connection


@dataclass(frozen=True, slots=True)
class Dated:
    """What a speed run measured `age_s` seconds ago: `fields` as `Metrics.seed` takes them. `build` is
    `Deployment.build` of what it measured."""

    deployment: str
    category: str
    benchmark: str
    build: str | None
    age_s: float
    fields: dict[str, float]


# By `profile_by_deployment`, from a time on. Where nothing succeeded, or the client was too busy, nothing of a
# deployment's speed was learned. The time is of the host that measured, whose clock may be ahead.
_NEWEST = """
SELECT DISTINCT ON (profile.deployment, profile.category)
       profile.deployment, profile.category, profile.benchmark_id, benchmark.pinned,
       greatest(0, extract(epoch FROM now() - profile.measured_at))::float8, profile.figures -> 'fields'
FROM profile JOIN benchmark ON benchmark.id = profile.benchmark_id
WHERE profile.deployment = ANY(%(deployments)s) AND profile.measured_at > now() - %(within)s
  AND (profile.figures ->> 'valid')::boolean AND (profile.figures ->> 'succeeded')::int > 0
ORDER BY profile.deployment, profile.category, profile.measured_at DESC
"""

# The same of quality runs: the newest on each golden set.
_QUALITIES = """
SELECT DISTINCT ON (profile.deployment, profile.category, benchmark.golden_set_id)
       profile.deployment, profile.category, benchmark.pinned, (profile.figures ->> 'n')::int,
       (profile.figures ->> 'quality_score')::float8
FROM profile JOIN benchmark ON benchmark.id = profile.benchmark_id
WHERE profile.deployment = ANY(%(deployments)s) AND profile.measured_at > now() - %(within)s
  AND benchmark.kind = 'quality'
ORDER BY profile.deployment, profile.category, benchmark.golden_set_id, profile.measured_at DESC
"""

# Of each deployment the newest run of each kind and golden set, of the build that it has now; the oldest of them first.
_CHANGES = """
SELECT deployment, found, seen, rated FROM (
    SELECT DISTINCT ON (benchmark.deployment, kind, golden_set_id) benchmark.id, benchmark.deployment,
           coalesce(report -> 'changes', '{}') AS found, fingerprint IS NOT NULL AS seen,
           CASE WHEN kind = 'quality' THEN ARRAY(SELECT category FROM profile WHERE benchmark_id = benchmark.id)
           ELSE '{}' END AS rated
    FROM unnest(%(deployments)s::text[], %(builds)s::text[]) AS known (deployment, build)
    JOIN benchmark ON benchmark.deployment = known.deployment AND benchmark.pinned = known.build
    WHERE state = 'succeeded' AND kind <> 'pairwise'
    ORDER BY benchmark.deployment, kind, golden_set_id, benchmark.id DESC
) AS newest ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What a run has found to have changed, as its report has it. `seen`: it had a fingerprint; `rated`: the categories
    that it has scored answers in."""

    deployment: str
    changes: dict[str, Any]
    seen: bool
    rated: list[str]


@dataclass(frozen=True, slots=True)
class DatedQuality:
    """The mean score of `n` answers to a golden set, by `Deployment.build` of what gave them."""

    deployment: str
    category: str
    build: str | None
    n: int
    score: float


def newest_qualities(connection: Connection, *, deployments: list[str], within: timedelta) -> list[DatedQuality]:
    """The newest of each deployment, category and golden set that is not older than this."""
    rows = connection.execute(_QUALITIES, {"deployments": deployments, "within": within})
    return [DatedQuality(*row) for row in rows]


def newest_speeds(connection: Connection, *, deployments: list[str], within: timedelta) -> list[Dated]:
    """The newest of each deployment and category that is not older than this."""
    rows = connection.execute(_NEWEST, {"deployments": deployments, "within": within})
    return [Dated(row[0], row[1], public(KIND, row[2]), row[3], row[4], row[5]) for row in rows]


def newest_changes(connection: Connection, builds: Mapping[str, str]) -> list[Found]:
    """Of the newest runs of these deployments' builds, in the order in which they were asked for."""
    wanted = {"deployments": list(builds), "builds": list(builds.values())}
    return [Found(*row) for row in connection.execute(_CHANGES, wanted)]
