"""How well a run has classified, where the truth is known: counts that take rows one by one, and what they come to.

A row without an answer is a wrong one, of no label. With several labels a text, a row is right when all its labels are
and there are no others, and each label is counted for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tieryard.bench.stats import Interval, wilson

_RESAMPLES = 1000
_LEAST_RESAMPLES = 200
_MOST_DRAWS = 10**8  # cells × resamples: some seconds
_HELD_AT_ONCE = 2**22  # cells × resamples: 32 MiB


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Of one label. `rows` truly have it, `answered` were given it, and `right` both. An interval is None where there
    is nothing that it could be a share of."""

    name: str
    rows: int
    answered: int
    right: int

    @property
    def precision(self) -> Interval | None:
        """Of the rows that were given it, those that have it; with Wilson's 95 % interval, as all."""
        return wilson(self.right, self.answered) if self.answered else None

    @property
    def recall(self) -> Interval | None:
        """Of the rows that have it, those that were given it."""
        return wilson(self.right, self.rows) if self.rows else None

    @property
    def f1(self) -> float:
        """The harmonic mean of both; 0 where there is neither."""
        both = self.rows + self.answered
        return 2 * self.right / both if both else 0.0


@dataclass(frozen=True, slots=True)
class ModelScore:
    """Of the rows that one model has answered."""

    model: str
    rows: int
    right: int

    @property
    def accuracy(self) -> Interval:
        return wilson(self.right, self.rows)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of at least one row. `labels` are those that some row has or was given, in the run's order; `macro_f1` is the
    mean of their F1, as scikit-learn has it. Its interval is bootstrapped from the counts, None with several labels a
    text, whose counts do not say which went together. `confusion` has (truth, answer) as keys, None for no answer;
    it is empty with several labels a text."""

    rows: int
    right: int
    unanswered: int
    macro_f1: float
    macro_f1_interval: Interval | None
    labels: tuple[LabelScore, ...]
    models: tuple[ModelScore, ...]
    confusion: Mapping[tuple[str, str | None], int]

    @property
    def accuracy(self) -> Interval:
        return wilson(self.right, self.rows)


class Counts:
    """Takes rows one by one, in memory that the number of labels bounds. `labels` are the run's, in its order."""

    def __init__(self, labels: Sequence[str], *, several: bool = False) -> None:
        self._labels = tuple(labels)
        self._several = several
        self._rows = self._right = self._unanswered = 0
        self._true: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._both: Counter[str] = Counter()
        self._confusion: Counter[tuple[str, str | None]] = Counter()
        self._by_model: Counter[str] = Counter()
        self._right_by_model: Counter[str] = Counter()

    def add(self, truth: Iterable[str], answer: Iterable[str] | None, model: str | None = None) -> bool:
        """Counts one row and says whether it is right. `answer` is None where there is none, and `model` where nobody
        gave it."""
        true, given = frozenset(truth), frozenset(answer or ())
        right = answer is not None and true == given
        self._rows += 1
        self._right += right
        self._unanswered += answer is None
        self._true.update(true)
        self._answered.update(given)
        self._both.update(true & given)
        if not self._several:
            self._confusion[next(iter(true)), next(iter(given), None)] += 1
        if model is not None:
            self._by_model[model] += 1
            self._right_by_model[model] += right
        return right

    @property
    def rows(self) -> int:
        return self._rows

    def evaluation(self) -> Evaluation | None:
        """What the rows so far come to; None before the first."""
        if not self._rows:
            return None
        seen = [name for name in self._labels if self._true[name] or self._answered[name]]
        scores = tuple(LabelScore(name, self._true[name], self._answered[name], self._both[name]) for name in seen)
        macro = sum(score.f1 for score in scores) / len(scores) if scores else 0.0
        return Evaluation(
            rows=self._rows,
            right=self._right,
            unanswered=self._unanswered,
            macro_f1=macro,
            macro_f1_interval=None if self._several else _resampled_f1(self._confusion, macro),
            labels=scores,
            models=tuple(
                ModelScore(name, rows, self._right_by_model[name]) for name, rows in self._by_model.most_common()
            ),
            confusion=dict(self._confusion),
        )


def _resampled_f1(confusion: Mapping[tuple[str, str | None], int], macro: float) -> Interval:
    """The basic bootstrap over rows, each resample over the labels that are seen in it: what resampling loses is added
    to what was found. Labels with few rows pull macro F1 down, and resampling does so once more, so that plain
    percentiles held the true value in 18 of 60 simulated runs of 300 rows with 77 labels, and this in 55."""
    cells = list(confusion.items())
    names = {name: at for at, name in enumerate(dict.fromkeys(name for (pair, _) in cells for name in pair if name))}
    true = np.array([names[truth] for (truth, _), _ in cells])
    given = np.array([names[answer] if answer is not None else len(names) for (_, answer), _ in cells])
    counts = np.array([count for _, count in cells])
    rng = np.random.default_rng(0)
    means: list[float] = []
    resamples = max(_LEAST_RESAMPLES, min(_RESAMPLES, _MOST_DRAWS // len(cells)))
    while len(means) < resamples:
        block = min(resamples - len(means), max(1, _HELD_AT_ONCE // len(cells)))
        for drawn in rng.multinomial(counts.sum(), counts / counts.sum(), size=block):
            both = np.bincount(true, drawn, len(names) + 1) + np.bincount(given, drawn, len(names) + 1)
            right = np.bincount(true, np.where(true == given, drawn, 0), len(names) + 1)
            seen = both[:-1] > 0
            means.append(float((2 * right[:-1][seen] / both[:-1][seen]).mean()))
    least, most = np.quantile(means, [0.025, 0.975])
    low, high = 2 * macro - float(most), 2 * macro - float(least)
    return Interval(macro, max(0.0, min(macro, low)), min(1.0, max(macro, high)))
