"""A real API server on a thread, with fake engines behind it whose gauges are published by hand."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import redis
import uvicorn

from api.app import create_app
from tests.conftest import eventually
from tieryard.settings import Settings
from tieryard.store import Store
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan, Faults

KEY = "ty_test"
CATALOG = """
version: 1
tiers:
  realtime: {{slo: {{max_latency_ms: 1000}}, window: 60s}}
  hasty: {{slo: {{max_latency_ms: 150}}, window: 60s}}
  interactive: {{slo: {{max_latency_ms: 5000}}, window: 5m}}
categories: [extraction, classification, summarization, reasoning, code, chat]
deployments:
  cheap:
    model: test/cheap
    revision: "1"
    size_class: small
    engine: {{kind: openai_http, url: "{cheap}", server: vllm, served_model: fake}}
    context_limit: 2000000
    max_in_flight: 64
    tokenizer: utf8
    capabilities: [json_schema, tools, logprobs]
    price: {{input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}}
  dear:
    model: test/dear
    revision: "2"
    size_class: large
    engine: {{kind: openai_http, url: "{dear}", server: vllm, served_model: fake}}
    context_limit: 2000000
    max_in_flight: 64
    tokenizer: utf8
    price: {{input_usd_per_1m: 1.00, output_usd_per_1m: 4.00}}
  vectors:
    model: test/vectors
    revision: "3"
    size_class: small
    engine: {{kind: instant}}
    context_limit: 2000
    max_in_flight: 8
    tokenizer: utf8
    price: {{input_usd_per_1m: 0.02, output_usd_per_1m: 0}}
    serves: embeddings
"""
REPLICAS = {"cheap": 9001, "dear": 9002, "vectors": 9003}


@dataclass
class Engines:
    """Two fake vLLMs, and the gauges of the workers that would serve them. A gauge stays fresh until it is changed."""

    cheap: FakeVllm
    dear: FakeVllm
    gauges: redis.Redis
    capacity: dict[str, int] = field(default_factory=lambda: {"cheap": 64, "dear": 64, "vectors": 8})

    def url(self, name: str) -> str:
        return "" if name == "vectors" else getattr(self, name).url

    def publish(self, name: str, *, worker_id: int | None = None, url: str | None = None, **fields: int) -> None:
        gauge = {"capacity": self.capacity[name], "in_flight": 0, "backlog": 0, **fields, "at": time.time() + 3600}
        gauge["url"] = self.url(name) if url is None else url
        self.gauges.hset(f"gauges:{name}", str(worker_id or REPLICAS[name]), orjson.dumps(gauge))

    def withdraw(self, name: str) -> None:
        self.gauges.delete(f"gauges:{name}")

    def plan(self, name: str, faults: Faults | None = None, **fields: Any) -> None:
        fake: FakeVllm = getattr(self, name)
        fake.plan = replace(fake.plan, faults=faults, **fields)


@contextlib.contextmanager
def engines(redis_url: str) -> Iterator[Engines]:
    plan = FakePlan(context_limit=2_000_000)
    client = redis.Redis.from_url(redis_url)
    with FakeVllm.in_thread(plan) as cheap, FakeVllm.in_thread(plan) as dear:
        found = Engines(cheap, dear, client)
        for name in REPLICAS:
            found.publish(name)
        yield found
    client.close()


def catalog_of(found: Engines, directory: Path) -> Path:
    path = directory / "tieryard.yaml"
    path.write_text(CATALOG.format(cheap=found.cheap.url, dear=found.dear.url))
    return path


@dataclass
class Gateway:
    """The server, its engines and its store."""

    url: str
    engines: Engines
    store: Store
    client: httpx.Client
    app: Any
    server: uvicorn.Server
    thread: threading.Thread

    def chat(self, prompt: str = "Say hi.", *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=asked(prompt, **fields), headers=headers)

    def stream(self, prompt: str = "Say hi.", *, headers: dict[str, str] | None = None, **fields: Any) -> Events:
        body = asked(prompt, stream=True, **fields)
        with self.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            return Events(answer, answer.read().decode())

    def job(self, columns: str = "state") -> Any:
        """Of the newest job."""
        rows = self.store.fetch(f"SELECT {columns} FROM job ORDER BY id DESC LIMIT 1")
        return None if not rows else rows[0] if len(rows[0]) > 1 else rows[0][0]

    def until(self, state: str) -> None:
        eventually(lambda: self.job() == state, what=f"the job to be {state}")

    def rows(self, table: str, columns: str, order: str = "job_id, fence") -> list[Any]:
        return self.store.fetch(f"SELECT {columns} FROM {table} ORDER BY {order}")

    def seen(self) -> None:
        """Returns when the API has read the gauges as they are now."""
        snapshots, before = self.app.state.tieryard.calls.snapshots, self.app.state.tieryard.calls.snapshots.last
        eventually(lambda: snapshots.last is not before, what="a new snapshot")
        before = snapshots.last  # that one's read may have begun before
        eventually(lambda: snapshots.last is not before, what="another")

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


@dataclass
class Events:
    """A stream that has ended."""

    answer: httpx.Response
    text: str

    @property
    def comments(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.startswith(":")]

    @property
    def data(self) -> list[Any]:
        found = [line[6:] for line in self.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) if line != "[DONE]" else line for line in found]

    @property
    def chunks(self) -> list[Any]:
        return [d for d in self.data if d != "[DONE]" and "choices" in d]

    @property
    def said(self) -> str:
        return "".join(c["choices"][0]["delta"].get("content") or "" for c in self.chunks if c["choices"])


def asked(prompt: str = "Say hi.", **fields: Any) -> dict[str, Any]:
    return {"model": "auto", "max_tokens": 8, "messages": [{"role": "user", "content": prompt}], **fields}


@contextlib.contextmanager
def gateway(settings: Settings, found: Engines, store: Store) -> Iterator[Gateway]:
    app = create_app(settings)
    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=int(settings.drain_s))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="api", daemon=True)
    thread.start()
    eventually(lambda: server.started or not thread.is_alive(), what="the API to start")
    assert server.started
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False) as client:
        serving = Gateway(url, found, store, client, app, server, thread)
        try:
            yield serving
        finally:
            serving.stop()
            assert not thread.is_alive()
