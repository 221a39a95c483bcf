"""Hosts whose wall clocks differ see the same fleet: what is measured is dated by Redis, and jobs by Postgres."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests import factories as make
from tieryard.breakers import Breakers
from tieryard.ids import to_runs
from tieryard.metrics import Gauge
from tieryard.profiles import Observed
from tieryard.queues import Parcel
from workers.classify import Classifier
from workers.rescue import EPOCH, sweep
from workers.yard import Yard

HOUR_S = 3600.0
SERVES = Gauge(capacity=64, in_flight=0, backlog=0)


@pytest.fixture
def yard(yard: Yard) -> Yard:
    yard.redis.set(EPOCH, "known")
    return yard


@pytest.fixture(params=[-HOUR_S, HOUR_S], ids=["behind", "ahead"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[pytest.MonkeyPatch]:
    """The wall clock of another host, until it is undone."""
    here, patch = time.time, pytest.MonkeyPatch()
    patch.setattr(time, "time", lambda: here() + request.param)
    yield patch
    patch.undo()


def test_a_replica_on_a_host_with_another_clock_is_heard_of(yard: Yard, elsewhere: pytest.MonkeyPatch) -> None:
    metrics = yard.metrics
    metrics.publish_gauge("short", 1, SERVES)
    metrics.publish_calls("short", 1, Gauge(capacity=0, in_flight=3, backlog=0), api=2)
    metrics.observe("short", "chat", Observed(1, ttft_ms=5.0))
    elsewhere.undo()
    assert [(r.worker_id, r.serves) for r in metrics.replicas("short")] == [(1, True)]
    assert metrics.calls_at("short", 1, "") == 3
    live = metrics.read(yard.catalog)
    assert live.gauges["short"].capacity == 64
    assert not live.profiles["short"]["chat"].stale
    assert metrics.fallen(["short"]) == {}


def test_what_fell_silent_is_silent_for_as_long_on_every_host(yard: Yard, elsewhere: pytest.MonkeyPatch) -> None:
    """It served six seconds ago; for ten after that the router may have taken it to."""
    metrics = yard.metrics
    seconds, _ = yard.redis.time()
    metrics.publish_gauge("long", 2, SERVES)
    yard.redis.hset("served", "short", seconds - 6)
    yard.redis.hset("arrived", "long", seconds - 60)
    assert metrics.fallen(["short", "long"]) == {"short": pytest.approx(-4, abs=1.5)}


def test_a_breaker_stays_open_as_long_for_every_host(yard: Yard, elsewhere: pytest.MonkeyPatch) -> None:
    yard.metrics.publish_gauge("short", 1, SERVES)
    Breakers(yard.redis).tell("short", yard.catalog.routing.breaker, {"failed": 99})
    measured = yard.metrics.read(yard.catalog).gauges["short"]
    assert measured.broken.startswith("its circuit breaker is open")
    assert not measured.probing


def test_a_rescuer_with_another_clock_takes_back_what_was_sent_before_the_silence_and_no_more(
    yard: Yard, tenant: int, monkeypatch: pytest.MonkeyPatch, elsewhere: pytest.MonkeyPatch
) -> None:
    sent: list[Parcel] = []
    monkeypatch.setattr(yard.publisher, "publish", sent.extend)
    yard.metrics.publish_gauge("short", 1, SERVES)
    before, after = (make.save_jobs(yard.store, tenant, text=make.body("Hi."))[0] for _ in range(2))
    Classifier(yard, yard.admission()).classify("batch", yard.due("batch"), to_runs([before, after]))
    assert make.column(yard.store, "deployment", [before, after]) == ["short", "short"]
    decided = "UPDATE decision SET decided_at = now() - interval '20 s' WHERE job_id = %(id)s RETURNING 1"
    yard.store.fetch(decided, {"id": before})
    yard.metrics.withdraw_gauge("short", 1)
    seconds, _ = yard.redis.time()
    yard.redis.hset("served", "short", seconds - 20)
    yard.metrics.publish_gauge("long", 2, SERVES)
    yard.redis.hset("arrived", "long", seconds - 60)
    sweep(yard)
    assert make.column(yard.store, "state", [before, after]) == ["queued", "routed"]
