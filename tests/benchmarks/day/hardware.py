"""The deployments of the day: published speeds by load, rents and prices, each with where it is from.

- small, TPOT and TTFT by concurrency: Qwen2.5-7B-Instruct on one RTX A6000, vLLM 0.23.0, 2026-06-27 (ld-singh, "AI
  factory ops lab", inference benchmark report). Its TTFT at 8 is left out: 12 requests, and slower than at 64.
- medium, TPOT by concurrency: Cohere Command R 08-2024 (32B) on one Small Cohere V2 unit (Oracle Cloud, "Scenario 1:
  Stochastic Length Benchmarks", 480 ± 240 prompt tokens, 300 ± 150 output tokens).
- medium, prefill: the same model's scenarios 1 and 2 (2,000 in, 200 out) at concurrency 1, two equations for the time a
  prompt token and an output token takes: 0.042 ms.
- large, TPOT and TTFT by concurrency: Llama 3.3 70B on one Large Generic unit (Oracle Cloud, "Meta Llama 3.3 (70B)"
  benchmark, the same scenario).
- rents: RunPod's serverless pricing, active workers: USD 0.00024, 0.00093, 0.00060 a second for A6000, H100, A100.

Assumed, since nobody says: Oracle's units are taken for 2 × H100 (medium) and 4 × A100 80 GB (large), which fits what
their decode speeds need in memory bandwidth; the medium one's TTFT grows with load as the large one's does, scaled by
their prefill; the small one prefills 5,000 tokens/s; replicas take 128, 64 and 64 requests at once.
Prices are notional, 1 : 3 : 10, a prompt token at a quarter of an output token.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from tieryard.catalog import SizeClass

_LEAST_TTFT_MS = 5.0


@dataclass(frozen=True)
class Curve:
    """How fast one replica is with `n` requests in it: published points, straight lines between them. `ttft_ms` holds
    for prompts of `at_prompt_tokens`; each token more or less costs `prefill_ms`."""

    n: tuple[int, ...]
    tpot_ms: tuple[float, ...]
    ttft_ms: tuple[float, ...]
    at_prompt_tokens: int
    prefill_ms: float

    def tpot(self, n: int) -> float:
        """Milliseconds an output token."""
        return _between(self.n, self.tpot_ms, n)

    def ttft(self, n: int, prompt_tokens: int) -> float:
        """Milliseconds to the first token."""
        more = (prompt_tokens - self.at_prompt_tokens) * self.prefill_ms
        return max(_LEAST_TTFT_MS, _between(self.n, self.ttft_ms, n) + more)

    def throughput_tps(self, n: int) -> float:
        """Output tokens a second of one replica with `n` requests in it."""
        return 1000 * n / self.tpot(n)


@dataclass(frozen=True)
class Hardware:
    """One deployment's kind of replica. `outcomes` is the model of the data whose scores stand in for its answers."""

    name: str
    size_class: SizeClass
    outcomes: str
    curve: Curve
    slots: int
    reserve: int
    gpus: str
    rent_usd_per_hour: Decimal
    input_usd_per_1m: Decimal
    output_usd_per_1m: Decimal


def _between(xs: tuple[int, ...], ys: tuple[float, ...], x: int) -> float:
    if x <= xs[0]:
        return ys[0]
    for i in range(1, len(xs)):
        if x <= xs[i]:
            part = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
            return ys[i - 1] + part * (ys[i] - ys[i - 1])
    return ys[-1] * x / xs[-1]  # beyond what was measured: no more throughput


def _per_token(speeds_tps: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(1000 / speed for speed in speeds_tps)


_ORACLE_N = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LARGE_TTFT_MS = (50.0, 60.0, 60.0, 70.0, 90.0, 160.0, 400.0, 1290.0, 4090.0)
_LARGE_PREFILL_MS, _MEDIUM_PREFILL_MS = 50 / 480, 0.042

SMALL = Hardware(
    name="small",
    size_class=SizeClass.SMALL,
    outcomes="mistral-7b-instruct-v0.3",
    curve=Curve(
        n=(1, 2, 4, 64, 128, 256),
        tpot_ms=(21.9, 22.0, 22.1, 27.5, 36.0, 53.1),
        ttft_ms=(47.0, 67.0, 67.0, 87.0, 126.0, 299.0),
        at_prompt_tokens=60,
        prefill_ms=0.2,
    ),
    slots=128,
    reserve=16,
    gpus="1 × RTX A6000",
    rent_usd_per_hour=Decimal("0.864"),
    input_usd_per_1m=Decimal("0.10"),
    output_usd_per_1m=Decimal("0.40"),
)
MEDIUM = Hardware(
    name="medium",
    size_class=SizeClass.MEDIUM,
    outcomes="gemma-2-9b-it",
    curve=Curve(
        n=_ORACLE_N,
        tpot_ms=_per_token((143.82, 141.16, 136.15, 121.71, 105.84, 88.15, 67.40, 45.86, 24.14)),
        ttft_ms=tuple(round(ms * _MEDIUM_PREFILL_MS / _LARGE_PREFILL_MS, 1) for ms in _LARGE_TTFT_MS),
        at_prompt_tokens=480,
        prefill_ms=_MEDIUM_PREFILL_MS,
    ),
    slots=64,
    reserve=8,
    gpus="2 × H100",
    rent_usd_per_hour=Decimal("6.696"),
    input_usd_per_1m=Decimal("0.30"),
    output_usd_per_1m=Decimal("1.20"),
)
LARGE = Hardware(
    name="large",
    size_class=SizeClass.LARGE,
    outcomes="llama-3.1-nemotron-51b-instruct",
    curve=Curve(
        n=_ORACLE_N,
        tpot_ms=_per_token((58.64, 57.98, 56.74, 54.74, 50.89, 44.32, 35.74, 25.60, 15.27)),
        ttft_ms=_LARGE_TTFT_MS,
        at_prompt_tokens=480,
        prefill_ms=_LARGE_PREFILL_MS,
    ),
    slots=64,
    reserve=8,
    gpus="4 × A100 80 GB",
    rent_usd_per_hour=Decimal("8.64"),
    input_usd_per_1m=Decimal("1.00"),
    output_usd_per_1m=Decimal("4.00"),
)
BY_NAME = {h.name: h for h in (SMALL, MEDIUM, LARGE)}
Fleet = dict[str, int]
"""Replicas by deployment."""

MIXED: Fleet = {"small": 2, "medium": 1, "large": 1}
ONLY_LARGE: Fleet = {"large": 2}
ONLY_SMALL: Fleet = {"small": 4}


def rent_usd_per_hour(fleet: Fleet) -> Decimal:
    return sum((BY_NAME[name].rent_usd_per_hour * n for name, n in fleet.items()), Decimal(0))
