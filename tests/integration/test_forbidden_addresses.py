"""The callback worker reaches no forbidden address, however it is written down: asserted where sockets connect."""

from __future__ import annotations

import ipaddress
import itertools
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import factories as make
from tests.conftest import eventually
from tests.integration.conftest import OpenYard
from tests.integration.receivers import SECRET, delivering, happen, rows
from tests.unit.webhooks.test_addresses import FORBIDDEN
from tieryard.settings import Settings
from tieryard.webhooks.sending import Sender
from workers.yard import Yard

_PUBLIC = "203.0.114.7"  # allowed; what connects there is turned away below, before any packet
_FOUND_BY_NAME = [address for address in FORBIDDEN if "%" not in address]
_TURNS = 1000


@dataclass
class Watch:
    """Every `connect()` of this process while `on`, but to its broker: the addresses. (libpq connects unheard.)"""

    on: bool = False
    own: int | None = None
    seen: list[str] = field(default_factory=list)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "socket.connect" or not self.on:
            return
        where = arguments[1]
        if isinstance(where, tuple) and where[1] != self.own:
            self.seen.append(str(where[0]))
            raise ConnectionRefusedError("no test connects to the outside")


_watch = Watch()
sys.addaudithook(_watch.hear)  # stays for the life of the process, and hears nothing while it is off


@pytest.fixture
def watch(settings: Settings) -> Iterator[Watch]:
    _watch.own = urlsplit(settings.redis_url.get_secret_value()).port
    _watch.seen.clear()
    _watch.on = True
    yield _watch
    _watch.on = False


@pytest.fixture
def strict(open_yard: OpenYard, settings: Settings) -> Yard:
    """A worker as it is in production; it tries again at once."""
    update = {"webhook_allow_private": False, "webhook_retry_first_s": 0.01, "webhook_timeout_s": 2.0}
    return open_yard(settings=settings.model_copy(update=update))


@dataclass
class Trap:
    """A server on this machine that counts who comes."""

    port: int
    came: int = 0


@pytest.fixture
def trap() -> Iterator[Trap]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found, done = Trap(server.getsockname()[1]), threading.Event()
        server.settimeout(0.05)

        def count() -> None:
            while not done.is_set():
                try:
                    server.accept()[0].close()
                    found.came += 1
                except TimeoutError:
                    pass

        thread = threading.Thread(target=count)
        thread.start()
        yield found
        done.set()
        thread.join()


def registered(yard: Yard, tenant: int, url: str) -> None:
    """An endpoint as the API would not make it, which hears of one event."""
    made = (
        "WITH made AS (INSERT INTO webhook_endpoint (tenant_id, url, events, secret) "
        "VALUES (%(tenant)s, %(url)s, '{batch.failed}', %(secret)s) RETURNING id) "
        "INSERT INTO delivery_lane (tenant_id, endpoint_id) SELECT %(tenant)s, id FROM made RETURNING id"
    )
    yard.store.fetch(made, {"tenant": tenant, "url": url, "secret": SECRET})


def names(answers: Any) -> Any:
    """A `getaddrinfo` that answers so, name by name; what is an address is itself."""

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port)) for found in answers(host)]

    return getaddrinfo


def test_forbidden_addresses_as_they_are_written(strict: Yard, tenant: int, watch: Watch, trap: Trap) -> None:
    written = [f"[{address}]" if ":" in address else address for address in FORBIDDEN]
    written += ["localhost", "0x7f.1", "2130706433", "0177.0.0.1", "127.1", "[::ffff:7f00:1]"]
    for host in written:
        happen(strict.store, tenant, url=f"http://{host}:{trap.port}/hook")
        registered(strict, tenant, f"http://{host}:{trap.port}/hook")
    happen(strict.store, tenant, event="batch.failed")
    with delivering(strict):
        eventually(lambda: make.count(strict.store, "delivery", "settled_at IS NULL") == 0, what="all to be refused")
        eventually(lambda: make.count(strict.store, "outbox", "fanned_at IS NULL") == 0)
        eventually(lambda: make.count(strict.store, "delivery", "settled_at IS NULL") == 0, what="all to be refused")
    assert make.count(strict.store, "delivery") >= 2 * len(written) >= 80
    assert make.count(strict.store, "delivery", "delivered_at IS NOT NULL OR last_status IS NOT NULL") == 0
    assert make.count(strict.store, "delivery_attempt", "address IS NOT NULL") == 0
    assert (watch.seen, trap.came) == ([], 0)


def test_names_that_stand_for_forbidden_addresses(strict: Yard, tenant: int, watch: Watch, trap: Trap) -> None:
    assert len(_FOUND_BY_NAME) >= 40
    of = {f"name{n}.example.com": address for n, address in enumerate(_FOUND_BY_NAME)}
    for name in of:
        happen(strict.store, tenant, url=f"http://{name}:{trap.port}/hook")
        happen(strict.store, tenant, url=f"https://{name}/hook")
    sender = Sender(timeout_s=2.0, getaddrinfo=names(lambda host: [_PUBLIC, of[host]]))
    with delivering(strict, sender=sender):
        everywhere = "last_error LIKE '%where deliveries may not go'"
        eventually(lambda: make.count(strict.store, "delivery", everywhere) == 2 * len(of), what="each to be tried")
    assert make.count(strict.store, "delivery", "settled_at IS NOT NULL") == 0, "its owner may mend a name"
    assert (watch.seen, trap.came) == ([], 0)


# In the order in which all lock them.
_AFRESH = """
WITH soon AS MATERIALIZED (
    SELECT id FROM delivery WHERE next_at < now() + interval '15 s' ORDER BY id FOR NO KEY UPDATE
)
UPDATE delivery SET failures = 0, next_at = least(next_at, now() + interval '5 ms') FROM soon
WHERE delivery.id = soon.id RETURNING 1
"""
_RESTED = """
WITH every AS MATERIALIZED (SELECT id FROM delivery_lane ORDER BY id FOR NO KEY UPDATE)
UPDATE delivery_lane SET failures = 0, resting_until = NULL FROM every WHERE delivery_lane.id = every.id RETURNING 1
"""


@pytest.mark.parametrize("private_first", [True, False])
def test_a_name_that_alternates_a_thousand_times(
    strict: Yard, tenant: int, watch: Watch, trap: Trap, private_first: bool
) -> None:
    """Each attempt asks once, and connects to what was checked or to nothing. Were the name asked again for the
    connection, every public answer would be followed by a private one."""
    turns = itertools.count(int(not private_first))
    asked: list[str] = []

    def alternating(_: str) -> list[str]:
        asked.append("127.0.0.1" if next(turns) % 2 == 0 else _PUBLIC)
        return [asked[-1]]

    for n in range(20):  # of as many tenants, so that they are tried at once
        happen(strict.store, tenant + n, 1, url=f"http://rebound.example.com:{trap.port}/hook")
    strict.store.fetch("UPDATE outbox SET fanned_at = NULL RETURNING 1")
    with delivering(strict, sender=Sender(timeout_s=2.0, getaddrinfo=names(alternating))):

        def enough() -> bool:
            strict.store.fetch(_AFRESH)
            strict.store.fetch(_RESTED)
            return len(asked) >= _TURNS

        eventually(enough, within_s=60, what=f"{_TURNS} answers")
    attempts = rows(strict.store, "address, status, error", "delivery_attempt", "at")
    assert len(asked) >= _TURNS
    assert abs(asked.count(_PUBLIC) - asked.count("127.0.0.1")) <= 1
    assert set(watch.seen) <= {_PUBLIC}
    assert len(watch.seen) == asked.count(_PUBLIC), "one connection for each public answer, and to nothing else"
    assert all(ipaddress.ip_address(address).is_global for address in watch.seen)
    assert trap.came == 0
    assert {(address, status) for address, status, _ in attempts} == {(None, None), (_PUBLIC, None)}
