"""Speed and capacity runs against fake engines: their figures, what they leave behind, and whom they make way for."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from tests import factories as make
from tests.conftest import eventually
from tests.integration.conftest import OpenYard
from tests.integration.measuring import ADAPTER, Measuring, dead_url, write_catalog
from tieryard.bench import load
from tieryard.metrics import EngineState
from tieryard.profiles import Observed
from tieryard.routing import Measured, Snapshot, decide
from tieryard.settings import Settings
from tieryard.store import Store, benchmarks
from tieryard.store.benchmark_postings import Posting
from tieryard.store.benchmarks import RunKind, RunState
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan, Fault
from workers import speed
from workers.rescue import EPOCH, sweep

PLAN = FakePlan(ttft_ms=20, tokens_per_s=1000, capacity=8, length=10, context_limit=4096, records=True)

Open = Callable[..., Measuring]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, a run is valid."""
    monkeypatch.setattr(load, "MOST_LAG_MS", math.inf)


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with FakeVllm.in_thread(PLAN) as server:
        yield server


@pytest.fixture
def open_(open_yard: OpenYard, settings: Settings, fake: FakeVllm, tmp_path: Path) -> Open:
    """A joined benchmark process with a catalog; one replica of `short` serves."""

    def made(**catalog: Any) -> Measuring:
        path = write_catalog(tmp_path, fake.url, **catalog)
        yard = open_yard("benchmark", settings=settings.model_copy(update={"catalog": path}))
        yard.join()
        found = Measuring(yard, fake)
        found.gauge()
        return found

    return made


@pytest.fixture
def bench(open_: Open) -> Measuring:
    return open_()


def test_a_speed_run_measures_each_category_under_full_load(bench: Measuring, fake: FakeVllm) -> None:
    end = bench.measure()
    assert end.state is RunState.SUCCEEDED, end.why
    assert end.report is not None
    assert end.report["valid"]
    assert end.report["shape"] == {"kind": "closed", "concurrency": 7, "requests": 48}
    assert end.report["full"]
    assert end.report["notes"] == []
    assert end.profiles.keys() == set(bench.yard.catalog.categories) == end.report["sample"].keys()
    assert all(origins == {"built_in": 8} for origins in end.report["sample"].values())
    assert fake.state.max_running_seen == 7  # realtime keeps its place
    assert fake.state.requests == 48 + 4
    for figures in end.profiles.values():
        assert (figures["n"], figures["succeeded"], figures["error_rate"]) == (8, 8, 0)
        assert figures["token_source"] == "server"
        assert figures["goodput"]["met"] == 8
        assert figures["fields"]["throughput_tps"] == pytest.approx(end.report["figures"]["output_tps"])
    assert bench.told() == []  # nothing of ours stays
    assert end.pinned == bench.yard.catalog.deployments["short"].build


def test_all_that_it_used_is_billed_the_warm_up_too(bench: Measuring, fake: FakeVllm, store: Store) -> None:
    end = bench.measure(requests=6, warm_up=2)
    [posting] = end.postings
    used = (posting.prompt_tokens, posting.completion_tokens)
    assert used == (fake.state.prompt_tokens, fake.state.generation_tokens)
    with store.transaction() as connection:
        assert benchmarks.finish(connection, bench.found[-1], end) == 0
    [(kind, cost, tier)] = store.fetch("SELECT kind, cost_usd, tier FROM ledger")
    assert (kind, tier) == ("benchmark", "bulk")
    assert cost == (Decimal("0.10") * used[0] + Decimal("0.40") * used[1]) / 1_000_000


def test_the_next_decision_rests_on_it_and_names_it(bench: Measuring) -> None:
    end = bench.measure()
    speed.tell(bench.yard, bench.found[-1], end)
    catalog = bench.yard.catalog
    profile = bench.yard.metrics.read(catalog).profiles["short"]["chat"]
    fields = end.profiles["chat"]["fields"]
    assert profile.ttft_ms == pytest.approx(fields["ttft_ms"])
    assert (profile.samples, profile.stale, profile.benchmark) == (8, False, bench.found[-1].public_id)
    assert profile.benchmark_timestamp == pytest.approx(end.profiles["chat"]["at"], abs=5)
    snapshot = Snapshot.of(
        catalog, gauges={"short": Measured(capacity=8)}, profiles=bench.yard.metrics.read(catalog).profiles
    )
    decision = decide(features(), Snapshot.from_json(orjson.loads(snapshot.to_json())))
    at = datetime.fromtimestamp(profile.benchmark_timestamp, tz=UTC)
    assert f"short's profile for chat was measured by {profile.benchmark}, {at:%Y-%m-%d %H:%M} UTC" in decision.notes
    bench.yard.metrics.observe("short", "chat", Observed(n=2, ttft_ms=1000.0))
    moved = bench.yard.metrics.read(catalog).profiles["short"]["chat"]
    assert moved.ttft_ms == pytest.approx((8 * fields["ttft_ms"] + 2 * 1000) / 10)
    assert (moved.samples, moved.benchmark) == (10, profile.benchmark)


def features() -> Any:
    return replace(make.features(), prompt_tokens={"utf8": 10})


REFUSED = {
    "instant": "inside its worker",
    "vectors": "embeddings",
    "gone": "not a deployment",
    "hosted": "no replica of 'hosted'",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_fails_and_says_why(bench: Measuring, name: str) -> None:
    bench.gauge("instant", url="")
    end = bench.measure(name=name)
    assert end.state is RunState.FAILED
    assert REFUSED[name] in (end.why or "")
    assert end.postings == ()


def test_what_was_asked_for_must_be_readable(bench: Measuring) -> None:
    end = bench.measure(rate_per_s=-1, colour="red")
    assert end.state is RunState.FAILED
    assert "rate_per_s" in (end.why or "")
    assert "colour" in (end.why or "")


BUSY: dict[str, tuple[dict[str, Any], str]] = {
    "its jobs wait": ({"backlog": 3}, "3 jobs wait"),
    "others are in it": ({"in_flight": 2}, "2 requests of others"),
    "a suspect is alone in it": ({"capacity": 0}, "takes nothing now"),
    "it starts": ({"capacity": 0, "state": EngineState.STARTING}, "starting"),
    "its provider wants to be left alone": ({"held": "429 for 20 s more"}, "429"),
}


@pytest.mark.parametrize("case", BUSY)
def test_it_waits_until_there_is_room_to_spare(bench: Measuring, fake: FakeVllm, case: str) -> None:
    fields, why = BUSY[case]
    bench.gauge(**fields)
    with pytest.raises(speed.Busy, match=why):
        bench.measure()
    assert fake.state.requests == 0
    bench.gauge()
    assert bench.measure(requests=6).state is RunState.SUCCEEDED


def test_a_small_load_needs_little_room(bench: Measuring) -> None:
    bench.gauge(in_flight=5)
    end = bench.measure(concurrency=3, requests=6)
    assert end.state is RunState.SUCCEEDED
    assert end.report is not None
    assert not end.report["full"]
    assert "throughput_tps" not in end.profiles["chat"]["fields"]


def test_in_its_window_it_does_not_wait(open_: Open) -> None:
    bench = open_(more='benchmarks: {window: {start: "00:00:00", end: "23:59:59.999"}}')
    bench.gauge(in_flight=6, backlog=2)
    assert bench.measure(requests=12).state is RunState.SUCCEEDED


def test_a_closed_load_pauses_while_jobs_wait_and_goes_on(bench: Measuring, fake: FakeVllm) -> None:
    fake.plan = replace(PLAN, ttft_ms=100)
    begun = threading.Thread(target=press, args=[bench, fake])
    begun.start()
    end = bench.measure(requests=60)
    begun.join()
    assert end.state is RunState.SUCCEEDED
    assert end.report is not None
    assert end.report["valid"]
    assert "it paused 1 times for better work" in end.report["notes"]
    assert end.report["figures"]["succeeded"] == 60


def press(bench: Measuring, fake: FakeVllm) -> None:
    """Jobs wait once the load has begun, until it has stopped sending."""
    eventually(lambda: fake.state.requests > 10, what="a load")
    bench.gauge(backlog=1)
    eventually(lambda: quiet(fake), what="the pause")
    bench.gauge()


def quiet(fake: FakeVllm) -> bool:
    """Nothing is sent for a while: that takes time to see."""
    seen = fake.state.requests
    time.sleep(0.3)
    return fake.state.running == 0 and fake.state.requests == seen


def test_an_open_load_ends_for_jobs_that_wait_and_what_it_used_is_billed(
    bench: Measuring, fake: FakeVllm, store: Store
) -> None:
    begun = threading.Thread(target=press_once, args=[bench, fake])
    begun.start()
    with pytest.raises(speed.Busy, match="1 jobs wait") as busy:
        bench.measure(rate_per_s=40, requests=400)
    begun.join()
    [posting] = busy.value.postings
    assert 0 < posting.completion_tokens < 4000
    assert busy.value.wait_s > 0
    run = bench.found[-1]
    assert benchmarks.hand_back(store, run, why=str(busy.value), postings=[posting])
    assert not benchmarks.hand_back(store, run, why="again", postings=[Posting(1, 1, Decimal(1), "bulk", "x")])
    assert store.fetch("SELECT job_id, fence, cost_usd FROM ledger") == [(run.id, 1, posting.cost_usd)]
    again = benchmarks.claim(store, bench.yard.worker_id, [RunKind.SPEED])
    assert again is not None
    assert again.fence == 2


def press_once(bench: Measuring, fake: FakeVllm) -> None:
    eventually(lambda: fake.state.requests > 10, what="a load")
    bench.gauge(backlog=1)


def test_it_is_stopped_at_once_and_what_it_used_is_billed(bench: Measuring, fake: FakeVllm) -> None:
    fake.plan = replace(PLAN, ttft_ms=20, tokens_per_s=5, length=600)  # minutes, for whoever lets it
    threading.Thread(target=stop_once, args=[bench, fake]).start()
    end = bench.measure(requests=20, warm_up=0)
    assert end.state is RunState.CANCELLED
    [posting] = end.postings
    assert 0 < posting.completion_tokens < 200
    eventually(lambda: fake.state.aborted == 7, what="the aborts")
    assert bench.told() == []


def stop_once(bench: Measuring, fake: FakeVllm) -> None:
    eventually(lambda: fake.state.generation_tokens > 20, what="some tokens")
    bench.stop.set()


def test_a_dead_endpoint_has_an_error_rate_and_nothing_else(bench: Measuring) -> None:
    bench.gauge(url=dead_url())
    end = bench.measure(requests=12)
    assert end.state is RunState.SUCCEEDED
    assert end.postings == ()
    for figures in end.profiles.values():
        assert (figures["error_rate"], figures["errors"]) == (1.0, {"engine_down": 2})
        assert [figures[name] for name in ("ttft_ms", "output_tps", "cost_per_1k", "token_source")] == [None] * 4
        assert figures["fields"].keys() == {"samples", "timestamp", "error_rate"}
    speed.tell(bench.yard, bench.found[-1], end)
    assert bench.yard.metrics.read(bench.yard.catalog).profiles["short"] == {}  # an outage says nothing of its speed


def test_an_engine_that_is_down_is_asked_all_the_same(bench: Measuring) -> None:
    bench.gauge(url=dead_url(), capacity=0, state=EngineState.DOWN)
    end = bench.measure(requests=6)
    assert end.report is not None
    assert end.report["figures"]["error_rate"] == 1.0


def test_what_fails_now_and_then_is_counted(bench: Measuring, fake: FakeVllm) -> None:
    fake.plan = replace(PLAN, faults=lambda number, _: Fault("http_500") if number % 4 == 0 else None)
    end = bench.measure(requests=48, warm_up=0)
    assert end.report is not None
    assert (end.report["figures"]["n"], end.report["figures"]["error_rate"]) == (48, 0.25)
    speed.tell(bench.yard, bench.found[-1], end)
    assert bench.yard.metrics.read(bench.yard.catalog).profiles["short"]["chat"].error_rate is not None


def test_a_client_that_was_too_busy_tells_no_times(bench: Measuring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MOST_LAG_MS", -1.0)
    end = bench.measure(requests=12)
    assert end.state is RunState.SUCCEEDED
    assert end.report is not None
    assert not end.report["valid"]
    speed.tell(bench.yard, bench.found[-1], end)
    told = bench.yard.metrics.read(bench.yard.catalog).profiles["short"]["chat"]
    assert (told.samples, told.error_rate, told.ttft_ms, told.output_tokens) == (2, 0.0, None, None)
    assert told.benchmark == ""


def test_a_category_in_which_all_failed_keeps_its_times(bench: Measuring) -> None:
    end = bench.measure(requests=12)
    speed.tell(bench.yard, bench.found[-1], end)
    failed = {"succeeded": 0, "error_rate": 1.0, "fields": {"samples": 2, "error_rate": 1.0}}
    again = replace(end, profiles=end.profiles | {"chat": end.profiles["chat"] | failed})
    later = bench.claimed()
    speed.tell(bench.yard, later, again)
    told = bench.yard.metrics.read(bench.yard.catalog).profiles["short"]
    assert (told["chat"].benchmark, told["code"].benchmark) == (bench.found[0].public_id, later.public_id)
    assert told["chat"].error_rate == pytest.approx(0.5)


def test_what_the_catalog_changed_meanwhile_is_measured_again_and_billed(
    bench: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged = bench.yard.catalog
    other = unchanged.deployments["short"].model_copy(update={"revision": "2"})
    changed = unchanged.model_copy(update={"deployments": {**unchanged.deployments, "short": other}})
    really = speed.run_load

    async def changing(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(type(bench.yard), "catalog", changed)
        return await really(*arguments, **named)

    monkeypatch.setattr(speed, "run_load", changing)
    with pytest.raises(speed.Busy, match="the catalog has changed") as busy:
        bench.measure(requests=6)
    assert busy.value.postings


def test_what_a_run_with_a_fault_of_ours_used_is_billed(
    bench: Measuring, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("no such figure")

    monkeypatch.setattr(speed, "measure", broken)
    with pytest.raises(speed.FaultedError, match="no such figure") as faulted:
        bench.measure(requests=6)
    [posting] = faulted.value.postings
    assert posting.completion_tokens == fake.state.generation_tokens > 0


def test_redis_that_goes_away_at_the_end_costs_no_measurement(
    bench: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise redis.ConnectionError

    monkeypatch.setattr(bench.yard.metrics, "withdraw_calls", away)
    assert bench.measure(requests=40).state is RunState.SUCCEEDED


def test_more_than_its_replicas_take_is_not_sent(bench: Measuring, fake: FakeVllm) -> None:
    end = bench.measure(concurrency=64, requests=30)
    assert end.report is not None
    assert end.report["shape"]["concurrency"] == 7 == fake.state.max_running_seen
    assert any("64 at once" in note for note in end.report["notes"])


def test_the_emptiest_replica_takes_the_next_request(bench: Measuring, fake: FakeVllm) -> None:
    with FakeVllm.in_thread(PLAN) as other:
        bench.gauge(worker_id=7002, url=other.url, capacity=4)
        end = bench.measure(requests=100)
        assert end.report is not None
        assert (end.report["shape"]["concurrency"], end.report["replicas"]) == (10, 2)
        assert fake.state.max_running_seen > other.state.max_running_seen > 1
        assert fake.state.requests + other.state.requests == 104


def test_an_adapter_is_asked_at_its_hosts_server_by_its_name(open_: Open, fake: FakeVllm) -> None:
    bench = open_(more=ADAPTER)
    fake.plan = replace(PLAN, model="tuned")
    bench.gauge("tuned")
    end = bench.measure(name="tuned", requests=6)
    assert end.report is not None
    assert end.report["figures"]["succeeded"] == 6
    assert fake.state.max_running_seen <= 7  # its host's reserve is kept


def test_it_keeps_to_what_a_hosted_api_lets_the_fleet_do(bench: Measuring, fake: FakeVllm) -> None:
    bench.gauge("hosted")
    with pytest.raises(speed.Busy, match="requests a minute are used up") as busy:
        bench.measure(name="hosted", rate_per_s=50, requests=40, warm_up=0)
    assert 0 < fake.state.requests <= 9  # an eighth is kept for realtime
    assert busy.value.wait_s > 30


def test_the_capacity_of_an_engine_is_found(bench: Measuring, fake: FakeVllm) -> None:
    fake.plan = replace(PLAN, ttft_ms=200)  # about 7 / 0.21 s = 33 requests a second
    end = bench.measure(RunKind.CAPACITY, category="chat", low=20, high=200, seconds=0.4, least=16, most=3)
    assert end.state is RunState.SUCCEEDED, end.why
    assert end.report is not None
    found = end.report["capacity"]
    assert 1 <= len(found["probes"]) <= 3
    assert found["rate_per_s"] >= 20
    assert found["says"]
    assert end.profiles == {}
    assert end.postings
    speed.tell(bench.yard, bench.found[-1], end)  # which has nothing to say


def spoil(store: Store, category: str, change: str) -> None:
    """Of all its profiles."""
    store.fetch(f"UPDATE profile SET {change} WHERE category = '{category}' RETURNING category")


def test_after_a_flush_profiles_come_back_from_postgres(bench: Measuring, store: Store) -> None:
    yard = bench.yard
    for _ in range(2):
        end = bench.measure(requests=12)
        with store.transaction() as connection:
            benchmarks.finish(connection, bench.found[-1], end)
    store.fetch("UPDATE profile SET measured_at = now() - interval '90 day' WHERE category = 'code' RETURNING category")
    store.fetch(
        "UPDATE profile SET figures = figures || '{\"valid\": false}' WHERE category = 'chat' RETURNING category"
    )
    yard.redis.flushall()
    sweep(yard)
    assert yard.redis.get(EPOCH) is not None
    told = yard.metrics.read(yard.catalog).profiles["short"]
    assert told.keys() == set(yard.catalog.categories) - {"code", "chat"}
    assert {profile.benchmark for profile in told.values()} == {bench.found[-1].public_id}
    before = end.profiles["reasoning"]["fields"]
    assert told["reasoning"].ttft_ms == pytest.approx(before["ttft_ms"])
    assert told["reasoning"].timestamp == pytest.approx(before["timestamp"], abs=0.5)


def test_what_another_build_measured_is_not_told_again(bench: Measuring, store: Store) -> None:
    end = replace(bench.measure(requests=6), pinned="test/short@2#0123456789ab")
    with store.transaction() as connection:
        benchmarks.finish(connection, bench.found[-1], end)
        speed.tell_profiles(bench.yard, connection)
    assert bench.yard.metrics.read(bench.yard.catalog).profiles["short"] == {}
