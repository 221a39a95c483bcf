"""Files in OpenAI's shape: uploads of batch requests, and the outputs of batches, streamed both ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from api.idempotency import key_of
from api.openai_shapes import DeletedPublic, FilePage, FilePublic
from api.paging import cursor
from api.shapes import ERRORS
from api.state import BatchDep, ReadDep, State, StateDep
from tieryard import outputs
from tieryard.errors import RequestError
from tieryard.ids import internal
from tieryard.requests.fields import refusal
from tieryard.requests.openai import ExpiresAfter
from tieryard.store import files, reads
from tieryard.store.connection import storable
from tieryard.store.files import NewFile
from tieryard.store.idempotency import AlreadyMadeError
from tieryard.store.schema import File

router = APIRouter(prefix="/v1/files", tags=["files"], responses=ERRORS)

JSONL = "application/jsonl"
MULTIPART_BYTES = 1024 * 1024
"""What a form may have around its file."""
_MOST_FIELD_BYTES = 64 * 1024
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "One request a line."},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_UPLOAD)
async def create_file(request: Request, state: StateDep, holder: BatchDep) -> FilePublic:
    """Takes a file of batch requests. It goes through the disk, line by line into the store: never whole in memory."""
    key = key_of(request)
    try:
        form = await request.form(max_files=1, max_fields=8, max_part_size=_MOST_FIELD_BYTES)
    except UnicodeError:
        raise RequestError("expected multipart/form-data in UTF-8", param="file") from None
    try:
        upload, new = _read_form(form, holder.tenant_id)
        return await run_in_threadpool(_save, state, new, upload, key)
    finally:
        await form.close()


@router.get("")
def list_files(
    state: StateDep,
    holder: ReadDep,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> FilePage:
    """Your files, newest first."""
    found = files.list_files(
        state.store,
        tenant_id=holder.tenant_id,
        purpose=storable(purpose) if purpose is not None else None,
        after=cursor("file", after),
        limit=limit + 1,
        ascending=order == "asc",
    )
    page = [FilePublic.of(file) for file in found[:limit]]
    return FilePage.of(page, more=len(found) > limit)


@router.get("/{file_id}")
def get_file(state: StateDep, holder: ReadDep, file_id: str) -> FilePublic:
    """What is known of a file, without its content."""
    return FilePublic.of(files.get_file(state.store, internal("file", file_id), tenant_id=holder.tenant_id))


@router.get("/{file_id}/content", response_class=StreamingResponse, responses={200: {"content": {JSONL: {}}}})
def get_content(state: StateDep, holder: ReadDep, file_id: str) -> StreamingResponse:
    """A file's content: an upload byte for byte, an output in the order of its input."""
    file = files.get_file(state.store, internal("file", file_id), tenant_id=holder.tenant_id)
    headers = {"content-length": str(file.bytes)} if file.batch_id is None else None
    return StreamingResponse(_content(state, file), media_type=JSONL, headers=headers)


@router.delete("/{file_id}")
def delete_file(state: StateDep, holder: BatchDep, file_id: str) -> DeletedPublic:
    """Deletes a file. What a batch was made from stays with its jobs, where only the batch's owner sees it."""
    files.delete_file(state.store, internal("file", file_id), tenant_id=holder.tenant_id)
    return DeletedPublic(id=file_id)


def _read_form(form: FormData, tenant_id: int) -> tuple[UploadFile, NewFile]:
    upload, purpose = form.get("file"), form.get("purpose")
    if not isinstance(upload, UploadFile):
        raise RequestError("expected a file, in multipart/form-data", param="file")
    if purpose != "batch":
        raise RequestError("expected 'batch': files here are lines of requests", param="purpose")
    expires_after = None
    after: dict[str, Any] = {
        name: form[f"expires_after[{name}]"] for name in ("anchor", "seconds") if f"expires_after[{name}]" in form
    }
    if after:
        try:
            expires_after = ExpiresAfter.model_validate(after, strict=False).delta()
        except ValidationError as error:
            raise refusal(error, under="expires_after") from None
    return upload, NewFile(tenant_id, "batch", storable(upload.filename or "upload.jsonl")[:255], expires_after)


def _save(state: State, new: NewFile, upload: UploadFile, key: str | None) -> FilePublic:
    try:
        file_id = files.save_file(state.store, new, upload.file, most_lines=state.settings.max_list_jobs, key=key)
    except AlreadyMadeError as made:
        file_id = made.subject_id
    return FilePublic.of(files.get_file(state.store, file_id, tenant_id=new.tenant_id))


def _content(state: State, file: File) -> Iterator[bytes]:
    if file.batch_id is None:
        return files.read_lines(state.store, file)
    batch = reads.get_batch(state.store, file.batch_id, tenant_id=file.tenant_id).batch
    return outputs.read_output(state.store, batch, "output" if batch.output_file_id == file.id else "errors")
