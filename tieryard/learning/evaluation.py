"""Held-out evidence: what a router would have been worth on prompts, or on whole groups of them, that it never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tieryard.catalog import SizeClass
from tieryard.errors import UserError
from tieryard.learning.curves import Curve, Trade, curve, trade
from tieryard.learning.folds import folds, prompt_groups
from tieryard.learning.tables import Table
from tieryard.learning.training import Outcomes, train
from tieryard.routing.features import text_features

Array = NDArray[np.float64]

LEARNED = "learned"
_SIZES = {SizeClass.SMALL: 0.0, SizeClass.MEDIUM: 1.0, SizeClass.LARGE: 2.0}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`curves` by router: learned, keyword rules, length, random, oracle. Weak and strong are the two ends of each."""

    rows: int
    folds: int
    weak: str
    strong: str
    weak_quality: float
    strong_quality: float
    curves: dict[str, Curve]
    trade: Trade | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "folds": self.folds,
            "weak": self.weak,
            "strong": self.strong,
            "weak_quality": self.weak_quality,
            "strong_quality": self.strong_quality,
            "curves": {name: made.as_dict() for name, made in self.curves.items()},
            "trade": None if self.trade is None else self.trade.as_dict(),
        }


def evaluate(
    table: Table,
    *,
    weak: str,
    strong: str,
    many_folds: int,
    prices: Sequence[float] | None = None,
    seed: int = 0,
    jobs: int = 1,
    tell: Callable[[int, int], None] = lambda _done, _of: None,
) -> Evaluation:
    """Every prediction is made by a model that saw neither the prompt nor a near-duplicate nor, where the table has
    groups, any row of its group. `tell` hears after each fold."""
    prompts = prompt_groups(table.prompts)
    split = folds(prompts if table.groups is None else table.groups, many_folds, seed)
    if len(split) < 2:
        raise UserError(f"{table.source} has one group of rows only; held-out evidence takes two")
    outcomes = Outcomes.of(table)
    predicted = np.zeros_like(outcomes.scores)
    for done, (inner, held) in enumerate(split, start=1):
        asked = {prompts[row] for row in held}  # a near-duplicate may be of another group
        unlike = [row for row in inner if prompts[row] not in asked]
        part = train(outcomes.take(unlike), weak=weak, strong=strong, seed=seed, jobs=jobs)
        for row in held:
            read = outcomes.read[row]
            predicted[row] = part.predict(read.values, read.words, table.category(row))[0]
        tell(done, len(split))
    low, high = table.scores[weak], table.scores[strong]
    at = {name: i for i, name in enumerate(outcomes.models)}
    routers = {LEARNED: list(predicted[:, at[strong]] - predicted[:, at[weak]]), **_plain_routers(table, low, high)}
    return Evaluation(
        rows=len(table),
        folds=len(split),
        weak=weak,
        strong=strong,
        weak_quality=round(float(np.mean(low)), 5),
        strong_quality=round(float(np.mean(high)), 5),
        curves={name: curve(low, high, need, seed=seed) for name, need in routers.items()},
        trade=None if prices is None else trade(table.scores, prices, np.clip(predicted, 0, 1)),
    )


def _plain_routers(table: Table, weak: Sequence[float], strong: Sequence[float]) -> dict[str, list[float]]:
    """What the learned model is held against. The rules are those of the router, by the size that they want."""
    return {
        "keyword rules": [_SIZES[text_features(prompt).wanted] for prompt in table.prompts],
        "length": [float(len(prompt)) for prompt in table.prompts],
        "random": [0.0] * len(table),
        "oracle": [s - w for s, w in zip(strong, weak, strict=True)],
    }
