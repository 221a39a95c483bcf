"""A benchmark process with fake engines to measure, whose gauges are published by hand."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tieryard.embedded import free_port
from tieryard.store import benchmarks
from tieryard.store.benchmarks import BenchmarkRun, NewRun, RunEnd, RunKind
from tieryard.testing.fake_vllm import FakeVllm
from workers import speed
from workers.yard import Yard

CATALOG = """
version: 1
tiers:
  realtime: {{slo: {{max_latency_ms: 1000}}, window: 60s}}
  interactive: {{slo: {{max_latency_ms: 5000, max_ttft_ms: 1000}}, window: 5m}}
  batch: {{slo: {{max_latency_ms: 60000}}, slo_from: claimed, window: 24h}}
  bulk: {{window: 24h}}
categories: [extraction, classification, summarization, reasoning, code, chat]
deployments:
  short: &short
    model: test/short
    revision: "1"
    size_class: small
    engine: {{kind: openai_http, url: "{url}", server: vllm, served_model: fake, unchecked: [stops, tokenizer]}}
    context_limit: 4096
    max_in_flight: {most}
    realtime_reserve: {reserve}
    tokenizer: utf8
    capabilities: [json_schema]
    price: {{input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}}
  hosted:
    <<: *short
    engine: {{kind: openai_http, url: "{url}", server: openai, served_model: fake, limits: {{requests_per_minute: 10}}}}
  instant:
    <<: *short
    engine: {{kind: instant}}
  vectors:
    <<: *short
    engine: {{kind: instant}}
    serves: embeddings
    capabilities: []
{more}
"""
ADAPTER = """
  tuned:
    <<: *short
    model: test/tuned
    realtime_reserve: 0
    engine: {kind: lora, host: short, weights: test/tuned-lora}
"""


def write_catalog(directory: Path, url: str, *, most: int = 8, reserve: int = 1, more: str = "") -> Path:
    path = directory / "measured.yaml"
    path.write_text(CATALOG.format(url=url, most=most, reserve=reserve, more=more))
    return path


@dataclass
class Measuring:
    """`found` are the runs that were made, newest last."""

    yard: Yard
    fake: FakeVllm
    stop: threading.Event = field(default_factory=threading.Event)
    found: list[BenchmarkRun] = field(default_factory=list)

    def gauge(self, name: str = "short", *, worker_id: int = 7001, **fields: Any) -> None:
        """Stays fresh until it is changed."""
        said = {"capacity": 8, "in_flight": 0, "backlog": 0, "url": self.fake.url, **fields, "at": time.time() + 3600}
        self.yard.redis.hset(f"gauges:{name}", str(worker_id), orjson.dumps(said))

    def claimed(self, kind: RunKind = RunKind.SPEED, *, name: str = "short", **spec: Any) -> BenchmarkRun:
        benchmarks.create(self.yard.store, [NewRun(kind, name, spec)])
        run = benchmarks.claim(self.yard.store, self.yard.worker_id, [kind])
        assert run is not None
        self.found.append(run)
        return run

    def measure(self, kind: RunKind = RunKind.SPEED, **spec: Any) -> RunEnd:
        return speed.run(self.yard, self.claimed(kind, **spec), self.stop)

    def told(self, name: str = "short") -> list[str]:
        """Fields of gauges that are ours now."""
        return [key.decode() for key in self.yard.redis.hkeys(f"gauges:{name}") if key.startswith(b"api:")]


def dead_url() -> str:
    return f"http://127.0.0.1:{free_port()}"
