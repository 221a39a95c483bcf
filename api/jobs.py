"""Receives jobs over REST: one, or a list of them. Validates, saves and commits; a single job is published at once.
A list becomes a batch, whose lines are saved as they came.
Next: a single job is at `workers/classify.py`, a list at `workers/expand.py`."""

from __future__ import annotations

import codecs
import contextlib
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import AnyHttpUrl, TypeAdapter, ValidationError

from api.idempotency import mark_of
from api.openai_shapes import BatchPublic
from api.paging import cursor
from api.shapes import ERRORS, JobPage, JobPublic, StoryPublic
from api.state import InferDep, ReadDep, State, StateDep
from tieryard.errors import RequestError
from tieryard.ids import internal, public
from tieryard.job import State as JobState
from tieryard.queues import EXPAND, BrokerError, parcels_to_classify
from tieryard.requests import Duration, parse_job, refusal
from tieryard.requests import Request as JobRequest
from tieryard.store import batches, idempotency, jobs, reads
from tieryard.store.batches import NewBatch
from tieryard.store.connection import storable
from tieryard.store.idempotency import AlreadyMadeError, Mark
from tieryard.store.jobs import NewJob
from tieryard.store.keys import Holder

router = APIRouter(prefix="/v1", tags=["jobs"], responses=ERRORS)

_STARTS_LIST = re.compile(rb"\s*\[")
NDJSON = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
_BODY = {
    "requestBody": {
        "required": True,
        "description": "One job, a JSON list of jobs, or one job a line as `application/x-ndjson`.",
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/JobCreate"},
                        {"type": "array", "items": {"$ref": "#/components/schemas/JobCreate"}, "minItems": 1},
                    ]
                },
                "examples": {
                    "one": {
                        "summary": "A single job",
                        "value": {"prompt": "Extract the city: 'I live in Oslo.'", "tier": "interactive"},
                    },
                    "list": {
                        "summary": "A list becomes a batch",
                        "value": [{"prompt": "Say hi."}, {"prompt": "Say bye.", "custom_id": "b"}],
                    },
                },
            },
            "application/x-ndjson": {
                "schema": {"type": "string"},
                "example": '{"prompt": "Say hi."}\n{"prompt": "Say bye."}\n',
            },
        },
    }
}


@router.post("/jobs", status_code=201, openapi_extra=_BODY, response_model=JobPublic | BatchPublic)
async def create_jobs(
    request: Request,
    state: StateDep,
    holder: InferDep,
    tier: Annotated[str | None, Query(description="Tier of every job that names none.")] = None,
    completion_window: Annotated[str | None, Query(description="Window of a list, such as `24h`.")] = None,
    callback_url: Annotated[str | None, Query(description="Told when a list is finished.")] = None,
    quote_id: Annotated[str | None, Query(description="The quote that a list is to be held against.")] = None,
) -> JobPublic | BatchPublic:
    """Accepts one job, or a list that becomes a batch. Nothing is saved unless all of it is valid."""
    body = (await request.body()).removeprefix(codecs.BOM_UTF8)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    mark = mark_of(request, holder.tenant_id, body)
    options = _list_options(completion_window, callback_url, quote_id)
    if kind in NDJSON or _STARTS_LIST.match(body):
        # A long list takes seconds to read and check: never on the event loop.
        return await run_in_threadpool(_create_list, state, holder, body, kind in NDJSON, tier, options, mark)
    for name, value in options.items():
        if value is not None:
            raise RequestError("is for lists; a single job says it in its body", param=name)
    return await run_in_threadpool(_create_one, state, holder, body, tier, mark)


@router.get("/jobs")
def list_jobs(
    state: StateDep,
    holder: ReadDep,
    job_state: Annotated[JobState | None, Query(alias="state")] = None,
    tier: str | None = None,
    deployment: str | None = None,
    batch: str | None = None,
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> JobPage:
    """Your jobs: a batch's in input order, otherwise newest first."""
    wanted = reads.JobFilter(
        state=job_state,
        tier=storable(tier) if tier else None,
        deployment=storable(deployment) if deployment else None,
        batch_id=internal("batch", batch) if batch else None,
    )
    after_id = cursor("job", after)
    rows = reads.list_jobs(state.store, tenant_id=holder.tenant_id, wanted=wanted, after=after_id, limit=limit + 1)
    page = rows[:limit]
    more = len(rows) > limit
    return JobPage(data=[JobPublic.of(r) for r in page], next=public("job", page[-1].job.id) if more else None)


@router.get("/jobs/{job_id}")
def get_job(state: StateDep, holder: ReadDep, job_id: str) -> JobPublic:
    """One job, with its result when it is final."""
    return JobPublic.of(reads.get_job(state.store, internal("job", job_id), tenant_id=holder.tenant_id))


@router.get("/jobs/{job_id}/story")
def get_story(state: StateDep, holder: ReadDep, job_id: str) -> StoryPublic:
    """Everything that is kept of a job: each decision with every candidate, each start, all money, each score."""
    return StoryPublic.of(reads.get_story(state.store, internal("job", job_id), tenant_id=holder.tenant_id))


@router.post("/jobs/{job_id}/cancel")
def cancel_job(state: StateDep, holder: InferDep, job_id: str) -> JobPublic:
    """Cancels a job: at once while it waits; a running one stops within a second and bills what it used."""
    number = internal("job", job_id)
    jobs.cancel(state.store, [number], tenant_id=holder.tenant_id)
    return JobPublic.of(reads.get_job(state.store, number, tenant_id=holder.tenant_id))


def _create_one(state: State, holder: Holder, body: bytes, tier: str | None, mark: Mark | None) -> JobPublic:
    if (made_before := idempotency.find(state.store, mark)) is not None:  # whatever the catalog says of it today
        return JobPublic.of(reads.get_job(state.store, made_before, tenant_id=holder.tenant_id))
    wanted = parse_job(body)
    state.admission.check(wanted, callbacks=state.signs_callbacks, tenant=holder.tenant)
    chosen = state.admission.tier_of(wanted, tier)
    deadline = datetime.now(tz=UTC) + state.catalog.due_in(chosen, wanted.completion_window)
    tokens = sum(state.admission.prompt_tokens([wanted])) if holder.max_enqueued_tokens is not None else None
    new = NewJob(
        holder.tenant_id,
        chosen,
        _text(body),
        deadline,
        wants_callback=wanted.callback_url is not None,
        tokens=tokens,
        api_key_id=holder.key_id,
        worst_usd=state.worst_usd(holder, wanted),
    )
    try:
        job_id, created_at = jobs.save_job(state.store, new, patience_s=2 * state.settings.window_s, mark=mark)
    except AlreadyMadeError as made:
        return JobPublic.of(reads.get_job(state.store, made.subject_id, tenant_id=holder.tenant_id))
    # The job is committed. If this nudge is lost, rescue sends another.
    with contextlib.suppress(BrokerError):
        state.publisher.publish(parcels_to_classify(chosen, deadline.timestamp(), [job_id]))
    return JobPublic(
        id=public("job", job_id),
        state=JobState.QUEUED,
        tier=chosen,
        custom_id=wanted.custom_id,
        metadata=wanted.metadata,
        created_at=created_at,
        deadline=deadline,
    )


def _create_list(
    state: State,
    holder: Holder,
    body: bytes,
    is_lines: bool,
    tier: str | None,
    options: dict[str, Any],
    mark: Mark | None,
) -> BatchPublic:
    """All or nothing: the first bad line refuses the list, by its number (in the file, or in the list)."""
    if (made_before := idempotency.find(state.store, mark)) is not None:
        return BatchPublic.of(reads.get_batch(state.store, made_before, tenant_id=holder.tenant_id))
    lines = split_lines(body) if is_lines else split_list(body)
    if not lines:
        raise RequestError("expected at least one job")
    if len(lines) > state.settings.max_list_jobs:
        raise RequestError(f"{len(lines)} jobs; a list may have {state.settings.max_list_jobs}")
    shared: str | None = None
    first = lines[0][0]
    requests: list[JobRequest] = []
    for number, line in lines:
        wanted = parse_job(line, line=number)
        state.admission.check(wanted, callbacks=state.signs_callbacks, tenant=holder.tenant, line=number)
        own = state.admission.tier_of(wanted, tier)
        shared = shared or own
        if own != shared:
            message = f"a list has one tier; this is '{own}', line {first} is '{shared}'"
            raise RequestError(message, param="tier", line=number)
        if wanted.completion_window is not None:
            raise RequestError("give a list's window in the query", param="completion_window", line=number)
        requests.append(wanted)
    assert shared is not None
    deadline = datetime.now(tz=UTC) + state.catalog.due_in(shared, options["completion_window"])
    if options["callback_url"] is not None and not state.signs_callbacks:
        raise RequestError("callbacks are off: this fleet has no TIERYARD_WEBHOOK_SECRET", param="callback_url")
    tokens = sum(state.admission.prompt_tokens(requests)) if holder.max_enqueued_tokens is not None else None
    told = {name: options[name] for name in ("callback_url", "quote_id")}
    worst = _worst(state, holder, requests)
    new = NewBatch(holder.tenant_id, shared, deadline, tokens=tokens, api_key_id=holder.key_id, worst=worst, **told)
    try:
        batch_id = batches.save_batch(state.store, new, [_text(line) for _, line in lines], mark=mark)
    except AlreadyMadeError as made:
        batch_id = made.subject_id
    with contextlib.suppress(BrokerError):
        state.publisher.nudge(EXPAND)
    return BatchPublic.of(reads.get_batch(state.store, batch_id, tenant_id=holder.tenant_id))


def _worst(state: State, holder: Holder, requests: list[JobRequest]) -> list[tuple[int, Decimal]] | None:
    """The most that a list can cost, in parts; None where its caller has no budget."""
    prices = state.budget_prices(holder)
    if prices is None:
        return None
    return batches.in_parts(state.admission.worst_usd(requests, prices, tenant=holder.tenant))


def split_lines(body: bytes) -> list[tuple[int, bytes]]:
    """The lines that are not blank, with the number each has in the file."""
    return [(number, line) for number, line in enumerate(body.split(b"\n"), start=1) if line.strip()]


def split_list(body: bytes) -> list[tuple[int, bytes]]:
    """A JSON list's members, each as JSON again, numbered from 1."""
    try:
        members = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"not valid JSON: {error}") from None
    lines: list[tuple[int, bytes]] = []
    for number, member in enumerate(members, start=1):
        try:
            lines.append((number, orjson.dumps(member)))
        except orjson.JSONEncodeError:  # orjson reads deeper nesting than it writes
            raise RequestError("is nested too deeply", line=number) from None
    return lines


def _text(body: bytes) -> str:
    """The caller's JSON as it is stored. `parse_job` has proved it UTF-8 and free of NUL."""
    return body.decode("utf-8").strip()


_window = TypeAdapter(Duration)
_url: TypeAdapter[AnyHttpUrl | None] = TypeAdapter(AnyHttpUrl | None)


def _list_options(window: str | None, callback_url: str | None, quote_id: str | None) -> dict[str, Any]:
    try:
        param = "completion_window"
        parsed = _window.validate_python(window) if window is not None else None
        param = "callback_url"
        url = _url.validate_python(callback_url)
    except ValidationError as error:
        raise RequestError(refusal(error).message, param=param) from None
    quoted = internal("quote", quote_id) if quote_id is not None else None
    return {"completion_window": parsed, "callback_url": str(url) if url else None, "quote_id": quoted}
