"""What is rented stands as a window, on the terms that hold. Jobs, calls and benchmarks are charged in the windows of
the replicas that ran them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog

from tests import factories as make
from tests.conftest import eventually
from tests.gateway import Gateway
from tests.integration.inference import ScriptedEngine, inference
from tests.integration.measuring import Measuring, write_catalog
from tieryard.catalog import Price
from tieryard.costs.terms import Terms
from tieryard.costs.windows import WindowPrice, charge_usd, rent_usd
from tieryard.metrics import Gauge, Metrics
from tieryard.settings import Settings
from tieryard.store import Store, benchmarks, catalogs, rescue, windows, workers
from tieryard.store.connection import reserve_ids
from tieryard.store.windows import Standing
from tieryard.telemetry import Event
from tieryard.testing.fake_vllm import FakeVllm
from workers import renting
from workers.renting import Renting
from workers.yard import Yard

OpenYard = Callable[..., Yard]
PRICE = Price(input_usd_per_1m=Decimal("2.5"), output_usd_per_1m=Decimal("10"))
WAITING = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
RENTED = """
version: 1
tiers: {{batch: {{window: 24h}}, bulk: {{window: 24h}}}}
categories: [chat]
deployments:
  short: &short
    model: test/instant
    revision: "1"
    size_class: small
    engine: {{kind: instant}}
    context_limit: 512
    max_in_flight: 8
    tokenizer: utf8
    price: {{input_usd_per_1m: 2.5, output_usd_per_1m: 10}}
    {short}
  other:
    <<: *short
    {other}
{more}
"""


def text(*, short: str = "rent: {usd_per_hour: 3.6}", other: str = "rent: null", more: str = "") -> str:
    return RENTED.format(short=short, other=other, more=more)


@pytest.fixture
def rented(settings: Settings, tmp_path: Path) -> Settings:
    path = tmp_path / "rented.yaml"
    path.write_text(text())
    return settings.model_copy(update={"catalog": path, "rent_grace_s": 600.0})


@pytest.fixture
def yard(open_yard: OpenYard, rented: Settings) -> Yard:
    return open_yard(settings=rented)


def apply(yard: Yard, body: str, open_yard: OpenYard, rented: Settings) -> Yard:
    """Another catalog comes in force, and a process that has it."""
    catalogs.apply(yard.store, body, name=body[-40:], tiers=["batch", "bulk"])
    return open_yard(settings=rented)


def registered(yard: Yard, name: str = "short", *, replica: int = 1) -> int:
    return workers.register(yard.store, "infer", deployment=name, lease_s=60, replica=replica, catalog=yard.catalog)


def stands(yard: Yard) -> list[Standing]:
    with yard.store.transaction() as connection:
        return windows.standing(connection)


def all_of(yard: Yard, columns: str) -> list[Any]:
    return yard.store.fetch(f"SELECT {columns} FROM rent_window ORDER BY started_at, id")


# --- processes ----------------------------------------------------------------------------------------------


def test_an_infer_process_opens_its_window_with_its_registration(yard: Yard) -> None:
    worker_id = registered(yard)
    registered(yard, "other")
    [window] = stands(yard)
    assert (window.worker_id, window.deployment, window.place) == (worker_id, "short", workers.place_of("short", 1))
    assert (window.terms.usd_per_hour, window.price) == (Decimal("3.6"), PRICE)
    assert all_of(yard, "started_at - (SELECT started_at FROM worker WHERE id = worker_id) < interval '10 s'") == [
        (True,)
    ]
    registered(yard, replica=2)
    assert [w.place for w in stands(yard)] == [workers.place_of("short", n) for n in (1, 2)]


def test_who_waits_for_a_place_keeps_nobody_from_ids(yard: Yard) -> None:
    """Ids of all the fleet come from one row: a process that registers may wait for its place, and never with that."""
    registered(yard)
    [window] = stands(yard)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(yard.store.url) as holder:
        holder.execute("SELECT FROM rent_window WHERE id = %s FOR UPDATE", [window.id])
        waiting = pool.submit(registered, yard)
        eventually(lambda: yard.store.fetch(WAITING), what="the wait for the place")
        with yard.store.transaction() as connection:
            connection.execute("SET LOCAL lock_timeout = '10s'")
            assert reserve_ids(connection, 1) > window.id
        assert not waiting.done()
        holder.rollback()
        waiting.result()


def test_a_process_knows_its_window_from_its_start_and_stops_it_at_its_end(
    open_yard: OpenYard, rented: Settings, store: Store
) -> None:
    process = Yard("infer", rented, consume=[], deployment="short", replica=3)
    process.join()
    assert process.lease.window is not None
    [(window_id, place, served)] = store.fetch("SELECT id, place, served_at FROM rent_window")
    assert (process.lease.window, place, served) == (WindowPrice(window_id, PRICE), workers.place_of("short", 3), None)
    process.lease.serves()
    eventually(lambda: make.count(store, "rent_window", "served_at IS NOT NULL") == 1, what="the first serving")
    process.leave()
    assert make.count(store, "rent_window", "stopped_at IS NOT NULL") == 1


def test_jobs_are_charged_in_their_replicas_window_and_starts_that_did_not_end_them_are_retries(
    rented: Settings, tenant: int, store: Store
) -> None:
    engine = ScriptedEngine()
    with inference(rented.model_copy(update={"drain_s": 0.0}), tenant, engine=engine) as bench:
        window = bench.yard.lease.window
        assert window is not None
        [done] = bench.bring("hello")
        bench.until(done, "succeeded")
        eventually(lambda: bench.yard.metrics.replicas("short"), what="its gauge")
        assert bench.yard.metrics.replicas("short")[0].window == window
        [aborted] = bench.bring("wait for it")
        eventually(lambda: engine.running, what="its start")
        bench.yard.store.fetch(
            "UPDATE job SET stop_requested = 'cancelled' WHERE id = %(id)s RETURNING 1", {"id": aborted}
        )
        bench.until(aborted, "cancelled")
        [drained] = bench.bring("wait for it too")
        eventually(lambda: engine.running, what="its start")
        bench.worker.drain()
    found = store.fetch(
        "SELECT job_id, kind, window_id, prompt_tokens, completion_tokens, cost_usd FROM ledger ORDER BY job_id"
    )
    usd = {n: charge_usd(PRICE, prompt_tokens=7, cached_tokens=0, completion_tokens=n) for n in (3, 5)}
    assert found == [
        (done, "inference", window.window_id, 7, 5, usd[5]),
        (aborted, "inference", window.window_id, 7, 3, usd[3]),
        (drained, "retry", window.window_id, 7, 3, usd[3]),
    ]


# --- the leader ---------------------------------------------------------------------------------------------


def test_windows_are_cut_at_each_midnight(yard: Yard) -> None:
    registered(yard)
    yard.store.fetch("UPDATE rent_window SET started_at = now() - interval '2 days' RETURNING id")
    renting.look(yard)
    renting.look(yard)
    midnight = datetime.combine(datetime.now(tz=UTC).date(), time(), tzinfo=UTC)
    starts = [start for (start,) in all_of(yard, "started_at")]
    assert starts[1:] == [midnight - timedelta(days=1), midnight]
    assert [stop for (stop,) in all_of(yard, "stopped_at")] == [*starts[1:], None]
    assert make.count(yard.store, "ledger", "kind = 'warmup'") == 2  # of the two whole ones; it has not served


def test_a_change_of_rent_or_price_cuts_and_another_catalog_alone_does_not(
    yard: Yard, open_yard: OpenYard, rented: Settings
) -> None:
    worker_id = registered(yard)
    renting.look(yard)
    same = apply(yard, text(more="# another"), open_yard, rented)
    renting.look(same)
    assert len(all_of(yard, "id")) == 1
    dearer = apply(yard, text(short="rent: {usd_per_hour: 7.2}"), open_yard, rented)
    renting.look(yard)  # which goes by the catalog before, and has no say
    assert len(all_of(yard, "id")) == 1
    renting.look(dearer)
    assert all_of(yard, "usd_per_hour, stopped_at IS NULL") == [(Decimal("3.6"), False), (Decimal("7.2"), True)]
    [window] = stands(yard)
    heard = workers.beat(yard.store, worker_id, lease_s=60)
    assert heard.window == WindowPrice(window.id, PRICE)


def test_what_is_not_rented_any_more_stops_and_what_is_rented_now_starts(
    yard: Yard, open_yard: OpenYard, rented: Settings
) -> None:
    registered(yard)
    other = registered(yard, "other")
    swapped = apply(yard, text(short="rent: null", other="rent: {usd_per_hour: 1}"), open_yard, rented)
    renting.look(swapped)
    [window] = stands(yard)
    assert (window.deployment, window.worker_id, window.terms.usd_per_hour) == ("other", other, 1)


def test_hosts_stand_as_the_catalog_says_and_are_overhead(yard: Yard, open_yard: OpenYard, rented: Settings) -> None:
    with_host = apply(yard, text(more="overhead: [{name: router-1, rent: {usd_per_hour: 0.17}}]"), open_yard, rented)
    renting.look(with_host)
    renting.look(with_host)
    [window] = stands(yard)
    assert (window.place, window.deployment, window.worker_id) == ("router-1", None, None)
    hasty = rented.model_copy(update={"rent_grace_s": 0.000001})
    without = apply(yard, text(), open_yard, hasty)
    renting.look(without)
    renting.look(without)
    [(kind, usd, start, stop)] = yard.store.fetch(
        "SELECT kind, cost_usd, started_at, stopped_at FROM ledger JOIN rent_window ON id = job_id"
    )
    assert (kind, usd) == ("overhead", rent_usd(Decimal("0.17"), start, stop))


def test_two_replicas_that_say_they_are_the_same_are_told_apart_aloud(yard: Yard) -> None:
    first, second = registered(yard), registered(yard)
    with structlog.testing.capture_logs() as logs:
        yard.log = structlog.get_logger()
        renting.look(yard)
    assert [window.worker_id for window in stands(yard)] == [second]
    [said] = [entry for entry in logs if entry["event"] == Event.PLACE_TAKEN]
    assert (said["worker"], said["by"]) == (first, second)


def test_a_silent_process_is_left_to_be_buried(yard: Yard) -> None:
    registered(yard)
    yard.store.fetch("UPDATE rent_window SET started_at = now() - interval '2 days' RETURNING id")
    yard.store.fetch("UPDATE worker SET lease_until = now() - interval '1 s' RETURNING id")
    renting.look(yard)
    assert all_of(yard, "stopped_at") == [(None,)]


@pytest.mark.parametrize("left", ["retired", "buried"])
def test_a_window_that_was_begun_while_its_process_left_stops_with_it(yard: Yard, left: str) -> None:
    """A cut, or an opening, that is committed while the process leaves begins a window that its leaving cannot see."""
    worker_id = registered(yard)
    with yard.store.transaction() as connection:
        [terms] = [window.terms for window in windows.standing(connection)]
    if left == "retired":
        workers.retire(yard.store, worker_id)
    else:
        yard.store.fetch("UPDATE worker SET lease_until = now() RETURNING id")
        with yard.store.transaction() as connection:
            assert rescue.bury(connection)
    with yard.store.transaction() as connection:
        windows.open_window(
            connection,
            yard.store.next_id(),
            place="host/short/1",
            worker_id=worker_id,
            deployment="short",
            terms=terms,
        )
    yard.store.fetch(
        "UPDATE rent_window SET started_at = now() - interval '1 hour' WHERE stopped_at IS NULL RETURNING id"
    )
    renting.look(yard)
    [[ended]] = yard.store.fetch("SELECT least(stopped_at, lease_until) FROM worker WHERE kind = 'infer'")
    assert all_of(yard, "stopped_at")[0] == (ended,)
    assert all_of(yard, "stopped_at IS NOT NULL") == [(True,), (True,)]


def test_it_looks_once_a_minute(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Yard] = []
    monkeypatch.setattr(renting, "look", looks.append)
    leader = Renting(yard)
    leader.tick()
    leader.tick()
    assert looks == [yard]


# --- calls and benchmarks -----------------------------------------------------------------------------------


def test_a_call_is_charged_in_the_window_that_its_replicas_gauge_names(gate: Gateway) -> None:
    price = {"input_usd_per_1m": "2.5", "output_usd_per_1m": "10"}
    gate.engines.publish("cheap", window={"window_id": opened(gate.store), "price": price})  # type: ignore[arg-type]
    eventually(lambda: charged(gate), what="a call in the window")
    [(window_id, prompt, cached, completion, usd)] = charged(gate)[:1]
    used = {"prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": completion}
    assert (window_id, usd) == (make_window(gate.store), charge_usd(PRICE, **used))


def charged(gate: Gateway) -> list[Any]:
    """Of calls until one knows the window: the API reads gauges four times a second."""
    assert gate.chat(model="cheap").status_code == 200
    return (
        gate.rows("ledger", "window_id, prompt_tokens, cached_tokens, completion_tokens, cost_usd", "job_id")[-1:]
        if (make.count(gate.store, "ledger", "window_id IS NOT NULL"))
        else []
    )


def make_window(store: Store) -> int:
    [(window_id,)] = store.fetch("SELECT id FROM rent_window")
    return int(window_id)


def opened(store: Store, place: str = "host/cheap/1") -> int:
    with store.transaction() as connection:
        terms = Terms(Decimal(1), 1, "on_demand", PRICE, "0123")
        return windows.open_window(
            connection, store.next_id(), place=place, worker_id=None, deployment="cheap", terms=terms
        )


def test_a_run_posts_what_it_used_to_each_replicas_window(
    open_yard: OpenYard, settings: Settings, store: Store, tmp_path: Path
) -> None:
    with FakeVllm.in_thread() as one, FakeVllm.in_thread() as other:
        path = write_catalog(tmp_path, one.url)
        bench = Measuring(open_yard("benchmark", settings=settings.model_copy(update={"catalog": path})), one)
        bench.yard.join()
        of = {7001: opened(store, "a"), 7002: opened(store, "b")}
        price = {"input_usd_per_1m": "2.5", "output_usd_per_1m": "10"}
        for worker_id, fake in ((7001, one), (7002, other)):
            bench.gauge(worker_id=worker_id, url=fake.url, window={"window_id": of[worker_id], "price": price})
        end = bench.measure(requests=40, warm_up=0)
        run = bench.found[-1]
        with store.transaction() as connection:
            assert benchmarks.finish(connection, run, end) == 0
        used = [(fake.state.prompt_tokens, fake.state.generation_tokens) for fake in (one, other)]
    rows = store.fetch(
        "SELECT job_id, fence, kind, window_id, prompt_tokens, completion_tokens, cost_usd FROM ledger "
        "ORDER BY window_id"
    )
    assert [row[3:6] for row in rows] == [(window, *tokens) for window, tokens in zip(of.values(), used, strict=True)]
    assert {row[1:3] for row in rows} == {(1, "benchmark")}
    assert rows[0][0] == run.id != rows[1][0]
    assert benchmarks.cost_of(store, run) == sum(row[6] for row in rows)


def test_a_gauge_tells_of_the_window(yard: Yard) -> None:
    metrics: Metrics = yard.metrics
    metrics.publish_gauge("short", 5, Gauge(1, 0, 0, window=WindowPrice(9, PRICE)))
    metrics.publish_gauge("short", 6, Gauge(1, 0, 0))
    assert [replica.window for replica in metrics.replicas("short")] == [WindowPrice(9, PRICE), None]
