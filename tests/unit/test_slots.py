"""Slots: what shares an engine shares its room, and those who wait for it wait in one order."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.slots import Slot, Slots
from tieryard.catalog import parse_catalog
from tieryard.errors import EngineBusyError
from tieryard.lease import Lease
from tieryard.metrics import Live, Replica
from tieryard.snapshots import Snapshots

HOST = """
version: 1
tiers: {realtime: {slo: {max_latency_ms: 1000}, window: 60s}, interactive: {slo: {max_latency_ms: 5000}, window: 5m}}
categories: [chat]
deployments:
  base:
    model: org/model
    revision: abc
    size_class: small
    engine: {kind: openai_http, url: "http://127.0.0.1:9", server: vllm}
    context_limit: 2048
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0, output_usd_per_1m: 0}
"""
ADAPTER = """
  %s:
    model: org/lora
    revision: abc
    size_class: small
    engine: {kind: lora, host: base, weights: org/lora}
    context_limit: 2048
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0, output_usd_per_1m: 0}
"""
NAMES = ["base", "legal", "medical", "terse"]
API = 1


def slots_of(*replicas: Replica) -> Slots:
    """Of a process that sees these, each serving `base` and its three adapters."""
    catalog = parse_catalog(HOST + "".join(ADAPTER % name for name in NAMES[1:]))
    live = SimpleNamespace(live=Live({}, {}, {name: list(replicas) for name in NAMES}))
    return Slots(catalog, cast("Snapshots", live), cast("Lease", SimpleNamespace(worker_id=API)), key=None)


def engine(capacity: int, *, worker_id: int = 100, in_flight: int = 0) -> Replica:
    return Replica(worker_id, f"http://127.0.0.1:{worker_id}", capacity, in_flight, {})


async def taken(slots: Slots, name: str, tier: str = "interactive", **fields: Any) -> Slot:
    return await slots.take(name, tier, within_s=5, **fields)


async def test_calls_to_a_host_and_its_adapters_fill_one_engine() -> None:
    slots = slots_of(engine(8))
    for n in range(8):
        await taken(slots, NAMES[n % 4])
    assert not any(slots.has_room(name) for name in NAMES)
    assert set(slots.full()) == {"http://127.0.0.1:100"}
    for name in NAMES:
        with pytest.raises(EngineBusyError):
            await slots.take(name, "interactive", within_s=0.01)
    told = {(name, replica): gauge.in_flight for name, replica, gauge in slots.gauges()}
    assert told == {(name, 100): 2 for name in NAMES}, "each deployment's part of them"
    await slots.close()


async def test_a_slot_that_is_given_back_goes_to_whoever_is_next_at_that_engine() -> None:
    slots = slots_of(engine(1))
    held = await taken(slots, "base")
    order: list[str] = []

    async def wait(name: str, tier: str) -> None:
        slot = await taken(slots, name, tier)
        order.append(f"{tier} {name}")
        slots.give_back(slot)

    asked = [("legal", "interactive"), ("base", "interactive"), ("medical", "realtime"), ("legal", "interactive")]
    async with asyncio.TaskGroup() as tasks:
        for name, tier in asked:
            tasks.create_task(wait(name, tier))
            await asyncio.sleep(0)
        slots.give_back(held)
    assert order == ["realtime medical", "interactive legal", "interactive base", "interactive legal"]
    assert (slots._held, slots._taken) == ({}, {})
    await slots.close()


async def test_a_waiter_that_can_use_nothing_holds_up_nobody_of_another_deployment() -> None:
    slots = slots_of(engine(1), engine(1, worker_id=200))
    one, other = await taken(slots, "base"), await taken(slots, "base")
    picky = asyncio.create_task(taken(slots, "legal", tried=frozenset({one.server})))
    await asyncio.sleep(0)
    later = asyncio.create_task(taken(slots, "base"))
    await asyncio.sleep(0)
    slots.give_back(one)
    assert (await later).server == one.server
    assert not picky.done()
    slots.give_back(other)
    assert (await picky).server == other.server
    await slots.close()


async def test_calls_for_an_adapter_leave_less_room_before_the_worker_tells_of_them() -> None:
    slots = slots_of(engine(8, in_flight=2), engine(8, worker_id=200))
    for _ in range(4):
        await taken(slots, "legal", tried=frozenset({"http://127.0.0.1:100"}))
    assert (await taken(slots, "base")).replica.worker_id == 100
    await slots.close()
