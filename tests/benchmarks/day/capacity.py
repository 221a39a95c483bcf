"""How many requests a second a fleet sustains within its SLO, under one policy."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmarks.day.outcome import share_missed
from tests.benchmarks.day.policies import Policy
from tests.benchmarks.day.prompts import Halves
from tests.benchmarks.day.traffic import steady
from tests.benchmarks.day.world import World

_SECONDS, _WARM_UP_S = 120.0, 40.0
_ALLOWED = 0.05  # an SLO bounds the 95th percentile
_STEP = 1.05  # how exact the answer is


def sustained_per_s(policy: Callable[[], Policy], halves: Halves, *, start: float = 64.0) -> float:
    """The highest rate of realtime and interactive jobs, half and half, at which neither tier misses more than 5 %.

    It is sought in steps of 5 %; a fresh policy is made for each try.
    """
    low, high = start, start
    while holds(policy(), halves, high):
        low, high = high, 2 * high
    while high == low:
        low = high = high / 2
        if holds(policy(), halves, low):
            high = 2 * low
    while high / low > _STEP:
        middle = (low * high) ** 0.5
        if holds(policy(), halves, middle):
            low = middle
        else:
            high = middle
    return low


def holds(policy: Policy, halves: Halves, rate_per_s: float) -> bool:
    traffic = steady(halves.held_out, rate_per_s=rate_per_s, seconds=_SECONDS)
    runs = [run for run in World(policy, traffic, halves.known).run() if run.job.arrived_s >= _WARM_UP_S]
    return all(
        share_missed([run for run in runs if run.job.tier == tier]) <= _ALLOWED for tier in ("realtime", "interactive")
    )
