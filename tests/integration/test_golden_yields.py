"""What the fleet asks to measure itself waits behind what users ask, wherever both wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import factories as make
from tests.conftest import eventually
from tests.integration.inference import Bench
from tieryard.queues import Parcel
from tieryard.store import Connection, Store, benchmarks
from tieryard.store.leader import lead
from tieryard.store.rescue import due_nudges
from workers import questions
from workers.feed import Feeder
from workers.rescue import sweep
from workers.yard import Yard

YEAR_S = 365 * 86_400


@pytest.fixture
def sent(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> list[Parcel]:
    """What is published, in place of publishing it."""
    parcels: list[Parcel] = []
    monkeypatch.setattr(yard.publisher, "publish", parcels.extend)
    return parcels


@pytest.fixture
def leading(store: Store) -> Iterator[Connection]:
    with lead(store, "feeder") as connection:
        assert connection is not None
        yield connection


def ask(yard: Yard, n: int, to: str = "short") -> int:
    """A batch of golden questions, expanded: its id."""
    with yard.store.transaction() as connection:
        bodies = [{"messages": [{"role": "user", "content": f"golden {i}"}], "max_tokens": 4} for i in range(n)]
        batch_id = questions.ask(connection, yard, to, bodies)
    make.expand(yard.store)
    return batch_id


def count(parcels: list[Parcel], batch_id: int) -> int:
    """How many of the batch's jobs they hold."""
    return sum(run[1] for p in parcels for run in p.runs if batch_id < run[0] < batch_id + 10_000)


def test_a_users_batch_that_comes_later_is_released_first(
    yard: Yard, tenant: int, sent: list[Parcel], leading: Connection
) -> None:
    golden = ask(yard, 600)
    feeder = Feeder(yard)
    feeder.tick(leading)
    assert count(sent, golden) == 64
    yard.store.reserve_ids(10_000)
    ours = make.save_batch(yard.store, tenant, 600)
    make.expand(yard.store)
    sent.clear()
    feeder.tick(leading)
    assert (count(sent, ours), count(sent, golden)) == (512, 0), "all the room there is, as if it were alone"
    dues = {p.tier: p.due for p in sent}
    assert dues["bulk"] < yard.due("bulk") + 1


def test_its_jobs_are_due_behind_all_others_also_when_rescue_sends_them(
    yard: Yard, tenant: int, sent: list[Parcel], leading: Connection
) -> None:
    golden = ask(yard, 10)
    Feeder(yard).tick(leading)
    [parcel] = sent
    assert parcel.due > yard.due("bulk") + YEAR_S - 60
    [ours] = make.save_jobs(yard.store, tenant, tier="bulk")
    sent.clear()
    sweep(yard)  # Redis has no epoch, so everything is sent again
    dues = {run[0]: p.due for p in sent for run in p.runs}
    assert dues[golden + 1] > dues[ours] + YEAR_S - 60
    with yard.store.transaction() as connection:
        nudges = due_nudges(connection, patience_s=0, everything=True)
    assert {n.behind for n in nudges if n.id == ours} == {False}


def test_what_users_ask_starts_first(bench: Bench) -> None:
    """Whoever came first. `short` takes 64 at once, keeps 4 of these for realtime, and claims 16 ahead."""
    yard = bench.yard
    golden = ask(yard, 4)
    blocking = bench.bring(*["wait"] * 80, tier="bulk")
    make.release(yard.store, golden, 4)
    ids = list(range(golden + 1, golden + 5))
    due = yard.due("bulk", behind=True)
    bench.classifier.classify("bulk", due, [(golden + 1, 4)])
    bench.worker.offer("bulk", due, [(golden + 1, 4)])
    eventually(lambda: [r.backlog for r in yard.metrics.replicas("short")] == [24], what="its load is told")
    measured = yard.metrics.read(yard.catalog).gauges["short"]
    assert (measured.behind, measured.backlog) == (4, 20), "no load, for whoever is routed"
    users = bench.bring("late", "later", tier="bulk")
    [urgent] = bench.bring("now", tier="realtime")
    bench.until(urgent, "succeeded")
    bench.engine.go.set()
    for number in [*blocking, *users, *ids]:
        bench.until(number, "succeeded")
    order = [prompt.split()[0] for prompt, _ in bench.engine.seen]
    assert order.index("now") < order.index("late") < order.index("later") < order.index("golden")
    billed = yard.store.fetch("SELECT DISTINCT t.name FROM ledger JOIN tenant t ON t.id = tenant_id WHERE batch_id > 0")
    assert billed == [(benchmarks.BENCHMARK_TENANT,)]
