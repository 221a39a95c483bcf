"""Faults that a review found, and that must not come back."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import factories as make
from tests.conftest import eventually
from tests.integration.receivers import delivering
from tests.integration.test_infer import ScriptedEngine
from tieryard import lease
from tieryard.admission import Admission
from tieryard.errors import RequestError, StoreError
from tieryard.routing import Measured, Snapshot
from tieryard.settings import Settings
from tieryard.store import batches, jobs
from tieryard.store.leader import lead
from workers import expand
from workers.classify import Classifier
from workers.feed import Feeder
from workers.infer import Inference
from workers.rescue import Rescuer, sweep
from workers.yard import Yard


@pytest.fixture
def picky(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> Admission:
    """An admission whose chat template refuses some conversations, as those of Mistral, Gemma and Llama do."""
    admission = yard.admission()
    count = type(next(iter(admission.counters.values()))).count

    def refusing(self: object, conversations: list[list[dict[str, str]]]) -> list[int]:
        if any(turn["role"] == "tool" for turns in conversations for turn in turns):
            raise RequestError("Conversation roles must alternate")
        return count(self, conversations)

    monkeypatch.setattr(type(next(iter(admission.counters.values()))), "count", refusing)
    return admission


ODD = '{"messages": [{"role": "tool", "content": "x"}], "model": "short"}'


def test_a_conversation_that_a_template_refuses_does_not_hold_its_parcel(
    yard: Yard, picky: Admission, tenant: int
) -> None:
    good, odd = make.save_jobs(yard.store, tenant), make.save_jobs(yard.store, tenant, text=ODD)
    with contextlib.suppress(RequestError):
        Classifier(yard, picky).classify("batch", 0.0, [(good[0], 2)])
    assert make.column(yard.store, "state", good + odd) == ["routed", "failed"]


def test_a_line_that_cannot_be_judged_does_not_hold_all_batches(yard: Yard, picky: Admission, tenant: int) -> None:
    long = ODD.replace('"x"', '"' + "x " * 400 + '"')  # too long for the bound that needs no template
    odd, good = make.save_batch(yard.store, tenant, lines=[long]), make.save_batch(yard.store, tenant)
    for _ in range(3):
        with contextlib.suppress(RequestError):
            expand.expand_all(yard, picky)
    assert make.column(yard.store, "state", [odd + 1, good + 1]) == ["failed", "queued"]


def test_a_suspect_that_waits_for_an_empty_engine_is_not_at_risk(
    yard: Yard, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "end_process", lambda code: None)  # it may see in time that it was declared dead
    yard.join()
    engine = ScriptedEngine()
    worker = Inference(yard, "short", engine=engine)
    worker.start(lambda _: None)
    try:
        ids = make.save_jobs(yard.store, tenant, text=make.body("wait", model="short"))
        ids += make.save_jobs(yard.store, tenant, text=make.body("innocent", model="short"))
        yard.store.fetch("UPDATE job SET worker_deaths = 2 WHERE id = %(id)s RETURNING id", {"id": ids[1]})
        Classifier(yard, yard.admission()).classify("batch", 0.0, [(ids[0], 2)])
        worker.offer("batch", 0.0, [(ids[0], 1)])
        eventually(lambda: engine.running == {"wait"})
        worker.offer("batch", 0.0, [(ids[1], 1)])
        eventually(lambda: make.column(yard.store, "state", ids[1:]) == ["running"])
        yard.store.fetch("UPDATE worker SET lease_until = now() - interval '1 s' RETURNING id")
        sweep(yard)
        assert make.column(yard.store, "state", ids[1:]) == ["queued"]
        assert make.column(yard.store, "worker_deaths", ids[1:]) == [2]
    finally:
        engine.go.set()
        worker.drain()
        yard.leave()


def test_a_delivery_that_fails_unexpectedly_is_put_off(
    yard: Yard, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise ValueError("Port out of range 0-65535")

    monkeypatch.setattr("tieryard.webhooks.sending.check_url", broken)
    ids = make.save_jobs(yard.store, tenant, text=make.body(callback_url=make.HOOK), wants_callback=True)
    jobs.cancel(yard.store, ids, tenant_id=tenant)
    with delivering(yard):
        eventually(lambda: make.count(yard.store, "delivery", "last_error = 'ValueError while delivering'") == 1)
    assert make.count(yard.store, "delivery", "next_at > now() + interval '3 s'") == 1


def test_the_feeder_does_not_walk_over_what_has_finished(yard: Yard, tenant: int) -> None:
    batch_id = make.save_batch(yard.store, tenant, 600)
    make.expand(yard.store)
    feeder = Feeder(yard)
    with lead(yard.store, "feeder") as connection:
        assert connection is not None
        feeder.tick(connection)
        released = yard.store.fetch("SELECT released_to FROM batch")[0][0]
        ids = list(range(batch_id + 1, batch_id + 1 + released))
        jobs.cancel(yard.store, ids, tenant_id=tenant)
        found = batches.open_batches(connection, {}, {})
        assert found[0].outstanding == 0
        feeder._yard.publisher.publish = lambda _: 0  # type: ignore[method-assign,assignment]
        feeder.tick(connection)
        assert feeder._floors == {batch_id: batch_id + 1 + released}


def test_what_was_in_a_dead_workers_inbox_is_nudged_at_once(yard: Yard, tenant: int) -> None:
    sweep(yard)  # sets the epoch
    ids = make.save_jobs(yard.store, tenant)
    make.route(yard.store, ids, deployment="short")
    yard.store.fetch(
        "UPDATE job SET created_at = now() - interval '10 h', nudge_at = now() + interval '10 h' RETURNING id"
    )
    dead = make.worker(yard.store, lease_s=-1)
    yard.store.fetch("UPDATE worker SET deployment = 'short' WHERE id = %(id)s RETURNING id", {"id": dead})
    seen = []
    yard.publisher.publish = lambda parcels: seen.extend(parcels) or 0  # type: ignore[method-assign,assignment]
    sweep(yard)
    assert [p.runs for p in seen] == [[(ids[0], 1, 0)]]


def test_after_an_outage_the_living_have_time_to_show_themselves(settings: Settings, tenant: int) -> None:
    yard = Yard("test", settings.model_copy(update={"lease_s": 0.2}), consume=[])
    rescuer = Rescuer(yard)
    worker = make.worker(yard.store, lease_s=-1)
    rescuer.tick()
    assert make.count(yard.store, "worker", "stopped_at IS NOT NULL") == 0, "it may just not have beaten yet"
    eventually(lambda: rescuer.tick() or make.count(yard.store, "worker", "stopped_at IS NOT NULL") == 1)
    assert worker > 0
    yard.leave()


def test_a_cancel_that_meets_a_suspect_before_its_start_leaves_the_worker_free(
    yard: Yard, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bool:
        raise ValueError("not a StoreError")

    monkeypatch.setattr(jobs, "mark_alone", broken)
    yard.join()
    worker = Inference(yard, "short", engine=ScriptedEngine())
    worker.start(lambda _: None)
    try:
        ids = make.save_jobs(yard.store, tenant, text=make.body("suspect", model="short"))
        yard.store.fetch("UPDATE job SET worker_deaths = 2 RETURNING id")
        ids += make.save_jobs(yard.store, tenant, text=make.body("next", model="short"))
        Classifier(yard, yard.admission()).classify("batch", 0.0, [(ids[0], 2)])
        worker.offer("batch", 0.0, [(ids[0], 1)])
        eventually(lambda: make.column(yard.store, "(state, attempts)", ids[:1]) == [("queued", "1")])
        worker.offer("batch", 0.0, [(ids[1], 1)])
        eventually(lambda: make.column(yard.store, "state", ids[1:]) == ["succeeded"])
    finally:
        worker.drain()
        yard.leave()


def test_a_claim_whose_answer_was_lost_is_taken_up(yard: Yard, tenant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = jobs.claim
    lost: list[int] = []

    class Lost(contextlib.AbstractContextManager[object]):
        """A transaction that commits, and then says that it did not."""

        def __init__(self) -> None:
            self.inner = transaction()

        def __enter__(self) -> object:
            return self.inner.__enter__()

        def __exit__(self, *exc: object) -> None:
            self.inner.__exit__(None, None, None)
            if lost == [threading.get_ident()]:
                lost.append(0)
                raise StoreError("the acknowledgement was lost")

    def claim_and_mark(*arguments: object, **named: object) -> object:
        if not lost:
            lost.append(threading.get_ident())
        return claim(*arguments, **named)  # type: ignore[arg-type]

    transaction = yard.store.transaction
    monkeypatch.setattr(yard.store, "transaction", Lost)
    monkeypatch.setattr(jobs, "claim", claim_and_mark)
    yard.join()
    worker = Inference(yard, "short", engine=ScriptedEngine())
    worker.start(lambda _: None)
    try:
        ids = make.save_jobs(yard.store, tenant, text=make.body("hello", model="short"))
        Classifier(yard, yard.admission()).classify("batch", 0.0, [(ids[0], 1)])
        worker.offer("batch", 0.0, [(ids[0], 1)])
        eventually(lambda: make.column(yard.store, "state", ids) == ["succeeded"])
        assert lost[1:] == [0]
    finally:
        worker.drain()
        yard.leave()


def test_a_claimed_job_is_cancelled_before_it_starts(yard: Yard, tenant: int) -> None:
    yard.join()
    engine = ScriptedEngine()
    worker = Inference(yard, "long", engine=engine)
    worker.start(lambda _: None)
    try:
        slots = yard.catalog.deployments["long"].max_in_flight
        ids = make.save_jobs(yard.store, tenant, slots + 1, text=make.body("wait", model="long"))
        Classifier(yard, yard.admission()).classify("batch", 0.0, [(ids[0], len(ids))])
        worker.offer("batch", 0.0, [(ids[0], len(ids))])
        eventually(lambda: make.column(yard.store, "state", ids[-1:]) == ["running"], what="the look-ahead")
        jobs.cancel(yard.store, ids[-1:], tenant_id=tenant)
        eventually(lambda: make.column(yard.store, "state", ids[-1:]) == ["cancelled"], what="the cancellation")
        assert len(engine.seen) == slots
    finally:
        engine.go.set()
        worker.drain()
        yard.leave()


def test_an_engine_that_stops_answering_while_idle_is_noticed(yard: Yard) -> None:
    yard.join()
    engine = ScriptedEngine()
    worker = Inference(yard, "short", engine=engine)
    worker.start(lambda _: None)

    def capacity() -> int:
        gauges = yard.metrics.read(yard.catalog).gauges
        return gauges["short"].capacity if "short" in gauges else -1

    try:
        eventually(lambda: capacity() > 0, what="the engine to serve")
        engine.up = False
        eventually(lambda: capacity() == 0, what="the outage to show")
        engine.up = True
        eventually(lambda: capacity() > 0, what="the engine to serve again")
    finally:
        engine.up = True
        worker.drain()
        yard.leave()


def test_jobs_of_a_deployment_that_the_catalog_has_lost_are_routed_again(yard: Yard, tenant: int) -> None:
    ids = make.save_jobs(yard.store, tenant)
    make.route(yard.store, ids, deployment="gone")
    sweep(yard)
    assert make.column(yard.store, "(state, deployment)", ids) == [("queued", None)]


def test_expansion_leaves_a_thread_for_rescue(yard: Yard, tenant: int) -> None:
    expander = expand.Expander(yard, yard.admission())
    make.save_batch(yard.store, tenant)
    with expander._busy:
        expander.run()  # returns at once: another is at it
        assert make.count(yard.store, "job") == 0
    expander.run()
    assert make.count(yard.store, "job") > 0


def test_a_profile_with_fields_of_a_newer_process_is_read(yard: Yard) -> None:
    yard.redis.hset("metrics:short:code", mapping={"samples": 3, "timestamp": 1.0, "ttft_ms": 5, "novelty": 9})
    profiles = yard.metrics.read(yard.catalog).profiles
    assert (profiles["short"]["code"].samples, profiles["short"]["code"].ttft_ms) == (3, 5.0)


def test_a_deployment_whose_engine_is_down_is_not_live(yard: Yard) -> None:
    snapshot = Snapshot.of(yard.catalog, gauges={"short": Measured(backlog=9)})
    assert [c.live for c in snapshot.candidates] == [False, False]


def test_one_catalog_has_one_hash_in_every_process() -> None:
    code = "from tieryard.catalog import load_catalog; from pathlib import Path; print(load_catalog(Path('{}')).hash())"
    path = Path(__file__).parents[2] / "deploy" / "tieryard.yaml"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code.format(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(hashes) == 1
