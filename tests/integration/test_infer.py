"""The inference loop over real Postgres and Valkey, with an engine that does what its prompt says."""

from __future__ import annotations

import threading
import time

import orjson
import pytest

from tests.conftest import eventually
from tests.integration.inference import Bench, ScriptedEngine
from tieryard.ids import to_runs
from tieryard.settings import Settings
from tieryard.store import Store, jobs
from workers.classify import Classifier
from workers.infer import Inference
from workers.yard import Yard


def calls_at(worker: Inference) -> int:
    """Of API processes, as the worker knows of them."""
    return worker._standing.calls


def test_a_job_ends_with_result_timing_and_bill(bench: Bench) -> None:
    [job] = bench.bring("hello")
    bench.until(job, "succeeded")
    assert bench.yard.store.fetch("SELECT output, finish_reason, error FROM result") == [("done", "stop", None)]
    [(ttft, latency, tokens)] = bench.yard.store.fetch("SELECT ttft_ms, latency_ms, completion_tokens FROM timing")
    assert 0 <= ttft <= latency
    assert tokens == 5
    [(kind, cost)] = bench.yard.store.fetch("SELECT kind, cost_usd::text FROM ledger")
    assert (kind, cost) == ("inference", "0.0000027")  # 7 × 0.10 + 5 × 0.40 dollars a million


def test_a_permanent_refusal_fails_at_once(bench: Bench) -> None:
    [job] = bench.bring("refuse this")
    bench.until(job, "failed")
    assert bench.yard.store.fetch("SELECT error_kind, error FROM result") == [("bad_request", "no")]
    assert bench.yard.store.fetch("SELECT count(*) FROM ledger") == [(0,)]


def test_own_faults_are_counted_and_the_third_is_the_last(bench: Bench) -> None:
    [job] = bench.bring("timeout please")
    for attempt in (1, 2):
        eventually(lambda n=attempt: bench.row(job, "state, attempts") == ("queued", n), what="the hand-back")
        assert bench.row(job, "not_before > now()")
        bench.again(job)
    bench.until(job, "failed")
    assert bench.outcomes(job) == ["fault", "fault", "failed"]


def test_a_full_engine_is_not_the_jobs_fault(bench: Bench) -> None:
    [job] = bench.bring("busy now")
    eventually(lambda: bench.outcomes(job) == ["outage"], what="the hand-back")
    assert bench.row(job, "state, attempts, worker_deaths") == ("queued", 0, 0)


def test_an_engine_that_was_never_reached_costs_nothing(bench: Bench) -> None:
    [job] = bench.bring("unsent one")
    eventually(lambda: bench.outcomes(job) == ["outage"], what="the hand-back")
    assert bench.row(job, "state, attempts, worker_deaths") == ("queued", 0, 0)


def test_the_third_engine_death_fails_the_job_and_it_ran_alone(bench: Bench) -> None:
    [job] = bench.bring("crash it")
    for deaths in (1, 2):
        eventually(lambda n=deaths: bench.row(job, "state, worker_deaths") == ("queued", n), what="the hand-back")
        bench.engine.up = True
        bench.again(job)
        if deaths == 1:
            continue
    bench.until(job, "failed")
    assert bench.outcomes(job) == ["crash", "crash", "failed"]
    assert bench.yard.store.fetch("SELECT error_kind FROM result") == [("engine_died",)]


def test_a_suspect_starts_with_nothing_beside_it(bench: Bench) -> None:
    waiting = bench.bring("wait a", "wait b")
    eventually(lambda: len(bench.engine.running) == 2, what="two running")
    [suspect] = bench.bring("suspect", offer=False)
    bench.yard.store.fetch("UPDATE job SET worker_deaths = 2 WHERE id = %(id)s RETURNING id", {"id": suspect})
    bench.worker.offer("batch", 0.0, [(suspect, 1)])
    bench.until(suspect, "running")
    [later] = bench.bring("later")
    bench.engine.go.set()
    for job in (*waiting, suspect, later):
        bench.until(job, "succeeded")
    assert dict(bench.engine.seen)["suspect"] == 1
    assert [prompt for prompt, _ in bench.engine.seen[-2:]] == ["suspect", "later"]


def test_a_suspect_starts_with_no_call_of_the_api_beside_it(bench: Bench) -> None:
    field, own = f"api:901:{bench.yard.worker_id}", str(bench.yard.worker_id)
    gauges = bench.yard.redis

    def capacity() -> int:
        return orjson.loads(gauges.hget("gauges:short", own) or b"{}").get("capacity", -1)

    def calls(n: int) -> None:
        gauge = {"capacity": 0, "in_flight": n, "backlog": 0, "url": "", "at": time.time() + 60}
        gauges.hset("gauges:short", field, orjson.dumps(gauge))

    calls(1)
    eventually(lambda: calls_at(bench.worker) == 1 and capacity() > 0, what="a call in its engine")
    [suspect] = bench.bring("wait suspect", offer=False)
    bench.yard.store.fetch("UPDATE job SET worker_deaths = 2 WHERE id = %(id)s RETURNING id", {"id": suspect})
    bench.worker.offer("batch", 0.0, [(suspect, 1)])
    eventually(lambda: capacity() == 0, what="the API to be told to send no more")
    told_at = time.monotonic()
    calls(0)  # the call has ended; another one may have begun before its process was told
    eventually(lambda: calls_at(bench.worker) == 0, what="the worker to know")
    assert bench.engine.seen == []
    eventually(lambda: bench.engine.seen == [("wait suspect", 1)], what="its start")
    assert time.monotonic() - told_at > 1
    time.sleep(1)
    assert capacity() == 0, "while it runs too"
    bench.engine.go.set()
    bench.until(suspect, "succeeded")
    eventually(lambda: capacity() > 0, what="the API to be told that there is room again")


def test_a_drain_waits_for_calls_in_an_engine_that_ends_with_it(settings: Settings, store: Store, tenant: int) -> None:
    class Closable(ScriptedEngine):
        closed = False

        async def close(self) -> None:
            self.closed = True

    yard = Yard("infer", settings, consume=["model.short"], deployment="short")
    yard.join()
    engine = Closable()
    worker = Inference(yard, "short", engine=engine)
    worker.start(lambda _: None)
    field = f"api:901:{yard.worker_id}"
    gauge = {"capacity": 0, "in_flight": 1, "backlog": 0, "url": "", "at": time.time() + 60}
    yard.redis.hset("gauges:short", field, orjson.dumps(gauge))
    eventually(lambda: calls_at(worker) == 1, what="the worker to know")
    draining = threading.Thread(target=worker.drain)
    draining.start()
    time.sleep(1)
    assert not engine.closed
    yard.redis.hdel("gauges:short", field)
    draining.join(5)
    assert engine.closed
    yard.leave()


def test_suspects_are_at_risk_one_at_a_time(bench: Bench) -> None:
    """The third death must not take other suspects with it, nor jobs that were claimed and never started."""
    found = bench.bring("crash one", "wait two", "wait three", offer=False)
    bench.yard.store.fetch("UPDATE job SET worker_deaths = 2 RETURNING id")
    neighbours = bench.bring("hello a", "hello b", offer=False)
    bench.worker.offer("batch", 0.0, to_runs([*found, *neighbours]))
    bench.until(found[0], "failed")
    for job in neighbours:
        bench.until(job, "succeeded")
    for job in found[1:]:
        eventually(lambda n=job: bench.row(n, "state, worker_deaths") == ("queued", 2), what="the other suspects back")
    assert bench.outcomes(found[0]) == ["failed"]


def test_a_fault_of_ours_costs_an_attempt_and_not_the_worker(bench: Bench) -> None:
    [job] = bench.bring("bug here")
    eventually(lambda: bench.row(job, "state, attempts") == ("queued", 1), what="the hand-back")
    [other] = bench.bring("hello")
    bench.until(other, "succeeded")


def test_text_that_postgres_cannot_hold_is_mended(bench: Bench) -> None:
    [job] = bench.bring("nul please")
    bench.until(job, "succeeded")
    assert bench.yard.store.fetch("SELECT output FROM result") == [("a\ufffdb?done",)]


def test_cancel_aborts_the_request_and_bills_what_it_used(bench: Bench) -> None:
    [job] = bench.bring("wait long")
    eventually(lambda: bench.engine.running, what="the request")
    assert jobs.cancel(bench.yard.store, [job], tenant_id=bench.tenant) == (0, 1)
    bench.until(job, "cancelled")
    assert not bench.engine.running
    assert bench.yard.store.fetch("SELECT prompt_tokens, completion_tokens FROM ledger") == [(7, 3)]


def test_a_replica_tells_of_its_load_while_postgres_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go = threading.Event(), threading.Event()

    def hangs(*_: object) -> dict[int, str]:
        asked.set()
        go.wait()
        return {}

    bench.bring("wait long")
    eventually(lambda: bench.engine.running, what="the request")
    monkeypatch.setattr(jobs, "stops_requested", hangs)
    assert asked.wait(10)

    def told() -> list[bytes]:
        return bench.yard.redis.hvals("gauges:short")

    try:
        for _ in range(3):
            before = told()
            eventually(lambda at=before: told() != at, what="another gauge")
    finally:
        go.set()


def test_realtime_starts_though_bulk_holds_every_slot_it_may(bench: Bench) -> None:
    spec = bench.yard.catalog.deployments["short"]
    bench.bring(*(f"wait {i}" for i in range(spec.max_in_flight * 2)), tier="bulk")
    full = spec.max_in_flight - spec.realtime_reserve
    eventually(lambda: len(bench.engine.running) == full, what="bulk to fill its share")
    [urgent] = bench.bring("now", tier="realtime")
    bench.until(urgent, "succeeded")
    assert len(bench.engine.running) == full
    bench.engine.go.set()


def test_never_more_in_flight_than_the_catalog_allows(bench: Bench) -> None:
    spec = bench.yard.catalog.deployments["short"]
    found = bench.bring(*(f"wait {i}" for i in range(spec.max_in_flight * 3)), tier="realtime")
    eventually(lambda: len(bench.engine.running) == spec.max_in_flight, what="a full engine")
    bench.engine.go.set()
    for job in found:
        bench.until(job, "succeeded")
    assert bench.engine.most == spec.max_in_flight


@pytest.mark.parametrize(("tier", "left"), [("bulk", 10), ("realtime", 10)])
def test_a_worker_leaves_the_room_that_calls_of_the_api_take(bench: Bench, tier: str, left: int) -> None:
    spec = bench.yard.catalog.deployments["short"]
    for api, n in ((901, 4), (902, 6)):
        gauge = {"capacity": 0, "in_flight": n, "backlog": 0, "url": "", "at": time.time() + 60}
        bench.yard.redis.hset("gauges:short", f"api:{api}:{bench.yard.worker_id}", orjson.dumps(gauge))
    eventually(lambda: calls_at(bench.worker) == left, what="the worker to know")
    bench.bring(*(f"wait {i}" for i in range(spec.max_in_flight * 2)), tier=tier)
    eventually(lambda: len(bench.engine.running) == spec.max_in_flight - left, what="the rest to fill")
    bench.yard.redis.hdel("gauges:short", *(f"api:{api}:{bench.yard.worker_id}" for api in (901, 902)))
    full = spec.max_in_flight - (spec.realtime_reserve if tier == "bulk" else 0)
    eventually(lambda: len(bench.engine.running) == full, what="their room to be used again")
    assert bench.engine.most == full
    bench.engine.go.set()


def test_a_nudge_that_comes_twice_runs_once(bench: Bench) -> None:
    [job] = bench.bring("hello")
    for _ in range(3):
        bench.worker.offer("batch", 0.0, [(job, 1)])
    bench.until(job, "succeeded")
    [other] = bench.bring("hello again")
    bench.until(other, "succeeded")
    assert [p for p, _ in bench.engine.seen] == ["hello", "hello again"]


@pytest.mark.parametrize(("window_s", "order"), [(20.0, [1, 3, 2]), (10.0, [1, 2, 3])])
def test_the_inbox_may_reorder_what_the_feeder_keeps_released(
    settings: Settings, store: Store, window_s: float, order: list[int]
) -> None:
    yard = Yard("infer", settings.model_copy(update={"window_s": window_s}), consume=[], deployment="short")
    worker = Inference(yard, "short", engine=ScriptedEngine())
    worker._take("batch", 0.0, [(1, 1, 7), (2, 1, 8)])
    worker._take("batch", 19.0, [(3, 1, 7)])
    assert worker._inbox.pop(3, realtime=0) == order
    worker._loop.close()
    yard.leave()


def test_drain_finishes_what_runs_and_hands_the_rest_back(settings: Settings, store: Store, tenant: int) -> None:
    yard = Yard("infer", settings.model_copy(update={"drain_s": 0.2}), consume=["model.short"], deployment="short")
    yard.join()
    engine = ScriptedEngine()
    worker = Inference(yard, "short", engine=engine)
    bench = Bench(yard, engine, worker, Classifier(yard, yard.admission()), tenant)
    worker.start(bench.gates.append)
    found = bench.bring(*(f"wait {i}" for i in range(200)))
    eventually(lambda: len(engine.running) == 60, what="a full engine")
    worker.drain()
    assert {bench.row(job) for job in found} == {"queued", "routed"}
    rows = yard.store.fetch("SELECT outcome, count(*) FROM timing GROUP BY outcome")
    assert dict(rows).keys() == {"drain"}
    assert yard.redis.llen("model.short") > 0, "what was in the inbox goes back to the queue"
    assert {bench.row(job, "attempts, worker_deaths") for job in found} == {(0, 0)}
    yard.leave()
