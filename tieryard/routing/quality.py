"""The learned quality model: what score each model is expected to reach on one prompt.

A part is what one table of outcomes taught: a forest over the signals of the text (how a question is put), a linear
part over its words and signals, and for each category what both of them missed. The parts do not know of each other. It
is arithmetic over lists: nothing optional is needed, and `tieryard.learning` makes it. Method and figures:
docs/reference/quality-model.md.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from operator import mul
from typing import Any, NamedTuple

import orjson

from tieryard.errors import UserError
from tieryard.routing.text_signals import SIGNAL_NAMES, TextSignals, text_signals

FORMAT = "tieryard-quality-model"
VERSION = 1
MAX_FILE_BYTES = 5_000_000
_MAX_CONTENT_BYTES = 60_000_000  # a damaged file must not fill the memory
_CLIP = 3.0  # standard deviations: one odd signal must not carry the linear part away


@dataclass(frozen=True, slots=True)
class Prediction:
    """`quality`: expected score, 0–1, of each model the tables knew. `difficulty`: 0 easy to 1 hard, how far these
    models fall short; it also speaks of models that no table knew. `need`: how much better the strong model does than
    the weak one, −1 to 1. `known`: the share of the text's words that training saw often enough, 0–1.
    """

    quality: dict[str, float]
    difficulty: float
    need: float
    known: float


class Tree(NamedTuple):
    """A node's left child is the next node. A negative `signal` is a leaf: −1 − its row in `values`."""

    signal: list[int]
    threshold: list[float]
    right: list[int]
    values: list[list[float]]

    def leaf(self, signals: Sequence[float]) -> list[float]:
        signal, threshold, right, values = self  # locals: this loop is most of a prediction
        at = 0
        while (read := signal[at]) >= 0:
            at = at + 1 if signals[read] <= threshold[at] else right[at]
        return values[-1 - read]


@dataclass(frozen=True, slots=True)
class Linear:
    """Ridge regression over TF-IDF words, made unit length, and over standardized signals."""

    idf: dict[str, tuple[float, list[float]]]  # word: (idf, a coefficient for each model)
    middle: list[float]
    scale: list[float]
    coefficients: list[list[float]]  # a row for each signal
    intercept: list[float]

    def predict(self, signals: Sequence[float], words: dict[str, int]) -> tuple[list[float], float]:
        """An offset for each model, and the share of words that it knows."""
        known, weights, rows = self.idf, [], []
        for word, count in words.items():
            if found := known.get(word):
                idf, row = found
                weights.append(idf if count == 1 else idf * (1 + log(count)))
                rows.append(row)
        share, length = len(rows) / max(len(words), 1), sqrt(sum(map(mul, weights, weights))) or 1.0
        rows += self.coefficients
        weights = [w / length for w in weights]
        for value, middle, scale in zip(signals, self.middle, self.scale, strict=True):
            away = (value - middle) / scale
            weights.append(away if -_CLIP < away < _CLIP else _CLIP if away > 0 else -_CLIP)
        sums = [sum(map(mul, weights, column)) for column in zip(*rows, strict=True)]
        return [a + b for a, b in zip(sums, self.intercept, strict=True)], share


@dataclass(frozen=True, slots=True)
class Part:
    """One table's lesson. `models` are in the table's order; the lists below have one number for each of them."""

    models: tuple[str, ...]
    weak: str
    strong: str
    mean: list[float]
    trees: list[Tree]
    linear: Linear
    linear_share: float
    categories: dict[str, list[float]]

    def predict(
        self, signals: Sequence[float], words: dict[str, int], category: str | None
    ) -> tuple[list[float], float]:
        """Quality for each model, not yet bounded, and the share of words that it knows."""
        leaves = [tree.leaf(signals) for tree in self.trees]
        forest = [sum(column) / len(leaves) for column in zip(*leaves, strict=True)]
        linear, known = self.linear.predict(signals, words)
        missed = self.categories.get(category or "") or [0.0] * len(self.models)
        share = self.linear_share
        return [
            m + (1 - share) * f + share * x + c for m, f, x, c in zip(self.mean, forest, linear, missed, strict=True)
        ], known


@dataclass(frozen=True, slots=True)
class QualityModel:
    """Deterministic: the same text and category give the same prediction. `hash` names its content, and `about` says
    what it was trained on."""

    parts: tuple[Part, ...]
    hash: str
    about: dict[str, Any]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(m for part in self.parts for m in part.models)

    def predict(self, text: str, category: str | None = None) -> Prediction:
        """Any text, also an empty one. A category that training did not see changes nothing."""
        return self.predict_signals(text_signals(text), category)

    def predict_signals(self, read: TextSignals, category: str | None = None) -> Prediction:
        quality: dict[str, float] = {}
        need = difficulty = known = 0.0
        for part in self.parts:
            raw, share = part.predict(read.values, read.words, category)
            by_name = dict(zip(part.models, raw, strict=True))
            need += by_name[part.strong] - by_name[part.weak]
            bounded = {name: min(max(value, 0.0), 1.0) for name, value in by_name.items()}
            difficulty += 1 - sum(bounded.values()) / len(bounded)
            known += share
            quality |= bounded
        many = len(self.parts)
        return Prediction(quality, difficulty / many, max(-1.0, min(1.0, need / many)), known / many)


def dump_quality_model(parts: Sequence[Part], about: dict[str, Any]) -> bytes:
    """The file: gzip over a line that says what it is, with the content's SHA-256, and the content, both JSON."""
    content = orjson.dumps({"about": about, "signals": SIGNAL_NAMES, "parts": [_part_as_dict(p) for p in parts]})
    head = orjson.dumps({"format": FORMAT, "version": VERSION, "sha256": hashlib.sha256(content).hexdigest()})
    packed = gzip.compress(head + b"\n" + content, compresslevel=9, mtime=0)
    if len(packed) > MAX_FILE_BYTES:
        raise UserError(
            f"the model takes {len(packed):,} bytes; {MAX_FILE_BYTES:,} at most. Train on fewer models or rows"
        )
    return packed


def parse_quality_model(packed: bytes, name: str = "the quality model") -> QualityModel:
    """What `dump_quality_model` wrote. Raises UserError for anything else; `name` says which file it speaks of."""
    head, _, content = _unpacked(packed, name).partition(b"\n")
    try:
        said = orjson.loads(head)
        version, sha256 = said["version"], said["sha256"]
        ours = said["format"] == FORMAT
    except (orjson.JSONDecodeError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{name} is no quality model; make one with `tieryard router train`")
    if version != VERSION:
        raise UserError(f"{name} has format version {version}, this Tieryard reads {VERSION}; train it again")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{name} is damaged: its content has another SHA-256 than it says; train it or copy it again")
    made = orjson.loads(content)
    if tuple(made["signals"]) != SIGNAL_NAMES:
        raise UserError(f"{name} was trained on other text signals than this Tieryard reads; train it again")
    return QualityModel(tuple(map(_part_from_dict, made["parts"])), sha256[:12], made["about"])


def _unpacked(packed: bytes, name: str) -> bytes:
    if len(packed) > MAX_FILE_BYTES:
        raise UserError(f"{name} has {len(packed):,} bytes; a quality model has {MAX_FILE_BYTES:,} at most")
    reader = zlib.decompressobj(wbits=31)
    try:
        content = reader.decompress(packed, _MAX_CONTENT_BYTES)
    except zlib.error:
        raise UserError(f"{name} is no quality model, or is damaged: it is not gzip; copy or train it again") from None
    if not reader.eof:
        raise UserError(f"{name} is damaged: it ends too early, or is far too long; copy or train it again")
    return content


def _part_as_dict(part: Part) -> dict[str, Any]:
    linear = part.linear
    return {
        "models": part.models,
        "weak": part.weak,
        "strong": part.strong,
        "mean": part.mean,
        "trees": [tree._asdict() for tree in part.trees],
        "linear_share": part.linear_share,
        "linear": {
            "idf": linear.idf,
            "middle": linear.middle,
            "scale": linear.scale,
            "coefficients": linear.coefficients,
            "intercept": linear.intercept,
        },
        "categories": part.categories,
    }


def _part_from_dict(stored: dict[str, Any]) -> Part:
    return Part(
        **{
            **stored,
            "models": tuple(stored["models"]),
            "trees": [Tree(**tree) for tree in stored["trees"]],
            "linear": Linear(**stored["linear"]),
        }
    )
