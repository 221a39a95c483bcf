"""Real vLLM on the CPU, where `make setup-vllm` has put it; `make test-vllm` tells the tests where that is.

SmolLM2-135M in 16 bits. vLLM computes on one core and leaves the others to its own server and to us; a start takes
about 40 seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from tieryard.catalog import parse_catalog
from tieryard.engines.vllm_server import VllmServerEngine

PYTHON = os.environ.get("TIERYARD_VLLM_PYTHON", "")
WEIGHTS = os.environ.get("TIERYARD_VLLM_WEIGHTS", "")
NAME = "smol"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_CATALOG = """
version: 1
tiers:
  realtime: {slo: {max_latency_ms: 1000}, window: 60s}
  batch: {slo: {max_latency_ms: 60000}, slo_from: claimed, window: 24h}
categories: [extraction, classification, summarization, reasoning, code, chat]
deployments: %s
"""


def catalog_text(
    *, context: int = 1024, in_flight: int = 16, adapters: Mapping[str, str] | None = None, **flags: Any
) -> str:
    """A catalog of one deployment that starts its own server with these flags, and of its LoRA `adapters` by name."""
    engine = {
        "kind": "vllm_server",
        "weights": WEIGHTS,
        "python": PYTHON,
        "flags": {"enforce_eager": True, **flags},  # else it compiles for minutes
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
    }
    deployment = {
        "model": MODEL,
        "revision": "bf16-from-q4_1",
        "size_class": "small",
        "engine": engine,
        "context_limit": context,
        "max_in_flight": in_flight,
        "tokenizer": WEIGHTS,
        "capabilities": ["json_schema", "logprobs"],
        "price": {"input_usd_per_1m": 0.1, "output_usd_per_1m": 0.4},
    }
    loras = {
        name: {**deployment, "revision": "1", "engine": {"kind": "lora", "host": NAME, "weights": weights}}
        for name, weights in (adapters or {}).items()
    }
    return _CATALOG % json.dumps({NAME: deployment, **loras})


@contextlib.asynccontextmanager
async def serving(cache_dir: Path, **options: Any) -> AsyncIterator[VllmServerEngine]:
    """A server in this process's own care, without a fleet."""
    deployment = parse_catalog(catalog_text(**options)).deployments[NAME]
    engine = VllmServerEngine(NAME, deployment, adapters={}, cache_dir=cache_dir)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
