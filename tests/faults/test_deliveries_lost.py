"""10,000 deliveries to a receiver that fails in every way there is, by workers that are killed: none is lost."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
import svix.webhooks
from standardwebhooks import Webhook

from tests.conftest import eventually
from tests.integration.receivers import SECRET, endpoint, happen
from tieryard.settings import Settings
from tieryard.store import Store

_EVENTS, _ENDPOINTS, _OWN, _SERVERS = 400, 20, 2000, 20
_KILLS_S = 2.5  # between two kills
_CHAOS_S = 45.0
_WITHIN_S = 170.0


class Processes:
    """A receiver and two callback workers, killed at random and started again."""

    def __init__(self, settings: Settings, port: int, log: Path) -> None:
        self.environment = {
            **os.environ,
            "TIERYARD_DATABASE_URL": settings.database_url.get_secret_value(),
            "TIERYARD_REDIS_URL": settings.redis_url.get_secret_value(),
            "TIERYARD_CATALOG": str(settings.catalog),
            "TIERYARD_WEBHOOK_SECRET": SECRET,
            "TIERYARD_WEBHOOK_ALLOW_PRIVATE": "true",
            "TIERYARD_WEBHOOK_TIMEOUT_S": "1",
            "TIERYARD_WEBHOOK_RETRY_FIRST_S": "0.05",
            "TIERYARD_LOG_LEVEL": "error",
        }
        self.commands = {
            "receiver": ["tests.faults.unsteady_receiver", str(port), str(log)],
            "worker 1": ["workers", "callback"],
            "worker 2": ["workers", "callback"],
        }
        self.killed: Counter[str] = Counter()
        self.running = {name: self.start(name) for name in self.commands}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *self.commands[name]]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()
        self.killed[name.partition(" ")[0]] += 1
        time.sleep(random.uniform(0, 1.0))
        self.running[name] = self.start(name)

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(30)


@pytest.fixture
def port() -> int:
    with socket.create_server(("0.0.0.0", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def processes(settings: Settings, store: Store, port: int, tmp_path: Path) -> Iterator[Processes]:
    found = Processes(settings, port, tmp_path / "got")
    yield found
    found.stop()


def owed(store: Store, tenant: int, port: int) -> set[tuple[str, str]]:
    """Events of which 20 endpoints hear, and events with an address of their own: what must come, as (where, id)."""
    where = [f"127.0.0.1:{port}/e{n}" for n in range(_ENDPOINTS)]
    for n, one in enumerate(where):
        endpoint(store, tenant, f"http://{one}", "batch.completed", include_result=n % 2 == 0)
    wanted = {(one, f"msg_{event}") for event in happen(store, tenant, _EVENTS) for one in where}
    for n in range(_SERVERS):
        one = f"127.0.1.{n + 1}:{port}/own"
        mine = happen(store, tenant, _OWN // _SERVERS, event="batch.failed", url=f"http://{one}")
        wanted |= {(one, f"msg_{event}") for event in mine}
    return wanted


@pytest.mark.timeout(240)
def test_none_is_lost(store: Store, tenant: int, processes: Processes, port: int, tmp_path: Path) -> None:
    began = time.monotonic()
    wanted = owed(store, tenant, port)
    assert len(wanted) == 10_000
    while time.monotonic() - began < _CHAOS_S:
        time.sleep(random.uniform(0, 2 * _KILLS_S))
        processes.kill(random.choice(list(processes.commands)))
    (tmp_path / "got.well").touch()
    eventually(lambda: recovers(store), within_s=_WITHIN_S - _CHAOS_S, what="all to be taken")
    got = [orjson.loads(line) for line in (tmp_path / "got").read_bytes().splitlines()]
    came = Counter((one["host"] + one["path"], one["headers"]["webhook-id"]) for one in got)
    [(deliveries, delivered, attempts)] = store.fetch(
        "SELECT count(*), count(delivered_at), sum(attempts)::int FROM delivery"
    )
    print(
        f"\n{deliveries:,} deliveries, {attempts:,} attempts, {len(got):,} taken, {len(wanted - set(came))} lost, "
        f"{len(got) - len(came):,} twice or more with the same id; killed {dict(processes.killed)}; "
        f"{time.monotonic() - began:.0f} s"
    )
    assert set(came) == wanted, "each came, and nothing else"
    assert (deliveries, delivered) == (10_000, 10_000)
    assert all(processes.killed[name] for name in ("receiver", "worker")), "this run killed too little"
    assert len(got) > len(came), "something must have come twice, or the faults were none"
    assert verified(got) == len(got)


def recovers(store: Store) -> bool:
    """Waits that have grown long are cut short, as if time went faster."""
    time.sleep(0.3)
    store.fetch("UPDATE delivery_lane SET resting_until = NULL RETURNING 1")
    store.fetch(
        "UPDATE delivery SET next_at = now() WHERE settled_at IS NULL AND last_error IS NOT NULL "
        "AND next_at > now() + interval '20 s' RETURNING 1"
    )
    return bool(store.fetch("SELECT NOT EXISTS (SELECT FROM delivery WHERE settled_at IS NULL) "
                            "AND NOT EXISTS (SELECT FROM outbox WHERE fanned_at IS NULL)")[0][0])  # fmt: skip


def verified(got: list[dict[str, Any]]) -> int:
    """How many were verified, by each of three libraries; any of them raises otherwise."""
    ours, theirs = Webhook(SECRET), svix.webhooks.Webhook(SECRET)
    with openai.OpenAI(api_key="none") as client:
        for one in got:
            ours.verify(one["body"], one["headers"])
            theirs.verify(one["body"], one["headers"])
            client.webhooks.verify_signature(one["body"], one["headers"], secret=SECRET)
    return len(got)
