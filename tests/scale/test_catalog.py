"""A catalog that is applied to a fleet at work: no job is lost, and the processes become what it says."""

from __future__ import annotations

from tests.acceptance.conftest import StartFleet
from tests.conftest import eventually
from tieryard.catalog import parse_catalog
from tieryard.store import Store, catalogs
from tieryard.testing.fake_vllm import FakePlan


def apply(store: Store, text: str) -> int:
    catalog = parse_catalog(text)
    return catalogs.apply(store, text, name=catalog.hash(), tiers=catalog.tiers).version.number


def test_deployments_come_and_go_while_jobs_run(start_fleet: StartFleet) -> None:
    with start_fleet(FakePlan(ttft_ms=20, capacity=8)) as running:
        store = Store(running.fleet.database_url)
        [[first]] = running.rows("SELECT body FROM catalog_version")
        head, short = first.split("  short:\n")
        both = first + "  second:\n" + short.replace("test/instant", "test/second")
        batch = running.submit(300)["id"]
        running.until_some_succeeded(batch, 20)

        apply(store, both)
        eventually(lambda: "infer-second" in running.fleet.children, what="a process for the second deployment")
        eventually(lambda: running.api.post("/v1/jobs", json={"prompt": "x", "model": "second"}).status_code == 201)
        named = running.submit(5, model="second")["id"]
        assert running.until_finished(named)["counts"]["succeeded"] == 5

        apply(store, head + "  second:\n" + short.replace("test/instant", "test/second"))
        eventually(lambda: "infer-short" not in running.fleet.children, what="the end of the first one's process")
        assert running.until_finished(batch)["counts"]["succeeded"] == 300
        store.close()
    assert running.fleet.children["infer-second"].failures == 0


def test_a_restart_keeps_what_is_in_force_unless_its_file_is_edited_or_asked_for(start_fleet: StartFleet) -> None:
    with start_fleet(FakePlan(), data="kept") as running:
        store = Store(running.fleet.database_url)
        [[body]] = running.rows("SELECT body FROM catalog_version")
        assert apply(store, body.replace("0.40", "0.50")) == 2
        store.close()
    with start_fleet(FakePlan(), data="kept") as running:  # by --catalog, whose address has changed
        assert running.rows("SELECT id FROM catalog_version ORDER BY id") == [(1,), (2,), (3,)]
