"""A run's confusion matrix as a picture, SVG or PNG by the file's ending. Needs the extra `pictures`."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tieryard.classification.evaluation import Evaluation
from tieryard.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".svg", ".png")
MOST_LABELS = 40
_NUMBERS_UP_TO = 20  # labels: beyond, a cell has no room for its count
_LONGEST = 28  # letters of a name
NO_ANSWER = "no answer"
OTHERS = "other labels"


def check_ending(path: Path) -> None:
    """Raises UserError for an ending that is neither, before a run is asked for."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"a picture ends in {' or '.join(ENDINGS)}, not '{path.suffix}'", param="--picture")


def draw(made: Evaluation, path: Path) -> None:
    """Raises UserError for another ending, of a run with several labels a text, and without matplotlib."""
    check_ending(path)
    if not made.confusion:
        raise UserError("labels are confused one by one only where a text has one", param="--picture")
    try:
        matplotlib = import_module("matplotlib")
    except ModuleNotFoundError:
        raise UserError("a picture needs matplotlib: pip install 'tieryard[pictures]'") from None
    svg = path.suffix.lower() == ".svg"
    with matplotlib.rc_context({"svg.hashsalt": "tieryard"}), warnings.catch_warnings():  # the same file each time
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a letter that no font has is drawn as a box
        figure_of(made).savefig(path, dpi=150, metadata={"Date": None} if svg else None)


def shown(made: Evaluation) -> list[str]:
    """The labels of the picture, in the run's order: all, or the worst where there are too many, by how many rows were
    wrongly given or wrongly denied them."""
    wrong = {score.name: score.rows + score.answered - 2 * score.right for score in made.labels}
    worst = sorted(wrong, key=lambda name: -wrong[name])[:MOST_LABELS]
    return [score.name for score in made.labels if score.name in worst]


def matrix(made: Evaluation) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Names of its rows (truth) and columns (answer), and the counts. What is not among the shown labels is one
    column; so are rows without an answer."""
    names = shown(made)
    at = {name: place for place, name in enumerate(names)}
    cut = len(names) < len(made.labels)
    columns = [*names, *([OTHERS] if cut else []), *([NO_ANSWER] if made.unanswered else [])]
    counts = np.zeros((len(names), len(columns)), dtype=np.int64)
    for (truth, answer), count in made.confusion.items():
        if truth in at:
            counts[at[truth], len(columns) - 1 if answer is None else at.get(answer, len(names))] += count
    return names, columns, counts


def figure_of(made: Evaluation) -> Figure:
    """The picture, not drawn yet: shares of each row, since labels differ in how many texts have them."""
    from matplotlib.figure import Figure

    rows, columns, counts = matrix(made)
    size = 3.5 + 0.32 * max(len(columns), 6)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    whole = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, whole, out=np.zeros(counts.shape), where=whole > 0)
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows], fontsize=8)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    if len(rows) <= _NUMBERS_UP_TO:
        _number(axes, counts, shares)
    of = f", the {len(rows)} worst of {len(made.labels)} labels" if len(rows) < len(made.labels) else ""
    share = made.accuracy
    axes.set_title(f"{made.rows:,} rows, {share.value:.1%} right ({share.low:.1%}–{share.high:.1%}){of}", fontsize=10)
    return figure


def _number(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=7, color=color)


def _short(name: str) -> str:
    cut = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return cut.replace("$", r"\$")  # which begins a formula
