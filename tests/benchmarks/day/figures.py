"""Every figure of the simulated day, for `build/router-eval.json` and the page about it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from statistics import fmean
from typing import Any

from tests.benchmarks.day import predictions, prompts, traffic
from tests.benchmarks.day.capacity import sustained_per_s
from tests.benchmarks.day.hardware import MIXED, rent_usd_per_hour
from tests.benchmarks.day.outcome import NOON_S, Outcome, cost_usd, share_missed
from tests.benchmarks.day.policies import Ours, Policy, Predictions, baselines
from tests.benchmarks.day.prompts import Halves
from tests.benchmarks.day.traffic import Traffic
from tests.benchmarks.day.world import Outage, World

JOBS = 150_000
NOON = Outage("large", 12 * 3600, 12.5 * 3600)
ALWAYS_LARGE, RULES = "always large", "ours (rules)"
TABLE, LEARNED = "ours (task table)", "ours (learned)"
_FRONTIER = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)  # of `routing.quality_worth`
_OTHER_SMALL = ("qwen2.5-7b-instruct", "llama-3.1-8b-instruct")

# What is said of routers of this kind: the headlines that the day is held against.
CLAIMED = {"cost": -0.64, "requests_per_s": 3.2, "p99_ms": (340, 85), "quality": 0.94}


@dataclass(frozen=True)
class Day:
    """All policies' outcomes, and the traffic they had."""

    halves: Halves
    traffic: Traffic
    outcomes: dict[str, Outcome]
    decide_us: dict[str, float]
    policies: Mapping[str, Callable[[], Policy]]

    @property
    def large(self) -> Outcome:
        return self.outcomes[ALWAYS_LARGE]


def learned_by_name(halves: Halves) -> dict[str, Predictions]:
    """What was learned from the known half, by the name of the router that goes by it."""
    found: dict[str, Predictions] = {TABLE: predictions.by_task(halves)}
    if (model := predictions.learned(halves)) is not None:
        found[LEARNED] = model
    return found


def makers(learned: Mapping[str, Predictions]) -> dict[str, Callable[[], Policy]]:
    """A fresh policy each time, by name."""
    fixed: dict[str, Callable[[], Policy]] = {
        name: lambda name=name: next(p for p in baselines() if p.name == name)  # type: ignore[misc]
        for name in (p.name for p in baselines())
    }
    taught: dict[str, Callable[[], Policy]] = {
        name: lambda name=name, found=found: Ours(name, predictions=found)  # type: ignore[misc]
        for name, found in learned.items()
    }
    return {**fixed, RULES: lambda: Ours(RULES), **taught}


def play(halves: Halves, *, jobs: int = JOBS) -> Day:
    """The same day under each policy."""
    arrivals = traffic.day(halves.held_out, jobs=jobs)
    outcomes, decide_us, policies = {}, {}, makers(learned_by_name(halves))
    for name, make in policies.items():
        policy = make()
        runs = World(policy, arrivals, halves.known, outage=NOON).run()
        outcomes[name] = Outcome(name, policy.fleet, runs)
        if isinstance(policy, Ours):
            decide_us[name] = round(1e6 * fmean(policy.seconds), 1)
    return Day(halves, arrivals, outcomes, decide_us, policies)


def figures(day: Day | None = None) -> dict[str, Any]:
    """All of them. Raises FileNotFoundError where the data is not at hand."""
    day = day or play(prompts.read())
    policies = {name: outcome.figures(day.large) for name, outcome in day.outcomes.items()}
    sustained = _sustained(day)
    return {
        "jobs": day.traffic.total,
        "policies": policies,
        "decide_us": day.decide_us,
        "sustained": sustained,
        "frontier": _frontier(day),
        "outages": _outages(day),
        "other_small": _other_small(day),
        "claims": claims(policies, sustained),
    }


def _sustained(day: Day) -> dict[str, dict[str, Any]]:
    """Requests a second within the SLO, and what a million of them cost in rent then."""
    found: dict[str, dict[str, Any]] = {}
    for name, make in day.policies.items():
        rate, rent = sustained_per_s(make, day.halves), rent_usd_per_hour(make().fleet)
        per_million = rent / Decimal(3600 * rate) * 1_000_000
        found[name] = {
            "requests_per_s": round(rate, 1),
            "rent_usd_per_hour": str(rent),
            "rent_usd_per_1m_requests": str(round(per_million, 2)),
        }
    large = found[ALWAYS_LARGE]["requests_per_s"]
    for row in found.values():
        row["of_large"] = round(row["requests_per_s"] / large, 2)
    return found


def _frontier(day: Day) -> list[dict[str, Any]]:
    """What `quality_worth` trades, for each that has learned: some minutes of steady traffic without any outage."""
    halves = day.halves
    arrivals = traffic.steady(halves.held_out, rate_per_s=6, seconds=600)

    def outcome(name: str, worth: float | None = None) -> Outcome:
        policy = day.policies[name]()
        if worth is not None:
            policy.rules = replace(policy.rules, quality_worth=worth)
        return Outcome(name, policy.fleet, World(policy, arrivals, halves.known).run())

    large, rows = outcome(ALWAYS_LARGE), []
    for name, worth in itertools.product((n for n in (TABLE, LEARNED) if n in day.policies), _FRONTIER):
        ours = outcome(name, worth)
        rows.append({
            "policy": name,
            "quality_worth": worth,
            "quality_of_large": round(ours.quality / large.quality, 3),
            "cost_of_large": round(float(cost_usd(ours.runs) / cost_usd(large.runs)), 3),
        })  # fmt: skip
    return rows


def _outages(day: Day) -> list[dict[str, Any]]:
    """Each deployment in turn is away for half an hour at noon. Misses are of what is waited for."""
    arrivals = day.traffic.between(NOON_S[0], NOON_S[1])
    rows = []
    for deployment in ("small", "medium", "large"):
        runs = World(Ours(RULES), arrivals, day.halves.known, outage=replace(NOON, deployment=deployment)).run()
        waited_for = Outcome(RULES, MIXED, runs).waited_for()
        rows.append({
            "away": deployment,
            "jobs": len(waited_for),
            "missed": round(share_missed(waited_for), 5),
            "expired": sum(run.end == "expired" for run in waited_for),
        })  # fmt: skip
    return rows


def _other_small(day: Day) -> dict[str, dict[str, float]]:
    """Quality of the policies that do not look at it, of always-large's, were the small deployment another model."""

    def quality(outcome: Outcome, small: str) -> float:
        scores = [
            run.job.prompt.all_scores[small] if run.deployment == "small" else run.job.prompt.scores[run.deployment]
            for run in outcome.answered
        ]
        return round(fmean(scores) / day.large.quality, 4)

    blind = ("always small", "by length", "random", RULES)
    return {small: {name: quality(day.outcomes[name], small) for name in blind} for small in _OTHER_SMALL}


def claims(policies: dict[str, Any], sustained: dict[str, Any]) -> list[dict[str, Any]]:
    """Each headline claim beside what each of our routers does here."""
    ours = [name for name in policies if name.startswith("ours")]
    p99 = {name: policies[name]["tiers"]["realtime"]["latency_ms"]["p99"] for name in [ALWAYS_LARGE, *ours]}
    return [
        {"claim": "cost", "claimed": CLAIMED["cost"],
         "measured": {n: round(policies[n]["cost_of_large"] - 1, 3) for n in ours}},
        {"claim": "requests_per_s", "claimed": CLAIMED["requests_per_s"],
         "measured": {n: sustained[n]["of_large"] for n in ours}},
        {"claim": "p99_ms", "claimed": CLAIMED["p99_ms"],
         "measured": {n: (p99[ALWAYS_LARGE], p99[n]) for n in ours}},
        {"claim": "quality", "claimed": CLAIMED["quality"],
         "measured": {n: policies[n]["quality_of_large"] for n in ours}},
    ]  # fmt: skip
