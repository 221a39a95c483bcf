"""Training: from a table of outcomes to a part of a quality model.

Three estimates are added up, as held-out evidence chose them (docs/reference/quality-model.md). A forest of extremely
randomized trees (Geurts et al. 2006) reads the text's signals, ridge regression its words and signals, and what both
miss on average in a category is added for that category, shrunken by how few rows it rests on (empirical Bayes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import Ridge

from tieryard.errors import UserError
from tieryard.learning.folds import folds, prompt_groups
from tieryard.learning.tables import Table
from tieryard.routing.quality import Linear, Part, Tree
from tieryard.routing.text_signals import SIGNAL_NAMES, TextSignals, text_signals

Array = NDArray[np.float64]

LEAST_ROWS = 30
_TREES = 40  # of each of the two kinds
_RIDGE = 10.0
_SIGNAL_SCALE = 0.07  # a signal's weight beside a word's
_SIGNAL_CLIP = 3.0
_LEAST_PROMPTS = 3  # a rarer word is not learned
_MOST_WORDS = 12_000
_ROWS_OF_BALANCE = 2000  # the linear part leads below, the forest above
_CATEGORY_ROWS = 30  # a category of so many rows is believed half
_INNER_FOLDS = 3


@dataclass(frozen=True, slots=True)
class Outcomes:
    """A table as training reads it: `scores` has a row for each prompt and a column for each model."""

    models: tuple[str, ...]
    read: list[TextSignals]
    scores: Array
    prompts: list[str]
    categories: list[str] | None

    @classmethod
    def of(cls, table: Table) -> Outcomes:
        scores = np.array(list(table.scores.values()), dtype=np.float64).T
        read = [text_signals(prompt) for prompt in table.prompts]
        return cls(tuple(table.scores), read, scores, table.prompts, table.categories)

    def __len__(self) -> int:
        return len(self.read)

    def take(self, rows: Sequence[int]) -> Outcomes:
        return Outcomes(
            self.models,
            [self.read[i] for i in rows],
            self.scores[list(rows)],
            [self.prompts[i] for i in rows],
            None if self.categories is None else [self.categories[i] for i in rows],
        )


def train(outcomes: Outcomes, *, weak: str, strong: str, seed: int = 0, jobs: int = 1) -> Part:
    """Deterministic by `seed`. Raises UserError where there is too little to learn from."""
    if len(outcomes) < LEAST_ROWS:
        raise UserError(f"{len(outcomes)} rows are too few to learn from; {LEAST_ROWS} at least")
    part = _fit(outcomes, weak, strong, seed, jobs)
    if outcomes.categories is None:
        return part
    return replace(part, categories=_categories(outcomes, weak, strong, seed, jobs))


def _fit(outcomes: Outcomes, weak: str, strong: str, seed: int, jobs: int) -> Part:
    """Forest and linear part, no categories yet."""
    mean = outcomes.scores.mean(axis=0)
    contrast = outcomes.models.index(strong), outcomes.models.index(weak)
    signals = np.array([read.values for read in outcomes.read], dtype=np.float64)
    return Part(
        models=outcomes.models,
        weak=weak,
        strong=strong,
        mean=_rounded(mean),
        trees=_forest(signals, outcomes.scores - mean, contrast, seed, jobs),
        linear=_linear(signals, [read.words for read in outcomes.read], outcomes.scores - mean),
        linear_share=round(_ROWS_OF_BALANCE / (_ROWS_OF_BALANCE + len(outcomes)), 4),
        categories={},
    )


def _forest(signals: Array, offsets: Array, contrast: tuple[int, int], seed: int, jobs: int) -> list[Tree]:
    """Two kinds of trees: few-leaved ones over the structure, and deeper, more random ones over single words too. The
    difference of strong and weak counts once more, as it is what routing asks."""
    structure = [i for i, name in enumerate(SIGNAL_NAMES) if not name.startswith("word ")]
    wanted = np.column_stack([offsets, 2 * (offsets[:, contrast[0]] - offsets[:, contrast[1]])])
    trees = []
    for columns, leaf, share in ((structure, 20, 0.3), (list(range(len(SIGNAL_NAMES))), 10, 0.1)):
        made = ExtraTreesRegressor(
            _TREES, min_samples_leaf=leaf, max_features=share, random_state=seed, n_jobs=jobs
        ).fit(signals[:, columns], wanted)
        trees += [_tree(one.tree_, columns, offsets.shape[1]) for one in made.estimators_]
    return trees


def _tree(made: Any, columns: list[int], models: int) -> Tree:
    """scikit-learn's arrays are in depth-first order too: a left child follows its parent."""
    leaf = made.children_left < 0
    rows = np.cumsum(leaf)
    return Tree(
        signal=[-int(row) if ends else columns[f] for f, row, ends in zip(made.feature, rows, leaf, strict=True)],
        threshold=[0.0 if ends else float(f"{t:.6g}") for t, ends in zip(made.threshold, leaf, strict=True)],
        right=[max(int(i), 0) for i in made.children_right],
        values=[_rounded(row) for row in made.value[leaf, :models, 0]],
    )


def _linear(signals: Array, words: list[dict[str, int]], offsets: Array) -> Linear:
    idf = _idf(words)
    middle, scale = signals.mean(axis=0), signals.std(axis=0)
    scale[scale < 1e-9] = 1.0
    standard = np.clip((signals - middle) / scale, -_SIGNAL_CLIP, _SIGNAL_CLIP) * _SIGNAL_SCALE
    inputs = sparse.hstack([_tfidf(words, idf), sparse.csr_array(standard)], format="csr")
    ridge = Ridge(alpha=_RIDGE, solver="sparse_cg", tol=1e-4).fit(inputs, offsets)
    weights = np.atleast_2d(ridge.coef_).T
    return Linear(
        idf={word: (round(value, 4), _rounded(weights[at])) for at, (word, value) in enumerate(idf.items())},
        middle=[float(f"{v:.6g}") for v in middle],
        scale=[float(f"{v:.6g}") for v in scale],
        coefficients=[[float(f"{v:.4g}") for v in row] for row in weights[len(idf) :] * _SIGNAL_SCALE],
        intercept=_rounded(np.atleast_1d(ridge.intercept_)),
    )


def _idf(words: list[dict[str, int]]) -> dict[str, float]:
    """Smoothed inverse document frequency of the words that enough prompts hold."""
    held = Counter(word for counts in words for word in counts)
    common = sorted(
        ((n, word) for word, n in held.items() if n >= _LEAST_PROMPTS), key=lambda item: (-item[0], item[1])
    )
    return {word: log((1 + len(words)) / (1 + n)) + 1 for n, word in common[:_MOST_WORDS]}


def _tfidf(words: list[dict[str, int]], idf: dict[str, float]) -> Any:
    """Sublinear TF-IDF, each row of unit length."""
    place = {word: at for at, word in enumerate(idf)}
    data: list[float] = []
    columns: list[int] = []
    starts = [0]
    for counts in words:
        found = [(place[word], idf[word] * (1 + log(n))) for word, n in counts.items() if word in place]
        length = sum(value * value for _, value in found) ** 0.5 or 1.0
        columns += [at for at, _ in found]
        data += [value / length for _, value in found]
        starts.append(len(data))
    return sparse.csr_array((data, columns, starts), shape=(len(words), len(idf)))


def _categories(outcomes: Outcomes, weak: str, strong: str, seed: int, jobs: int) -> dict[str, list[float]]:
    """What held-out predictions miss on average in each category, shrunken towards nothing."""
    assert outcomes.categories is not None
    groups = prompt_groups(outcomes.prompts)
    if len(set(groups)) < 2:
        raise UserError("all rows have one prompt, but for case and marks: there is nothing to tell categories by")
    missed = np.zeros_like(outcomes.scores)
    for inner, held in folds(groups, _INNER_FOLDS, seed):
        part = _fit(outcomes.take(inner), weak, strong, seed, jobs)
        for row in held:
            read = outcomes.read[row]
            missed[row] = outcomes.scores[row] - part.predict(read.values, read.words, None)[0]
    names = np.array(outcomes.categories)
    return {
        str(name): _rounded(missed[names == name].sum(axis=0) / ((names == name).sum() + _CATEGORY_ROWS))
        for name in np.unique(names)
    }


def _rounded(values: Array) -> list[float]:
    return [round(float(v), 4) for v in values]
