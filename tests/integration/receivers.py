"""Receivers of callbacks for tests: told what to answer, they keep what they got."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from tests import factories as make
from tests.conftest import eventually
from tieryard.store import Store, deliveries, endpoints, lanes, outbox
from tieryard.store.deliveries import Due
from tieryard.store.endpoints import Endpoint, NewEndpoint
from tieryard.webhooks.addresses import read_url
from workers.callback import Callbacks
from workers.yard import Yard

SECRET = "whsec_" + "c2VjcmV0" * 4


@dataclass(frozen=True)
class Got:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def message(self) -> dict[str, Any]:
        return dict(orjson.loads(self.body))


@dataclass
class Receiver:
    """`answers` gives (status, headers, body) for a request; by default it takes all. `delay_s` before each answer."""

    url: str = ""
    answers: Callable[[Got], tuple[int, dict[str, str], bytes]] = lambda _: (204, {}, b"")
    delay_s: float = 0.0
    got: list[Got] = field(default_factory=list)

    def says(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.answers = lambda _: (status, headers or {}, body)


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got = Got(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            told.got.append(got)
            time.sleep(told.delay_s)
            status, headers, answer = told.answers(got)
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def delivering(yard: Yard, **fields: Any) -> Iterator[Callbacks]:
    """A callback worker at work."""
    found = Callbacks(yard, **fields)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def endpoint(store: Store, tenant: int, url: str = make.HOOK, *events: str, **fields: Any) -> Endpoint:
    """A registered one."""
    wanted = {"secret": SECRET, **fields}
    return endpoints.add(store, NewEndpoint(tenant_id=tenant, url=url, events=events, **wanted))


def happen(
    store: Store, tenant: int, n: int = 1, *, event: str = "batch.completed", url: str | None = None
) -> list[int]:
    """Events in the outbox: their ids."""
    rows = store.fetch(
        "INSERT INTO outbox (tenant_id, event, subject_id, url) "
        "SELECT %(tenant)s, %(event)s, i, %(url)s FROM generate_series(1, %(n)s) AS i RETURNING id",
        {"tenant": tenant, "event": event, "url": url, "n": n},
    )
    return [row[0] for row in rows]


def fan_out(store: Store) -> int:
    """Until nothing is left: how many deliveries were made."""
    made, more = 0, True
    while more:
        with store.transaction() as connection:
            n, more = outbox.fan_out(connection, lambda url: read_url(url).origin)
        made += n
    return made


def take(store: Store, n: int = 10, hold_s: float = 60.0) -> list[Due]:
    """Of what has been fanned out and is due, at most `n` of each lane."""
    with store.transaction() as connection:
        shares = {lane.lane_id: n for lane in lanes.waiting(connection) if lane.due_in_s <= 0}
        return deliveries.take(connection, shares, hold_s=hold_s)


def until_settled(store: Store, within_s: float = 20.0) -> None:
    def nothing() -> bool:
        with store.transaction() as connection:
            return lanes.owing(connection).owed == 0

    eventually(nothing, within_s=within_s, what="everything to be settled")


def rows(store: Store, columns: str, table: str = "delivery", order: str = "id") -> list[Any]:
    return store.fetch(f"SELECT {columns} FROM {table} ORDER BY {order}")
