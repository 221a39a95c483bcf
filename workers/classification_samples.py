"""What the first texts of a classification run decide: whether its first model may take the rest, and how sure it must
be of an answer that stands.

A sample is the first texts, or the first that have a truth: whoever asks is told the same ones. The gate comes first,
since nothing is to be calibrated where it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tieryard.classification import gates, thresholds
from tieryard.classification.thresholds import ESCALATE_ALL, Sample
from tieryard.requests.classification import TRUTH, Calibrate, Gate
from tieryard.store import Store, classification_progress
from tieryard.store import classification_texts as texts
from tieryard.store.classifications import ClassificationRun, Stage

_NO_TRUTH = "no row has a truth to calibrate by: every text is escalated"
_NO_SAMPLE = "no text of the sample was answered by the larger model: every text is escalated"


@dataclass(frozen=True, slots=True)
class Pending:
    """A decision that is due, by its sample. `is_whole`: all texts are here that it will ever have. `to_ask` are those
    that each model has yet to be asked."""

    by: Gate | Calibrate
    sample: tuple[int, ...]
    is_whole: bool
    to_ask: dict[Stage, list[int]]

    @property
    def said(self) -> str:
        """What it waits for."""
        wanted = f"{self.by.rows} that have a truth" if _by_truth(self.by) else f"{self.by.rows}"
        return f"it waits for texts to decide by: of {wanted} {len(self.sample)} are here"


def pending(store: Store, run: ClassificationRun) -> Pending | None:
    """The next decision; None where nothing is left to decide."""
    by = _undecided(run)
    if by is None:
        return None
    sample = texts.sample(store, run, by.rows, with_truth=_by_truth(by))
    to_ask = {stage: _not_asked(store, run, stage, sample) for stage in _stages(run, by)}
    left = {stage: numbers for stage, numbers in to_ask.items() if numbers}
    return Pending(by, tuple(sample), len(sample) == by.rows or run.is_whole, left)


def decide(store: Store, run: ClassificationRun, due: Pending) -> str:
    """Writes down what a sample has shown, all of whose answers are here: what is said of it."""
    if isinstance(due.by, Gate):
        found = _judged(store, run, due.by, due.sample)
        classification_progress.decide(store, run.id, gate=found, calibration=None)
    else:
        found = _calibrated(store, run, due.by, due.sample)
        classification_progress.decide(store, run.id, gate=None, calibration=found)
    return str(found["said"])


def why_it_stops(run: ClassificationRun) -> str | None:
    """What its gate has said, where that ends the run."""
    return f"its gate: {run.gate['said']}" if run.gate is not None and run.gate_stops else None


def _by_truth(by: Gate | Calibrate) -> bool:
    return (by.judge if isinstance(by, Gate) else by.by) == TRUTH


def _undecided(run: ClassificationRun) -> Gate | Calibrate | None:
    if run.spec.gate is not None and run.gate is None:
        return run.spec.gate
    escalate = run.spec.escalate
    if run.gate_failed or escalate is None or run.calibration is not None:
        return None
    return escalate.calibrate


def _judge_stage(run: ClassificationRun, gate: Gate) -> Stage:
    """At which the judge answers: as the larger model, where it is that."""
    return Stage.ESCALATE if gate.judge == run.spec.larger_model else Stage.JUDGE


def _stages(run: ClassificationRun, by: Gate | Calibrate) -> tuple[Stage, ...]:
    """Of the models that are to answer the sample."""
    if isinstance(by, Calibrate):
        return Stage.FIRST, Stage.ESCALATE
    return (Stage.FIRST,) if by.judge == TRUTH else (Stage.FIRST, _judge_stage(run, by))


def _not_asked(store: Store, run: ClassificationRun, stage: Stage, sample: Sequence[int]) -> list[int]:
    asked = texts.asked_at(store, run, stage)
    return [number for number in sample if number not in asked]


def _judged(store: Store, run: ClassificationRun, gate: Gate, sample: Sequence[int]) -> dict[str, Any]:
    """A text that the judge has no word on does not count; one without an answer of the first model is no agreement."""
    firsts = texts.answers_at(store, run, Stage.FIRST, sample)
    if gate.judge == TRUTH:
        right = texts.truths_of(store, run, sample)
    else:
        judged = texts.answers_at(store, run, _judge_stage(run, gate), sample)
        right = {number: labels for number, (labels, _) in judged.items()}
    agreed = sum(number in firsts and firsts[number][0] == labels for number, labels in right.items())
    verdict = gates.judge(len(right), agreed, gate.min_agreement)
    counts = {"texts": len(right), "agreed": agreed, "judge": gate.judge}
    return {"outcome": verdict.outcome, **counts, "low": verdict.low, "high": verdict.high, "said": verdict.said}


def _calibrated(store: Store, run: ClassificationRun, by: Calibrate, sample: Sequence[int]) -> dict[str, Any]:
    """Where the larger model's own answer is what is right, a text that it has none on tells nothing."""
    firsts = texts.answers_at(store, run, Stage.FIRST, sample)
    larger = {n: labels for n, (labels, _) in texts.answers_at(store, run, Stage.ESCALATE, sample).items()}
    right = texts.truths_of(store, run, sample) if by.by == TRUTH else larger
    pairs = [
        Sample(
            confidence=firsts[number][1] if number in firsts else None,
            cheap_right=number in firsts and firsts[number][0] == labels,
            large_right=larger.get(number) == labels,
        )
        for number, labels in right.items()
    ]
    known = {"basis": by.by, "texts": len(pairs)}
    if not pairs:
        return {
            **known,
            "threshold": ESCALATE_ALL,
            "expected_share_escalated": 1.0,
            "accuracy": None,
            "said": _NO_TRUTH if by.by == TRUTH else _NO_SAMPLE,
        }
    found = thresholds.calibrate(pairs, by.max_drop)
    return {
        **known,
        "threshold": found.threshold,
        "expected_share_escalated": found.expected_share_escalated,
        "accuracy": found.accuracy,
        "said": found.said,
    }
