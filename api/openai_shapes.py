"""What goes out in OpenAI's shapes: batches and files, and their pages."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal, Self

from pydantic import BaseModel, Field
from pydantic_core import from_json

from api.shapes import Usd
from tieryard.ids import public
from tieryard.job import FINAL, State
from tieryard.store.reads import BatchRow
from tieryard.store.schema import Batch, File


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
    milliseconds = round(window.total_seconds() * 1000)
    for unit, length in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms"


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
