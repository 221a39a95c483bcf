"""The quality–cost curve as a picture, SVG or PNG by the file's ending. Needs the extra `pictures`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tieryard.errors import UserError
from tieryard.learning.evaluation import LEARNED, Evaluation

ENDINGS = (".svg", ".png")
_STYLES: dict[str, dict[str, Any]] = {
    LEARNED: {"color": "#0b6e4f", "linewidth": 2.4},
    "keyword rules": {"color": "#c05746"},
    "length": {"color": "#d9a441"},
    "random": {"color": "#888888", "linestyle": "--"},
    "oracle": {"color": "#444444", "linestyle": ":"},
}


def check_ending(path: Path) -> None:
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"a picture ends in {' or '.join(ENDINGS)}, not '{path.suffix}'", param="--picture")


def draw(made: Evaluation, path: Path) -> None:
    """Raises UserError for an ending that is neither."""
    check_ending(path)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in made.curves.items():
        shares = np.linspace(0, 100, len(curve.quality))
        label = name if name in ("random", "oracle") else f"{name}: APGR {curve.apgr.value:.3f}"
        axes.plot(shares, curve.quality, label=label, **_STYLES.get(name, {}))
    axes.plot([0], [made.weak_quality], "o", color="black", markersize=5)
    axes.annotate(
        f"always {made.weak}", (0, made.weak_quality), xytext=(6, -10), textcoords="offset points", fontsize=8
    )
    axes.plot([100], [made.strong_quality], "o", color="black", markersize=5)
    axes.annotate(
        f"always {made.strong}",
        (100, made.strong_quality),
        xytext=(-6, -10),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axes.set_xlabel("calls sent to the strong model, %")
    axes.set_ylabel("quality (mean score)")
    axes.set_title(f"{made.rows:,} prompts, each held out of training", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
