"""What an inference worker does with its engine: checks before work, the in-flight limit, adapters beside the model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest
import redis
from typer.testing import CliRunner

from tests.conftest import eventually
from tests.integration.inference import Bench, ScriptedEngine, inference
from tieryard.cli.main import cli
from tieryard.engines.load import Load
from tieryard.metrics import EngineState, Metrics, Replica
from tieryard.queues import Parcel, model_queue, replica_queue
from tieryard.settings import Settings
from tieryard.snapshots import Snapshots
from tieryard.store import Store
from workers import upkeep

LORA = """
  tuned:
    model: test/tuned
    revision: "7"
    size_class: small
    engine: {kind: lora, host: base, weights: /adapters/tuned}
    context_limit: 512
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 1.00, output_usd_per_1m: 2.00}
  base:
    model: test/base
    revision: "1"
    size_class: small
    engine: {kind: openai_http, url: "http://vllm.invalid"}
    context_limit: 512
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_LOOK_S", 0.05)


def replica(bench: Bench, deployment: str = "short") -> Replica | None:
    found = bench.yard.metrics.replicas(deployment)
    return found[0] if found else None


def test_an_engine_that_fails_its_checks_takes_no_job_and_says_why(
    settings: Settings, store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inference(settings, tenant, unfit=["stops: a greeting did not end", "context: too short"]) as bench:
        eventually(lambda: (r := replica(bench)) and r.state is EngineState.UNFIT, what="the gauge")
        found = replica(bench)
        assert found is not None
        assert (found.capacity, found.why) == (0, "stops: a greeting did not end; context: too short")
        [job] = bench.bring("hello")
        snapshots = Snapshots(bench.yard.metrics, bench.yard.catalog, bench.yard.log)
        assert not next(c for c in snapshots.newest().candidates if c.name == "short").live
        assert bench.row(job) == "routed"
        assert bench.engine.seen == []
        assert bench.engine.starts == 1, "a server that answers is not started again for its faults"

        shown = CliRunner().invoke(
            cli,
            ["deployments"],
            env={
                "TIERYARD_DATABASE_URL": settings.database_url.get_secret_value(),
                "TIERYARD_REDIS_URL": settings.redis_url.get_secret_value(),
                "TIERYARD_CATALOG": str(settings.catalog),
                "COLUMNS": "160",
            },
        )
        assert shown.exit_code == 1
        assert "unfit" in shown.output
        assert "stops: a greeting did not end; context: too short" in shown.output

        bench.engine.unfit = []
        bench.until(job, "succeeded")
        assert bench.engine.starts == 1


def test_the_limit_falls_to_what_the_engine_holds_and_everybody_sees_it(bench: Bench) -> None:
    full = bench.yard.catalog.deployments["short"].max_in_flight
    eventually(lambda: (r := replica(bench)) and r.capacity == full, what="the catalog's limit")
    bench.engine.says = Load(running=full, waiting=0, kv_usage=1.0, preemptions=0)
    eventually(lambda: (r := replica(bench)) and r.load is not None, what="a look")
    bench.engine.says = Load(running=9, waiting=20, kv_usage=0.97, preemptions=3)
    eventually(lambda: (r := replica(bench)) and r.capacity == 9, what="the limit")
    found = replica(bench)
    assert found is not None
    assert found.load == bench.engine.says
    live = bench.yard.metrics.read(bench.yard.catalog)
    assert (live.gauges["short"].capacity, live.gauges["short"].kv_usage) == (9, 0.97)
    reserve = bench.yard.catalog.deployments["short"].realtime_reserve
    bench.bring(*(f"wait {i}" for i in range(full)), tier="bulk")
    eventually(lambda: len(bench.engine.running) == 9 - reserve, what="a full engine")
    bench.bring(*(f"wait r{i}" for i in range(full)), tier="realtime")
    eventually(lambda: len(bench.engine.running) == 9, what="realtime in its reserve")
    bench.engine.go.set()
    eventually(lambda: not bench.engine.running, what="the end")
    assert bench.engine.most == 9


def test_a_limit_that_grows_lets_waiting_jobs_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.steering._HOLD_S", 0.0)
    bench.engine.says = Load(running=64, waiting=0, kv_usage=1.0, preemptions=0)
    eventually(lambda: (r := replica(bench)) and r.load is not None, what="a look")
    bench.engine.says = Load(running=5, waiting=1, kv_usage=1.0, preemptions=1)
    eventually(lambda: (r := replica(bench)) and r.capacity == 5, what="the cut")
    found = bench.bring(*(f"wait {i}" for i in range(40)), tier="realtime")
    eventually(lambda: len(bench.engine.running) == 5, what="five running")
    bench.engine.says = Load(running=64, waiting=0, kv_usage=0.2, preemptions=1)
    eventually(lambda: len(bench.engine.running) == 40, what="all running")
    bench.engine.go.set()
    for job in found:
        bench.until(job, "succeeded")


def test_adapters_run_in_their_hosts_engine_under_their_own_name_and_price(
    settings: Settings, store: Store, tenant: int, tmp_path: Path
) -> None:
    catalog = tmp_path / "lora.yaml"
    head = settings.catalog.read_text().split("\ndeployments:")[0]
    catalog.write_text(f"{head}\ndeployments:{LORA}")
    with inference(settings.model_copy(update={"catalog": catalog}), tenant, deployment="base") as bench:
        [tuned] = bench.bring("hello", model="tuned")
        [base] = bench.bring("hello", model="base")
        for job in (tuned, base):
            bench.until(job, "succeeded")
        assert bench.engine.models == {"tuned", None}
        rows = store.fetch("SELECT deployment, cost_usd::text FROM ledger ORDER BY deployment")
        assert rows == [("base", "0.0000027"), ("tuned", "0.000017")]
        revisions = store.fetch("SELECT revision FROM timing ORDER BY revision")
        assert revisions == [("test/base@1",), ("test/tuned@7",)]
        for name in ("base", "tuned"):
            eventually(lambda n=name: (r := replica(bench, n)) and r.capacity == 8, what=f"{name} in the gauges")

        # A call at one is a job of the worker to the other, for they share the engine.
        field = f"api:901:{bench.yard.worker_id}"
        gauge = {"capacity": 0, "in_flight": 3, "backlog": 0, "url": "", "at": 4e9}
        bench.yard.redis.hset("gauges:tuned", field, orjson.dumps(gauge))
        eventually(lambda: (r := replica(bench, "base")) and r.in_flight == 3, what="the call seen at base")
        found = replica(bench, "tuned")
        assert found is not None
        assert (found.in_flight, found.calls) == (3, {901: 3})
        bench.yard.redis.hdel("gauges:tuned", field)
    assert Metrics(redis.Redis.from_url(settings.redis_url.get_secret_value())).replicas("tuned") == []


def test_an_engines_own_checks_expect_what_the_catalog_says(settings: Settings, tenant: int, tmp_path: Path) -> None:
    catalog = tmp_path / "lora.yaml"
    head = settings.catalog.read_text().split("\ndeployments:")[0]
    catalog.write_text(f"{head}\ndeployments:{LORA}")
    with inference(settings.model_copy(update={"catalog": catalog}), tenant, deployment="base") as bench:
        eventually(lambda: bench.engine.expected is not None, what="the checks")
        expected = bench.engine.expected
        assert expected is not None
        assert (expected.names, expected.context_limit, expected.json_schema) == (("test/base", "tuned"), 512, False)


def test_a_worker_whose_engine_is_not_up_leaves_the_queue_to_others(
    settings: Settings, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inference(settings, tenant, unfit=["stops: it never does"]) as bench:
        assert bench.gates == [False]
        bench.engine.unfit = []
        eventually(lambda: bench.gates == [False, True], what="the engine and the gate")
        bench.engine.up = False
        eventually(lambda: bench.gates == [False, True, False], what="the gate to close")


def test_what_waits_at_a_dead_engine_goes_to_a_replica_that_serves(bench: Bench) -> None:
    eventually(lambda: bench.gates == [False, True], what="the engine")
    full = bench.yard.catalog.deployments["short"].max_in_flight
    found = bench.bring(*(f"wait {i}" for i in range(full * 2)))
    eventually(lambda: len(bench.engine.running) == full - 4, what="a full engine")
    eventually(lambda: (r := replica(bench)) and r.backlog > 0, what="a backlog")
    passed_on: list[Parcel] = []
    bench.yard.publisher.publish = lambda parcels: passed_on.extend(parcels) or 0  # type: ignore[method-assign,assignment]
    other = {"capacity": 64, "in_flight": 0, "backlog": 0, "url": "", "at": 4e9}
    bench.yard.redis.hset("gauges:short", "901", orjson.dumps(other))
    own = replica_queue("short", bench.yard.worker_id)
    bench.yard.redis.rpush(own, "a parcel")
    bench.engine.up = False
    shared = model_queue("short")
    eventually(lambda: b"a parcel" in bench.yard.redis.lrange(shared, 0, -1), what="its own queue")
    eventually(lambda: passed_on, what="the inbox to be passed on")
    handed_back = set(found[full - 4 :]) - {first + i for p in passed_on for first, n, _ in p.runs for i in range(n)}
    assert handed_back, "some were claimed already"
    for job in handed_back:
        eventually(lambda n=job: bench.row(n) == "queued", what="what was claimed to be handed back")
    eventually(lambda: (r := replica(bench)) and r.backlog == 0, what="an empty inbox")
    bench.yard.redis.hdel("gauges:short", "901")


def test_a_single_replica_keeps_what_waits_for_its_engine(bench: Bench) -> None:
    eventually(lambda: bench.gates == [False, True], what="the engine")
    bench.engine.up = False
    eventually(lambda: bench.gates[-1] is False, what="the gate to close")
    [job] = bench.bring("hello")
    bench.engine.up = True
    bench.until(job, "succeeded")


def test_an_engine_that_answers_and_makes_no_token_is_started_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_STALLED_S", 0.5)
    bench.engine.says = Load(running=0, waiting=0, kv_usage=0.0, preemptions=0, tokens=7)
    eventually(lambda: (r := replica(bench)) and r.load is not None, what="a look")
    assert bench.engine.starts == 1
    bench.engine.says = Load(running=1, waiting=0, kv_usage=0.1, preemptions=0, tokens=7)
    eventually(lambda: bench.engine.starts == 2, what="another start")
    bench.engine.says = Load(running=0, waiting=0, kv_usage=0.0, preemptions=0)
    eventually(lambda: (r := replica(bench)) and r.state is EngineState.SERVING, what="the new one to serve")


def test_one_prompt_that_a_hosted_api_forbids_fails_alone(bench: Bench) -> None:
    [job] = bench.bring("forbid this")
    eventually(lambda: bench.row(job, "state, attempts") == ("queued", 1), what="an attempt")
    assert bench.gates == [False, True], "the engine was never down for the others"


def test_a_drain_waits_for_the_engines_own_end(settings: Settings, tenant: int) -> None:
    closed: list[str] = []

    class Slow(ScriptedEngine):
        async def start(self) -> None:
            self.watching = asyncio.create_task(asyncio.Event().wait())
            await super().start()

        async def close(self) -> None:
            assert not self.watching.done(), "the drain has ended the engine's own task"
            self.watching.cancel()
            closed.append("closed")

    with inference(settings, tenant, engine=Slow()) as bench:
        eventually(lambda: bench.gates == [False, True], what="the engine")
    assert closed == ["closed"]
