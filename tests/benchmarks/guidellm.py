"""Our load and GuideLLM's on the same running server, in rounds that alternate: the same prompts, as many at once. Both
must see the same times to the first and between the next tokens, and the same throughput.

`python -m tests.benchmarks.guidellm` sets up GuideLLM in an environment of its own (6 GB: it brings PyTorch) and fails
where a median is more than 5 % off. The server is the fake, in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.figures import Figure
from tests.benchmarks.report import report
from tieryard.bench.figures import measure
from tieryard.bench.load import Closed, Sampled, run_load
from tieryard.engines.openai_http import OpenAIHttpEngine

OUT = Path("build/bench-guidellm.json")
VENV = Path("build/guidellm")
VERSION = "0.8.1"
PACKAGES = ("tieryard", "httpx", "aiohttp", "httpx-aiohttp")
MOST_OFF = 0.05

ROUNDS = 4
CONCURRENCY = 16
REQUESTS = 8 * CONCURRENCY
TOKENS = 64
SERVER = ("--ttft-ms", "150", "--tokens-per-s", "40", "--length", str(TOKENS), "--capacity", "64")
"""As a small model on a GPU that has some to do."""


@dataclass(frozen=True)
class Seen:
    """What one round has measured: medians of times, and the whole round's output tokens a second."""

    ttft_ms: float
    itl_ms: float
    output_tps: float


def set_up() -> None:
    """Installs GuideLLM where it is not there yet."""
    asked = "import importlib.metadata as m; print(m.version('guidellm'))"
    python = VENV / "bin/python"
    if python.exists():
        found = subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=False)
        if found.stdout.strip() == VERSION:
            return
    print(f"installing GuideLLM {VERSION} into {VENV}", flush=True)
    venv.create(VENV, with_pip=True, clear=True)
    quietly = ["-qq", "--disable-pip-version-check"]
    subprocess.run([str(python), "-m", "pip", "install", *quietly, f"guidellm=={VERSION}"], check=True)


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The fake's address."""
    command = [sys.executable, "-m", "tieryard.testing.fake_vllm", *SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[1]
        finally:
            server.terminate()


def their_round(url: str, prompts: list[str], work: Path) -> Seen:
    """One run of GuideLLM, as its report has it."""
    lines, saved = work / "prompts.jsonl", work / "saved.json"
    lines.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    command = [
        str(VENV / "bin/guidellm"), "run",
        "--backend", f"kind=openai_http,target={url},model=fake,max_tokens={TOKENS}",
        "--profile", f"kind=concurrent,streams={CONCURRENCY}",
        "--constraint", f"kind=max_requests,count={len(prompts)}",
        "--data", f"kind=json_file,path={lines}",
        "--output", f"kind=json,path={saved}", "--disable-console",
    ]  # fmt: skip
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "huggingface")}
    done = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
    if not saved.exists():
        raise SystemExit(f"guidellm run: {done.returncode}\n{done.stdout}{done.stderr}")
    [found] = json.loads(saved.read_text())["benchmarks"]
    saved.unlink()
    counts, metrics = found["scheduler_metrics"]["requests_made"], found["metrics"]
    tokens = sum(one["output_tokens"] for one in found["requests"]["successful"])
    if (counts["successful"], tokens) != (len(prompts), len(prompts) * TOKENS):
        raise SystemExit(f"guidellm run: {counts}, {tokens} tokens; not the same work")
    return Seen(
        metrics["time_to_first_token_ms"]["successful"]["median"],
        metrics["inter_token_latency_ms"]["successful"]["median"],
        metrics["output_tokens_per_second"]["successful"]["mean"],
    )


async def our_round(url: str, prompts: list[str]) -> Seen:
    engine = OpenAIHttpEngine(url, model="fake")
    sample = [Sampled({"messages": [{"role": "user", "content": p}], "max_tokens": TOKENS}) for p in prompts]
    try:
        run = await run_load(engine, sample, Closed(CONCURRENCY, len(sample)))
    finally:
        await engine.close()
    [found] = measure(run, deployment="fake").values()
    if found.succeeded != len(prompts) or found.output_tokens != TOKENS:
        raise SystemExit(f"our load: {found}; not the same work")
    assert found.service_ttft_ms is not None
    assert found.itl_ms is not None
    assert found.output_tps is not None
    return Seen(found.service_ttft_ms.p50, found.itl_ms.p50, found.output_tps)


def figures(ours: list[Seen], theirs: list[Seen]) -> list[Figure]:
    return [
        Figure.median(
            f"load_{name}",
            unit,
            [getattr(seen, name) for seen in ours],
            peer=f"guidellm {VERSION}",
            peer_values=[getattr(seen, name) for seen in theirs],
        )
        for name, unit in (("ttft_ms", "ms"), ("itl_ms", "ms"), ("output_tps", "tok/s"))
    ]


def main() -> None:
    set_up()
    ours: list[Seen] = []
    theirs: list[Seen] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as work, serving() as url:
        for n in range(ROUNDS):
            prompts = [f"Letter {i} of round {n}: what is the way to the harbour?" for i in range(REQUESTS)]
            if n % 2 == 0:  # who comes first changes too
                theirs.append(their_round(url, prompts, Path(work)))
            ours.append(asyncio.run(our_round(url, prompts)))
            if n % 2:
                theirs.append(their_round(url, prompts, Path(work)))
            print(f"round {n}: ours {ours[-1]}, GuideLLM {theirs[-1]}", flush=True)
    found = figures(ours, theirs)
    report(OUT, found, PACKAGES, {"guidellm": VERSION})
    if off := [f.figure for f in found if abs(f.ratio - 1) > MOST_OFF]:
        raise SystemExit(f"more than {MOST_OFF:.0%} off: {', '.join(off)}")


if __name__ == "__main__":
    main()
