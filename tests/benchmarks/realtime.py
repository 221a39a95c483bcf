"""What a realtime job, and a call that waits, lose behind a long bulk queue, beside the idle fleet.

The engine is the fake vLLM: it has a real capacity and a real decode rate, so bulk keeps it full.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx
import orjson

from tests.benchmarks.figures import Figure
from tieryard.embedded import free_port
from tieryard.supervisor import Fleet
from tieryard.testing.fake_vllm import FakePlan, FakeVllm

CATALOG = Path(__file__).parents[1] / "catalogs" / "fake.yaml"
KEY = "ty_bench"
PROBES = 60
BULK = 10_000


def wait_ms(client: httpx.Client) -> float:
    """One realtime job's wait from acceptance to claim, as its timing row has it."""
    job = client.post("/v1/jobs", json={"prompt": "Say hi.", "tier": "realtime", "max_tokens": 4}).json()
    while job.get("finished_at") is None:
        time.sleep(0.01)
        job = client.get(f"/v1/jobs/{job['id']}").json()
    if job["state"] != "succeeded":
        raise SystemExit(f"realtime job: {job}")
    return float(job["timings"]["wait_ms"])


def ttft_ms(client: httpx.Client) -> float:
    """A call's time to the first token, by its caller's clock."""
    asked = {"model": "auto", "messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4, "stream": True}
    started = time.monotonic()
    with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            [choice] = orjson.loads(line.removeprefix("data: "))["choices"]
            if choice["delta"].get("content"):
                return (time.monotonic() - started) * 1000
    raise SystemExit("a call ended without a token")


def run(work: Path) -> list[Figure]:
    os.environ["TIERYARD_API_KEY"] = KEY
    plan = FakePlan(ttft_ms=20, tokens_per_s=200, capacity=32)
    with FakeVllm.in_thread(plan) as fake:
        catalog = work / "fake.yaml"
        catalog.write_text(CATALOG.read_text().replace("http://fake.invalid", fake.url))
        with Fleet(work / "fleet", port=free_port(), catalog=catalog) as fleet:
            fleet.wait_until_ready()
            headers = {"authorization": f"Bearer {KEY}"}
            with httpx.Client(base_url=fleet.url, headers=headers, timeout=120, trust_env=False) as client:
                for _ in range(5):
                    wait_ms(client)
                    ttft_ms(client)
                idle = [wait_ms(client) for _ in range(PROBES)]
                idle_calls = [ttft_ms(client) for _ in range(PROBES)]
                lines = [orjson.dumps({"prompt": f"Write about {i}.", "max_tokens": 32}) for i in range(BULK)]
                bulk = client.post(
                    "/v1/jobs?tier=bulk", content=b"\n".join(lines), headers={"content-type": "application/x-ndjson"}
                ).json()
                while client.get(f"/v1/batches/{bulk['id']}").json()["counts"]["succeeded"] < 100:
                    time.sleep(0.1)
                behind = [wait_ms(client) for _ in range(PROBES)]
                calls = [ttft_ms(client) for _ in range(PROBES)]
                counts = client.get(f"/v1/batches/{bulk['id']}").json()["counts"]
                if counts["succeeded"] > BULK - 1000:
                    raise SystemExit(f"the bulk queue ran dry while probing: {counts}")
    measured = {"realtime_wait": (behind, idle), "call_ttft": (calls, idle_calls)}
    return [
        Figure.percentile(
            f"{name}_p{p}_behind_10000_bulk", "ms", p, values, peer="the same on the idle fleet", peer_values=peers
        )
        for name, (values, peers) in measured.items()
        for p in (50, 95)
    ]
