"""What goes out: jobs as callers see them, and errors. What comes in is `tieryard.requests`."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from tieryard.ids import public
from tieryard.requests import read_notes
from tieryard.routing import JobFeatures, Snapshot, decide
from tieryard.store.reads import JobRow, Story

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
    name: str
    chosen: bool
    qualifies: bool
    why: str = Field(description="Why it lost; empty for the chosen one.")
    prompt_tokens: int
    expected_cost_usd: Usd


class DecisionPublic(BaseModel):
    """One routing decision, every candidate recomputed from the stored features and snapshot."""

    decided_at: datetime
    deployment: str | None
    reason: str
    snapshot: int
    features: dict[str, Any]
    candidates: list[CandidatePublic]


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
    kind: str
    fence: int
    cost_usd: Usd
    prompt_tokens: int
    completion_tokens: int
    deployment: str
    catalog: str
    posted_at: datetime


class StoryPublic(BaseModel):
    """Everything that is kept of a job."""

    job: JobPublic
    decisions: list[DecisionPublic]
    starts: list[StartPublic]
    money: list[MoneyPublic]

    @classmethod
    def of(cls, story: Story) -> Self:
        return cls(
            job=JobPublic.of(story.row),
            decisions=[_decision(stored, body) for stored, body in story.decisions],
            starts=[StartPublic(**s.model_dump()) for s in story.starts],
            money=[MoneyPublic(**m.model_dump()) for m in story.money],
        )


def _decision(stored: Any, snapshot: dict[str, Any]) -> DecisionPublic:
    again = (
        decide(JobFeatures.from_dict(stored.features), Snapshot.from_json(snapshot))
        if stored.features and snapshot
        else None
    )
    return DecisionPublic(
        decided_at=stored.decided_at,
        deployment=stored.deployment,
        reason=stored.reason,
        snapshot=stored.snapshot_id,
        features=stored.features,
        candidates=[
            CandidatePublic(
                name=j.name,
                chosen=j.name == stored.deployment,
                qualifies=j.qualifies,
                why=j.why,
                prompt_tokens=j.prompt_tokens,
                expected_cost_usd=j.cost_usd,
            )
            for j in (again.judged if again else ())
        ],
    )
