"""The benchmark process itself: what it has found is written down whatever is away just then, and told again; a fault
costs one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis

from tests import factories as make
from tests.conftest import eventually
from tests.integration.conftest import OpenYard
from tests.integration.trials import CATALOG, golden_set, passing, quality_run
from tieryard.errors import StoreError
from tieryard.ids import internal
from tieryard.routing.trials import Promotion
from tieryard.store import Store, benchmarks, trials
from tieryard.store.benchmark_postings import Posting
from tieryard.store.benchmarks import KIND, BenchmarkRun, NewRun, RunEnd, RunKind, RunState
from workers import benchmark, fingerprints, judging, quality, speed
from workers.benchmark import Benchmarker
from workers.fingerprints import Changes
from workers.rescue import sweep
from workers.schedules import ask_for_due
from workers.yard import Yard

SCHEDULE = '\nbenchmarks: {schedules: {weekly: {run: quality, at: "* * * * *", golden: [missing]}}}\n'
FOUND = Posting(10, 5, Decimal("0.01"), "bulk", "0123")
SUCCEEDED = RunEnd(RunState.SUCCEEDED, report={}, postings=(FOUND,))
N = 200


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CATALOG + SCHEDULE)
    return path


@pytest.fixture
def yard(open_yard: OpenYard, monkeypatch: pytest.MonkeyPatch) -> Yard:
    yard = open_yard("benchmark")
    yard.join()
    monkeypatch.setattr(benchmark, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(judging, "look", lambda _: None)
    return yard


def asked(store: Store, kind: RunKind = RunKind.SPEED) -> int:
    [run_id] = benchmarks.create(store, [NewRun(kind, "awq", {})])
    return run_id


def failing(error: Exception, really: Callable[..., Any], *, times: int = 1) -> Callable[..., Any]:
    left = [error] * times

    def called(*arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return really(*arguments, **named)

    return called


@pytest.mark.parametrize("error", [StoreError("Postgres went away"), redis.ConnectionError("Redis is away")])
def test_what_was_measured_is_written_when_all_is_back(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run_id = asked(yard.store)
    monkeypatch.setattr(speed, "run", lambda *_: SUCCEEDED)
    monkeypatch.setattr(benchmarks, "finish", failing(error, benchmarks.finish, times=3))
    benchmarker = Benchmarker(yard)
    benchmarker.tick()
    eventually(lambda: benchmarks.get(yard.store, run_id).state == RunState.SUCCEEDED, what="its end")
    benchmarker.stop()
    assert make.count(yard.store, "ledger") == 1


def test_a_run_that_cannot_be_put_off_yet_is_put_off_later(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = asked(yard.store)

    def busy(*_: object) -> RunEnd:
        raise speed.Busy("jobs wait", postings=(FOUND,))

    monkeypatch.setattr(speed, "run", busy)
    monkeypatch.setattr(benchmarks, "hand_back", failing(StoreError("away"), benchmarks.hand_back))
    benchmarker = Benchmarker(yard)
    benchmarker.tick()
    eventually(lambda: benchmarks.get(yard.store, run_id).state == RunState.QUEUED, what="its return")
    benchmarker.stop()
    assert make.count(yard.store, "ledger") == 1


def test_a_fault_in_the_middle_of_a_load_fails_it_and_what_it_used_is_billed(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = asked(yard.store)
    fault = speed.FaultedError(ValueError("a fault of ours"), (FOUND,))
    monkeypatch.setattr(speed, "run", failing(fault, None))
    benchmarker = Benchmarker(yard)
    benchmarker.tick()
    eventually(lambda: benchmarks.get(yard.store, run_id).state == RunState.FAILED, what="its end")
    benchmarker.stop()
    assert benchmarks.get(yard.store, run_id).why == "ValueError in the benchmark worker; its log says where"
    assert yard.store.fetch("SELECT job_id, kind, cost_usd FROM ledger") == [(run_id, "benchmark", FOUND.cost_usd)]


def test_a_load_that_was_begun_in_vain_is_begun_ever_later(yard: Yard) -> None:
    asked(yard.store)
    benchmarker = Benchmarker(yard)
    waits = []
    for posting in ((), (FOUND,), (FOUND,), (FOUND,), ()):
        yard.store.fetch("UPDATE benchmark SET not_before = NULL RETURNING id")
        run = benchmarks.claim(yard.store, yard.worker_id, [RunKind.SPEED])
        assert run is not None
        benchmarker._conclude(run, speed.Busy("jobs wait", postings=posting), stopped=False)
        [[wait_s]] = yard.store.fetch("SELECT extract(epoch FROM not_before - now())::float8 FROM benchmark")
        waits.append(round(wait_s / 30))
    assert waits == [1, 2, 4, 8, 1]


def test_a_fingerprint_that_fails_costs_no_measurement_and_no_other_run(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [asked(yard.store, RunKind.QUALITY) for _ in range(2)]
    monkeypatch.setitem(benchmark._ADVANCING, RunKind.QUALITY, lambda *_: replace(SUCCEEDED, postings=()))
    monkeypatch.setattr(fingerprints, "fingerprint", failing(ValueError("a fault of ours"), None, times=9))
    Benchmarker(yard).tick()
    assert {benchmarks.get(yard.store, run_id).state for run_id in made} == {RunState.SUCCEEDED}


def worse_run(yard: Yard) -> BenchmarkRun:
    """The second of two, in which reasoning has become worse."""
    rows = golden_set(yard.store, {"extraction": N, "reasoning": N})
    sound = {"extraction": passing(180, N), "reasoning": passing(170, N)}
    quality_run(yard.store, yard.catalog, "awq", rows, sound)
    return benchmarks.get(
        yard.store,
        internal(KIND, quality_run(yard.store, yard.catalog, "awq", rows, sound | {"reasoning": passing(120, N)})),
    )


def finished(yard: Yard, run: BenchmarkRun) -> RunEnd:
    """As it is while its end is written: it is running again."""
    yard.store.fetch(
        "UPDATE benchmark SET state = 'running', finished_at = NULL WHERE id = %(id)s RETURNING id", {"id": run.id}
    )
    build = yard.catalog.deployments["awq"].build
    figures = {"n": N, "quality_score": 0.6}
    end = replace(SUCCEEDED, pinned=build, profiles={"reasoning": figures, "extraction": figures}, postings=())
    end = replace(end, measured_at=datetime.now(tz=UTC))
    Benchmarker(yard)._finish(run, end)
    return end


def test_a_candidate_that_is_worse_is_demoted_though_redis_is_away(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    build = yard.catalog.deployments["awq"].build
    with yard.store.transaction() as connection:
        trials.promote(connection, Promotion("awq", "big", build, frozenset({"extraction", "reasoning"})), verdict={})
    run = worse_run(yard)
    monkeypatch.setattr(quality, "tell", failing(redis.ConnectionError("away"), None, times=9))
    monkeypatch.setitem(benchmark._TELLING, RunKind.QUALITY, quality.tell)
    finished(yard, run)
    with yard.store.transaction() as connection:
        [held] = trials.promotions(connection)
    assert held.categories == ["extraction"]


def test_after_a_flush_profiles_are_marked_again(yard: Yard) -> None:
    run = worse_run(yard)
    finished(yard, run)
    before = yard.metrics.read(yard.catalog).profiles["awq"]
    assert before["reasoning"].regressed
    yard.redis.flushall()
    sweep(yard)
    after = yard.metrics.read(yard.catalog).profiles["awq"]
    assert {name: p.regressed for name, p in after.items()} == {name: p.regressed for name, p in before.items()}
    kept = benchmarks.get(yard.store, run.id).report or {}
    assert Changes(**kept["changes"]).regressed == benchmarks.get(yard.store, run.id).regressed


def test_a_golden_set_that_is_missing_is_said_once_a_slot(yard: Yard) -> None:
    class Log:
        def __init__(self) -> None:
            self.said: list[Any] = []

        def warning(self, event: Any, **_: Any) -> None:
            self.said.append(event)

    log = Log()
    yard.log = log  # type: ignore[assignment]
    unmet: dict[str, datetime] = {}
    now = datetime.now(tz=UTC) + timedelta(minutes=5)
    for later in (0, 1, 2, 90):
        assert ask_for_due(yard, now=now.replace(second=0) + timedelta(seconds=later), unmet=unmet) == []
    assert len(log.said) == 2
