"""What Prometheus scrapes: whatever is in Redis now, by a key that may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.integration.test_api import error_of, serving
from tests.integration.trials import CATALOG
from tieryard.breakers import Breakers
from tieryard.catalog import Catalog
from tieryard.metrics import Gauge, Metrics
from tieryard.profiles import Observed
from tieryard.routing.trials import Canary, Promotion, Trials
from tieryard.settings import Settings
from tieryard.store import Store, keys
from tieryard.store.keys import Scope

KEY = {"authorization": "Bearer ty_prometheus"}
LABELS = ("deployment", "category")
SPEED = {"samples": 64, "ttft_ms": 250.0, "error_rate": 0.02}


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CATALOG.replace("classifier: rules", "classifier: learned"))
    return path


@pytest.fixture
def broker(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def measured(broker: redis.Redis) -> Metrics:
    return Metrics(broker)


@pytest.fixture
def client(settings: Settings, store: Store, tenant: int) -> Iterator[TestClient]:
    keys.add_key(store, "ty_prometheus", tenant="tests", name="prometheus", scopes=[Scope.BENCHMARK])
    with serving(settings) as client:
        client.headers.update(KEY)
        yield client


def scraped(client: Any) -> dict[tuple[str, ...], float]:
    """Values by the metric's name and what its labels say."""
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    assert all(family.type == "gauge" and family.documentation for family in families)
    samples = [sample for family in families for sample in family.samples]
    assert {frozenset(s.labels) for s in samples} <= {frozenset(LABELS[:n]) for n in range(3)}
    found = {
        (s.name.removeprefix("tieryard_"), *(s.labels[label] for label in LABELS if label in s.labels)): s.value
        for s in samples
    }
    assert len(found) == len(samples)
    return found


def test_a_profile_is_shown_with_its_marks_until_they_are_taken_back(client: TestClient, measured: Metrics) -> None:
    measured.seed("big", "chat", SPEED, benchmark="benchmark_1", age_s=7200)
    measured.observe("big", "reasoning", Observed(n=4, quality_score=0.75))
    measured.mark("big", "chat", "regressed", "worse than benchmark_1")
    found = scraped(client)
    chat = {name: value for (name, *labels), value in found.items() if labels == ["big", "chat"]}
    assert 7200 <= chat.pop("profile_age_seconds") < 7260
    assert chat == {
        "profile_ttft_seconds": 0.25,
        "profile_error_ratio": 0.02,
        "profile_stale": 0,
        "benchmark_regressed": 1,
        "benchmark_drifted": 0,
    }
    reasoning = {name: value for (name, *labels), value in found.items() if labels == ["big", "reasoning"]}
    assert reasoning == {"profile_quality_score": 0.75, "benchmark_regressed": 0, "benchmark_drifted": 0}

    measured.mark("big", "chat", "regressed", "")
    measured.mark("big", "chat", "drifted", "version")
    measured.seed("big", "chat", SPEED, benchmark="benchmark_2", age_s=200_000)
    found = scraped(client)
    marks = ("benchmark_regressed", "benchmark_drifted", "profile_stale")
    assert [found[mark, "big", "chat"] for mark in marks] == [0, 1, 1]


def test_load_is_shown_and_that_nothing_is_heard_of_a_deployment(
    client: TestClient, measured: Metrics, broker: redis.Redis, catalog: Catalog
) -> None:
    for worker in (1, 2):
        measured.publish_gauge("big", worker, Gauge(capacity=8, in_flight=3, backlog=5, behind=1))
    opened = Breakers(broker).tell("awq", catalog.routing.breaker, {"failed": 100})
    assert opened.open
    found = scraped(client)
    names = ("deployment_capacity", "deployment_in_flight", "deployment_backlog", "deployment_replicas", "breaker_open")
    assert [found[name, "big"] for name in names] == [16, 6, 8, 2, 0]
    assert [found[name, "awq"] for name in names] == [0, 0, 0, 0, 1]


def test_trials_are_shown_of_candidates_and_only_of_the_build_that_is_served(
    client: TestClient, measured: Metrics, catalog: Catalog
) -> None:
    build = catalog.deployments["awq"].build
    promotion = Promotion("awq", "big", build, frozenset({"extraction"}))
    measured.publish_trials(Trials((promotion,), (Canary("awq", "big", build, 0.05, frozenset({"chat"})),)))
    found = scraped(client)
    promoted = {c: found["candidate_promoted", "awq", c] for c in catalog.categories}
    assert promoted == {"extraction": 1, "reasoning": 0, "chat": 0}
    assert {c: found["canary_ratio", "awq", c] for c in catalog.categories} == {
        "extraction": 0, "reasoning": 0, "chat": 0.05,
    }  # fmt: skip
    assert not any(key[:2] == ("canary_ratio", "big") for key in found)

    measured.publish_trials(Trials((), (Canary("awq", "big", "another", 0.05),)))
    assert {scraped(client)["canary_ratio", "awq", c] for c in catalog.categories} == {0}


def test_the_days_exploring_and_a_step_back_are_shown(client: Any, measured: Metrics) -> None:
    measured.publish_step_back({"another": "outcomes contradict it"})
    assert measured.spend_exploring(0.25) == 0.25
    found = scraped(client)
    assert (found["explored_usd",], found["router_stepped_back",]) == (0.25, 0)
    in_force = client.app.state.tieryard.admission.load_model().quality_model
    measured.publish_step_back({in_force: "outcomes contradict it"})
    assert scraped(client)["router_stepped_back",] == 1


def test_a_tenants_key_does_not_see_it(client: TestClient) -> None:
    error_of(client.get("/metrics", headers={"authorization": "Bearer ty_test"}), 403)


def test_without_redis_it_is_away(client: Any) -> None:
    gone = redis.Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    client.app.state.tieryard.metrics = Metrics(gone)
    answer = client.get("/metrics")
    assert error_of(answer, 503)["code"] == "metrics_away"
    assert answer.headers["retry-after"] == "5"
    gone.close()
