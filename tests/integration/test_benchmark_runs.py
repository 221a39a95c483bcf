"""Benchmark runs as rows: asked for by the API, the CLI and schedules; claimed, handed back, finished, cancelled."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests import factories as make
from tests.integration.conftest import OpenYard
from tests.integration.test_api import KEY, error_of, serving
from tests.integration.test_cli import Run, run  # noqa: F401  # a fixture
from tieryard.settings import Settings
from tieryard.store import Store, benchmarks, keys, workers
from tieryard.store.benchmark_postings import Posting
from tieryard.store.benchmarks import BENCHMARK_TENANT, NewRun, RunEnd, RunKind, RunState
from tieryard.store.keys import Scope
from workers.schedules import ask_for_due

SPEED = RunKind.SPEED
OPERATOR = {"authorization": "Bearer ty_operator"}
NOW = datetime.now(tz=UTC)


@pytest.fixture
def worker_id(store: Store) -> int:
    return workers.register(store, "benchmark", deployment=None, lease_s=60)


@pytest.fixture
def client(settings: Settings, store: Store, tenant: int) -> Iterator[TestClient]:
    keys.add_key(store, "ty_operator", tenant="operators", name="test", scopes=[Scope.BENCHMARK])
    with serving(settings) as client:
        client.headers.update(OPERATOR)
        yield client


def asked(store: Store, deployment: str = "short", kind: RunKind = SPEED, **more: Any) -> int:
    [number] = benchmarks.create(store, [NewRun(kind, deployment, {"requests": 8}, **more)])
    return number


def ended(store: Store, claimed: benchmarks.BenchmarkRun, end: RunEnd) -> int | None:
    with store.transaction() as connection:
        return benchmarks.finish(connection, claimed, end)


# The store


def test_the_oldest_run_is_claimed_once(store: Store, worker_id: int) -> None:
    first, second = asked(store), asked(store)
    claimed = benchmarks.claim(store, worker_id, [SPEED])
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.fence, claimed.spec) == (first, RunState.RUNNING, 1, {"requests": 8})
    other = benchmarks.claim(store, worker_id, [SPEED])
    assert other is not None
    assert other.id == second
    assert benchmarks.claim(store, worker_id, [SPEED]) is None
    assert [row[0] for row in store.fetch("SELECT name FROM tenant")] == [BENCHMARK_TENANT]


def test_kinds_that_are_not_wanted_stay(store: Store, worker_id: int) -> None:
    asked(store)
    assert benchmarks.claim(store, worker_id, [RunKind.QUALITY]) is None


def test_two_loads_are_not_sent_to_one_deployment(store: Store, worker_id: int) -> None:
    first, _, elsewhere = asked(store), asked(store, kind=RunKind.CAPACITY), asked(store, "long")
    other = workers.register(store, "benchmark", deployment=None, lease_s=60)
    loads = [SPEED, RunKind.CAPACITY]
    claimed = [benchmarks.claim(store, who, loads, alone=True) for who in (worker_id, other, other)]
    assert [one and one.id for one in claimed] == [first, elsewhere, None]
    store.fetch("UPDATE worker SET stopped_at = now() WHERE id = %(id)s RETURNING id", {"id": worker_id})
    again = benchmarks.claim(store, other, loads, alone=True)
    assert again is not None
    assert again.id == first


def test_the_run_of_a_dead_worker_starts_again_and_the_dead_cannot_finish_it(store: Store, worker_id: int) -> None:
    asked(store)
    before = benchmarks.claim(store, worker_id, [SPEED])
    assert before is not None
    store.fetch("UPDATE worker SET stopped_at = now() WHERE id = %(id)s RETURNING id", {"id": worker_id})
    assert benchmarks.claim(store, worker_id, [SPEED]) is None  # the dead claim nothing
    heir = workers.register(store, "benchmark", deployment=None, lease_s=60)
    after = benchmarks.claim(store, heir, [SPEED])
    assert after is not None
    assert (after.id, after.fence) == (before.id, 2)
    posting = Posting(10, 5, Decimal("0.01"), "bulk", "0123")
    assert ended(store, before, RunEnd(RunState.SUCCEEDED, postings=(posting,))) is None
    assert make.count(store, "ledger") == 0
    assert ended(store, after, RunEnd(RunState.SUCCEEDED, postings=(posting,))) == 0
    assert store.fetch("SELECT job_id, fence, kind, cost_usd FROM ledger") == [
        (before.id, 2, "benchmark", Decimal("0.01"))
    ]


def test_a_run_that_is_put_off_waits(store: Store, worker_id: int) -> None:
    asked(store)
    claimed = benchmarks.claim(store, worker_id, [SPEED])
    assert claimed is not None
    assert benchmarks.hand_back(store, claimed, why="short is busy", wait_s=60)
    assert benchmarks.claim(store, worker_id, [SPEED]) is None
    waiting = benchmarks.get(store, claimed.id)
    assert (waiting.state, waiting.why) == (RunState.QUEUED, "short is busy")
    store.fetch("UPDATE benchmark SET not_before = now() RETURNING id")
    assert benchmarks.claim(store, worker_id, [SPEED]) is not None
    assert not benchmarks.hand_back(store, claimed, why="of another fence")


def test_the_catalogs_callback_is_told_of_scheduled_ends_and_of_regressions(store: Store, worker_id: int) -> None:
    """Whoever asked for a run by hand is not told of its end by the catalog's."""
    told = []
    for schedule, regressed in ((None, None), (None, "model: fake → other"), ("nightly", None)):
        asked(store, schedule=schedule, slot=NOW if schedule else None)
        claimed = benchmarks.claim(store, worker_id, [SPEED])
        assert claimed is not None
        with store.transaction() as connection:
            end = RunEnd(RunState.SUCCEEDED, regressed=regressed)
            told.append(benchmarks.finish(connection, claimed, end, callback_url="https://ops.example.com/"))
    assert told == [0, 1, 1]
    events = [row[0] for row in store.fetch("SELECT event FROM outbox ORDER BY id")]
    assert events == ["benchmark.regressed", "benchmark.completed"]


def test_all_that_a_run_found_is_written_together(store: Store, worker_id: int) -> None:
    asked(store, callback_url="https://hooks.example.com/done")
    claimed = benchmarks.claim(store, worker_id, [SPEED])
    assert claimed is not None
    end = RunEnd(
        RunState.SUCCEEDED,
        report={"valid": True, "price": Decimal("0.1"), "odd": "a\x00b"},
        pinned="test/instant@1#00",
        fingerprint={"model": "fake"},
        regressed="model: fake → other",
        measured_at=NOW,
        profiles={"chat": {"n": 8}, "code": {"n": 0}},
        postings=(Posting(10, 5, Decimal("0.01"), "bulk", "0123"),),
    )
    assert ended(store, claimed, end) == 2
    assert benchmarks.profiles_of(store, claimed.id) == {"chat": {"n": 8}, "code": {"n": 0}}
    kept = benchmarks.get(store, claimed.id)
    assert kept.report == {"valid": True, "price": "0.1", "odd": "a\ufffdb"}
    assert (kept.state, kept.pinned, kept.fingerprint, kept.regressed) == (
        "succeeded", "test/instant@1#00", {"model": "fake"}, "model: fake → other",
    )  # fmt: skip
    events = [row[0] for row in store.fetch("SELECT event FROM outbox ORDER BY event")]
    assert events == ["benchmark.completed", "benchmark.regressed"]
    assert benchmarks.cost_of(store, kept) == Decimal("0.01")
    found = benchmarks.last(store, "short", SPEED)
    assert found is not None
    assert found.id == claimed.id


def test_cancelling(store: Store, worker_id: int) -> None:
    running, waiting = asked(store), asked(store)
    claimed = benchmarks.claim(store, worker_id, [SPEED])
    assert claimed is not None
    assert benchmarks.cancel(store, waiting).state == RunState.CANCELLED
    found = benchmarks.cancel(store, running)
    assert (found.state, found.cancelling) == (RunState.RUNNING, True)
    ended(store, claimed, RunEnd(RunState.CANCELLED))
    assert benchmarks.cancel(store, running).state == RunState.CANCELLED


# The API


def test_runs_are_asked_for_and_read(client: TestClient, store: Store) -> None:
    made = client.post("/v1/benchmarks", json={"kind": "speed", "deployment": "short", "requests": 8})
    assert made.status_code == 200, made.text
    [one] = made.json()["data"]
    assert (one["kind"], one["deployment"], one["state"]) == ("speed", "short", "queued")
    assert one["spec"]["requests"] == 8
    whole = client.get(f"/v1/benchmarks/{one['id']}").json()
    assert (whole["profiles"], whole["report"], whole["cost_usd"]) == ({}, None, "0")
    assert client.get("/v1/benchmarks", params={"kind": "capacity"}).json()["data"] == []
    assert client.get("/v1/benchmarks").json()["data"] == [one]
    assert client.post(f"/v1/benchmarks/{one['id']}/cancel").json()["state"] == "cancelled"


def test_a_key_makes_runs_once(client: TestClient, store: Store) -> None:
    asked_twice = [
        client.post("/v1/benchmarks", json={"kind": "speed"}, headers={"idempotency-key": "nightly"}).json()
        for _ in range(2)
    ]
    assert asked_twice[0] == asked_twice[1]
    assert [one["deployment"] for one in asked_twice[0]["data"]] == ["short", "long"]
    assert make.count(store, "benchmark") == 2


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"kind": "spd"}, 400, "kind"),
        ({"kind": "speed", "deployment": "nobody"}, 400, "deployment"),
        ({"kind": "speed", "category": "poetry"}, 400, "category"),
        ({"kind": "speed", "requests": 0}, 400, "requests"),
        ({"kind": "speed", "concurrency": 1, "rate_per_s": 2}, 400, None),
        ({"kind": "speed", "concurrency": True}, 400, "concurrency"),
        ({"kind": "quality", "golden": "no\x00ne"}, 400, None),
        ({"kind": "quality", "golden": "none"}, 404, None),
        ({"kind": "pairwise", "a": "benchmark_1", "b": "benchmark_2"}, 400, "kind"),  # nobody to judge
    ],
)
def test_what_cannot_be_measured_is_refused(
    client: TestClient, store: Store, body: dict[str, Any], status: int, param: str | None
) -> None:
    error = error_of(client.post("/v1/benchmarks", json=body), status)
    assert param is None or error["param"] == param
    assert make.count(store, "benchmark") == 0


def test_nobody_is_told_where_nothing_can_be_signed(client: TestClient, settings: Settings, store: Store) -> None:
    ask = {"kind": "speed", "callback_url": "https://hooks.example.com/"}
    with serving(settings.model_copy(update={"webhook_secret": None})) as unsigned:
        assert error_of(unsigned.post("/v1/benchmarks", json=ask, headers=OPERATOR), 400)["param"] == "callback_url"
    assert make.count(store, "benchmark") == 0
    assert client.post("/v1/benchmarks", json=ask).status_code == 200


def test_callers_keys_may_not(client: TestClient, store: Store) -> None:
    keys.add_key(store, "ty_test", tenant="tests", name="test")
    assert error_of(client.post("/v1/benchmarks", json={"kind": "speed"}, headers=KEY), 403)
    assert error_of(client.get("/v1/benchmarks", headers=KEY), 403)


# Schedules


SCHEDULES = """
benchmarks:
  schedules:
    nightly: {run: speed, at: "0 3 * * *", deployments: [short]}
    weekly: {run: quality, at: "0 4 * * 0", golden: [missing]}
"""


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text((Path(__file__).parents[1] / "catalogs" / "instant.yaml").read_text() + SCHEDULES)
    return path


def test_a_schedule_has_one_run_a_slot_whoever_looks(store: Store, open_yard: OpenYard) -> None:
    yards = [open_yard("benchmark"), open_yard("benchmark")]
    assert ask_for_due(yards[0], now=NOW) == []  # just applied
    tomorrow = NOW + timedelta(days=1)
    made = [ask_for_due(yard, now=tomorrow) for yard in yards]
    assert [len(ids) for ids in made] == [1, 0]
    assert ask_for_due(yards[1], now=tomorrow + timedelta(hours=1)) in ([], made[0])
    [found] = benchmarks.listing(store)
    assert (found.schedule, found.deployment, found.kind) == ("nightly", "short", "speed")
    assert len(ask_for_due(yards[0], now=tomorrow + timedelta(days=3))) == 1  # and not three
    assert [one.state for one in benchmarks.listing(store)] == ["queued", "cancelled"]  # the one that never began


# The command line


def test_runs_on_the_command_line(
    run: Run,  # noqa: F811
    store: Store,
    open_yard: OpenYard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIERYARD_DATABASE_URL", store.url)
    open_yard("benchmark")  # the first process puts the catalog in force
    made = run("bench", "run", "--deployment", "short", "--no-wait", "--requests", "8")
    assert made.code == 0, made.err
    [number] = benchmarks.made_with(store, benchmarks.listing(store)[0].id)
    name = benchmarks.name_of(number)
    assert name in made.out
    assert name in run("bench", "list").out
    assert "queued" in run("bench", "show", name).out
    assert run("bench", "cancel", name).out.strip() == f"{name}: cancelled"
    store.fetch("UPDATE benchmark SET state = 'succeeded', cancelling_at = NULL RETURNING id")
    again = run("bench", "cancel", name)
    assert (again.code, "it is succeeded" in again.err) == (2, True)
    assert run("bench", "run", "--capacity", "--concurrency", "2").code == 2
    assert run("bench", "show", "benchmark_0").code == 2
