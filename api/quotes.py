"""Quotes: what a batch would cost and when it would be done, tier by tier, before it runs; and what then came of it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool

from api.idempotency import mark_of
from api.jobs import NDJSON, split_lines, split_list
from api.paging import cursor
from api.quote_shapes import QuotePage, QuotePublic
from api.shapes import ERRORS
from api.state import BatchDep, ReadDep, State, StateDep
from tieryard import quoting
from tieryard.errors import NotFoundError, RequestError
from tieryard.ids import internal
from tieryard.requests import Request as JobRequest
from tieryard.requests import parse_batch_line, parse_job
from tieryard.requests.quote import due_at, parse_quote
from tieryard.routing import Snapshot
from tieryard.store import batches, budgets, files, idempotency, quotes
from tieryard.store.idempotency import AlreadyMadeError, Mark
from tieryard.store.keys import Holder
from tieryard.store.quotes import NewQuote

router = APIRouter(prefix="/v1/quotes", tags=["quotes"], responses=ERRORS)

_STARTS_LIST = re.compile(rb"\s*\[")
_PART = 64  # lines of a list that are read together
_BODY = {
    "requestBody": {
        "required": True,
        "description": "An uploaded file by its id; or the jobs, as `POST /v1/jobs` takes a list of them.",
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/QuoteCreate"},
                        {"type": "array", "items": {"$ref": "#/components/schemas/JobCreate"}, "minItems": 1},
                    ]
                },
            },
            "application/x-ndjson": {"schema": {"type": "string"}, "example": '{"prompt": "Say hi."}\n'},
        },
    }
}


_MOST_OF_SAMPLE = 10_000_000


@dataclass(frozen=True, slots=True)
class _Told:
    """What the query says of a list."""

    tier: str | None
    deadline: str | None
    sample_of: int | None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be priced: its requests in parts, how one is read, and what holds for all."""

    requests: int
    parts: Iterable[list[tuple[int, str]]]
    parse: quoting.Parse
    tier: str | None
    deadline: Any
    file_id: int | None = None


@router.post("", status_code=201, openapi_extra=_BODY)
async def create_quote(
    request: Request,
    state: StateDep,
    holder: BatchDep,
    tier: Annotated[str | None, Query(description="Of a list: the only tier to price. Default: all.")] = None,
    deadline: Annotated[str | None, Query(description="Of a list: when all is to be done, such as `6h`.")] = None,
    sample_of: Annotated[
        int | None,
        Query(
            ge=1,
            le=_MOST_OF_SAMPLE,
            description="Of a list that is drawn by chance: from how many jobs. Those are priced.",
        ),
    ] = None,
) -> QuotePublic:
    """Prices a batch before it runs: tokens, cost and finish time under each tier, and the cheapest tier that is in
    time. Nothing is run, reserved or charged."""
    body = (await request.body()).removeprefix(codecs.BOM_UTF8)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    mark = mark_of(request, holder.tenant_id, body)
    told = _Told(tier, deadline, sample_of)
    return await run_in_threadpool(_create, state, holder, body, kind in NDJSON, told, mark)


@router.get("")
def list_quotes(
    state: StateDep,
    holder: ReadDep,
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> QuotePage:
    """Your quotes, newest first."""
    found = quotes.list_quotes(state.store, tenant_id=holder.tenant_id, after=cursor("quote", after), limit=limit + 1)
    page = [QuotePublic.of(row) for row in found[:limit]]
    return QuotePage(data=page, next=page[-1].id if len(found) > limit else None)


@router.get("/{quote_id}")
def get_quote(state: StateDep, holder: ReadDep, quote_id: str) -> QuotePublic:
    """A quote; once its batch is over, beside what came of it."""
    return QuotePublic.of(quotes.get(state.store, internal("quote", quote_id), tenant_id=holder.tenant_id))


def _create(state: State, holder: Holder, body: bytes, is_lines: bool, told: _Told, mark: Mark | None) -> QuotePublic:
    if (made_before := idempotency.find(state.store, mark)) is not None:
        return QuotePublic.of(quotes.get(state.store, made_before, tenant_id=holder.tenant_id))
    now = datetime.now(tz=UTC)
    if is_lines or _STARTS_LIST.match(body):
        asked = _list(state, body, is_lines, told)
    else:
        asked = _file(state, holder, body, told)
    due = due_at(asked.deadline, now)
    tiers = [state.admission.check_tier(asked.tier)] if asked.tier is not None else list(state.catalog.tiers)
    reading = quoting.read(
        state.admission, asked.parts, asked.parse, tenant=holder.tenant, callbacks=state.signs_callbacks
    )
    if not reading.good:
        raise _nothing_good(reading)
    if reading.tiers:
        tiers = [named for named in reading.tiers if asked.tier in (None, named)]
        if not tiers:
            raise RequestError(f"the jobs are of tier '{next(iter(reading.tiers))}'", param="tier")
    with state.store.transaction() as connection:
        open_now = batches.open_batches(connection, {}, {})
    ends = {name: now + state.catalog.due_in(name, None) for name in tiers}
    ahead = quoting.ahead(open_now, tenant_id=holder.tenant_id, requests=asked.requests, due=ends)
    snapshot = state.calls.snapshots.last
    priced = quoting.price(
        state.admission, snapshot, reading, asked.requests, tiers=tiers, ahead=ahead, now=now, due=due
    )
    offers = quoting.stored(priced, due=due)
    offers["budget"] = _budget(state, holder, priced, snapshot)
    new = NewQuote(holder.tenant_id, asked.requests, priced.prompt_tokens, offers, asked.file_id)
    try:
        quote_id = quotes.save(state.store, new, mark=mark)
    except AlreadyMadeError as made:
        quote_id = made.subject_id
    return QuotePublic.of(quotes.get(state.store, quote_id, tenant_id=holder.tenant_id))


def _nothing_good(reading: quoting.Reading) -> RequestError:
    if not reading.faults:
        return RequestError("expected at least one job")
    first = reading.faults[0]
    return RequestError(f"{first.message}; no line that was read is a job", param=first.param, line=first.line)


def _list(state: State, body: bytes, is_lines: bool, told: _Told) -> _Asked:
    lines = split_lines(body) if is_lines else split_list(body)
    if not lines:
        raise RequestError("expected at least one job")
    if len(lines) > state.settings.max_list_jobs:
        raise RequestError(f"{len(lines)} jobs; a list may have {state.settings.max_list_jobs}")
    requests = told.sample_of or len(lines)
    if requests < len(lines):
        raise RequestError(f"{len(lines)} jobs are no sample of {requests}", param="sample_of")
    numbers = quoting.draw_lines(len(lines), len(body))
    drawn = lines if numbers is None else [lines[n - 1] for n in numbers]
    return _Asked(requests, _in_parts(drawn), _native, told.tier, told.deadline)


def _in_parts(lines: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, str]]]:
    for first in range(0, len(lines), _PART):
        yield [(number, line.decode("utf-8", "replace")) for number, line in lines[first : first + _PART]]


def _native(number: int, line: str) -> JobRequest:
    wanted = parse_job(line, line=number)
    if wanted.completion_window is not None:
        raise RequestError("give a list's window in the query", param="completion_window", line=number)
    return wanted


def _file(state: State, holder: Holder, body: bytes, told: _Told) -> _Asked:
    for name in ("tier", "deadline", "sample_of"):
        if getattr(told, name) is not None:
            raise RequestError("is for lists; a file's stands in the body", param=name)
    wanted = parse_quote(body)
    try:
        file = files.get_file(state.store, internal("file", wanted.input_file_id), tenant_id=holder.tenant_id)
    except NotFoundError as error:
        raise NotFoundError(error.message, param="input_file_id") from None
    if file.purpose != "batch":
        raise RequestError(f"its purpose is '{file.purpose}'; expected 'batch'", param="input_file_id")
    if (fault := files.fault_of(file)) is not None:
        raise RequestError(fault["message"], param="input_file_id", line=fault["line"])
    if wanted.endpoint is not None:
        state.admission.check_endpoint(wanted.endpoint)
    numbers = quoting.draw_lines(file.lines, file.id)
    return _Asked(
        file.requests,
        quotes.read_file(state.store, file, numbers),
        _FileLines(wanted.endpoint, frozenset(file.duplicates or ())).parse,
        wanted.tier,
        wanted.deadline,
        file.id,
    )


@dataclass(slots=True)
class _FileLines:
    """Reads lines as the expander will: all for one endpoint, the first's where none is named."""

    endpoint: str | None
    duplicates: frozenset[int]

    def parse(self, number: int, line: str) -> JobRequest:
        if number in self.duplicates:
            raise RequestError("stands above already; it must be unique in the file", param="custom_id")
        request = parse_batch_line(line, endpoint=self.endpoint)
        self.endpoint = self.endpoint or request.endpoint
        return request


def _budget(state: State, holder: Holder, priced: quoting.Prices, snapshot: Snapshot) -> dict[str, Any] | None:
    """What the caller's budgets leave beside what they would reserve; None where there is none."""
    mine = budgets.list_budgets(state.store, tenant_id=holder.tenant_id)
    left_usd = min((b.left_usd for b in mine if b.api_key_id in (None, holder.key_id)), default=None)
    if left_usd is None:
        return None
    known = {name: tariff.price for name, tariff in quoting.tariffs(state.catalog, snapshot).items()}
    prices = known | dict(state.budget_prices(holder) or {})
    usd = quoting.reserves_usd(priced.reading, priced.drawn, snapshot, prices)
    return {"left_usd": f"{left_usd.normalize():f}", "reserves_usd": f"{usd.normalize():f}", "covers": usd <= left_usd}
