"""Calls that begin alike go to one replica while it has room, and no tenant meets another's prefixes."""

from __future__ import annotations

from collections import Counter

from tests.conftest import eventually
from tests.gateway import Gateway
from tieryard.store import keys

LONG = "You sort letters into boxes, one word an answer, and never explain yourself. " * 8
OTHER = 9011
"""A second replica of `cheap`, at the other fake server."""


def two_replicas(gate: Gateway) -> None:
    for name in ("cheap", "dear"):
        gate.engines.plan(name, cache_blocks=10_000)
    gate.engines.withdraw("dear")
    gate.engines.publish("cheap", worker_id=OTHER, url=gate.engines.dear.url)
    gate.seen()


def places(gate: Gateway) -> list[int]:
    return [gate.engines.cheap.state.requests, gate.engines.dear.state.requests]


def test_calls_of_one_key_go_to_one_replica(gate: Gateway) -> None:
    two_replicas(gate)
    for n in range(6):
        assert gate.chat(f"Hi, {n}.", prompt_cache_key="session 1").status_code == 200
    assert sorted(places(gate)) == [0, 6]


def test_calls_of_many_keys_go_to_both(gate: Gateway) -> None:
    two_replicas(gate)
    seen = Counter[int]()
    for n in range(16):
        before = places(gate)
        for _ in range(2):
            assert gate.chat("Hi.", prompt_cache_key=f"session {n}").status_code == 200
        seen.update(at for at, (was, now) in enumerate(zip(before, places(gate), strict=True)) if now == was + 2)
    assert seen.total() == 16, "both calls of a key are at one"
    assert set(seen) == {0, 1}


def test_a_full_home_is_passed_over(gate: Gateway) -> None:
    two_replicas(gate)
    assert gate.chat("Hi.", prompt_cache_key="session 1").status_code == 200
    home = places(gate).index(1)
    busy = {"in_flight": 60}
    if home == 0:
        gate.engines.publish("cheap", **busy)
    else:
        gate.engines.publish("cheap", worker_id=OTHER, url=gate.engines.dear.url, **busy)
    gate.seen()
    assert gate.chat("Hi.", prompt_cache_key="session 1").status_code == 200
    assert places(gate) == [1, 1]


def test_a_prefix_is_found_again_by_its_tenant_and_by_no_other(gate: Gateway) -> None:
    gate.engines.withdraw("dear")
    gate.engines.plan("cheap", cache_blocks=10_000)
    gate.seen()
    keys.add_key(gate.store, "ty_other", tenant="another", name="other")
    stranger = {"authorization": "Bearer ty_other"}
    answers = [gate.chat(LONG, headers=headers).json() for headers in (None, None, stranger, stranger)]
    told = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert told == [0, 96, 0, 96]
    eventually(lambda: [row[0] for row in gate.rows("timing", "cached_tokens")] == told, what="their timings")


def test_a_caller_cannot_name_a_salt(gate: Gateway) -> None:
    refused = gate.chat("Hi.", cache_salt="of another")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")
