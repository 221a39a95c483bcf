"""Exploring costs what the catalog allows a day, over all classifiers, and nothing where nobody can count it."""

from __future__ import annotations

import threading
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis

from tests import factories as make
from tests.conftest import CATALOGS, eventually
from tests.gateway import Engines, catalog_of, gateway
from tests.integration.conftest import OpenYard
from tieryard import admission, telemetry
from tieryard.admission import Surroundings
from tieryard.metrics import Gauge, Metrics
from tieryard.requests import parse_job
from tieryard.settings import Settings
from tieryard.snapshots import Snapshots
from tieryard.store import Store
from workers.classify import Classifier
from workers.yard import Yard

EXPLORES = """
routing:
  classifier: rules
  exploration: {share: 0.2, max_usd_per_day: "0.001", tiers: [bulk]}
"""
PARCEL = 64


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text((CATALOGS / "instant.yaml").read_text() + EXPLORES)
    return path


@pytest.fixture
def yards(open_yard: OpenYard) -> list[Yard]:
    """Three classifiers' footings."""
    yards = [open_yard() for _ in range(3)]
    for name in yards[0].catalog.deployments:
        yards[0].metrics.publish_gauge(name, 1, Gauge(capacity=64, in_flight=0, backlog=0))
    return yards


@pytest.fixture
def keep_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gauges stay live, and snapshots are not read again by themselves: the worst case for money."""
    monkeypatch.setattr("tieryard.metrics._FRESH_S", 3600.0)
    monkeypatch.setattr("tieryard.snapshots.FRESH_S", 3600.0)


class Spent:
    """What classifiers tell, one entry a call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[float] = []
        told = Metrics.spend_exploring

        def spend(metrics: Metrics, usd: float) -> float:
            self.calls.append(usd)
            return told(metrics, usd)

        monkeypatch.setattr(Metrics, "spend_exploring", spend)


def explored(store: Store) -> int:
    return make.count(store, "decision", "explored")


def classify(classifier: Classifier, ids: list[int]) -> None:
    classifier.classify("bulk", 0.0, [(job_id, 1) for job_id in ids])


def parcels(store: Store, tenant: int, n: int) -> list[list[int]]:
    ids = make.released_batch(store, tenant, n * PARCEL)
    return [ids[i : i + PARCEL] for i in range(0, len(ids), PARCEL)]


def test_a_parcel_tells_its_cost_once_and_one_without_any_nothing(
    yards: list[Yard], store: Store, tenant: int, keep_fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = Spent(monkeypatch)
    classifier = Classifier(yards[0], yards[0].admission())
    [first] = parcels(store, tenant, 1)
    classify(classifier, first)
    assert explored(store) > 0
    [usd] = spent.calls
    rows = store.fetch("SELECT job_id, features FROM decision WHERE explored")
    assert usd > 0
    assert len(rows) == explored(store)
    assert yards[1].metrics.read(yards[1].catalog).explored_usd == pytest.approx(usd)
    [single] = make.save_jobs(store, tenant, tier="batch")
    classifier.classify("batch", 0.0, [(single, 1)])
    assert spent.calls == [usd], "nothing was explored in that tier"


def test_the_days_money_is_overrun_by_one_parcel_of_each_classifier_at_most(
    yards: list[Yard], store: Store, tenant: int, keep_fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = Spent(monkeypatch)
    work = [parcels(store, tenant, 12) for _ in yards]
    start = threading.Barrier(len(yards))

    def run(yard: Yard, mine: list[list[int]]) -> None:
        classifier = Classifier(yard, yard.admission())
        start.wait()
        for parcel in mine:
            classify(classifier, parcel)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(yards, work, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    limit = float(yards[0].catalog.routing.exploration.max_usd_per_day)
    total = yards[0].metrics.read(yards[0].catalog).explored_usd
    assert total == pytest.approx(sum(spent.calls))
    assert limit <= total <= limit + len(yards) * max(spent.calls)
    assert len(spent.calls) < sum(map(len, work)), "and then no more"
    before = explored(store)
    classify(Classifier(yards[0], yards[0].admission()), parcels(store, tenant, 1)[0])
    assert explored(store) == before


class Away(Metrics):
    """A metrics store whose Redis may be away."""

    away = False

    def read(self, catalog: Any) -> Any:
        self._check()
        return super().read(catalog)

    def spend_exploring(self, usd: float) -> float:
        self._check()
        return super().spend_exploring(usd)

    def _check(self) -> None:
        if self.away:
            raise redis.ConnectionError("away")


def test_without_redis_nothing_is_explored_and_what_was_spent_is_told_later(yards: list[Yard]) -> None:
    yard = yards[0]
    metrics = Away(yard.redis)
    snapshots = Snapshots(metrics, yard.catalog, telemetry.logger())
    assert snapshots.last.rules.explore_share == 0, "not before the first look"
    snapshots.read()
    assert snapshots.last.rules.explore_share == 0.2
    metrics.away = True
    snapshots.explored(Decimal("0.0004"))
    assert snapshots.last.rules.explore_share == 0
    snapshots.read()
    assert snapshots.last.rules.explore_share == 0
    metrics.away = False
    snapshots.read()
    assert snapshots.last.rules.explore_share == 0.2
    assert snapshots.live.explored_usd == pytest.approx(0.0004)


def test_what_calls_explore_is_told_with_the_next_look_and_counts_at_once(yards: list[Yard]) -> None:
    yard = yards[0]
    snapshots = Snapshots(yard.metrics, yard.catalog, telemetry.logger())
    snapshots.read()
    snapshots.owe(Decimal("0.0009"))
    assert snapshots.last.rules.explore_share == 0.2
    snapshots.owe(Decimal("0.0001"))
    assert snapshots.last.rules.explore_share == 0
    assert yard.metrics.read(yard.catalog).explored_usd == 0
    snapshots.read()
    assert snapshots.last.rules.explore_share == 0
    assert yard.metrics.read(yard.catalog).explored_usd == pytest.approx(0.001)


def test_a_call_that_starts_counts_once_and_one_that_looks_nothing(
    settings: Settings, store: Store, tenant: int, fakes: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = catalog_of(fakes, tmp_path)
    path.write_text(path.read_text() + EXPLORES.replace("bulk", "interactive"))
    with gateway(settings.model_copy(update={"catalog": path}), fakes, store) as gate:
        board = gate.app.state.tieryard.calls
        eventually(lambda: board.snapshots.last.rules.explore_share, what="exploration to be counted")
        asked = b'{"prompt": "Say hi.", "max_tokens": 8}'
        [features] = board.admission.features([parse_job(asked)], [Surroundings("interactive")])
        looks = {draw: board.route(replace(features, draw=draw)) for draw in (n / 64 for n in range(64))}
        explores, choice = next((draw, found) for draw, found in looks.items() if found.explored)
        assert choice.extra_usd > 0
        gate.seen()
        assert board.snapshots.live.explored_usd == 0
        monkeypatch.setattr(admission, "draw", lambda _: explores)
        spent = Spent(monkeypatch)
        assert gate.chat(tier="interactive").headers["x-selected-model"] == choice.deployment == "dear"
        eventually(lambda: spent.calls, what="its cost to be told")
        gate.seen()
        assert explored(store) == len(spent.calls) == 1
        assert board.snapshots.live.explored_usd == spent.calls[0] > 0
