"""What the metrics store is told of a deployment: how the latest starts went."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from tieryard.job import State
from tieryard.metrics import Metrics, Observed
from tieryard.store.finish import Ending
from tieryard.store.jobs import Claimed


@dataclass(slots=True)
class _Tally:
    """Sums over one category since the last publication."""

    n: int = 0
    errors: int = 0
    ttft_ms: list[float] = field(default_factory=list)
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

    def add(self, job: Claimed, ending: Ending) -> None:
        """Cancelled and handed-back starts say nothing about the deployment's quality of service."""
        if ending.state not in (State.SUCCEEDED, State.FAILED):
            return
        tally = self._tallies[job.category or "chat"]
        tally.n += 1
        tally.errors += ending.state is State.FAILED
        tally.tokens += ending.completion_tokens
        if ending.ttft_ms is not None:
            tally.ttft_ms.append(ending.ttft_ms)
        if ending.cost_usd is not None:
            tally.cost_usd += float(ending.cost_usd)

    def take(self) -> Tallies:
        """What was collected since the last call. Called on the loop, as `add` is."""
        tallies, self._tallies = self._tallies, defaultdict(_Tally)
        return tallies

    def publish(self, tallies: Tallies) -> None:
        """Raises redis.RedisError. Throughput counts all categories: they share the engine's batch."""
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        total = sum(t.tokens for t in tallies.values())
        for category, tally in tallies.items():
            self._metrics.observe(
                self._deployment,
                category,
                Observed(
                    n=tally.n,
                    ttft_ms=sum(tally.ttft_ms) / len(tally.ttft_ms) if tally.ttft_ms else None,
                    throughput_tps=total / elapsed if total else None,
                    cost_per_1k=1000 * tally.cost_usd / tally.tokens if tally.tokens else None,
                    error_rate=tally.errors / tally.n,
                ),
            )
