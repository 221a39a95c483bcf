"""A catalog that makes engines start anew: the replicas of a deployment make room one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import eventually
from tests.integration.conftest import OpenYard
from tieryard.catalog import parse_catalog
from tieryard.in_force import NotYetError
from tieryard.lease import OUTDATED_EXIT
from tieryard.metrics import EngineState, Gauge, Metrics
from tieryard.settings import Settings
from tieryard.store import Store, catalogs, workers
from tieryard.store.leader import lead
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan
from workers import renewal
from workers.renewal import Renewal
from workers.yard import Yard

CATALOG = """
version: 1
tiers: {{batch: {{window: 24h}}}}
categories: [extraction, classification, summarization, reasoning, code, chat]
deployments:
  one:
    model: test/one
    revision: "1"
    size_class: small
    engine: {{kind: openai_http, url: "{url}", server: vllm, served_model: fake}}
    context_limit: 4096
    max_in_flight: {limit}
    tokenizer: utf8
    price: {{input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}}
"""
SERVES = Gauge(capacity=8, in_flight=0, backlog=0)
DOWN = Gauge(capacity=0, in_flight=0, backlog=0, state=EngineState.DOWN)


@pytest.fixture
def fakes() -> Iterator[tuple[FakeVllm, FakeVllm]]:
    plan = FakePlan(context_limit=4096)
    with FakeVllm.in_thread(plan) as first, FakeVllm.in_thread(plan) as second:
        yield first, second


@pytest.fixture
def catalog_path(tmp_path: Path, fakes: tuple[FakeVllm, FakeVllm]) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CATALOG.format(url=fakes[0].url, limit=64))
    return path


@pytest.fixture
def yard(open_yard: OpenYard) -> Yard:
    return open_yard("infer", deployment="one")


class Replicas:
    """Infer processes, and who starts another in the place of one that has ended as outdated. How many serve is looked
    at all the while."""

    def __init__(self, settings: Settings, metrics: Metrics, urls: list[str]) -> None:
        self.metrics, self.urls = metrics, urls
        self.codes: list[int] = []
        self.fewest = len(urls)
        self.watched, self.stopping = threading.Event(), threading.Event()
        self.environment = {
            **os.environ,
            "TIERYARD_DATABASE_URL": settings.database_url.get_secret_value(),
            "TIERYARD_REDIS_URL": settings.redis_url.get_secret_value(),
            "TIERYARD_CATALOG": str(settings.catalog),
            "TIERYARD_HEARTBEAT_S": "0.3",
            "TIERYARD_LOG_LEVEL": "warning",
        }
        self.running = [self.start(url) for url in urls]
        self.thread = threading.Thread(target=self.tend)

    def __enter__(self) -> Replicas:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(30)

    def start(self, url: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "workers", "infer", "one", "--url", url]
        return subprocess.Popen(command, env=self.environment)

    def tend(self) -> None:
        while not self.stopping.wait(0.02):
            for n, process in enumerate(self.running):
                if (code := process.poll()) is not None:
                    self.codes.append(code)
                    self.running[n] = self.start(self.urls[n])
            if self.watched.is_set():
                self.fewest = min(self.fewest, len(self.serving()))

    def serving(self) -> list[int]:
        """What those that serve take at once."""
        return [r.capacity for r in self.metrics.replicas("one") if r.serves]


def test_of_two_replicas_one_serves_at_every_moment(
    settings: Settings, store: Store, yard: Yard, fakes: tuple[FakeVllm, FakeVllm]
) -> None:
    with Replicas(settings, yard.metrics, [fake.url for fake in fakes]) as found:
        eventually(lambda: found.serving() == [64, 64], within_s=40, what="both to serve")
        found.watched.set()
        text = CATALOG.format(url=fakes[0].url, limit=32)
        catalogs.apply(store, text, name=parse_catalog(text).hash(), tiers=["batch"])
        eventually(lambda: found.serving() == [32, 32], within_s=60, what="both to serve as the new catalog has it")
    assert found.codes == [OUTDATED_EXIT] * 2
    assert found.fewest == 1


class One:
    """One of a deployment's replicas, asked to make room; the others are rows and gauges."""

    def __init__(self, yard: Yard) -> None:
        self.yard, self.store = yard, yard.store
        self.renewal = Renewal(yard, "one", None)  # type: ignore[arg-type]  # it would only be told of prices
        yard.lease.worker_id = self.other(SERVES)

    def other(self, gauge: Gauge | None = None) -> int:
        worker_id = workers.register(self.store, "infer", deployment="one", lease_s=60)
        self.says(worker_id, gauge)
        return worker_id

    def says(self, worker_id: int, gauge: Gauge | None) -> None:
        if gauge is not None:
            self.yard.metrics.publish_gauge("one", worker_id, gauge)

    def leaves(self, worker_id: int, *, ago_s: float = 0, seen_s: float = 0) -> None:
        """It stopped so long ago, and was seen last so long before that."""
        self.yard.metrics.withdraw_gauge("one", worker_id)
        self.store.fetch(
            "UPDATE worker SET stopped_at = now() - %(ago)s * interval '1 s', "
            "lease_until = now() + (%(lease)s - %(ago)s - %(seen)s) * interval '1 s' WHERE id = %(id)s RETURNING 1",
            {"id": worker_id, "ago": ago_s, "seen": seen_s, "lease": self.yard.settings.lease_s},
        )

    def goes(self) -> bool:
        old = self.yard.catalog
        new = parse_catalog(CATALOG.format(url="http://127.0.0.1:9", limit=32))
        try:
            found: Any = self.renewal.prepare(old, new)
        except NotYetError:
            return False
        assert found == self.yard.start_again
        self.renewal._turn.close()
        return True


@pytest.fixture
def one(yard: Yard) -> One:
    return One(yard)


def test_an_only_replica_goes_at_once(one: One) -> None:
    assert one.goes()


def test_one_whose_predecessor_was_killed_and_declared_dead_later_goes_at_once_too(one: One) -> None:
    me = one.yard.worker_id
    one.leaves(one.other(), ago_s=1, seen_s=11)
    one.store.fetch("UPDATE worker SET started_at = now() - interval '10 s' WHERE id = %(id)s RETURNING 1", {"id": me})
    assert one.goes()


def test_it_waits_while_another_does_not_serve_but_not_for_ever(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    other = one.other()
    assert not one.goes(), "it is on its way"
    one.says(other, DOWN)
    assert not one.goes()
    one.says(other, SERVES)
    assert one.goes()
    one.says(other, DOWN)
    monkeypatch.setattr(renewal, "_PATIENCE_S", 0.0)
    assert one.goes()


def test_it_waits_until_whoever_left_last_is_back(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, old = one.other(SERVES), one.other(SERVES)
    one.leaves(gone)
    assert not one.goes()
    successor = one.other()
    assert not one.goes()
    one.says(successor, SERVES)
    assert one.goes()
    one.leaves(old)
    assert not one.goes(), "one successor is of one"
    one.leaves(old, ago_s=renewal._PATIENCE_S + 1)
    assert one.goes(), "it will not come back"


def test_one_that_does_not_serve_goes_whatever_the_others_do(one: One) -> None:
    one.other(DOWN)
    one.says(one.yard.worker_id, DOWN)
    assert one.goes()


def test_two_do_not_go_at_once(one: One) -> None:
    one.other(SERVES)
    with lead(one.store, "renewal.one") as another:
        assert another is not None
        assert not one.goes()
    assert one.goes()


def test_without_redis_it_waits_for_the_others(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one.renewal, "_heard", list)
    assert one.goes(), "there are none"
    one.other(SERVES)
    assert not one.goes()
