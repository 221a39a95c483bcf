"""Classification runs and their rows as their owner sees them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.shapes import Usd
from tieryard.requests.fields import Usd as GivenUsd
from tieryard.store.classification_progress import steady
from tieryard.store.classification_reads import RowResult
from tieryard.store.classifications import ClassificationRun


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ClassificationComplete(_Given):
    """How many rows a run has: no more come."""

    rows: int = Field(
        ge=0, lt=2**31, examples=[0], description="All that were sent; a run that has others is not completed."
    )


class ClassificationResume(_Given):
    """How a run goes on."""

    max_cost_usd: GivenUsd | None = Field(
        default=None, description="Its new cap; null lifts it. Default: the one it had."
    )


class ReceivedPublic(BaseModel):
    """How many rows are here: the next one is `received` + 1."""

    received: int


class CountsPublic(BaseModel):
    """How far a run is."""

    rows: int = Field(description="That were received.")
    unique: int = Field(description="Distinct texts among them: each is asked once of a model.")
    asked: int = Field(description="Questions asked, of any model.")
    answered: int = Field(description="Texts that have their label for good.")
    failed: int = Field(description="Texts that have none, for good: their rows say why.")
    escalated: int = Field(description="Questions to the larger model, or the judge.")
    final_rows: int = Field(description="Rows up to this one have their last answer, and can be read.")


class GatePublic(BaseModel):
    """What the gate has found."""

    outcome: Literal["passed", "failed", "too_few"]
    judge: str
    texts: int = Field(description="That were judged.")
    agreed: int
    low: float = Field(description="Of the interval of the share that agrees.")
    high: float
    said: str


class ThresholdPublic(BaseModel):
    """Below which confidence the larger model is asked; above 1, always."""

    below: float
    basis: Literal["given", "truth", "model"] = Field(description="Given, or calibrated by this.")
    texts: int | None = Field(default=None, description="That it was calibrated on.")
    expected_share_escalated: float | None = None
    said: str | None = None


class ModelPublic(BaseModel):
    """What one deployment has done for a run."""

    labelled: int = Field(description="Questions that it has answered with a label.")
    failed: int
    cost_usd: Usd


class ClassificationPublic(BaseModel):
    """A classification run."""

    id: str
    object: Literal["classification"] = "classification"
    state: Literal["receiving", "running", "completed", "stopped", "failed", "cancelled"]
    ending: Literal["stopped", "failed", "cancelled"] | None = Field(
        description="What it becomes when what is under way has ended."
    )
    why: str | None = Field(description="Why it waits, or has ended before its last row.")
    created_at: datetime
    finished_at: datetime | None
    total: int | None = Field(description="Rows that it has, once that is known.")
    received: int
    counts: CountsPublic
    cost_usd: Usd = Field(description="By the ledger, of all answers that were read by now.")
    max_cost_usd: Usd | None
    rate: float = Field(description="Answers a second, over the last half minute.")
    eta_s: float | None = Field(description="Until the end at this rate; None where that is not known.")
    gate: GatePublic | None
    threshold: ThresholdPublic | None
    models: dict[str, ModelPublic] = Field(description="By deployment.")
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, run: ClassificationRun, now: datetime, **more: Any) -> Self:
        rate = steady(run, now) if run.finished_at is None else 0.0
        return cls(
            id=run.public_id,
            state=run.state.value,
            ending=run.ending.value if run.ending is not None else None,
            why=run.why,
            created_at=run.created_at,
            finished_at=run.finished_at,
            total=run.total,
            received=run.received,
            counts=CountsPublic(
                rows=run.received,
                unique=run.texts,
                asked=run.asked,
                answered=run.settled_to - run.failed,
                failed=run.failed,
                escalated=run.escalated,
                final_rows=run.final_rows,
            ),
            cost_usd=run.cost_usd,
            max_cost_usd=run.max_cost_usd,
            rate=round(rate, 2),
            eta_s=_eta_s(run, rate),
            gate=GatePublic(**run.gate) if run.gate is not None else None,
            threshold=_threshold(run),
            models={name: ModelPublic(**tally) for name, tally in run.models.items()},
            metadata=run.spec.metadata,
            **more,
        )


class ClassificationWhole(ClassificationPublic):
    """With what it was asked to do."""

    spec: dict[str, Any]

    @classmethod
    def whole(cls, run: ClassificationRun, now: datetime) -> Self:
        return cls.of(run, now, spec=run.spec.model_dump(mode="json", exclude_none=True, exclude={"max_cost_usd"}))


class ClassificationList(BaseModel):
    """Runs, newest first, and whether there are more after the last."""

    object: Literal["list"] = "list"
    data: list[ClassificationPublic]
    has_more: bool = False


class RowPublic(BaseModel):
    """What came of one row: a line of the results."""

    row: int = Field(description="From 1.")
    label: str | None = Field(description="Of a run with one label a row.")
    labels: list[str] | None = Field(description="None where there is no answer, and `error` says why.")
    confidence: float | None = Field(description="0 to 1; None where the engine does not tell.")
    model: str | None = Field(description="The deployment that answered.")
    cost_usd: Usd = Field(description="Of all that was asked about its text. 0 where an earlier row has the same one.")
    escalated: bool = Field(description="Whether the answer is the larger model's, or the judge's.")
    error: str | None
    duplicate_of: int | None = Field(description="The first row with the same text, whose answer this is.")

    @classmethod
    def of(cls, found: RowResult, *, several: bool) -> dict[str, Any]:
        """As it is written: ten thousand of them are one page."""
        label = found.labels[0] if found.labels and not several else None
        return {
            "row": found.row,
            "label": label,
            "labels": found.labels,
            "confidence": found.confidence,
            "model": found.model,
            "cost_usd": f"{found.cost_usd:f}",
            "escalated": found.escalated,
            "error": found.error,
            "duplicate_of": found.duplicate_of,
        }


def _threshold(run: ClassificationRun) -> ThresholdPublic | None:
    escalate = run.spec.escalate
    if escalate is not None and escalate.below is not None:
        return ThresholdPublic(below=escalate.below, basis="given")
    if run.calibration is None:
        return None
    known = {name: run.calibration[name] for name in ("basis", "texts", "expected_share_escalated", "said")}
    return ThresholdPublic(below=run.calibration["threshold"], **known)


def _eta_s(run: ClassificationRun, rate: float) -> float | None:
    """By the texts that are left and the questions that each has taken so far."""
    if run.finished_at is not None or run.total is None or rate <= 0:
        return None
    each = max(1.0, run.answered / run.settled_to) if run.settled_to else 1.0
    return round((run.texts - run.settled_to) * each / rate, 1)
