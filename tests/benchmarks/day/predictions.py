"""What a learned model says of prompts that it never saw: it is trained on the known half, the day is the other one."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from statistics import fmean

from tests.benchmarks.day.hardware import BY_NAME, LARGE, SMALL
from tests.benchmarks.day.policies import Prediction
from tests.benchmarks.day.prompts import Halves, Prompt
from tieryard.routing.quality import QualityModel

_LEAST = 0.02


def by_task(halves: Halves) -> dict[str, Prediction]:
    """The simplest thing that is learned: each task's mean score, as if callers named the task as their category."""
    found: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in halves.known:
        found[prompt.task].append(prompt)
    table = {task: {n: fmean(p.scores[n] for p in prompts) for n in BY_NAME} for task, prompts in found.items()}
    overall = {n: fmean(p.scores[n] for p in halves.known) for n in BY_NAME}
    return {p.text: _prediction(table.get(p.task, overall), overall) for p in halves.held_out}


def learned(halves: Halves) -> dict[str, Prediction] | None:
    """The product's own model, trained on the known half, without categories; None, said aloud, where its training's
    optional packages are missing."""
    try:
        from tieryard.learning.tables import Table
        from tieryard.learning.training import Outcomes, train
    except ImportError as error:
        print(f"no learned model in the simulated day: {error}", file=sys.stderr)
        return None
    models = {h.outcomes: [p.scores[h.name] for p in halves.known] for h in BY_NAME.values()}
    table = Table("the known half", [p.text for p in halves.known], models)
    part = train(Outcomes.of(table), weak=SMALL.outcomes, strong=LARGE.outcomes)
    model = QualityModel((part,), "", {})
    usual = {name: fmean(scores) for name, scores in models.items()}
    found: dict[str, Prediction] = {}
    for prompt in halves.held_out:
        quality = model.predict(prompt.text).quality
        found[prompt.text] = Prediction(_hardness(quality, usual), quality)
    return found


def perfect(halves: Halves) -> dict[str, Prediction]:
    """What really comes of each: nobody knows that beforehand; it bounds what any model could do."""
    overall = {n: fmean(p.scores[n] for p in halves.known) for n in BY_NAME}
    return {p.text: _prediction(dict(p.scores), overall) for p in halves.held_out}


def _prediction(quality: dict[str, float], usual: dict[str, float]) -> Prediction:
    """By deployment."""
    return Prediction(_hardness(quality, usual), {BY_NAME[name].outcomes: value for name, value in quality.items()})


def _hardness(quality: dict[str, float], usual: dict[str, float]) -> float:
    """How far the log-odds of a good answer lie below the usual ones."""
    return _log_odds(fmean(usual.values())) - _log_odds(fmean(quality.values()))


def _log_odds(share: float) -> float:
    share = min(max(share, _LEAST), 1 - _LEAST)
    return math.log(share / (1 - share))
