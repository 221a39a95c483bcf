"""Keeps the endpoints that a tenant is told at, and shows what was delivered to them; delivers again on request.
Next: `workers/callback.py` delivers what is due."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.idempotency import mark_of
from api.paging import cursor
from api.shapes import ERRORS
from api.state import ReadDep, State, StateDep, WebhooksDep
from api.webhook_shapes import (
    DeliveryPage,
    DeliveryPublic,
    DeliveryWhole,
    RedeliveryCreate,
    RedeliveryPublic,
    WebhookCreate,
    WebhookList,
    WebhookPatch,
    WebhookPublic,
    WebhookSecret,
)
from tieryard.costs.reporting import read_moment
from tieryard.errors import RequestError, ScopeError
from tieryard.events import FLEET_WIDE, LISTED, Told, read_events
from tieryard.ids import internal, public
from tieryard.queues import CALLBACKS, BrokerError
from tieryard.store import delivery_log, endpoints, idempotency
from tieryard.store.delivery_log import Outcome, Wanted
from tieryard.store.endpoints import Endpoint, NewEndpoint
from tieryard.store.idempotency import AlreadyMadeError, Mark
from tieryard.store.keys import Holder, Scope
from tieryard.webhooks.addresses import ForbiddenAddressError, check_url
from tieryard.webhooks.signing import new_secret

PATH = "/v1/webhooks"
router = APIRouter(tags=["webhooks"], responses=ERRORS)

MAKE_NOTHING = ("/enable", "/disable", "/test", "/v1/redeliveries")
"""Of the POSTs, what a repeated one does no harm by."""

_ONLY_PUBLIC = (
    "deliveries go to public addresses, unless the fleet is set to TIERYARD_WEBHOOK_ALLOW_PRIVATE=true "
    "(`tieryard up --local-callbacks`)"
)
_SECRET = {"cache-control": "no-store"}
_BY_HAND = "by a key of its tenant"
_MOST_CHARS = 64  # of a name or a time in a query


@router.post(PATH, status_code=201)
async def create_webhook(
    request: Request, response: Response, state: StateDep, holder: WebhooksDep, wanted: WebhookCreate
) -> WebhookSecret:
    """Registers an endpoint. The answer has its secret, this once: deliveries are signed with it."""
    response.headers.update(_SECRET)
    mark = mark_of(request, holder.tenant_id, await request.body())
    return await run_in_threadpool(_create, state, holder, wanted, mark)


@router.get(PATH)
def list_webhooks(state: StateDep, holder: ReadDep) -> WebhookList:
    """Your endpoints, oldest first."""
    found = endpoints.list_endpoints(state.store, tenant_id=holder.tenant_id)
    return WebhookList(data=[WebhookPublic.of(one) for one in found])


@router.post(f"{PATH}/{{webhook_id}}/test")
def test_webhook(state: StateDep, holder: WebhooksDep, webhook_id: str) -> DeliveryWhole:
    """Sends it a `webhook.test`, whatever it listens to. `GET /v1/deliveries/{delivery_id}` tells how it went."""
    made = delivery_log.send_test(state.store, _number(webhook_id), tenant_id=holder.tenant_id)
    _nudge(state)
    return DeliveryWhole.told(*delivery_log.get(state.store, made, tenant_id=holder.tenant_id))


@router.post(f"{PATH}/{{webhook_id}}/rotate")
def rotate_secret(
    request: Request, response: Response, state: StateDep, holder: WebhooksDep, webhook_id: str
) -> WebhookSecret:
    """Gives it a new secret, which the answer has, this once. For 24 hours deliveries are signed with both: the secret
    that it had, and this one. Another rotation within that time ends the older one at once; give an `Idempotency-Key`
    where an answer may be lost and asked for again."""
    response.headers.update(_SECRET)
    found = _changeable(state, holder, webhook_id)
    mark = mark_of(request, holder.tenant_id, b"")
    if idempotency.find(state.store, mark) is None:
        with contextlib.suppress(AlreadyMadeError):
            endpoints.rotate(state.store, found.id, new_secret(), tenant_id=holder.tenant_id, mark=mark)
    made = _find(state, holder, webhook_id)
    return WebhookSecret.of(made, secret=made.secret)


@router.post(f"{PATH}/{{webhook_id}}/disable")
def disable_webhook(state: StateDep, holder: WebhooksDep, webhook_id: str) -> WebhookPublic:
    """Delivers nothing to it until it is enabled again. What was to be delivered is given up."""
    found = _find(state, holder, webhook_id)
    with state.store.transaction() as connection:
        endpoints.disable(connection, found.id, _BY_HAND)
    _nudge(state)  # its tenant's other endpoints are told
    return WebhookPublic.of(_find(state, holder, webhook_id))


@router.post(f"{PATH}/{{webhook_id}}/enable")
def enable_webhook(state: StateDep, holder: WebhooksDep, webhook_id: str) -> WebhookPublic:
    """Delivers to it again, from now on; what it missed by `POST /v1/redeliveries`."""
    found = endpoints.enable(state.store, _number(webhook_id), tenant_id=holder.tenant_id)
    _nudge(state)
    return WebhookPublic.of(found)


@router.get(f"{PATH}/{{webhook_id}}")
def get_webhook(state: StateDep, holder: ReadDep, webhook_id: str) -> WebhookPublic:
    """One of them."""
    return WebhookPublic.of(_find(state, holder, webhook_id))


@router.patch(f"{PATH}/{{webhook_id}}")
def change_webhook(state: StateDep, holder: WebhooksDep, webhook_id: str, wanted: WebhookPatch) -> WebhookPublic:
    """Changes what is given, and leaves the rest."""
    found = _changeable(state, holder, webhook_id)
    fields: dict[str, Any] = wanted.model_dump(exclude_unset=True)
    if wanted.url is not None:
        _check_url(state, wanted.url)
    if wanted.events is not None:
        fields["events"] = read_events(wanted.events)
        fields["fleet"] = _is_of_fleet(holder, fields["events"])
    return WebhookPublic.of(endpoints.change(state.store, found.id, tenant_id=holder.tenant_id, **fields))


@router.delete(f"{PATH}/{{webhook_id}}", status_code=204)
def remove_webhook(state: StateDep, holder: WebhooksDep, webhook_id: str) -> Response:
    """Removes it, for good. What was to be delivered to it is given up; its log stays."""
    endpoints.remove(state.store, _number(webhook_id), tenant_id=holder.tenant_id)
    return Response(status_code=204)


@router.get("/v1/deliveries")
def list_deliveries(
    state: StateDep,
    holder: ReadDep,
    webhook: Annotated[
        str | None, Query(description="Only this endpoint's. Default: callback addresses', too.")
    ] = None,
    event: Annotated[str | None, Query(description="Only of this event, such as `job.failed`.")] = None,
    outcome: Annotated[Outcome | None, Query(alias="state", description="Only those in this state.")] = None,
    since: Annotated[
        str | None, Query(max_length=_MOST_CHARS, description="A UTC day, a time, or a duration back such as `24h`.")
    ] = None,
    until: Annotated[str | None, Query(max_length=_MOST_CHARS, description="The same, itself not included.")] = None,
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> DeliveryPage:
    """Your deliveries, newest first: to endpoints, and to callback addresses."""
    now = datetime.now(tz=UTC)
    wanted = Wanted(
        holder.tenant_id,
        endpoint_id=_find(state, holder, webhook).id if webhook is not None else None,
        event=_event(event),
        outcome=outcome,
        since=read_moment(since, now, param="since") if since is not None else None,
        until=read_moment(until, now, param="until") if until is not None else None,
    )
    before = cursor(delivery_log.KIND, after)
    found = delivery_log.list_deliveries(state.store, wanted, after=before, limit=limit + 1)
    page = [DeliveryPublic.of(one) for one in found[:limit]]
    return DeliveryPage(data=page, next=page[-1].id if len(found) > limit else None)


@router.get("/v1/deliveries/{delivery_id}")
def get_delivery(state: StateDep, holder: ReadDep, delivery_id: str) -> DeliveryWhole:
    """One delivery, with all its attempts and what the receiver answered."""
    number = internal(delivery_log.KIND, delivery_id)
    return DeliveryWhole.told(*delivery_log.get(state.store, number, tenant_id=holder.tenant_id))


@router.post("/v1/redeliveries")
def redeliver(state: StateDep, holder: WebhooksDep, wanted: RedeliveryCreate) -> RedeliveryPublic:
    """Delivers again, under the same `webhook-id` and with a new timestamp: one delivery, or those of a time, 10,000 at
    a time, oldest first."""
    if wanted.delivery is not None:
        if wanted.model_fields_set > {"delivery"}:
            raise RequestError("give one delivery, or a time; not both", param="delivery")
        number = internal(delivery_log.KIND, wanted.delivery)
        delivery_log.redeliver(state.store, number, tenant_id=holder.tenant_id)
        n, last = 1, None
    else:
        after = cursor(delivery_log.KIND, wanted.after)
        n, last = delivery_log.redeliver_all(state.store, _of_time(state, holder, wanted), after=after)
    _nudge(state)
    more = public(delivery_log.KIND, last) if last is not None else None
    return RedeliveryPublic(redelivered=n, has_more=more is not None, next=more)


def _create(state: State, holder: Holder, wanted: WebhookCreate, mark: Mark | None) -> WebhookSecret:
    if (made_before := idempotency.find(state.store, mark)) is not None:
        made = _changeable(state, holder, public(endpoints.KIND, made_before))
        return WebhookSecret.of(made, secret=made.secret)
    _check_url(state, wanted.url)
    events = read_events(wanted.events)
    new = NewEndpoint(
        holder.tenant_id,
        wanted.url,
        new_secret(),
        events,
        description=wanted.description,
        include_result=wanted.include_result,
        fleet=_is_of_fleet(holder, events),
    )
    try:
        made = endpoints.add(state.store, new, mark=mark)
    except AlreadyMadeError as known:
        made = _changeable(state, holder, public(endpoints.KIND, known.subject_id))
    return WebhookSecret.of(made, secret=made.secret)


def _is_of_fleet(holder: Holder, events: list[Told]) -> bool:
    """Whether it is to hear of what is no tenant's: where it asks for nothing in particular, as far as its key may.
    Raises ScopeError."""
    may = Scope.BENCHMARK in holder.scopes
    if not may and (asked := [event for event in events if event in FLEET_WIDE]):
        raise ScopeError(f"'{asked[0]}' is told to those whose key has the scope '{Scope.BENCHMARK}'", param="events")
    return may and (not events or bool(FLEET_WIDE & set(events)))


def _changeable(state: State, holder: Holder, webhook_id: str) -> Endpoint:
    """Where its messages go and what signs them, only those decide who may read them. Raises ScopeError."""
    found = _find(state, holder, webhook_id)
    if found.fleet and Scope.BENCHMARK not in holder.scopes:
        raise ScopeError(
            f"{found.name} hears of benchmarks: to change it needs a key with the scope '{Scope.BENCHMARK}'"
        )
    return found


def _find(state: State, holder: Holder, webhook_id: str) -> Endpoint:
    return endpoints.find(state.store, _number(webhook_id), tenant_id=holder.tenant_id)


def _number(webhook_id: str) -> int:
    return internal(endpoints.KIND, webhook_id)


def _event(name: str | None) -> str | None:
    if name is not None and name not in set(Told):
        raise RequestError(f"expected any of {', '.join([*LISTED, Told.WEBHOOK_TEST])}", param="event")
    return name


def _of_time(state: State, holder: Holder, wanted: RedeliveryCreate) -> Wanted:
    if wanted.since is None:
        raise RequestError("is required, unless one delivery is named", param="since")
    now = datetime.now(tz=UTC)
    since = read_moment(wanted.since, now, param="since")
    until = read_moment(wanted.until, now, param="until") if wanted.until is not None else now
    if since >= until:
        raise RequestError("is not before its end", param="since")
    endpoint = _find(state, holder, wanted.webhook) if wanted.webhook is not None else None
    return Wanted(
        holder.tenant_id,
        endpoint_id=endpoint.id if endpoint is not None else None,
        event=_event(wanted.event),
        outcome=Outcome(wanted.state) if wanted.state != "all" else None,
        since=since,
        until=until,
    )


def _check_url(state: State, url: str) -> None:
    """By its own words; what its name stands for is looked up at each delivery. Raises RequestError."""
    try:
        check_url(url, allow_private=True)
    except ForbiddenAddressError as wrong:
        raise RequestError(str(wrong), param="url") from None
    try:
        check_url(url, allow_private=state.settings.webhook_allow_private)
    except ForbiddenAddressError as refused:
        raise RequestError(f"{refused}; {_ONLY_PUBLIC}", param="url") from None


def _nudge(state: State) -> None:
    with contextlib.suppress(BrokerError):  # the callback worker looks by itself, too
        state.publisher.nudge(CALLBACKS)
