"""What is told of a deployment's starts: how they went for reasons of its own, and what it gives when it is full."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.conftest import CATALOGS
from tieryard.catalog import load_catalog
from tieryard.job import State
from tieryard.metrics import Gauge, Metrics
from tieryard.observe import Observer
from tieryard.profiles import Observed
from tieryard.store.finish import Ending
from tieryard.store.jobs import Claimed
from workers.standing import Standing
from workers.yard import Yard

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Claimed(1, 1, None, "batch", "chat", 0, 0, 5.0, NOW, "", 1, "short")


class Told:
    """In place of the metrics store."""

    def __init__(self) -> None:
        self.seen: list[Observed] = []

    def observe(self, deployment: str, category: str, seen: Observed) -> None:
        self.seen.append(seen)

    def publish_gauge(self, *_: Any) -> None: ...

    def calls_at(self, *_: Any) -> int:
        return 0

    def replicas(self, *_: Any) -> list[Any]:
        return []


def ending(state: State, error_kind: str | None = None) -> Ending:
    used = 5 if state is State.SUCCEEDED else 0
    times = (10.0, 50.0) if used else (None, None)
    cost = Decimal("0.001") if used else None
    return Ending(1, 1, state, 1, "short", "abc", NOW, 5.0, *times, 7, 0, used, cost, error_kind=error_kind)


@pytest.mark.parametrize(
    ("error_kind", "errors"),
    [
        ("engine_error", 1),
        ("engine_died", 1),
        ("engine_timeout", 1),
        ("bad_request", None),
        ("context_length", None),
        ("invalid_request", None),
        ("engine_busy", None),
        ("store_away", None),
        ("worker_stopped", None),
        ("internal_error", None),
    ],
)
def test_only_failures_of_the_engine_count_against_it(error_kind: str, errors: int | None) -> None:
    told = Told()
    observer = Observer(cast("Metrics", told), "short")
    for _ in range(3):
        observer.add(JOB, ending(State.SUCCEEDED))
    observer.add(JOB, ending(State.FAILED, error_kind))
    observer.publish(observer.take())
    [seen] = told.seen
    assert (seen.n, seen.error_rate) == ((4, 0.25) if errors else (3, 0.0))


def test_throughput_is_measured_beside_the_room_that_is_kept_for_realtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of other tiers never take that room, so an engine that is full of them holds less than its capacity."""
    full: list[bool] = []
    monkeypatch.setattr(Observer, "publish", lambda *_, **said: full.append(said["full"]))
    catalog = load_catalog(CATALOGS / "instant.yaml")
    kept = catalog.deployments["short"].realtime_reserve
    yard = SimpleNamespace(catalog=catalog, metrics=Told(), worker_id=1)
    standing = Standing(cast("Yard", yard), ["short"])
    for in_flight, backlog in ((64 - kept, 9), (64 - kept - 1, 9), (64, 0)):
        standing.publish(Gauge(capacity=64, in_flight=in_flight, backlog=backlog), standing.take())
    standing.publish(Gauge(capacity=0, in_flight=0, backlog=9), standing.take())
    assert kept
    assert full == [True, False, False, False]
