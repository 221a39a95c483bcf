"""What the metrics store is told of a deployment: how the latest starts went."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field

from tieryard.endings import start_kind
from tieryard.job import State
from tieryard.metrics import Metrics
from tieryard.profiles import Observed
from tieryard.store.finish import Ending
from tieryard.store.jobs import Claimed

_BUSY_S = 5.0  # of full load are one measurement of throughput: endings come in bursts
_LEAST_MS = 0.01


@dataclass(slots=True)
class _Tally:
    """Sums over one category since the last publication."""

    n: int = 0
    errors: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    tpot_ms: list[float] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    tokens: int = 0
    cost_usd: float = 0.0


Tallies = dict[str, _Tally]


class Observer:
    """Collects endings on the loop; `publish` sends means twice a second from a thread."""

    def __init__(self, metrics: Metrics, deployment: str) -> None:
        self._metrics = metrics
        self._deployment = deployment
        self._tallies: Tallies = defaultdict(_Tally)
        self._since = time.monotonic()
        self._busy_s, self._busy_tokens = 0.0, 0

    def add(self, job: Claimed, ending: Ending) -> None:
        """Cancelled and handed-back starts say nothing about the deployment's quality of service, nor does a failure
        that was its caller's fault, or ours."""
        if ending.state not in (State.SUCCEEDED, State.FAILED) or start_kind(ending) not in ("ok", "failed"):
            return
        tally = self._tallies[job.category or "chat"]
        tally.n += 1
        tally.errors += ending.state is State.FAILED
        tally.tokens += ending.completion_tokens
        if ending.ttft_ms is not None:
            tally.ttft_ms.append(ending.ttft_ms)
            if ending.latency_ms is not None and ending.completion_tokens > 1:
                tally.tpot_ms.append((ending.latency_ms - ending.ttft_ms) / (ending.completion_tokens - 1))
        if ending.state is State.SUCCEEDED:
            tally.lengths[job.tier].append(ending.completion_tokens)
        if ending.cost_usd is not None:
            tally.cost_usd += float(ending.cost_usd)

    def take(self) -> Tallies:
        """What was collected since the last call. Called on the loop, as `add` is."""
        tallies, self._tallies = self._tallies, defaultdict(_Tally)
        return tallies

    def publish(self, tallies: Tallies, *, full: bool = False) -> None:
        """`full`: the engine had all that it takes at once, and more waited; only then is there a throughput to
        measure. It counts all categories: they share the engine's batch. Raises redis.RedisError."""
        throughput_tps = self._throughput(sum(t.tokens for t in tallies.values()), full=full)
        for category, tally in tallies.items():
            self._metrics.observe(self._deployment, category, _observed(tally, throughput_tps))

    def _throughput(self, tokens: int, *, full: bool) -> float | None:
        """Output tokens a second over the last seconds of full load; None until there were enough."""
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        if not full:
            self._busy_s, self._busy_tokens = 0.0, 0
            return None
        self._busy_s += elapsed
        self._busy_tokens += tokens
        if self._busy_s < _BUSY_S or not tokens:
            return None
        measured = self._busy_tokens / self._busy_s
        self._busy_s, self._busy_tokens = 0.0, 0
        return measured


def _observed(tally: _Tally, throughput_tps: float | None) -> Observed:
    ttft_ln, ttft_ln2 = _logarithms(tally.ttft_ms)
    tpot_ln, tpot_ln2 = _logarithms(tally.tpot_ms)
    return Observed(
        n=tally.n,
        error_rate=tally.errors / tally.n,
        ttft_ms=_mean(tally.ttft_ms),
        ttft_ln=ttft_ln,
        ttft_ln2=ttft_ln2,
        tpot_ms=_mean(tally.tpot_ms),
        tpot_ln=tpot_ln,
        tpot_ln2=tpot_ln2,
        throughput_tps=throughput_tps,
        output_tokens=_mean([float(n) for lengths in tally.lengths.values() for n in lengths]),
        lengths={tier: sum(lengths) / len(lengths) for tier, lengths in tally.lengths.items()},
        cost_per_1k=1000 * tally.cost_usd / tally.tokens if tally.tokens else None,
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _logarithms(times_ms: list[float]) -> tuple[float | None, float | None]:
    """Means of the logarithms, and of those squared."""
    found = [math.log(max(value, _LEAST_MS)) for value in times_ms]
    return _mean(found), _mean([x * x for x in found])
