"""Real prompts with each model's real score, in two halves: what is known beforehand, and what the day is made of."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.day.hardware import BY_NAME
from tieryard.routing import TextFeatures, text_features

DATA = Path("../shared/data/routing/dev_ulab.csv")
_CHARS_A_TOKEN = 4  # usual for English
_MARKS = re.compile(r"\W+")


@dataclass(frozen=True, slots=True)
class Prompt:
    """`scores`, 0 to 1, are by deployment, `all_scores` by model of the data."""

    text: str
    task: str
    tokens: int
    features: TextFeatures
    scores: Mapping[str, float]
    all_scores: Mapping[str, float]


@dataclass(frozen=True)
class Halves:
    """`known` is for training and for measured quality, `held_out` is what arrives."""

    known: list[Prompt]
    held_out: list[Prompt]


def read(path: Path = DATA) -> Halves:
    """Raises FileNotFoundError where the data is not at hand."""
    halves = Halves([], [])
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            prompt = _prompt(row)
            # By the words alone, so that the same question in two spellings falls into one half.
            key = zlib.crc32(_MARKS.sub(" ", prompt.text.lower()).strip().encode())
            (halves.held_out if key & 1 else halves.known).append(prompt)
    return halves


_NOT_SCORES = frozenset({"source", "task", "prompt", "part"})


def _prompt(row: dict[str, str]) -> Prompt:
    text = row["prompt"]
    scores = {name: float(value or 0) for name, value in row.items() if name not in _NOT_SCORES}
    return Prompt(
        text=text,
        task=row["task"],
        tokens=max(1, len(text) // _CHARS_A_TOKEN),
        features=text_features(text),
        scores={h.name: scores[h.outcomes] for h in BY_NAME.values()},
        all_scores=scores,
    )
