"""Receives a job that is not to be run, or many. Decides where each would go now, and answers with the whole decision,
or a line for each: nothing is saved, and nothing is charged."""

from __future__ import annotations

import codecs
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.jobs import NDJSON, split_lines
from api.rate_headers import note_headers
from api.route_shapes import RoutedLine
from api.shapes import ERRORS, RoutePublic
from api.state import InferDep, State, StateDep
from tieryard.admission import Surroundings, counted_for
from tieryard.errors import RequestError
from tieryard.requests import Request as JobRequest
from tieryard.requests import parse_batch_line, parse_job
from tieryard.routing import JobFeatures, decide
from tieryard.store.keys import Holder

router = APIRouter(prefix="/v1", tags=["routing"], responses=ERRORS)

PATH = "/v1/route"
_USUAL = 0.5
"""The chance of a job that neither explores nor tries a deployment that was broken."""

_Decides = Callable[[State, Holder, bytes], RoutePublic | Response]

MOST_LINES = 1000
"""Of one request: a decision takes a core about a millisecond."""

_BODY = {
    "requestBody": {
        "required": True,
        "description": f"A job, as `POST /v1/jobs` takes it; or up to {MOST_LINES} of them, one a line.",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/JobCreate"}},
            "application/x-ndjson": {"schema": {"type": "string"}, "example": '{"prompt": "Say hi."}\n'},
        },
    },
}
_LINES = {
    "description": "The decision; of many jobs a line for each, in their order, of the shape `RoutedLine`.",
    "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
}


@router.post("/route", openapi_extra=_BODY, response_model=RoutePublic, responses={200: _LINES})
async def route_job(request: Request, state: StateDep, holder: InferDep) -> RoutePublic | Response:
    """Where a job would go now, and why: every deployment with its predicted times, cost and quality, without running
    it. A job that nothing can take is answered too, with what keeps each deployment from it. Of many jobs, one a line,
    a line for each: where it would go, with cost and latency; or what is wrong with it."""
    started = time.monotonic()
    body = (await request.body()).removeprefix(codecs.BOM_UTF8)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    decide_body: _Decides = _decide_lines if kind in NDJSON else _decide
    found = await run_in_threadpool(decide_body, state, holder, body)
    note_headers(request, {"x-tieryard-routing-ms": f"{(time.monotonic() - started) * 1000:.2f}"})
    return found


def _decide(state: State, holder: Holder, body: bytes) -> RoutePublic:
    """Raises RequestError."""
    wanted = parse_job(body)
    [features] = _features(state, [wanted], [_around(state, holder, wanted)])
    return RoutePublic.of(features, state.calls.snapshots.last)


def _decide_lines(state: State, holder: Holder, body: bytes) -> Response:
    """A line that is no job does not keep the others from their answer. Raises RequestError."""
    lines = split_lines(body)
    if not lines:
        raise RequestError("expected at least one job")
    if len(lines) > MOST_LINES:
        raise RequestError(f"{len(lines)} jobs; at most {MOST_LINES} are routed together")
    found: dict[int, RoutedLine] = {}
    jobs: list[tuple[int, JobRequest, Surroundings]] = []
    for number, line in lines:
        try:
            wanted = _read(line)
            jobs.append((number, wanted, _around(state, holder, wanted)))
        except RequestError as error:
            found[number] = RoutedLine.refused(number, error)
    found |= _decided(state, jobs)
    ordered = (found[number].model_dump(mode="json") for number, _ in lines)
    return Response(b"".join(orjson.dumps(one) + b"\n" for one in ordered), media_type="application/x-ndjson")


def _read(line: bytes) -> JobRequest:
    """A native job, or a line of OpenAI's batch files. Raises RequestError."""
    if b'"url"' in line:
        with contextlib.suppress(orjson.JSONDecodeError):
            found = orjson.loads(line)
            if isinstance(found, dict) and "url" in found:
                return parse_batch_line(line.decode("utf-8", "replace"))
    return parse_job(line)


def _decided(state: State, jobs: list[tuple[int, JobRequest, Surroundings]]) -> dict[int, RoutedLine]:
    """By their numbers. They are counted together, or alone where a chat template refuses one of them."""
    if not jobs:
        return {}
    try:
        found = _features(state, [wanted for _, wanted, _ in jobs], [around for _, _, around in jobs])
    except RequestError as error:
        if len(jobs) == 1:
            return {jobs[0][0]: RoutedLine.refused(jobs[0][0], error)}
        return {number: line for one in jobs for number, line in _decided(state, [one]).items()}
    snapshot = state.calls.snapshots.last
    return {
        number: RoutedLine.of(number, decide(features, snapshot))
        for (number, _, _), features in zip(jobs, found, strict=True)
    }


def _around(state: State, holder: Holder, wanted: JobRequest) -> Surroundings:
    """Raises RequestError where it names what the catalog does not have."""
    state.admission.check_names(wanted, callbacks=state.signs_callbacks)
    tier = state.admission.tier_of(wanted)
    now = datetime.now(tz=UTC)
    expires = now + state.catalog.due_in(tier, wanted.completion_window)
    return Surroundings(tier, holder.tenant, accepted=now, expires=expires, now=now)


def _features(state: State, wanted: list[JobRequest], around: list[Surroundings]) -> list[JobFeatures]:
    """As the classifier would see them, but for what it knows of earlier jobs that began alike. Raises RequestError."""
    snapshot = state.calls.snapshots.last
    found = state.admission.features(wanted, around)
    return [replace(counted_for(features, snapshot), draw=_USUAL) for features in found]
