"""The day's arrivals, drawn once from a seed: who comes when, with which prompt, and each job's own luck."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.benchmarks.day.prompts import Prompt
from tieryard.ids import draw

DAY_S = 86_400.0
_HOUR_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier's SLO as the fleet's catalog has it (deploy/tieryard.yaml). `from_claim`: latency leaves out the wait."""

    name: str
    window_s: float
    max_ttft_ms: float | None = None
    max_latency_ms: float | None = None
    from_claim: bool = False


TIERS = {
    tier.name: tier
    for tier in (
        Tier("realtime", 60, max_ttft_ms=300, max_latency_ms=1_000),
        Tier("interactive", 300, max_ttft_ms=1_000, max_latency_ms=5_000),
        Tier("batch", DAY_S, max_latency_ms=60_000, from_claim=True),
        Tier("bulk", DAY_S),
    )
}

# Median output tokens of an answer, by task: assumed. Jobs that nobody waits for are asked to show their working.
_ANSWER_TOKENS = {
    "trivia_qa": 12, "natural_qa": 12, "arc_challenge": 8, "commonsense_qa": 8, "openbook_qa": 8, "mmlu": 8, "gpqa": 60,
    "commongen": 40, "agentverse-mgsm": 110, "agentverse-logicgrid": 150, "gsm8k": 120, "mbpp": 90, "human_eval": 130,
    "math": 150,
}  # fmt: skip
_WORKING_TOKENS = 120
_SHORT = frozenset({"trivia_qa", "natural_qa", "arc_challenge", "commonsense_qa", "openbook_qa", "mmlu"})
_OUTPUT_SIGMA, _CONTEXT_SIGMA = 0.35, 0.6
_CONTEXT_TOKENS = 200  # median, in front of the prompt: a system prompt and what was looked up; assumed
_TTFT_SIGMA, _TPOT_SIGMA = 0.2, 0.05  # a request's own luck, around the published figures


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it arrives. `due_s` is the end of its window or its list's deadline, in seconds of the day.
    `ttft_luck` and `tpot_luck` multiply the engine's times, whichever engine it is."""

    id: int
    tier: str
    arrived_s: float
    due_s: float
    prompt: Prompt
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    ttft_luck: float
    tpot_luck: float
    draw: float


@dataclass(frozen=True, slots=True)
class JobList:
    """Jobs handed in together, which the feeder releases."""

    arrived_s: float
    due_s: float
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Traffic:
    """`singles` by arrival, `lists` by arrival."""

    singles: tuple[Job, ...]
    lists: tuple[JobList, ...]

    @property
    def total(self) -> int:
        return len(self.singles) + sum(len(batch.jobs) for batch in self.lists)

    def between(self, start_s: float, end_s: float) -> Traffic:
        """What arrives in a part of the day, at the same times."""
        singles = tuple(job for job in self.singles if start_s <= job.arrived_s < end_s)
        return Traffic(singles, tuple(batch for batch in self.lists if start_s <= batch.arrived_s < end_s))


class Maker:
    """Draws jobs one after the other; the same seed gives the same jobs."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self._random = random.Random(seed)
        self._ids = itertools.count(1)
        short = [p for p in prompts if p.task in _SHORT]
        self._by_tier = {"realtime": short, "interactive": list(prompts), "batch": list(prompts), "bulk": list(prompts)}

    def job(self, tier: str, at_s: float, due_s: float) -> Job:
        r = self._random
        prompt = r.choice(self._by_tier[tier])
        median = _ANSWER_TOKENS[prompt.task] + (_WORKING_TOKENS if tier in ("batch", "bulk") else 0)
        number = next(self._ids)
        return Job(
            id=number,
            tier=tier,
            arrived_s=at_s,
            due_s=due_s,
            prompt=prompt,
            prompt_tokens=prompt.tokens + int(r.lognormvariate(math.log(_CONTEXT_TOKENS), _CONTEXT_SIGMA)),
            output_tokens=max(1, round(r.lognormvariate(math.log(median), _OUTPUT_SIGMA))),
            max_tokens=4 * median,
            ttft_luck=r.lognormvariate(0, _TTFT_SIGMA),
            tpot_luck=r.lognormvariate(0, _TPOT_SIGMA),
            draw=draw(number),
        )

    def single(self, tier: str, at_s: float) -> Job:
        return self.job(tier, at_s, at_s + TIERS[tier].window_s)

    def together(self, tier: str, at_s: float, due_s: float, n: int) -> JobList:
        return JobList(at_s, due_s, tuple(self.job(tier, at_s, due_s) for _ in range(n)))

    def poisson(self, rate_per_s: float, start_s: float, end_s: float) -> Iterator[float]:
        """Times of arrival at a steady rate."""
        at = start_s
        while rate_per_s > 0 and (at := at + self._random.expovariate(rate_per_s)) < end_s:
            yield at


# (arrives at, deadline, share of all bulk jobs): dumps at night, one tight, and two by day
_DUMPS = (
    (0.25, 6.0, 0.20), (1.0, 1.5, 0.20), (3.0, 7.0, 0.25), (9.5, 12.0, 0.08), (14.0, 18.0, 0.07), (21.0, 23.5, 0.20),
)  # fmt: skip
_BURSTS, _BURST_S, _BURST_FACTOR = 40, (30.0, 120.0), 6.0
_MIX = {"realtime": 0.38, "interactive": 0.37, "batch": 0.07, "bulk": 0.18}
_BATCH_LIST = (50, 300)


def busy(at_s: float) -> float:
    """How busy the hour is: 1 at 14:00, a fifth of that at 02:00."""
    return 0.6 - 0.4 * math.cos(2 * math.pi * (at_s / _HOUR_S - 2) / 24)


def day(prompts: Sequence[Prompt], *, jobs: int, seed: int = 20261123) -> Traffic:
    """About so many jobs over 24 hours, and a third as many again in bursts."""
    maker, r = Maker(prompts, seed), random.Random(seed + 1)
    bursts = sorted((r.uniform(6, 22) * _HOUR_S, r.uniform(*_BURST_S)) for _ in range(_BURSTS))
    singles = [*_singles(maker, "realtime", jobs, bursts), *_singles(maker, "interactive", jobs, bursts)]
    singles.sort(key=lambda job: job.arrived_s)
    lists = list(_lists(maker, r, jobs))
    lists.sort(key=lambda batch: batch.arrived_s)
    return Traffic(tuple(singles), tuple(lists))


def steady(prompts: Sequence[Prompt], *, rate_per_s: float, seconds: float, seed: int = 7) -> Traffic:
    """Realtime and interactive jobs at one rate, half and half: for what a fleet can sustain."""
    maker = Maker(prompts, seed)
    found = [
        maker.single(tier, at)
        for tier in ("realtime", "interactive")
        for at in maker.poisson(rate_per_s / 2, 0, seconds)
    ]
    return Traffic(tuple(sorted(found, key=lambda job: job.arrived_s)), ())


def _singles(maker: Maker, tier: str, jobs: int, bursts: list[tuple[float, float]]) -> Iterator[Job]:
    """Minute by minute: the hour's rate, six times that in a burst."""
    mean = 0.6
    for minute in range(int(DAY_S // 60)):
        start = 60.0 * minute
        rate = _MIX[tier] * jobs / DAY_S * busy(start) / mean
        if any(start < at + long and start + 60 > at for at, long in bursts):
            rate *= _BURST_FACTOR
        for at in maker.poisson(rate, start, start + 60):
            yield maker.single(tier, at)


def _lists(maker: Maker, r: random.Random, jobs: int) -> Iterator[JobList]:
    left = round(_MIX["batch"] * jobs)
    while left > 0:
        n, at = min(left, r.randint(*_BATCH_LIST)), r.triangular(6, 22, 14) * _HOUR_S
        left -= n
        yield maker.together("batch", at, at + DAY_S, n)
    for arrives, deadline, share in _DUMPS:
        n = round(_MIX["bulk"] * jobs * share)
        yield maker.together("bulk", arrives * _HOUR_S, deadline * _HOUR_S, n)
