"""What goes out: jobs and batches as callers see them. What comes in is `tieryard.requests`."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic_core import from_json

from tieryard.ids import public
from tieryard.job import FINAL, State
from tieryard.routing import JobFeatures, Snapshot, decide
from tieryard.store.reads import BatchRow, JobRow, Story
from tieryard.store.schema import Batch, File

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
        # Not `parse_job`: a body accepted under older rules is still its owner's to see.
        request: dict[str, Any] = from_json(row.body)
        return cls(
            id=public("job", job.id),
            state=job.state,
            tier=job.tier,
            batch=public("batch", job.batch_id) if job.batch_id is not None else None,
            custom_id=request.get("custom_id"),
            metadata=(request["body"] if "url" in request else request).get("metadata"),
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


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int = Field(description="Not completed, for whatever reason.")


class BatchFault(BaseModel):
    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchFaults(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchFault]


Unix = int
"""Seconds since 1970, as OpenAI's objects have them."""


class BatchPublic(BaseModel):
    """A batch in OpenAI's shape. `tier`, `counts`, `cost_usd` and `finished_at` are Tieryard's own."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchFaults | None = None
    input_file_id: str | None
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: Unix
    in_progress_at: Unix | None = None
    expires_at: Unix
    finalizing_at: Unix | None = None
    completed_at: Unix | None = None
    failed_at: Unix | None = None
    expired_at: Unix | None = None
    cancelling_at: Unix | None = None
    cancelled_at: Unix | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None

    tier: str
    counts: dict[str, int] = Field(description="Jobs by state.")
    cost_usd: Usd | None = Field(default=None, description="From the ledger, exact. Absent in lists.")
    finished_at: Unix | None = Field(description="When it was over, whatever its outcome.")

    @classmethod
    def of(cls, row: BatchRow) -> Self:
        batch, counts = row.batch, row.states
        status = _status(batch)
        undone = sum(counts[str(state)] for state in FINAL if state is not State.SUCCEEDED)
        at = {f"{name}_at": _unix(getattr(batch, f"{name}_at")) for name in ("finalizing", "cancelling")}
        if batch.outcome is not None:
            at[f"{batch.outcome}_at"] = _unix(batch.finished_at)
        return cls(
            id=public("batch", batch.id),
            endpoint=batch.endpoint or "/v1/jobs",
            errors=BatchFaults(data=[BatchFault(**from_json(batch.fault))]) if batch.fault else None,
            input_file_id=public("file", batch.source_id) if batch.endpoint else None,
            completion_window=batch.window or _window(batch.deadline - batch.created_at),
            status=status,
            output_file_id=public("file", batch.output_file_id) if batch.output_file_id else None,
            error_file_id=public("file", batch.error_file_id) if batch.error_file_id else None,
            created_at=int(batch.created_at.timestamp()),
            in_progress_at=_unix(batch.expanded_at),
            expires_at=int(batch.deadline.timestamp()),
            request_counts=RequestCounts(total=batch.requests, completed=counts[State.SUCCEEDED], failed=undone),
            metadata=batch.notes,
            tier=batch.tier,
            counts=counts,
            cost_usd=row.cost_usd,
            finished_at=_unix(batch.finished_at),
            **at,
        )


def _status(batch: Batch) -> Any:
    """OpenAI's word for where a batch is."""
    if batch.outcome is not None:
        return batch.outcome
    if batch.finalizing_at is not None:
        return "finalizing"
    if batch.cancelling_at is not None:
        return "cancelling"
    return "validating" if batch.expanded_to < batch.total else "in_progress"


def _unix(at: datetime | None) -> Unix | None:
    return int(at.timestamp()) if at is not None else None


def _window(window: timedelta) -> str:
    """A window that nobody spelt out, in the largest unit that it is a whole number of."""
    seconds = round(window.total_seconds())
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


class _Page(BaseModel):
    """OpenAI's page: pass `last_id` as `after` for the one that follows."""

    object: Literal["list"] = "list"
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class BatchPage(_Page):
    data: list[BatchPublic]

    @classmethod
    def of(cls, page: list[BatchPublic], *, more: bool) -> Self:
        return cls(data=page, has_more=more, **_ends([batch.id for batch in page]))


class FilePublic(BaseModel):
    """A file in OpenAI's shape."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: Unix
    expires_at: Unix | None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, file: File) -> Self:
        return cls(
            id=public("file", file.id),
            bytes=file.bytes,
            created_at=int(file.created_at.timestamp()),
            expires_at=_unix(file.expires_at),
            filename=file.filename,
            purpose=file.purpose,
        )


class FilePage(_Page):
    data: list[FilePublic]

    @classmethod
    def of(cls, page: list[FilePublic], *, more: bool) -> Self:
        return cls(data=page, has_more=more, **_ends([file.id for file in page]))


class DeletedPublic(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def _ends(ids: list[str]) -> dict[str, str]:
    return {"first_id": ids[0], "last_id": ids[-1]} if ids else {}


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
