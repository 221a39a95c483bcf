"""A worker process's footing, with a real Celery consumer."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker

from tests.conftest import eventually
from tests.integration.conftest import OpenYard
from tieryard.queues import Parcel, declare, replica_queue
from workers.yard import Yard, gate_of

QUEUE = "model.short"


@pytest.fixture
def yard(open_yard: OpenYard) -> Yard:
    return open_yard("infer", consume=[QUEUE], deployment="short")


def parcel(n: int) -> Parcel:
    return Parcel(QUEUE, "infer", "batch", 0.0, [(n, 1)])


@pytest.mark.filterwarnings("ignore")  # Celery's test worker leaves its own sockets to the collector
def test_a_closed_gate_leaves_parcels_on_the_queue_and_an_open_one_takes_them(yard: Yard) -> None:
    taken: list[Any] = []
    yard.task("infer", lambda *arguments: taken.append(arguments))
    with start_worker(yard.app, pool="threads", concurrency=1, perform_ping_check=False, shutdown_timeout=20) as worker:
        gate = gate_of(worker.consumer, QUEUE)
        yard.publisher.publish([parcel(1)])
        eventually(lambda: len(taken) == 1, what="the first parcel")
        gate(False)  # noqa: FBT003
        eventually(lambda: not worker.consumer.task_consumer.consuming_from(QUEUE), what="the gate to close")
        yard.publisher.publish([parcel(2), parcel(3)])
        assert yard.redis.llen(QUEUE) >= 1, "at most the read already under way may take one more"
        gate(True)  # noqa: FBT003
        eventually(lambda: len(taken) == 3, what="the parcels that waited")
        assert sorted(runs for _, _, runs in taken) == [[[1, 1]], [[2, 1]], [[3, 1]]]


@pytest.mark.filterwarnings("ignore")
def test_a_gate_holds_for_all_its_queues_and_a_replicas_own_is_consumed(yard: Yard) -> None:
    own = replica_queue("short", 7)
    yard.app.amqp.queues.select_add(declare(own))
    taken: list[Any] = []
    yard.task("infer", lambda *arguments: taken.append(arguments))
    both = [parcel(1), replace(parcel(2), queue=own)]
    with start_worker(yard.app, pool="threads", concurrency=1, perform_ping_check=False, shutdown_timeout=20) as worker:
        gate = gate_of(worker.consumer, QUEUE, own)
        yard.publisher.publish(both)
        eventually(lambda: len(taken) == 2, what="a parcel of each queue")
        gate(False)  # noqa: FBT003
        consuming = worker.consumer.task_consumer.consuming_from
        eventually(lambda: not consuming(QUEUE) and not consuming(own), what="the gate to close")
        gate(True)  # noqa: FBT003
        eventually(lambda: consuming(QUEUE) and consuming(own), what="the gate to open")
        yard.publisher.publish(both)
        eventually(lambda: len(taken) == 4, what="a parcel of each queue again")


def test_a_fault_in_a_task_is_swallowed_and_named(yard: Yard) -> None:
    def broken() -> None:
        raise ValueError("a prompt of somebody's")

    yard.task("broken", broken)
    logged: list[dict[str, Any]] = []
    yard.log = SimpleNamespace(error=lambda event, **fields: logged.append({"event": event, **fields}))  # type: ignore[assignment]
    yard.app.tasks["broken"]()
    assert [(line["event"], line["task"], line["error"]) for line in logged] == [
        ("task.failed", "broken", "ValueError")
    ]
    assert "somebody" not in str(logged)


def test_what_a_gate_was_told_last_holds_however_celery_orders_it() -> None:
    """A pause and a resume in one breath: an engine that is up at once, an inbox that fills and empties."""
    pending: list[Any] = []
    done: list[str] = []
    consumer = SimpleNamespace(
        call_soon=pending.append,
        add_task_queue=lambda queue: done.append(f"+{queue}"),
        cancel_task_queue=lambda queue: done.append(f"-{queue}"),
    )
    gate = gate_of(consumer, "a", "b")
    for open_ in (False, True, False, True):
        gate(open_)
    while pending:
        pending.pop()()
    assert done[-2:] == ["+a", "+b"]
    assert not any(said.startswith("-") for said in done)
