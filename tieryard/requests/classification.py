"""What a classification run is asked to do: labels, prompt, models, gate and cap; and the rows that it reads."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tieryard.errors import RequestError
from tieryard.requests.fields import Metadata, Name, NotBlank, Usd, refusal, refuse_nul

TRUTH: Literal["truth"] = "truth"
"""As a judge: the truth that rows carry, instead of a larger model."""
MOST_ROWS = 10_000
"""That one request may bring."""
LEAST_SAMPLE = 30
MOST_SAMPLE = 100_000

LabelName = Annotated[NotBlank, Field(max_length=100)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Label(_Spec):
    """An answer that is allowed."""

    name: LabelName
    description: str | None = Field(default=None, max_length=2000, description="When it holds; the model reads it.")


class Example(_Spec):
    """A text with its answer, which the model is shown before each question."""

    text: str
    label: LabelName | None = Field(default=None, description="Of a run with one label a row.")
    labels: list[LabelName] | None = Field(default=None, description="Of a run with several labels a row.")

    @property
    def answer(self) -> tuple[str, ...]:
        """Its labels, in the order given."""
        return (self.label,) if self.label is not None else tuple(self.labels or ())

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        if (self.label is None) == (self.labels is None):
            raise PydanticCustomError("answer", "give exactly one of `label` and `labels`")
        return self


class Calibrate(_Spec):
    """How the threshold of a cascade is found: both models answer the first texts, and the lowest-cost threshold wins
    that keeps accuracy near that of the larger model alone."""

    rows: int = Field(ge=LEAST_SAMPLE, le=MOST_SAMPLE, description="Distinct texts that both models answer.")
    max_drop: float = Field(
        default=0.02,
        ge=0.001,
        lt=1,
        description="Most accuracy that may be lost beside asking the larger model always.",
    )
    by: Literal["truth", "model"] = Field(
        default=TRUTH,
        description="What is right: the `truth` of rows, of which only those that have one are taken; or the larger "
        "model's own answer, where no row has one.",
    )


class Escalate(_Spec):
    """A cascade: texts whose answer has a confidence below the threshold are asked again, of a larger model."""

    model: Name = Field(description="The larger model: a deployment.")
    below: float | None = Field(default=None, ge=0, le=1, description="The threshold. Give this or `calibrate`.")
    calibrate: Calibrate | None = None

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if (self.below is None) == (self.calibrate is None):
            raise PydanticCustomError("threshold", "give exactly one of `below` and `calibrate`")
        return self


class Gate(_Spec):
    """Whether the first model may take all rows, decided by its answers to the first of them."""

    rows: int = Field(ge=LEAST_SAMPLE, le=MOST_SAMPLE, description="Distinct texts that it is judged by.")
    judge: Name = Field(
        description="A deployment that answers the same texts, or `truth`: the rows' own, of which only those with "
        "one are taken."
    )
    min_agreement: float = Field(
        default=0.9, gt=0, lt=1, description="Share of answers that must agree, by the lower end of its interval."
    )
    otherwise: Literal["escalate", "stop"] = Field(
        default="escalate",
        description="Where it fails: the other texts go to the larger model (that of `escalate`, else the judge), or "
        "the run stops.",
    )


class ClassificationSpec(_Spec):
    """What is asked about each text, of which model, and when to stop."""

    labels: list[Label] = Field(min_length=2, max_length=1000, description="The answers that are allowed.")
    multi_label: bool = Field(default=False, description="Whether a text may have several labels, or none.")
    template: str | None = Field(
        default=None,
        max_length=100_000,
        description="The question, with `{text}` and, where wanted, `{labels}` and `{examples}`. Default: our own.",
    )
    examples: list[Example] = Field(default=[], max_length=200, description="Shown before each question.")
    model: Name = Field(
        default="auto",
        description="`auto` routes; `class:small|medium|large` restricts to a size class; a deployment's name pins.",
    )
    tier: Name = Field(default="bulk", description="Service class that the texts are asked under.")
    escalate: Escalate | None = None
    gate: Gate | None = None
    max_cost_usd: Usd | None = Field(
        default=None, description="The run stops before it could cost more; it can be resumed with a higher one."
    )
    metadata: Metadata | None = Field(default=None, description="Your own notes, given back.")

    @property
    def larger_model(self) -> str | None:
        """Whom texts go to that the first model may not answer; None where there is nobody."""
        if self.escalate is not None:
            return self.escalate.model
        return self.gate.judge if self.gate is not None and self.gate.judge != TRUTH else None

    @field_validator("gate")
    @classmethod
    def _somebody_takes_over(cls, gate: Gate | None, known: ValidationInfo) -> Gate | None:
        """`escalate` stands before it, so that it has been read; one that was refused is none of ours to judge."""
        alone = gate is not None and gate.judge == TRUTH and gate.otherwise == "escalate"
        if alone and known.data.get("escalate", ...) is None:
            raise PydanticCustomError(
                "gate",
                "judged by truth there is no larger model to go on with: give `escalate`, or `otherwise`: 'stop'",
            )
        return gate


class Row(_Spec):
    """One row: the text that is classified, and what it should come to, where that is known."""

    text: str
    truth: LabelName | list[LabelName] | None = Field(
        default=None, description="A label, or several of a run with several labels a row."
    )

    @property
    def answer(self) -> tuple[str, ...] | None:
        """Its truth as labels in one order; None where it is not known."""
        if self.truth is None:
            return None
        return (self.truth,) if isinstance(self.truth, str) else tuple(sorted(set(self.truth)))


class ClassificationCreate(ClassificationSpec):
    """A run, with its rows where these are few."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "labels": [
                        {"name": "billing", "description": "Invoices, refunds, prices."},
                        {"name": "bug", "description": "Something does not work."},
                    ],
                    "rows": [{"text": "I was charged twice."}, {"text": "The page is blank.", "truth": "bug"}],
                }
            ]
        }
    )

    rows: list[Row] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_ROWS,
        description="All rows of a small run. Default: they come by `POST /v1/classifications/{id}/rows`.",
    )

    def spec(self) -> ClassificationSpec:
        """What is asked, without the rows."""
        return ClassificationSpec.model_validate(self.model_dump(exclude={"rows"}))


_row: TypeAdapter[Row] = TypeAdapter(Row)


def parse_classification(raw: bytes) -> ClassificationCreate:
    """Reads a run that is asked for. Raises RequestError that names the field."""
    try:
        wanted = ClassificationCreate.model_validate_json(raw)
    except ValidationError as error:
        raise refusal(error) from None
    refuse_nul(raw)
    return wanted


def parse_row(raw: str | bytes, *, line: int | None = None) -> Row:
    """Reads a row of NDJSON. Raises RequestError that names the field and the line."""
    try:
        row = _row.validate_json(raw)
    except ValidationError as error:
        raise refusal(error, line=line) from None
    refuse_nul(raw, line=line)
    return row


def check_truth(spec: ClassificationSpec, row: Row, known: frozenset[str], *, line: int | None = None) -> None:
    """Raises RequestError for a truth that no answer could ever meet. `known` are the names of the spec's labels."""
    answer = row.answer
    if answer is None:
        return
    if unknown := [name for name in answer if name not in known]:
        raise RequestError(f"'{unknown[0]}' is none of the labels", param="truth", line=line)
    if len(answer) != 1 and not spec.multi_label:
        raise RequestError("a row of this run has one label; set `multi_label` for several", param="truth", line=line)
