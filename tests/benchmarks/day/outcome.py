"""What came of one policy's day: money, quality, misses and latencies, in all, by tier and by hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean
from typing import Any

from tests.benchmarks.day.hardware import BY_NAME, Fleet, rent_usd_per_hour
from tests.benchmarks.day.servers import Run
from tests.benchmarks.day.traffic import TIERS

_MILLION = Decimal(1_000_000)
_WAITED_FOR = ("realtime", "interactive")  # somebody waits for these
NOON_S = (11 * 3600 + 55 * 60, 12 * 3600 + 40 * 60)  # five minutes before the outage to ten after it


def cost_usd(runs: Iterable[Run]) -> Decimal:
    """Of the answers, by the prices of the deployments that gave them."""
    prompt: Counter[str] = Counter()
    output: Counter[str] = Counter()
    for run in runs:
        if run.end == "succeeded":
            prompt[run.deployment] += run.job.prompt_tokens
            output[run.deployment] += run.job.output_tokens
    return sum(
        (
            (BY_NAME[n].input_usd_per_1m * prompt[n] + BY_NAME[n].output_usd_per_1m * output[n]) / _MILLION
            for n in prompt
        ),
        Decimal(0),
    )


def latency_ms(run: Run) -> float:
    """End to end, or from the claim where the tier counts so."""
    since_s = run.claimed_s if TIERS[run.job.tier].from_claim else run.job.arrived_s
    return 1000 * (run.ended_s - since_s)


def ttft_ms(run: Run) -> float:
    """From acceptance to the first token."""
    return 1000 * (run.first_s - run.job.arrived_s)


def missed(run: Run) -> bool:
    """Whether it broke its tier's SLO or its deadline, or was never answered."""
    if run.end != "succeeded" or run.ended_s > run.job.due_s:
        return True
    tier = TIERS[run.job.tier]
    too_late = tier.max_ttft_ms is not None and ttft_ms(run) > tier.max_ttft_ms
    return too_late or (tier.max_latency_ms is not None and latency_ms(run) > tier.max_latency_ms)


def share_missed(runs: Sequence[Run]) -> float:
    return sum(map(missed, runs)) / len(runs) if runs else 0.0


def percentile(values: list[float], p: float) -> float:
    """The p-th of sorted values, by nearest rank."""
    return values[min(len(values) - 1, int(p / 100 * len(values)))] if values else 0.0


@dataclass(frozen=True)
class Outcome:
    """One policy's day. `quality` is the mean score of what was answered; latencies are of those."""

    policy: str
    fleet: Fleet
    runs: list[Run]

    @property
    def answered(self) -> list[Run]:
        return [run for run in self.runs if run.end == "succeeded"]

    @property
    def quality(self) -> float:
        return fmean(run.job.prompt.scores[run.deployment] for run in self.answered)

    def waited_for(self) -> list[Run]:
        """Realtime and interactive jobs."""
        return [run for run in self.runs if run.job.tier in _WAITED_FOR]

    def figures(self, large: Outcome) -> dict[str, Any]:
        """For the file of figures; relative ones are of `large`'s."""
        cost, answered = cost_usd(self.runs), self.answered
        shares = Counter(run.deployment for run in answered)
        noon = [run for run in self.waited_for() if NOON_S[0] <= run.job.arrived_s < NOON_S[1]]
        return {
            "jobs": len(self.runs),
            "expired": len(self.runs) - len(answered),
            "fleet": self.fleet,
            "rent_usd": str(24 * rent_usd_per_hour(self.fleet)),
            "cost_usd": str(round(cost, 4)),
            "cost_of_large": round(float(cost / cost_usd(large.runs)), 4),
            "quality": round(self.quality, 4),
            "quality_of_large": round(self.quality / large.quality, 4),
            "shares": {name: round(n / len(answered), 4) for name, n in sorted(shares.items())},
            "missed": round(share_missed(self.runs), 5),
            "missed_when_waited_for": round(share_missed(self.waited_for()), 5),
            "missed_at_noon": round(share_missed(noon), 5),
            "fallbacks": sum(run.fallback for run in self.runs),
            "deferrals": sum(run.deferrals for run in self.runs),
            "tiers": {name: self._tier(name) for name in TIERS},
        }

    def _tier(self, tier: str) -> dict[str, Any]:
        runs = [run for run in self.runs if run.job.tier == tier]
        answered = [run for run in runs if run.end == "succeeded"]
        latencies, firsts = sorted(map(latency_ms, answered)), sorted(map(ttft_ms, answered))
        return {
            "jobs": len(runs),
            "missed": round(share_missed(runs), 5),
            "expired": len(runs) - len(answered),
            "latency_ms": {f"p{p}": round(percentile(latencies, p), 1) for p in (50, 95, 99)},
            "ttft_ms": {f"p{p}": round(percentile(firsts, p), 1) for p in (50, 95, 99)},
        }

    def by_hour(self) -> list[tuple[Decimal, float]]:
        """(cost in USD, share missed of what is waited for) of what arrived in each hour."""
        hours: list[list[Run]] = [[] for _ in range(24)]
        for run in self.runs:
            hours[min(23, int(run.job.arrived_s // 3600))].append(run)
        return [(cost_usd(h), share_missed([r for r in h if r.job.tier in _WAITED_FOR])) for h in hours]
