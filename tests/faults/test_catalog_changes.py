"""A catalog that is applied reaches real processes at work: none of their jobs is lost, and those of a deployment that
goes find another."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from tests import factories as make
from tests.conftest import eventually
from tests.integration.test_hot_apply import (
    CHEAP_LONG,
    CHEAP_SHORT,
    ONLY_LONG,
    WIDE_SHORT,
    apply,
    catalog_path,
    processes,
)
from tieryard.catalog import parse_catalog
from tieryard.lease import OUTDATED_EXIT
from tieryard.queues import parcels_to_classify
from tieryard.settings import Settings
from tieryard.store import Store
from workers.rescue import EPOCH
from workers.yard import Yard

__all__ = ["catalog_path"]


class Fleet:
    """Jobs for real processes."""

    def __init__(self, yard: Yard, store: Store, tenant: int) -> None:
        self.yard, self.store, self.tenant = yard, store, tenant

    def bring(self, n: int, **fields: Any) -> list[int]:
        ids = make.save_jobs(self.store, self.tenant, n, text=make.body(**fields))
        self.yard.publisher.publish(parcels_to_classify("batch", self.yard.due("batch"), ids))
        return ids

    def done(self, ids: list[int]) -> bool:
        rows = self.store.fetch("SELECT state, count(*) FROM job WHERE id = ANY(%(ids)s) GROUP BY state", {"ids": ids})
        return dict(rows) == {"succeeded": len(ids)}

    def until_done(self, ids: list[int]) -> None:
        eventually(lambda: self.done(ids), within_s=40, what="all jobs")

    def goes_to(self, deployment: str) -> bool:
        """Whether a new job does."""
        [probe] = self.bring(1)
        self.until_done([probe])
        return self.store.fetch("SELECT deployment FROM job WHERE id = %(id)s", {"id": probe}) == [(deployment,)]


@pytest.fixture
def fleet(settings: Settings, store: Store, tenant: int) -> Iterator[Fleet]:
    yard = Yard("test", settings, consume=[])
    yield Fleet(yard, store, tenant)
    yard.leave()


def test_real_processes_take_a_catalog_over_and_lose_no_job(settings: Settings, fleet: Fleet, store: Store) -> None:
    with processes(settings, "classify", "infer short", "infer long", "expand", "beat") as running:
        before = fleet.bring(200)
        fleet.until_done(before[:20])
        number = apply(store, CHEAP_LONG).number
        during = fleet.bring(200)
        eventually(lambda: fleet.goes_to("long"), within_s=30, what="routing by the new catalog")
        after = fleet.bring(100)
        fleet.until_done([*before, *during, *after])
        deployments = store.fetch("SELECT DISTINCT deployment FROM job WHERE id = ANY(%(ids)s)", {"ids": after})
        assert deployments == [("long",)]
        apply(store, CHEAP_SHORT)  # what `tieryard config rollback` does
        eventually(lambda: fleet.goes_to("short"), within_s=30, what="routing by the old catalog again")
        assert all(process.poll() is None for process in running.values())
        prices = {parse_catalog(text).hash(): parse_catalog(text).deployments for text in (CHEAP_SHORT, CHEAP_LONG)}
        rows = store.fetch("SELECT job_id, catalog, deployment, prompt_tokens, completion_tokens, cost_usd FROM ledger")
        assert len(rows) == len({row[0] for row in rows}) == store.fetch("SELECT count(*) FROM job")[0][0]
        for _, name, deployment, prompt, completion, cost in rows:
            price = prices[name][deployment].price
            assert cost == (prompt * price.input_usd_per_1m + completion * price.output_usd_per_1m) / Decimal(1_000_000)
        new = store.fetch("SELECT DISTINCT catalog FROM ledger WHERE job_id = ANY(%(ids)s)", {"ids": after})
        assert new == [(parse_catalog(CHEAP_LONG).hash(),)]
        assert number == 2

        apply(store, WIDE_SHORT)
        assert running["infer short"].wait(30) == OUTDATED_EXIT
        assert running["infer long"].poll() is None


def test_jobs_of_a_deployment_that_goes_are_routed_again(settings: Settings, fleet: Fleet, store: Store) -> None:
    """They wait on a queue that nobody consumes any more."""
    fleet.yard.redis.set(EPOCH, "there")  # else rescue would take Redis for flushed, and send them to it in time
    ids = make.save_jobs(store, fleet.tenant, 40)
    make.route(store, ids, "short")
    later = "UPDATE job SET nudge_at = now() + interval '1 hour' WHERE id = ANY(%(ids)s) RETURNING id"
    store.fetch(later, {"ids": ids})
    with processes(settings, "classify", "infer short", "infer long", "expand", "beat") as running:
        eventually(lambda: fleet.goes_to("short"), within_s=30, what="the fleet")
        apply(store, ONLY_LONG)
        assert running["infer short"].wait(30) == OUTDATED_EXIT
        fleet.until_done(ids)
        assert store.fetch("SELECT DISTINCT deployment FROM job WHERE id = ANY(%(ids)s)", {"ids": ids}) == [("long",)]
