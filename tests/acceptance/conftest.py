"""The whole embedded fleet as real processes, on llama.cpp, or on the fake vLLM: that has a capacity and takes time, so
that there is a middle of a batch to break things in."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest

from tests.conftest import CATALOGS, eventually, open_directory
from tieryard.embedded import free_port
from tieryard.supervisor import Fleet
from tieryard.testing.fake_vllm import FakePlan, FakeVllm

KEY = "ty_acceptance"


@dataclass
class Running:
    """A fleet that is up, its API, and its database."""

    fleet: Fleet
    fake: FakeVllm | None
    api: httpx.Client
    database: psycopg.Connection[Any]

    def submit(self, n: int, **fields: Any) -> dict[str, Any]:
        jobs = [{"prompt": f"Write about {i}.", "max_tokens": 8, "custom_id": str(i), **fields} for i in range(n)]
        answer = self.api.post("/v1/jobs", json=jobs)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self.api.get(f"/v1/batches/{batch_id}").json()

    def try_batch(self, batch_id: str) -> dict[str, Any]:
        """Empty while the API cannot tell."""
        answer = self.api.get(f"/v1/batches/{batch_id}")
        return answer.json() if answer.status_code == 200 else {}

    def until_finished(self, batch_id: str, *, within_s: float = 60) -> dict[str, Any]:
        eventually(lambda: self.batch(batch_id)["finished_at"], within_s=within_s, what=f"the end of {batch_id}")
        return self.batch(batch_id)

    def until_some_succeeded(self, batch_id: str, n: int) -> None:
        eventually(lambda: self.batch(batch_id)["counts"]["succeeded"] >= n, what=f"{n} of {batch_id}")

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        return self.database.execute(statement).fetchall()

    def pid(self, name: str) -> int:
        process = self.fleet.children[name].process
        assert process is not None
        return process.pid


StartFleet = Callable[..., contextlib.AbstractContextManager[Running]]


ENVIRONMENT = {"TIERYARD_API_KEY": KEY, "TIERYARD_WINDOW_S": "1", "TIERYARD_WEBHOOK_ALLOW_PRIVATE": "true"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short leases and windows, and callbacks to this machine."""
    for name, value in {**ENVIRONMENT, "TIERYARD_LEASE_S": "2", "TIERYARD_HEARTBEAT_S": "0.5"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def start_fleet(quick: None) -> Iterator[StartFleet]:
    """Starts a fleet on a fake with this plan; `data` names its data directory, to start one again."""

    @contextlib.contextmanager
    def start(plan: FakePlan, *, data: str = "data") -> Iterator[Running]:
        with FakeVllm.in_thread(plan) as fake:
            catalog = home / "fake.yaml"
            catalog.write_text((CATALOGS / "fake.yaml").read_text().replace("http://fake.invalid", fake.url))
            with running(Fleet(home / data, port=free_port(), catalog=catalog), fake) as found:
                yield found

    with open_directory() as home:
        yield start


@pytest.fixture(scope="session")
def local_fleet() -> Iterator[Running]:
    """One for all tests: its processes' start takes as long as most of them together."""
    with running_locally() as found:
        yield found


@contextlib.contextmanager
def running_locally() -> Iterator[Running]:
    """What `tieryard up` starts: llama.cpp with real weights, and its own catalog."""
    with open_directory() as home, contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            found = stack.enter_context(running(Fleet(home / "data", port=free_port())))
        yield found


@contextlib.contextmanager
def running(fleet: Fleet, fake: FakeVllm | None = None) -> Iterator[Running]:
    with fleet:
        fleet.wait_until_ready()
        tending = threading.Thread(target=fleet.run, daemon=True)
        tending.start()
        headers = {"authorization": f"Bearer {KEY}"}
        try:
            with (
                httpx.Client(base_url=fleet.url, headers=headers, timeout=60, trust_env=False) as api,
                psycopg.connect(fleet.database_url, autocommit=True) as database,
            ):
                yield Running(fleet, fake, api, database)
        finally:
            fleet.stopping.set()
            tending.join()
