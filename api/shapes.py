"""What goes out: jobs as callers see them, and errors. What comes in is `tieryard.requests`."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from tieryard.admission import counted_for
from tieryard.ids import public
from tieryard.requests import read_notes
from tieryard.routing import JobFeatures, Judged, Snapshot, decide, plain
from tieryard.store.reads import JobRow, Story
from tieryard.store.schema import Decision, Outcome

Usd = Annotated[Decimal, PlainSerializer(lambda usd: f"{usd:f}", return_type=str, when_used="json")]
"""Dollars, exact: as text, and never with an exponent."""


class ErrorBody(BaseModel):
    """OpenAI's error shape, with the line of a list where there is one."""

    message: str
    type: str
    code: str
    param: str | None = None
    line: int | None = None


class ErrorPublic(BaseModel):
    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorPublic} for status in (400, 401, 403, 404, 409, 413, 429, 503)
}
"""How any route under `/v1` may refuse."""


class JobError(BaseModel):
    kind: str
    message: str


class UsagePublic(BaseModel):
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class TimingsPublic(BaseModel):
    """Milliseconds: from acceptance to claim, then from the request's start in the engine."""

    wait_ms: float
    ttft_ms: float | None
    latency_ms: float | None


class JobPublic(BaseModel):
    """A job as its owner sees it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "job_42",
                    "object": "job",
                    "state": "succeeded",
                    "tier": "interactive",
                    "category": "extraction",
                    "deployment": "smol-short",
                    "output": "Oslo",
                    "finish_reason": "stop",
                    "usage": {"prompt_tokens": 39, "cached_tokens": 31, "completion_tokens": 2},
                    "timings": {"wait_ms": 12.4, "ttft_ms": 58.1, "latency_ms": 81.9},
                    "cost_usd": "0.00000235",
                    "created_at": "2026-11-22T12:00:00Z",
                    "deadline": "2026-11-22T12:05:00Z",
                }
            ]
        }
    )

    id: str
    object: Literal["job"] = "job"
    state: str = Field(description="queued, routed, running, succeeded, failed, cancelled or expired.")
    tier: str
    batch: str | None = None
    custom_id: str | None = None
    metadata: dict[str, str] | None = None
    category: str | None = None
    deployment: str | None = None
    attempts: int = Field(default=0, description="Starts that failed by the job's own fault.")
    output: str | None = None
    finish_reason: str | None = None
    extra: dict[str, Any] | None = Field(
        default=None, description="What of the answer is not text: tool calls, logprobs, embeddings."
    )
    reused_from: str | None = Field(default=None, description="The job whose answer this is.")
    error: JobError | None = None
    usage: UsagePublic | None = None
    timings: TimingsPublic | None = None
    cost_usd: Usd | None = Field(default=None, description="From the ledger, exact. None until it is charged.")
    created_at: datetime
    deadline: datetime
    finished_at: datetime | None = None

    @classmethod
    def of(cls, row: JobRow) -> Self:
        job, result, timing = row.job, row.result, row.timing
        custom_id, metadata = read_notes(row.body)
        return cls(
            id=public("job", job.id),
            state=job.state,
            tier=job.tier,
            batch=public("batch", job.batch_id) if job.batch_id is not None else None,
            custom_id=custom_id,
            metadata=metadata,
            category=job.category,
            deployment=job.deployment,
            attempts=job.attempts,
            output=result.output if result else None,
            finish_reason=result.finish_reason if result else None,
            extra=result.extra if result else None,
            reused_from=public("job", result.reused_from) if result and result.reused_from else None,
            error=JobError(kind=result.error_kind, message=result.error or "")
            if result and result.error_kind
            else None,
            usage=UsagePublic(**timing.model_dump(include=set(UsagePublic.model_fields))) if timing else None,
            timings=TimingsPublic(**timing.model_dump(include=set(TimingsPublic.model_fields))) if timing else None,
            cost_usd=row.cost_usd,
            created_at=job.created_at,
            deadline=job.deadline,
            finished_at=job.finished_at,
        )


class JobPage(BaseModel):
    """A page of jobs. Pass `next` as `after` for the one that follows."""

    object: Literal["list"] = "list"
    data: list[JobPublic]
    next: str | None = None


class CandidatePublic(BaseModel):
    """One deployment, as the router saw it for this job. Times are the 95th percentile, in milliseconds."""

    name: str
    chosen: bool
    fits: bool = Field(description="It can take the job at all.")
    qualifies: bool = Field(description="It also meets the SLO and the floors of quality, and is well.")
    why: str = Field(description="Why it lost; empty for the chosen one.")
    prompt_tokens: int = Field(description="By its own tokenizer.")
    output_tokens: int = Field(description="Expected.")
    expected_cost_usd: Usd
    wait_ms: float = Field(description="Predicted wait for a free slot.")
    ttft_ms: float = Field(description="Predicted time to the first token, after the wait.")
    latency_ms: float = Field(description="Predicted from end to end, with the wait.")
    quality: float = Field(description="Predicted, 0 to 1.")
    score: float | None = Field(
        description="0 to 1: quality, cost and latency by the catalog's weights, scaled over those that fit."
    )

    @classmethod
    def of(cls, judged: Judged, *, chosen: str | None) -> Self:
        return cls(
            name=judged.name,
            chosen=judged.name == chosen,
            fits=judged.fits,
            qualifies=judged.qualifies,
            why=judged.why,
            prompt_tokens=judged.prompt_tokens,
            output_tokens=judged.output_tokens,
            expected_cost_usd=judged.cost_usd,
            wait_ms=judged.wait_ms,
            ttft_ms=judged.ttft_ms,
            latency_ms=judged.latency_ms,
            quality=judged.quality,
            score=judged.score,
        )


class RoutePublic(BaseModel):
    """A whole routing decision: every candidate with its numbers, and why it lost."""

    deployment: str | None = Field(description="None: no deployment can take it, or it waits for one.")
    reason: str
    fallback: bool = Field(description="None met the SLO and the floors; it went to the nearest that fits.")
    explored: bool = Field(description="Sent beside the choice, to measure.")
    canary: str | None = Field(
        description="The candidate for whose canary it counts: that took the job, or is compared with what did."
    )
    defer_s: float = Field(description="Above 0: it waits so long for a cheaper deployment, then is routed again.")
    notes: list[str] = Field(description="What the numbers lack.")
    classifier: Literal["learned", "rules"] | None = Field(description="What told how much the job needs.")
    step_back: str = Field(description="Why the rules decide though the learned classifier was asked for.")
    catalog: str | None = Field(description="The hash of the catalog.")
    features: dict[str, Any] = Field(description="What the decision depends on of the job itself.")
    candidates: list[CandidatePublic]

    @classmethod
    def of(cls, features: JobFeatures, snapshot: Snapshot) -> Self:
        """Decides."""
        return cls(**_decided(features, snapshot))


class DecisionPublic(RoutePublic):
    """A decision that was made, with every candidate recomputed from the stored features and snapshot."""

    decided_at: datetime
    snapshot: int

    @classmethod
    def stored(cls, stored: Decision, body: dict[str, Any]) -> Self:
        """What was saved is what counts: deployment, reason, and whether it fell back, explored, or was of a canary."""
        known = {"deployment": stored.deployment, "reason": stored.reason, "features": stored.features}
        flags = {"fallback": stored.fallback, "explored": stored.explored, "canary": stored.canary}
        if stored.features and body:
            found = _decided(JobFeatures.from_dict(stored.features), Snapshot.from_json(body), stored.deployment)
        else:
            found = {"defer_s": 0.0, "notes": [], "classifier": None, "step_back": "", "catalog": None}
            found["candidates"] = []
        return cls(**{**found, **known, **flags}, decided_at=stored.decided_at, snapshot=stored.snapshot_id)


def _decided(features: JobFeatures, snapshot: Snapshot, chosen: str | None = None) -> dict[str, Any]:
    """The members that a decision gives. `chosen`: the deployment that was stored, if one was."""
    features = counted_for(features, snapshot)
    made = decide(features, snapshot)
    learned = snapshot.rules.classifier == "learned" and features.hardness is not None
    return {
        "deployment": made.deployment,
        "reason": made.reason,
        "fallback": made.fallback,
        "explored": made.explored,
        "canary": made.canary or None,
        "defer_s": made.defer_s,
        "notes": list(made.notes),
        "classifier": "learned" if learned else "rules",
        "step_back": snapshot.rules.step_back,
        "catalog": snapshot.catalog,
        "features": orjson.loads(orjson.dumps(features.stored(), default=plain)),
        "candidates": [CandidatePublic.of(j, chosen=chosen or made.deployment) for j in made.judged],
    }


class StartPublic(BaseModel):
    """One start of the job: under which fence, on which worker, and how it ended."""

    fence: int
    worker_id: int | None
    deployment: str
    outcome: str
    claimed_at: datetime
    ended_at: datetime
    wait_ms: float
    ttft_ms: float | None
    latency_ms: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    error: str | None
    fingerprint: str | None


class MoneyPublic(BaseModel):
    """A row of the ledger. Of a job's rows only that of the kind `inference` is charged."""

    kind: str
    fence: int
    cost_usd: Usd
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    deployment: str
    catalog: str
    window_id: int | None = Field(default=None, description="The rent window that it is posted to.")
    posted_at: datetime


class OutcomePublic(BaseModel):
    """A score as it is kept."""

    object: Literal["outcome"] = "outcome"
    job: str
    source: str
    score: float
    deployment: str | None = Field(description="Whose answer it was.")
    category: str | None
    predicted: float | None = Field(
        description="The quality that the router had expected of it; null where it had decided nothing."
    )
    scored_at: datetime

    @classmethod
    def of(cls, kept: Outcome) -> Self:
        return cls(
            job=public("job", kept.job_id),
            source=kept.source,
            score=kept.score,
            deployment=kept.deployment,
            category=kept.category,
            predicted=kept.rules_predicted if kept.predicted is None else kept.predicted,
            scored_at=kept.scored_at,
        )


class StoryPublic(BaseModel):
    """Everything that is kept of a job."""

    job: JobPublic
    decisions: list[DecisionPublic]
    starts: list[StartPublic]
    money: list[MoneyPublic]
    outcomes: list[OutcomePublic] = Field(description="How good its answer was, by each who said so.")

    @classmethod
    def of(cls, story: Story) -> Self:
        return cls(
            job=JobPublic.of(story.row),
            decisions=[DecisionPublic.stored(made, body) for made, body in story.decisions],
            starts=[StartPublic(**s.model_dump()) for s in story.starts],
            money=[MoneyPublic(**m.model_dump()) for m in story.money],
            outcomes=[OutcomePublic.of(kept) for kept in story.outcomes],
        )
