"""A catalog that makes engines start anew: the replicas of a deployment make room one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import OpenYard
from tieryard.catalog import parse_catalog
from tieryard.in_force import NotYetError
from tieryard.metrics import EngineState, Gauge
from tieryard.store import workers
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
