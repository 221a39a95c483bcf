"""Batches in OpenAI's shape. A list that came by `/v1/jobs` is one too, with no file behind it."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.files import JSONL
from api.idempotency import mark_of
from api.openai_shapes import BatchPage, BatchPublic
from api.paging import cursor
from api.shapes import ERRORS
from api.state import BatchDep, ReadDep, State, StateDep
from tieryard import outputs
from tieryard.errors import ConflictError, NotFoundError, RequestError
from tieryard.ids import internal
from tieryard.queues import EXPAND, BrokerError
from tieryard.requests import BatchCreate, parse_batch, parse_batch_line
from tieryard.requests import Request as JobRequest
from tieryard.store import batches, files, idempotency, quotes, reads
from tieryard.store.batches import FileBatch, NewBatch
from tieryard.store.idempotency import AlreadyMadeError, Mark
from tieryard.store.keys import Holder
from tieryard.store.schema import File

router = APIRouter(prefix="/v1/batches", tags=["batches"], responses=ERRORS)

_NOTHING = Decimal(0)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchCreate"}}},
    }
}
_LINES: dict[int | str, dict[str, Any]] = {200: {"content": {JSONL: {}}}}


@router.post("", openapi_extra=_BODY)
async def create_batch(request: Request, state: StateDep, holder: BatchDep) -> BatchPublic:
    """Makes a batch of an uploaded file. Its lines are checked next: a bad one fails alone, by its number."""
    body = await request.body()
    mark = mark_of(request, holder.tenant_id, body)
    return await run_in_threadpool(_create, state, holder, parse_batch(body), mark)


@router.get("")
def list_batches(
    state: StateDep,
    holder: ReadDep,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BatchPage:
    """Your batches, newest first; `cost_usd` is on each batch's own page."""
    found = reads.list_batches(state.store, tenant_id=holder.tenant_id, after=cursor("batch", after), limit=limit + 1)
    return BatchPage.of([BatchPublic.of(row) for row in found[:limit]], more=len(found) > limit)


@router.get("/{batch_id}")
def get_batch(state: StateDep, holder: ReadDep, batch_id: str) -> BatchPublic:
    """A batch: how far it is, and what it has cost."""
    return BatchPublic.of(_get(state, holder.tenant_id, batch_id))


@router.post("/{batch_id}/cancel")
def cancel_batch(state: StateDep, holder: BatchDep, batch_id: str) -> BatchPublic:
    """Cancels a batch: what waits ends within seconds, what runs is stopped; finished lines stay readable."""
    row = _get(state, holder.tenant_id, batch_id)
    if not batches.cancel(state.store, row.batch.id):
        row = _get(state, holder.tenant_id, batch_id)
        if row.batch.cancelling_at is None:
            status = BatchPublic.of(row).status
            raise ConflictError(f"cannot cancel a batch that is {status}", param="batch")
    return BatchPublic.of(_get(state, holder.tenant_id, batch_id))


@router.get("/{batch_id}/output", response_class=StreamingResponse, responses=_LINES)
def get_output(state: StateDep, holder: ReadDep, batch_id: str) -> StreamingResponse:
    """The lines that have succeeded by now, in input order, also while the batch runs."""
    batch = _get(state, holder.tenant_id, batch_id).batch
    return StreamingResponse(outputs.read_output(state.store, batch, "output"), media_type=JSONL)


@router.get("/{batch_id}/errors", response_class=StreamingResponse, responses=_LINES)
def get_errors(state: StateDep, holder: ReadDep, batch_id: str) -> StreamingResponse:
    """The lines that have failed, expired or been cancelled by now, in input order."""
    batch = _get(state, holder.tenant_id, batch_id).batch
    return StreamingResponse(outputs.read_output(state.store, batch, "errors"), media_type=JSONL)


def _get(state: State, tenant_id: int, batch_id: str) -> reads.BatchRow:
    return reads.get_batch(state.store, internal("batch", batch_id), tenant_id=tenant_id)


def _create(state: State, holder: Holder, wanted: BatchCreate, mark: Mark | None) -> BatchPublic:
    if (made_before := idempotency.find(state.store, mark)) is not None:  # whatever has become of its file since
        return BatchPublic.of(reads.get_batch(state.store, made_before, tenant_id=holder.tenant_id))
    try:
        file = files.get_file(state.store, internal("file", wanted.input_file_id), tenant_id=holder.tenant_id)
    except NotFoundError as error:
        raise NotFoundError(error.message, param="input_file_id") from None
    if file.purpose != "batch":
        raise RequestError(f"its purpose is '{file.purpose}'; expected 'batch'", param="input_file_id")
    if wanted.callback_url is not None and not state.signs_callbacks:
        raise RequestError("callbacks are off: this fleet has no TIERYARD_WEBHOOK_SECRET", param="callback_url")
    tier = state.admission.file_tier(wanted.tier)
    state.admission.check_endpoint(wanted.endpoint)
    new = NewBatch(
        holder.tenant_id,
        tier,
        datetime.now(tz=UTC) + wanted.window(),
        callback_url=str(wanted.callback_url) if wanted.callback_url else None,
        tokens=_tokens(state, holder, file, wanted),
        quote_id=_quote_of(wanted),
        api_key_id=holder.key_id,
        worst=_worst(state, holder, file, wanted),
    )
    made = FileBatch(
        file,
        wanted.endpoint,
        wanted.completion_window.strip(),
        metadata=wanted.metadata,
        reuse=wanted.reuse,
        output_expires_after=wanted.output_expires_after.delta() if wanted.output_expires_after else None,
        fault=files.fault_of(file),
    )
    try:
        batch_id = batches.save_file_batch(state.store, new, made, mark=mark)
    except AlreadyMadeError as known:
        batch_id = known.subject_id
    else:
        with contextlib.suppress(BrokerError):  # beat sends another nudge
            state.publisher.nudge(EXPAND)
    return BatchPublic.of(reads.get_batch(state.store, batch_id, tenant_id=holder.tenant_id))


def _quote_of(wanted: BatchCreate) -> int | None:
    named = (wanted.metadata or {}).get(quotes.IN_METADATA)
    return internal("quote", named) if named is not None else None


def _worst(state: State, holder: Holder, file: File, wanted: BatchCreate) -> list[tuple[int, Decimal]] | None:
    """The most that its lines can cost, in parts; None where its caller has no budget. One that is no request costs
    nothing; one whose answer is then reused counts all the same, until its part is done."""
    prices = state.budget_prices(holder)
    if prices is None:
        return None
    worst: list[Decimal] = []
    for lines in files.read_texts(state.store, file):
        requests: dict[int, JobRequest] = {}
        for number, line in enumerate(lines):
            with contextlib.suppress(RequestError):
                requests[number] = parse_batch_line(line, endpoint=wanted.endpoint)
        usd = state.admission.worst_usd(list(requests.values()), prices, tenant=holder.tenant)
        priced = dict(zip(requests, usd, strict=True))
        worst += [priced.get(number, _NOTHING) for number in range(len(lines))]
    return batches.in_parts(worst)


def _tokens(state: State, holder: Holder, file: File, wanted: BatchCreate) -> int | None:
    """What the batch counts against the tenant's cap; not counted where there is none."""
    if holder.max_enqueued_tokens is None:
        return None
    return state.admission.file_tokens(files.read_texts(state.store, file), wanted.endpoint)
