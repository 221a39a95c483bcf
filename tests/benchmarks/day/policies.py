"""Who decides: the fleet's own router, and what it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tests.benchmarks.day.hardware import MIXED, ONLY_LARGE, ONLY_SMALL, Fleet
from tests.benchmarks.day.live import TOKENIZER, rules
from tests.benchmarks.day.servers import Run
from tests.benchmarks.day.traffic import Job
from tieryard.routing import JobFeatures, Rules, Snapshot, decide
from tieryard.routing.features import LARGE_ABOVE_WORDS, MEDIUM_ABOVE_WORDS
from tieryard.routing.job import AUTO


@dataclass(frozen=True, slots=True)
class Choice:
    """`deployment` is None for a job that waits `defer_s` and is decided on again."""

    deployment: str | None
    defer_s: float = 0.0
    fallback: bool = False


class Policy(Protocol):
    """`fleet` is what it runs on."""

    name: str
    fleet: Fleet
    rules: Rules

    def choose(self, run: Run, now_s: float, snapshot: Callable[[], Snapshot]) -> Choice: ...


@dataclass(frozen=True, slots=True)
class Prediction:
    """A learned model's word on one prompt that it never saw. See `JobFeatures`."""

    hardness: float
    predicted: dict[str, float]


Predictions = Mapping[str, Prediction]
"""By the prompt's text."""


@dataclass
class Ours:
    """`tieryard.routing.decide`, on what the fleet would know. `seconds` is what each decision took, for the report."""

    name: str
    fleet: Fleet = field(default_factory=lambda: MIXED)
    predictions: Predictions | None = None
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rules = rules("rules" if self.predictions is None else "learned")

    def choose(self, run: Run, now_s: float, snapshot: Callable[[], Snapshot]) -> Choice:
        seen = snapshot()
        began = time.perf_counter()
        decision = decide(self._features(run.job, now_s), seen)
        self.seconds.append(time.perf_counter() - began)
        return Choice(decision.deployment, decision.defer_s, decision.fallback)

    def _features(self, job: Job, now_s: float) -> JobFeatures:
        found = self.predictions[job.prompt.text] if self.predictions is not None else None
        return JobFeatures(
            text=job.prompt.features,
            model=AUTO,
            prompt_tokens={TOKENIZER: job.prompt_tokens},
            max_tokens=job.max_tokens,
            tier=job.tier,
            due_in_s=job.due_s - now_s,
            hardness=found.hardness if found else None,
            predicted=found.predicted if found else {},
            draw=job.draw,
        )


@dataclass
class Fixed:
    """A rule that knows the job and nothing of the fleet."""

    name: str
    fleet: Fleet
    rule: Callable[[Job], str]
    rules: Rules = field(default_factory=lambda: rules("rules"))

    def choose(self, run: Run, now_s: float, snapshot: Callable[[], Snapshot]) -> Choice:
        return Choice(self.rule(run.job))


def by_length(job: Job) -> str:
    """More words, a larger model: the thresholds of our own rules, and nothing else of them."""
    words = job.prompt.features.words
    return "large" if words > LARGE_ABOVE_WORDS else "medium" if words > MEDIUM_ABOVE_WORDS else "small"


def at_random(job: Job) -> str:
    """A third each."""
    return ("small", "medium", "large")[int(3 * ((job.draw * 6151) % 1.0))]


def baselines() -> list[Fixed]:
    return [
        Fixed("always large", ONLY_LARGE, lambda _: "large"),
        Fixed("always small", ONLY_SMALL, lambda _: "small"),
        Fixed("by length", MIXED, by_length),
        Fixed("random", MIXED, at_random),
    ]
