"""Circuit breakers over a real Valkey: all processes agree."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis

from tests.conftest import eventually
from tieryard import breakers
from tieryard.breakers import Breakers
from tieryard.catalog import Breaker as Rules
from tieryard.catalog import Catalog
from tieryard.metrics import Gauge, Metrics


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    found = redis.Redis.from_url(redis_url)
    yield found
    found.close()


def rules(**fields: object) -> Rules:
    plain = {"failures": 3, "share": 0.5, "within": timedelta(seconds=30), "open_for": timedelta(seconds=15), **fields}
    return Rules.model_validate(plain)


class Told:
    """The breakers of a catalog with these rules."""

    def __init__(self, client: redis.Redis, **fields: object) -> None:
        self.breakers, self.rules = Breakers(client), rules(**fields)

    def tell(self, name: str, counts: dict[breakers.StartKind, int] | None = None) -> breakers.Breaker:
        return self.breakers.tell(name, self.rules, counts)


def test_it_opens_at_enough_failures_that_are_a_large_enough_share(client: redis.Redis) -> None:
    found = Told(client)
    assert not found.tell("short", {"ok": 4, "failed": 2}).opened
    assert not found.tell("short", {"failed": 1}).opened, "3 of 7"
    opened = found.tell("short", {"failed": 1})
    assert opened.open
    assert opened.why == "its circuit breaker is open: 4 of 8 starts failed in 30 s"
    assert not found.tell("long").opened


def test_refusals_of_a_provider_open_nothing(client: redis.Redis) -> None:
    found = Told(client)
    breaker = found.tell("short", {"refused": 50, "failed": 2})
    assert (breaker.opened, breaker.refused) == (False, 50)


def test_what_began_before_it_opened_neither_closes_nor_prolongs_it(client: redis.Redis) -> None:
    found = Told(client)
    before = found.tell("short", {"failed": 3})
    after = found.tell("short", {"ok": 9, "failed": 9})
    assert after.open
    assert after.open_for_s <= before.open_for_s


@pytest.mark.parametrize("kind", ["ok", "failed"])
def test_half_open_a_success_closes_it_and_a_failure_opens_it_again(
    client: redis.Redis, kind: breakers.StartKind
) -> None:
    found = Told(client, open_for=timedelta(seconds=0.1))
    found.tell("short", {"failed": 3})
    eventually(lambda: found.tell("short").half_open, what="it to be half open")
    breaker = found.tell("short", {kind: 1})
    assert breaker.open == (kind == "failed")
    assert breaker.opened == (kind == "failed")
    if kind == "ok":
        assert not found.tell("short", {"failed": 2}).opened, "it begins anew"


def test_failures_that_are_long_past_are_forgotten(client: redis.Redis) -> None:
    found = Told(client, within=timedelta(seconds=0.2))
    found.tell("short", {"failed": 2})

    def forgotten() -> bool:
        found.tell("short")
        return not any(field.startswith(b"f") for field in client.hkeys("breaker:short"))

    eventually(forgotten, what="the failures to be forgotten")
    assert not found.tell("short", {"failed": 2}).opened


def test_the_router_is_told_in_the_round_trip_that_reads_everything(client: redis.Redis, catalog: Catalog) -> None:
    found, metrics = Told(client, open_for=timedelta(seconds=0.3)), Metrics(client)
    catalog = catalog.model_copy(update={"routing": catalog.routing.model_copy(update={"breaker": found.rules})})
    metrics.publish_gauge("short", 1, Gauge(capacity=8, in_flight=0, backlog=0))
    found.tell("short", {"failed": 9})
    measured = metrics.read(catalog).gauges["short"]
    assert measured.broken == "its circuit breaker is open: 9 of 9 starts failed in 30 s"
    assert not measured.probing
    eventually(lambda: metrics.read(catalog).gauges["short"].probing, what="it to be half open")
    assert "half open" in metrics.read(catalog).gauges["short"].broken


def test_what_is_held_is_broken_and_not_probed(client: redis.Redis, catalog: Catalog) -> None:
    metrics = Metrics(client)
    metrics.publish_gauge("short", 1, Gauge(capacity=8, in_flight=0, backlog=0))
    metrics.publish_gauge("short", 2, Gauge(capacity=8, in_flight=0, backlog=0, held="its 5 requests are used up"))
    measured = metrics.read(catalog).gauges["short"]
    assert (measured.broken, measured.probing, measured.capacity) == ("its 5 requests are used up", False, 16)
