"""Receives a job that is not to be run. Decides where it would go now, and answers with the whole decision: nothing is
saved, and nothing is charged."""

from __future__ import annotations

import codecs
import time
from dataclasses import replace
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from api.rate_headers import note_headers
from api.shapes import ERRORS, RoutePublic
from api.state import InferDep, State, StateDep
from tieryard.admission import Surroundings, counted_for
from tieryard.requests import parse_job
from tieryard.store.keys import Holder

router = APIRouter(prefix="/v1", tags=["routing"], responses=ERRORS)

PATH = "/v1/route"
_USUAL = 0.5
"""The chance of a job that neither explores nor tries a deployment that was broken."""

_BODY = {
    "requestBody": {
        "required": True,
        "description": "A job, as `POST /v1/jobs` takes it.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobCreate"}}},
    }
}


@router.post("/route", openapi_extra=_BODY)
async def route_job(request: Request, state: StateDep, holder: InferDep) -> RoutePublic:
    """Where a job would go now, and why: every deployment with its predicted times, cost and quality, without running
    it. A job that nothing can take is answered too, with what keeps each deployment from it."""
    started = time.monotonic()
    body = (await request.body()).removeprefix(codecs.BOM_UTF8)
    found = await run_in_threadpool(_decide, state, holder, body)
    note_headers(request, {"x-tieryard-routing-ms": f"{(time.monotonic() - started) * 1000:.2f}"})
    return found


def _decide(state: State, holder: Holder, body: bytes) -> RoutePublic:
    """As the classifier would, but for what it knows of earlier jobs that began alike. Raises RequestError."""
    wanted = parse_job(body)
    admission = state.admission
    admission.check_names(wanted, callbacks=state.signs_callbacks)
    tier = admission.tier_of(wanted)
    now = datetime.now(tz=UTC)
    expires = now + state.catalog.due_in(tier, wanted.completion_window)
    around = Surroundings(tier, holder.tenant, accepted=now, expires=expires, now=now)
    [features] = admission.features([wanted], [around])
    snapshot = state.calls.snapshots.last
    return RoutePublic.of(replace(counted_for(features, snapshot), draw=_USUAL), snapshot)
