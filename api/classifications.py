"""Receives classification runs and their rows, and shows what has come of them. Rows are saved and a nudge is sent.
Next: `workers/classifying.py` has the distinct texts asked, and reads the answers."""

from __future__ import annotations

import codecs
import contextlib
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from api.classification_shapes import (
    ClassificationComplete,
    ClassificationList,
    ClassificationPublic,
    ClassificationResume,
    ClassificationWhole,
    ReceivedPublic,
    RowPublic,
)
from api.idempotency import mark_of
from api.jobs import split_lines
from api.paging import cursor
from api.shapes import ERRORS
from api.state import BatchDep, ReadDep, State, StateDep
from tieryard.classification import questions
from tieryard.errors import RequestError
from tieryard.ids import internal
from tieryard.queues import CLASSIFYING, BrokerError
from tieryard.requests.classification import (
    MOST_ROWS,
    ClassificationSpec,
    Row,
    check_truth,
    parse_classification,
    parse_row,
)
from tieryard.requests.fields import refusal, refuse_nul
from tieryard.store import classification_reads, classifications, idempotency
from tieryard.store.classifications import KIND, ClassificationRun, NewRun
from tieryard.store.idempotency import AlreadyMadeError, Mark
from tieryard.store.keys import Holder

router = APIRouter(prefix="/v1/classifications", tags=["classifications"], responses=ERRORS)

Given = TypeVar("Given", bound=BaseModel)

MOST_BYTES = 16 * 2**20  # of one request's rows

_NDJSON = "application/x-ndjson"
_RESULTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {_NDJSON: {"schema": {"type": "string"}}}, "description": "A `RowPublic` a line."}
}


def _body(name: str, *, required: bool = True) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"requestBody": {"required": required, "content": content}}


_ROWS = {
    "requestBody": {
        "required": True,
        "description": f"A row a line, at most {MOST_ROWS:,} of them.",
        "content": {_NDJSON: {"schema": {"type": "string"}, "example": '{"text": "I was charged twice."}\n'}},
    }
}


@router.post("", status_code=201, openapi_extra=_body("ClassificationCreate"))
async def create_classification(request: Request, state: StateDep, holder: BatchDep) -> ClassificationWhole:
    """Makes a run. With `rows` it is complete at once; without, they are sent next."""
    body = (await request.body()).removeprefix(codecs.BOM_UTF8)
    mark = mark_of(request, holder.tenant_id, body)
    return await run_in_threadpool(_create, state, holder, body, mark)


@router.get("")
def list_classifications(
    state: StateDep,
    holder: ReadDep,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ClassificationList:
    """Your runs, newest first."""
    before = cursor(KIND, after)
    found = classifications.listing(state.store, tenant_id=holder.tenant_id, before=before, limit=limit + 1)
    now = datetime.now(tz=UTC)
    page = [ClassificationPublic.of(run, now) for run in found[:limit]]
    return ClassificationList(data=page, has_more=len(found) > limit)


@router.get("/{classification_id}")
def get_classification(state: StateDep, holder: ReadDep, classification_id: str) -> ClassificationWhole:
    """A run: how far it is, what it has decided, and what it has cost."""
    return _whole(_get(state, holder, classification_id))


@router.post("/{classification_id}/rows", openapi_extra=_ROWS)
async def add_rows(
    request: Request,
    state: StateDep,
    holder: BatchDep,
    classification_id: str,
    first: Annotated[int, Query(ge=1, lt=2**31, examples=[1], description="The number of the first of these rows.")],
) -> ReceivedPublic:
    """Takes the next rows. Those that are here already are skipped, so what got no answer can be sent again; where rows
    between are missing it is refused, and says which one comes next."""
    body = (await request.body()).removeprefix(codecs.BOM_UTF8)
    return await run_in_threadpool(_add_rows, state, holder, classification_id, first, body)


@router.post("/{classification_id}/complete", openapi_extra=_body("ClassificationComplete"))
async def complete_classification(
    request: Request, state: StateDep, holder: BatchDep, classification_id: str
) -> ClassificationWhole:
    """Says that no more rows come. Sent twice it does nothing more."""
    body = await request.body()
    return await run_in_threadpool(_complete, state, holder, classification_id, body)


@router.get("/{classification_id}/results", response_class=Response, responses=_RESULTS)
def get_results(
    state: StateDep,
    holder: ReadDep,
    classification_id: str,
    after: Annotated[int, Query(ge=0, lt=2**31, description="The last row of the page before.")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
) -> Response:
    """Rows in order: while the run goes on, those up to the first that has yet to get its last answer; then all."""
    run = _get(state, holder, classification_id)
    found = classification_reads.results(state.store, run, after=after, limit=limit)
    lines = [orjson.dumps(RowPublic.of(row, several=run.spec.multi_label)) for row in found]
    return Response(b"".join(line + b"\n" for line in lines), media_type=_NDJSON)


@router.post("/{classification_id}/resume", openapi_extra=_body("ClassificationResume", required=False))
async def resume_classification(
    request: Request, state: StateDep, holder: BatchDep, classification_id: str
) -> ClassificationWhole:
    """Goes on with a run that has stopped or failed, under another cap where one is given. Nothing is asked twice."""
    body = await request.body()
    return await run_in_threadpool(_resume, state, holder, classification_id, body)


@router.post("/{classification_id}/cancel")
def cancel_classification(state: StateDep, holder: BatchDep, classification_id: str) -> ClassificationWhole:
    """Cancels a run: nothing more is asked, what waits is dropped, what has run is billed. Answers stay readable."""
    classifications.cancel(state.store, internal(KIND, classification_id), tenant_id=holder.tenant_id)
    _nudge(state)
    return _whole(_get(state, holder, classification_id))


def _create(state: State, holder: Holder, body: bytes, mark: Mark | None) -> ClassificationWhole:
    if (made_before := idempotency.find(state.store, mark)) is not None:
        return _whole(classifications.get(state.store, made_before, tenant_id=holder.tenant_id))
    wanted = parse_classification(body)
    spec = wanted.spec()
    questions.check(spec, state.admission, tenant=holder.tenant)
    if wanted.rows is not None:
        _check_truths(spec, wanted.rows)
    new = NewRun(holder.tenant_id, holder.key_id, spec)
    try:
        run_id = classifications.create(state.store, new, wanted.rows, mark=mark)
    except AlreadyMadeError as known:
        run_id = known.subject_id
    else:
        _nudge(state)
    return _whole(classifications.get(state.store, run_id, tenant_id=holder.tenant_id))


def _add_rows(state: State, holder: Holder, named: str, first: int, body: bytes) -> ReceivedPublic:
    if len(body) > MOST_BYTES:
        raise RequestError(f"{len(body)} bytes; one request may have {MOST_BYTES}: send fewer rows at a time")
    run = _get(state, holder, named)
    lines = split_lines(body)
    if not lines:
        raise RequestError("expected at least one row")
    if len(lines) > MOST_ROWS:
        raise RequestError(f"{len(lines)} rows; one request may have {MOST_ROWS}: send fewer at a time")
    rows = [parse_row(line, line=number) for number, line in lines]
    _check_truths(run.spec, rows, numbers=[number for number, _ in lines])
    received = classifications.add_rows(state.store, run.id, first, rows, tenant_id=holder.tenant_id)
    _nudge(state)
    return ReceivedPublic(received=received)


def _check_truths(spec: ClassificationSpec, rows: list[Row], numbers: list[int] | None = None) -> None:
    known = frozenset(label.name for label in spec.labels)
    for line, row in zip(numbers or range(1, len(rows) + 1), rows, strict=True):
        check_truth(spec, row, known, line=line)


def _complete(state: State, holder: Holder, named: str, body: bytes) -> ClassificationWhole:
    wanted = _read(ClassificationComplete, body)
    run_id = internal(KIND, named)
    classifications.complete(state.store, run_id, wanted.rows, tenant_id=holder.tenant_id)
    _nudge(state)
    return _whole(_get(state, holder, named))


def _resume(state: State, holder: Holder, named: str, body: bytes) -> ClassificationWhole:
    wanted = _read(ClassificationResume, body or b"{}")
    classifications.resume(
        state.store,
        internal(KIND, named),
        tenant_id=holder.tenant_id,
        cap=wanted.max_cost_usd,
        keep_cap="max_cost_usd" not in wanted.model_fields_set,
    )
    _nudge(state)
    return _whole(_get(state, holder, named))


def _read(shape: type[Given], body: bytes) -> Given:
    try:
        found = shape.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error) from None
    refuse_nul(body)
    return found


def _get(state: State, holder: Holder, named: str) -> ClassificationRun:
    return classifications.get(state.store, internal(KIND, named), tenant_id=holder.tenant_id)


def _whole(run: ClassificationRun) -> ClassificationWhole:
    return ClassificationWhole.whole(run, datetime.now(tz=UTC))


def _nudge(state: State) -> None:
    with contextlib.suppress(BrokerError):  # beat's tick finds it
        state.publisher.nudge(CLASSIFYING)
