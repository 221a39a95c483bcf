"""Receives a call whose caller waits for the answer. Checks it, routes it among what serves now, and answers from the
engine itself: its job is inserted as `running` under this process's own worker row, and never queued.
Next: `tieryard/store/finish.py` writes its ending, as it does any other."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Send

from api.calling import Ask, Call
from api.idempotency import mark_of
from api.rate_headers import note_headers
from api.replies import CallResponse, Reply, StreamReply, WholeReply, Wire
from api.shapes import ERRORS
from api.state import InferDep, State, StateDep
from tieryard.admission import Surroundings
from tieryard.catalog import Tier
from tieryard.requests import CHAT, COMPLETIONS, EMBEDDINGS, Endpoint, parse_body
from tieryard.requests.openai import BODIES
from tieryard.settings import Settings
from tieryard.store import calls, idempotency
from tieryard.store.idempotency import Mark
from tieryard.store.keys import Holder

router = APIRouter(prefix="/v1", tags=["calls"], responses=ERRORS)

INTERACTIVE = "interactive"
CALL_BYTES = 8 * 2**20
"""Largest body of a call. Somebody waits for it, so it is no place for bulk; files are."""
PATHS = tuple(f"/v1/{name}" for name in ("chat/completions", "completions", "embeddings"))
_LATE = 4  # times what a tier promises, and an engine's first event is too late where another engine is free
_LATE_S = 60.0  # at most, and where the tier promises nothing
_PATIENCE_S = 5.0  # for a slot, where the tier has no SLO

Note = Callable[[dict[str, str]], None]


def _documented(endpoint: Endpoint, *, streams: bool) -> dict[str, Any]:
    """The OpenAPI parts of a route that reads its body by itself."""
    body = {"schema": {"$ref": f"#/components/schemas/{BODIES[endpoint].__name__}"}}
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object", "description": "As OpenAI's."}}}
    if streams:
        answers["text/event-stream"] = {}
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": body}}},
        "responses": {200: {"content": answers, "description": "The answer, in OpenAI's shape."}},
        "response_class": Response,
    }


@router.post("/chat/completions", **_documented(CHAT, streams=True))
async def create_chat_completion(request: Request, state: StateDep, holder: InferDep) -> Response:
    """Answers a conversation, as OpenAI's endpoint does."""
    return await _answer(CHAT, request, state, holder)


@router.post("/completions", **_documented(COMPLETIONS, streams=True))
async def create_completion(request: Request, state: StateDep, holder: InferDep) -> Response:
    """Completes a raw prompt, as OpenAI's endpoint does."""
    return await _answer(COMPLETIONS, request, state, holder)


@router.post("/embeddings", **_documented(EMBEDDINGS, streams=False))
async def create_embedding(request: Request, state: StateDep, holder: InferDep) -> Response:
    """Embeds texts, as OpenAI's endpoint does."""
    return await _answer(EMBEDDINGS, request, state, holder)


async def _answer(endpoint: Endpoint, request: Request, state: State, holder: Holder) -> Response:
    accepted = time.monotonic()
    raw = (await request.body()).removeprefix(codecs.BOM_UTF8)
    mark = mark_of(request, holder.tenant_id, raw)
    note = partial(note_headers, request)
    ask, make_reply = await state.calls.work(_admit, state, holder, endpoint, raw, mark, accepted, note)
    call = Call(state.calls, ask, note)
    return CallResponse(call, partial(make_reply, call))


def _admit(
    state: State, holder: Holder, endpoint: Endpoint, raw: bytes, mark: Mark | None, accepted: float, note: Note
) -> tuple[Ask, Callable[[Call, Send], Reply]]:
    """All that can be known before there is room: reads, checks, counts and routes the call. Raises UserError,
    UnavailableError, or StoreError; nothing is saved."""
    body = parse_body(endpoint, raw)
    request = body.request()
    state.admission.check(request, callbacks=False, tenant=holder.tenant)
    state.calls.check_open()
    tiers = state.catalog.tiers
    tier = state.admission.tier_of(request, INTERACTIVE if INTERACTIVE in tiers else next(iter(tiers)))
    if mark is not None:
        calls.release_abandoned(state.store, mark)
    slo = tiers[tier].slo
    options = getattr(body, "stream_options", None)
    ask = Ask(
        job_id=state.store.next_id(),
        tenant_id=holder.tenant_id,
        request=request,
        tier=tier,
        body=f'{{"method":"POST","url":"{endpoint}","body":{raw.decode().strip()}}}',
        mark=mark,
        made=idempotency.find(state.store, mark),
        choice=None,
        with_usage=bool(options and options.include_usage),
        reserved=0,
        charge=lambda more: state.rates.charge(holder, tokens=more),
        patience_s=slo.max_latency_ms / 1000 if slo.max_latency_ms is not None else _PATIENCE_S,
        first_s=_first_s(tiers[tier]),
        window_s=tiers[tier].window.total_seconds(),
        routing_ms=0.0,
        accepted=accepted,
        api_key_id=holder.key_id,
    )
    if ask.made is None:
        ask = _routed(state, holder, ask, note)
    packed = getattr(body, "encoding_format", None) == "base64"
    return ask, partial(_reply, state.settings, bool(getattr(body, "stream", None)), packed)


def _routed(state: State, holder: Holder, ask: Ask, note: Note) -> Ask:
    """Counted against its caller's rates, and with where it goes."""
    started = time.monotonic()
    request, now = ask.request, datetime.now(tz=UTC)
    deadline = now + timedelta(seconds=ask.window_s)
    key = ask.prefix_key if state.admission.sticks(holder.tenant) else 0
    sticky = state.calls.sessions.last(key)
    around = Surroundings(ask.tier, holder.tenant, ask.job_id, now, deadline, sticky, attended=True)
    [features] = state.admission.features([request], [around])
    tokens = max(features.prompt_tokens.values()) + request.max_tokens
    note(state.rates.admit(holder, requests=0, tokens=tokens))
    worst_usd = state.worst_usd(holder, request)
    choice = state.calls.route(features)
    state.calls.sessions.went(key, choice.deployment)
    routing_ms = (time.monotonic() - started) * 1000
    return replace(ask, choice=choice, reserved=tokens, worst_usd=worst_usd, routing_ms=routing_ms)


def _first_s(tier: Tier) -> float:
    promised_ms = max(tier.slo.max_ttft_ms or 0, tier.slo.max_latency_ms or 0)
    return min(_LATE_S, _LATE * promised_ms / 1000) if promised_ms else _LATE_S


def _reply(settings: Settings, streamed: bool, packed: bool, call: Call, send: Send) -> Reply:
    wire = Wire(send, settings.send_timeout_s)
    whole = WholeReply(wire, base64_embeddings=packed)
    return StreamReply(wire, whole, keepalive_s=settings.keepalive_s, hung_up=call.hang_up) if streamed else whole
