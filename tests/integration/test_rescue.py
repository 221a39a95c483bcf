"""A sweep and the replicas' own queues: what waits stays at home, and what was sent to one that has left is moved."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests import factories as make
from tests.conftest import CATALOGS
from tieryard.ids import from_runs, to_runs
from tieryard.metrics import Gauge
from tieryard.queues import Parcel, model_queue, parcels_to_infer, replica_queue
from tieryard.store import Store, workers
from tieryard.store.reads import get_story
from workers.classify import Classifier
from workers.rescue import EPOCH, sweep
from workers.yard import Yard

ADAPTED = """
  base:
    model: org/base
    revision: abc
    size_class: small
    engine: {kind: vllm_server}
    context_limit: 2048
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}
  legal:
    model: org/legal-lora
    revision: abd
    size_class: small
    engine: {kind: lora, host: base, weights: /adapters/legal}
    context_limit: 2048
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0.20, output_usd_per_1m: 0.80}
"""


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    """Two instant deployments, and one with a LoRA adapter."""
    path = tmp_path / "tieryard.yaml"
    path.write_text((CATALOGS / "instant.yaml").read_text() + ADAPTED)
    return path


@pytest.fixture
def yard(yard: Yard) -> Yard:
    yard.redis.set(EPOCH, "known")
    return yard


@pytest.fixture
def sent(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> list[Parcel]:
    """What is published, in place of publishing it."""
    parcels: list[Parcel] = []
    monkeypatch.setattr(yard.publisher, "publish", parcels.extend)
    return parcels


def replica(yard: Yard, name: str, *adapters: str) -> int:
    """A living worker of this deployment that serves, with room: its id."""
    worker_id = workers.register(yard.store, "infer", deployment=name, lease_s=60)
    for served in (name, *adapters):
        yard.metrics.publish_gauge(served, worker_id, Gauge(capacity=1024, in_flight=16, backlog=16))
    return worker_id


def die(store: Store, worker_id: int) -> None:
    store.fetch(
        "UPDATE worker SET lease_until = now() - interval '1 s' WHERE id = %(id)s RETURNING 1", {"id": worker_id}
    )


def places(parcels: list[Parcel]) -> dict[int, str]:
    return {n: p.queue for p in parcels for n in from_runs((run[0], run[1]) for run in p.runs)}


def test_a_queue_that_outlasts_patience_stays_at_home(yard: Yard, sent: list[Parcel], tenant: int) -> None:
    homes = {replica_queue("short", replica(yard, "short")) for _ in range(2)}
    texts = [make.body(f"p{n % 8} " * 100, model="short", max_tokens=16) for n in range(128)]
    keyed = [make.save_jobs(yard.store, tenant, text=text)[0] for text in texts]
    [plain] = make.save_jobs(yard.store, tenant, text=make.body("Hi.", model="short"))
    [urgent] = make.save_jobs(yard.store, tenant, text=texts[0], tier="realtime")
    classifier = Classifier(yard, yard.admission())
    classifier.classify("batch", yard.due("batch"), to_runs([*keyed, plain]))
    classifier.classify("realtime", yard.due("realtime"), to_runs([urgent]))
    first, latest = places(sent), {p.tier: p.due for p in sent}
    assert {first[n] for n in keyed} == homes
    assert first[plain] == first[urgent] == model_queue("short")

    sent.clear()
    yard.store.fetch("UPDATE job SET nudge_at = nudge_at - %(s)s * interval '1 s' RETURNING 1", {"s": yard.patience_s})
    sweep(yard)
    assert places(sent) == first
    assert all(p.due >= latest[p.tier] for p in sent), "behind what waits there"


def test_jobs_that_wait_to_be_routed_do_not_pass_others_either(yard: Yard, sent: list[Parcel], tenant: int) -> None:
    [job] = make.save_jobs(yard.store, tenant, window_s=60)
    yard.store.fetch("UPDATE job SET nudge_at = now() RETURNING 1")
    now = yard.due("batch")
    sweep(yard)
    assert places(sent) == {job: "tier.batch"}
    assert sent[0].due >= now


def test_a_dead_worker_is_forgotten_with_its_adapters(yard: Yard, sent: list[Parcel], tenant: int) -> None:
    dead, living = (replica(yard, "base", "legal") for _ in range(2))
    replica(yard, "short")
    ids = [make.save_jobs(yard.store, tenant)[0] for _ in range(3)]
    for job, name in zip(ids, ("base", "legal", "short"), strict=True):
        make.route(yard.store, [job], deployment=name)
    die(yard.store, dead)
    sweep(yard)
    for name in ("base", "legal"):
        assert yard.redis.hkeys(f"gauges:{name}") == [str(living).encode()]
    assert places(sent) == {ids[0]: "model.base", ids[1]: "model.legal"}, "what was in its inbox, at once"


def silence(yard: Yard, worker_id: int, name: str, *, for_s: float) -> None:
    """This deployment's only replica was last heard of so long ago."""
    yard.metrics.withdraw_gauge(name, worker_id)
    yard.redis.hset("served", name, time.time() - for_s)


def test_what_was_sent_to_a_deployment_before_its_silence_was_known_is_routed_again(
    yard: Yard, sent: list[Parcel], tenant: int
) -> None:
    short, _ = replica(yard, "short"), replica(yard, "long")
    texts = (make.body("Hi.", model=model) for model in ("auto", "short"))
    free, pinned = (make.save_jobs(yard.store, tenant, tier="interactive", text=text)[0] for text in texts)
    classifier = Classifier(yard, yard.admission())
    classifier.classify("interactive", yard.due("interactive"), to_runs([free, pinned]))
    assert make.column(yard.store, "deployment", [free, pinned]) == ["short", "short"]
    sent.clear()
    silence(yard, short, "short", for_s=0)
    sweep(yard)
    assert not sent, "it may have missed a beat"
    silence(yard, short, "short", for_s=6)
    sweep(yard)
    assert places(sent) == {free: "tier.interactive"}
    assert make.column(yard.store, "(state, deployment)", [free, pinned]) == [("queued", None), ("routed", "short")]
    sweep(yard)
    Classifier(yard, yard.admission()).classify("interactive", yard.due("interactive"), to_runs([free]))
    assert make.column(yard.store, "deployment", [free]) == ["long"]


@pytest.mark.parametrize("others", [True, False])
def test_what_waits_for_a_deployment_knowingly_is_left_there(
    yard: Yard, sent: list[Parcel], tenant: int, others: bool
) -> None:
    """Or where no other could take it."""
    short = replica(yard, "short")
    if others:
        replica(yard, "long")
        yard.redis.hset("arrived", "long", time.time() - 60)
    [job] = make.save_jobs(yard.store, tenant, text=make.body("Hi."))
    Classifier(yard, yard.admission()).classify("batch", yard.due("batch"), to_runs([job]))
    silence(yard, short, "short", for_s=11 if others else 6)
    sent.clear()
    sweep(yard)
    assert make.column(yard.store, "(state, deployment)", [job]) == [("routed", "short")]
    assert not sent


@pytest.mark.parametrize("flushed", [False, True])
def test_what_was_sent_where_nobody_served_is_routed_again_when_another_comes_up(
    yard: Yard, sent: list[Parcel], tenant: int, flushed: bool
) -> None:
    """It has never served, or nobody remembers that it has."""
    if flushed:
        replica(yard, "base")
    [job] = make.save_jobs(yard.store, tenant, tier="interactive", text=make.body("Hi."))
    Classifier(yard, yard.admission()).classify("interactive", yard.due("interactive"), to_runs([job]))
    assert make.column(yard.store, "(state, deployment)", [job]) == [("routed", "base")]
    if flushed:
        yard.redis.flushall()
    sent.clear()
    sweep(yard)
    assert make.column(yard.store, "state", [job]) == ["routed"]
    replica(yard, "long")
    sweep(yard)
    assert make.column(yard.store, "(state, deployment)", [job]) == [("queued", None)]
    assert places(sent) == {job: "tier.interactive"}


def test_the_queue_of_a_replica_that_left_long_ago_is_moved(yard: Yard) -> None:
    gone, living = (workers.register(yard.store, "infer", deployment="base", lease_s=60) for _ in range(2))
    for name in ("base", "legal", "lost"):
        for home in (gone, living):
            yard.publisher.publish(parcels_to_infer(name, "batch", 0.0, [(7, 7)], home=home))
    workers.retire(yard.store, gone)
    yard.store.fetch(
        "UPDATE worker SET stopped_at = stopped_at - interval '1 h' WHERE stopped_at IS NOT NULL RETURNING 1"
    )
    sweep(yard)
    left = {name: yard.redis.llen(name) for name in yard.redis.keys("model.*")}
    assert left == {
        b"model.base": 1,
        b"model.legal": 1,
        **{f"model.{name}@{living}".encode(): 1 for name in ("base", "legal", "lost")},
    }


def test_queues_are_looked_for_once_a_minute(yard: Yard) -> None:
    sweep(yard)
    yard.publisher.publish(parcels_to_infer("short", "batch", 0.0, [(7, 7)], home=9))
    sweep(yard)
    assert yard.redis.llen(replica_queue("short", 9)) == 1
    assert 0 < yard.redis.ttl("tieryard:queues") <= 60
    yard.redis.delete("tieryard:queues")
    sweep(yard)
    assert yard.redis.exists(replica_queue("short", 9)) == 0


def test_old_snapshots_are_forgotten_and_decisions_keep_their_reason(
    yard: Yard, sent: list[Parcel], tenant: int
) -> None:
    old, new = (make.save_jobs(yard.store, tenant)[0] for _ in range(2))
    make.route(yard.store, [old])
    days = {"days": yard.settings.snapshots_kept_days + 0.01}
    yard.store.fetch("UPDATE routing_snapshot SET taken_at = now() - %(days)s * interval '1 day' RETURNING id", days)
    make.route(yard.store, [new])
    sweep(yard)
    kept = yard.store.fetch("SELECT job_id FROM decision JOIN routing_snapshot s ON s.id = snapshot_id")
    assert kept == [(new,)]
    [(decision, snapshot)] = get_story(yard.store, old, tenant_id=tenant).decisions
    assert (decision.reason, snapshot) == ("short and plain", {})
