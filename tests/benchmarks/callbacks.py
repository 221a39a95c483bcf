"""Callbacks beside black holes: how soon good endpoints are told while others accept everything and answer nothing; and
how many deliveries a worker makes in a second."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from tests.benchmarks.control_plane import CATALOG
from tests.benchmarks.figures import Figure
from tests.conftest import eventually
from tests.integration.receivers import endpoint, happen
from tieryard.embedded import EmbeddedPostgres, EmbeddedValkey
from tieryard.queues import CALLBACKS, Publisher, make_celery
from tieryard.store import Store
from tieryard.store.migrate import migrate

GOOD = 20
EVENTS_PER_S = 2
SECONDS = 40  # more than two time-outs of a black hole
BURST = 500
LIMIT_MS = 2000.0
_TENANT = 1

_FIRST_ATTEMPTS = """
SELECT extract(epoch FROM a.at - o.created_at)::float8 * 1000 + a.latency_ms
FROM delivery d JOIN outbox o ON o.id = d.outbox_id JOIN webhook_endpoint e ON e.id = d.endpoint_id
JOIN delivery_attempt a ON a.delivery_id = d.id AND a.attempt = 1
WHERE e.description = 'good' AND a.status = 204
"""


def run(work: Path) -> list[Figure]:
    """Each round has a database and a worker of its own."""
    with EmbeddedPostgres(work / "postgres") as postgres, EmbeddedValkey(work / "valkey", append_only=False) as valkey:
        rounds = {}
        for holes in (0, 1, 20):
            with _worker(postgres, valkey, f"holes_{holes}") as (store, publisher):
                rounds[holes] = _steady(store, publisher, holes)
        figures = [
            Figure.percentile(
                f"callback_first_attempt_p{p}_beside_{holes}_black_holes",
                "ms",
                p,
                rounds[holes],
                peer="without any",
                peer_values=rounds[0],
            )
            for holes in (1, 20)
            for p in (50, 99)
        ]
        with _worker(postgres, valkey, "burst") as (store, publisher):
            many, one = _burst(store, publisher, GOOD), _burst(store, publisher, 1)
    figures.append(
        Figure.median(
            "callback_throughput_20_endpoints", "deliveries/s", [many], peer="to one endpoint", peer_values=[one]
        )
    )
    late = [figure for figure in figures if "_p99_" in figure.figure and figure.value >= LIMIT_MS]
    if late:
        raise SystemExit(f"the others wait for a black hole: {late}")
    return figures


def _steady(store: Store, publisher: Publisher, holes: int) -> list[float]:
    """Events at a steady pace, each told to all endpoints: ms from each event until a good endpoint had taken it."""
    with _receiver() as url, _black_hole() as hole:
        for n in range(GOOD):
            endpoint(store, _TENANT, f"{url}/{n}", description="good")
        for n in range(holes):
            endpoint(store, _TENANT, hole, description=f"hole {n}")
        began = time.monotonic()
        for n in range(EVENTS_PER_S * SECONDS):
            time.sleep(max(0.0, began + n / EVENTS_PER_S - time.monotonic()))
            happen(store, _TENANT)
            publisher.nudge(CALLBACKS)
        wanted = GOOD * EVENTS_PER_S * SECONDS
        eventually(lambda: len(_first_attempts(store)) == wanted, within_s=60, what="each good endpoint to be told")
        return _first_attempts(store)


def _burst(store: Store, publisher: Publisher, endpoints: int) -> float:
    """Deliveries a second of 10,000 that are owed at once, or of a tenth of that to one endpoint."""
    tenant = _TENANT + endpoints
    n = BURST if endpoints > 1 else 1000
    with _receiver() as url:
        for number in range(endpoints):
            endpoint(store, tenant, f"{url}/{number}", description="good")
        began = time.monotonic()
        happen(store, tenant, n)
        publisher.nudge(CALLBACKS)
        wanted = {"tenant": tenant, "n": n * endpoints}
        done = "SELECT count(*) >= %(n)s FROM delivery WHERE tenant_id = %(tenant)s AND delivered_at IS NOT NULL"
        eventually(lambda: store.fetch(done, wanted)[0][0], within_s=300, what="all to be delivered")
        return round(n * endpoints / (time.monotonic() - began), 1)


def _first_attempts(store: Store) -> list[float]:
    return [row[0] for row in store.fetch(_FIRST_ATTEMPTS)]


@contextlib.contextmanager
def _worker(postgres: EmbeddedPostgres, valkey: EmbeddedValkey, name: str) -> Iterator[tuple[Store, Publisher]]:
    """A callback worker as it is in production, but that it may reach this machine."""
    database_url = postgres.create_database(name)
    migrate(database_url)
    environment = {
        **os.environ,
        "TIERYARD_DATABASE_URL": database_url,
        "TIERYARD_REDIS_URL": valkey.url,
        "TIERYARD_CATALOG": str(CATALOG),
        "TIERYARD_WEBHOOK_ALLOW_PRIVATE": "true",
        "TIERYARD_LOG_LEVEL": "error",
    }
    command = [sys.executable, "-m", "workers", "callback"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    store, app = Store(database_url), make_celery(valkey.url)
    try:
        beating = "SELECT count(*) FROM worker WHERE kind = 'callback'"
        eventually(lambda: store.fetch(beating)[0][0], within_s=60, what="the callback worker to start")
        yield store, Publisher(app)
    finally:
        process.terminate()
        process.wait(30)
        app.close()
        store.close()


@contextlib.contextmanager
def _receiver() -> Iterator[str]:
    """Takes everything at once, in a process of its own: its URL."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_receive, args=[there], daemon=True)
    process.start()
    yield f"http://127.0.0.1:{here.recv()}"
    process.kill()
    process.join()


def _receive(pipe: Pipe) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextlib.contextmanager
def _black_hole() -> Iterator[str]:
    """The kernel accepts what connects, and nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hole"
