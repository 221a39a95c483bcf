"""A day of many jobs behind a month of others is decided again in few statements and little memory."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import psycopg
import pytest

from tests import factories as make
from tests.integration.test_replay_day import HOUR, Day, asked, catalog, catalog_of, day
from tieryard.replay import replay
from tieryard.routing import plain
from tieryard.store import Store, jobs, routes

__all__ = ["catalog", "day"]

OLD, NEW = 30_000, 10_000
_GENERATE = """
WITH made AS (
    SELECT n AS id, CASE WHEN n <= %(old)s THEN now() - interval '30 days' + n * interval '20 seconds'
                    ELSE now() - interval '23 hours' + (n - %(old)s) * interval '8 seconds' END AS at
    FROM generate_series(1, %(old)s::int + %(new)s) n
), decided AS (
    INSERT INTO decision (job_id, fence, snapshot_id, decided_at, deployment, reason, features)
    SELECT id, 0, %(first)s + (id / 64) %% %(snapshots)s, at, 'cheap', 'short and plain', %(features)s::jsonb FROM made
), started AS (
    INSERT INTO timing (job_id, fence, claimed_at, ended_at, wait_ms, ttft_ms, latency_ms, deployment, outcome)
    SELECT id, 1, at, at, 1, CASE WHEN id %% 10 = 0 THEN 500 ELSE 100 END, 500, 'cheap', 'succeeded' FROM made
), billed AS (
    INSERT INTO ledger (job_id, fence, kind, tenant_id, prompt_tokens, completion_tokens, cost_usd, tier, deployment,
                        catalog)
    SELECT id, 1, 'inference', %(tenant)s, 100, 20, 0.00012, 'batch', 'cheap', 'x' FROM made
)
INSERT INTO job (id, tenant_id, source_id, line_no, fence, tier, state, deployment, created_at, deadline, finished_at)
SELECT id, %(tenant)s, id, 1, 1, 'batch', 'succeeded', 'cheap', at, at, at FROM made
"""


@pytest.fixture
def month(day: Day, store: Store, database_url: str) -> Day:
    """A day of 10,000 jobs, behind a month of others."""
    with store.transaction() as connection:
        ids = [jobs.save_snapshot(connection, day.snapshot().to_json()) for _ in range(40)]
        size = {"old": OLD, "new": NEW, "tenant": day.tenant, "first": ids[0], "snapshots": len(ids)}
        features = orjson.dumps(asked().stored(), default=plain).decode()
        connection.execute(_GENERATE, {**size, "features": features})
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")  # as autovacuum does; it also summarises the newest ranges of a BRIN
    return day


def plan_of(store: Store, statement: str, parameters: dict[str, Any]) -> str:
    return "\n".join(row[0] for row in store.fetch(f"EXPLAIN {statement}", parameters))


def test_many_jobs_in_few_statements_and_little_memory(month: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    since, until = routes.window(month.store, timedelta(hours=24))
    with make.statements(monkeypatch) as seen:
        report = replay(month.store, catalog_of(price="1000"), since, until)
    assert report.total.jobs == NEW
    assert report.total.moved == report.total.jobs
    assert report.total.missed == NEW / 10
    assert report.total.old_usd == report.total.jobs * Decimal("0.00012")
    mine = [s for s in seen if "FROM decision" in s]
    assert len(mine) <= 2 * NEW / routes.CHUNK + 20
    assert sum("FROM routing_snapshot" in s for s in seen) <= 40  # each is read once
    tracemalloc.start()
    report = replay(month.store, catalog_of(price="1000"), since, until, limit=5 * routes.CHUNK)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.total.jobs == 5 * routes.CHUNK
    assert peak < 10e6  # a chunk and a few snapshots, however many there are


def test_its_statements_go_by_indexes(month: Day) -> None:
    since, until = routes.window(month.store, timedelta(hours=24))
    noon = since + timedelta(hours=12)
    slices = {"at": noon, "end": noon + timedelta(minutes=15), "job": 0, "fence": -1, "most": routes.CHUNK}
    plan = plan_of(month.store, routes._MADE, slices)
    assert "decision_by_time" in plan
    assert "Seq Scan" not in plan
    hour = {"since": until - HOUR, "until": until, "tiers": [], "ttft": [], "latency": [], "claimed": []}
    plan = plan_of(month.store, routes._SUMMARY, hour)
    assert "decision_by_time" in plan
    assert "Seq Scan" not in plan


def test_a_chunk_ends_wherever_it_must(month: Day) -> None:
    """Also in the middle of one moment: nothing is read twice, and nothing left out."""
    moment = datetime.now(tz=UTC) - timedelta(hours=5)
    wanted = {"at": moment, "from": OLD + 2000, "to": OLD + 3500}
    statement = "UPDATE decision SET decided_at = %(at)s WHERE job_id > %(from)s AND job_id <= %(to)s RETURNING job_id"
    assert len(month.store.fetch(statement, wanted)) == 1500
    since, until = moment - timedelta(minutes=20), moment + timedelta(minutes=20)
    for most in (100, 999, 5000):
        chunks = list(routes.decisions(month.store, since, until, most=most))
        ids = [made.job_id for chunk in chunks for made in chunk]
        there = make.count(month.store, "decision", f"decided_at >= '{since}' AND decided_at < '{until}'")
        assert len(ids) == len(set(ids)) == there > 1500
        assert all(len(chunk) <= most for chunk in chunks)
