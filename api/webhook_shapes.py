"""Webhook endpoints and deliveries: what comes in, and what goes out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from tieryard.events import LISTED
from tieryard.ids import public
from tieryard.store import delivery_log, endpoints
from tieryard.store.delivery_log import Attempted, Logged, Outcome
from tieryard.store.endpoints import Endpoint

MOST_URL_CHARS = 2048
_MOST_DESCRIPTION_CHARS = 512


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("holds a NUL")
    return text


Text = Annotated[str, AfterValidator(_storable)]
_EVENTS = {"type": "array", "maxItems": len(LISTED), "items": {"type": "string", "enum": [*map(str, LISTED)]}}
Events = Annotated[list[str], WithJsonSchema(_EVENTS)]
"""Read by `tieryard.events.read_events`, which says what there is."""

_Url = Annotated[Text, Field(min_length=1, max_length=MOST_URL_CHARS)]
_Description = Annotated[Text, Field(max_length=_MOST_DESCRIPTION_CHARS)]


class WebhookCreate(BaseModel):
    """An endpoint to register."""

    model_config = ConfigDict(
        extra="forbid",
        str_strip_whitespace=True,
        json_schema_extra={
            "examples": [{"url": "https://example.com/hooks/tieryard", "events": ["job.completed", "job.failed"]}]
        },
    )

    url: _Url = Field(description="https or http, at a public address, without user and fragment.")
    events: Events = Field(default_factory=list, description="What it is told. Empty: everything.")
    description: _Description | None = Field(default=None, description="What it is for.")
    include_result: bool = Field(
        default=False, description="Send a job's result along, where the message stays below 20 kB with it."
    )


class WebhookPatch(BaseModel):
    """What is to change; what is left out stays."""

    model_config = ConfigDict(
        extra="forbid", str_strip_whitespace=True, json_schema_extra={"examples": [{"events": []}]}
    )

    url: _Url | None = Field(default=None, description="What waits is tried there at once. Null changes nothing.")
    events: Events | None = Field(default=None, description="Empty: everything. Null changes nothing.")
    description: _Description | None = Field(default=None, description="Null removes it.")
    include_result: bool | None = Field(default=None, description="Null changes nothing.")


class WebhookPublic(BaseModel):
    """An endpoint, without its secret."""

    id: str
    object: Literal["webhook"] = "webhook"
    url: str
    events: list[str] = Field(description="What it is told. Empty: everything.")
    description: str | None
    include_result: bool
    fleet: bool = Field(description="It also hears of benchmarks: a key with the scope `benchmark` has made it.")
    state: Literal["enabled", "failing", "disabled"]
    created_at: datetime
    failing_since: datetime | None = Field(description="The first failure after the last success.")
    disabled_at: datetime | None
    disabled_why: str | None
    previous_secret_until: datetime | None = Field(
        description="So long does the secret before the last rotation sign, too."
    )

    @classmethod
    def of(cls, found: Endpoint, **more: Any) -> Self:
        shared = {name: getattr(found, name) for name in WebhookPublic.model_fields if name not in ("id", "object")}
        return cls(id=found.name, **{**shared, "events": list(found.events)}, **more)


class WebhookSecret(WebhookPublic):
    """An endpoint with its secret, which is shown this once."""

    secret: str = Field(description="`whsec_…`: what its deliveries are signed with (Standard Webhooks).")


class WebhookList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WebhookPublic]


class DeliveryPublic(BaseModel):
    """An event on its way to one receiver."""

    id: str
    object: Literal["delivery"] = "delivery"
    webhook: str | None = Field(description="The endpoint. Null: a callback address that came with a job, batch, …")
    url: str
    event: str
    subject: str = Field(description="The id of what it is of.")
    message: str = Field(description="`webhook-id` of all its attempts.")
    state: Outcome = Field(description="`pending`: due now or later. `delivered`: a 2xx took it. `failed`: given up.")
    attempts: int
    created_at: datetime = Field(description="When it happened.")
    next_at: datetime | None = Field(description="Of a pending one: not tried before.")
    settled_at: datetime | None
    last_status: int | None
    last_error: str | None

    @classmethod
    def of(cls, found: Logged, **more: Any) -> Self:
        names = ("url", "event", "attempts", "settled_at", "last_status", "last_error")
        return cls(
            id=public(delivery_log.KIND, found.id),
            webhook=public(endpoints.KIND, found.endpoint_id) if found.endpoint_id is not None else None,
            subject=public(found.event.partition(".")[0], found.subject_id),
            message=public("msg", found.outbox_id),
            state=found.outcome,
            created_at=found.at,
            next_at=found.next_at if found.outcome is Outcome.PENDING else None,
            **{name: getattr(found, name) for name in names},
            **more,
        )


class AttemptPublic(BaseModel):
    """One attempt at a delivery."""

    attempt: int
    at: datetime
    status: int | None = Field(description="Null where there was no answer.")
    latency_ms: float | None
    error: str | None
    answer: str | None = Field(description="The first 1 kB of the answer's body.")
    address: str | None = Field(description="The IP address that it was sent to.")

    @classmethod
    def of(cls, found: Attempted) -> Self:
        return cls(**{name: getattr(found, name) for name in cls.model_fields})


class DeliveryWhole(DeliveryPublic):
    """With every attempt, and what is told beside the id."""

    data: dict[str, Any] | None = Field(description="What is told of the event beside its id.")
    history: list[AttemptPublic]

    @classmethod
    def told(cls, found: Logged, history: list[Attempted]) -> Self:
        return cls.of(found, data=found.data, history=[AttemptPublic.of(one) for one in history])


class DeliveryPage(BaseModel):
    """A page of deliveries, newest first. Pass `next` as `after` for the one that follows."""

    object: Literal["list"] = "list"
    data: list[DeliveryPublic]
    next: str | None = None


class RedeliveryCreate(BaseModel):
    """What to deliver again: one `delivery`, or those of a time, `since` and `until`."""

    model_config = ConfigDict(
        extra="forbid",
        str_strip_whitespace=True,
        json_schema_extra={"examples": [{"webhook": "webhook_1", "since": "24h"}, {"delivery": "delivery_1"}]},
    )

    delivery: Text | None = Field(default=None, description="Just this one.")
    webhook: Text | None = Field(default=None, description="Of a time: only this endpoint's. Default: callbacks', too.")
    event: Text | None = Field(default=None, description="Of a time: only this event's, such as `job.failed`.")
    since: Text | None = Field(
        default=None,
        max_length=64,
        description="Those made since: a UTC day, a time, or a duration back such as `24h`.",
    )
    until: Text | None = Field(default=None, max_length=64, description="The same, itself not included. Default: now.")
    state: Literal["failed", "delivered", "all"] = Field(
        default="failed", description="Of a time: those given up, those delivered, or both."
    )
    after: Text | None = Field(default=None, description="Of a time: `next` of the answer before, for the rest of it.")


class RedeliveryPublic(BaseModel):
    """How many are due again."""

    object: Literal["redelivery"] = "redelivery"
    redelivered: int
    has_more: bool = Field(description="More remain of what was asked for: ask again, with `next` as `after`.")
    next: str | None = None
