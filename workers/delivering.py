"""One delivery: what is sent, with which signatures, and what its attempt means for the next one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from tieryard.ids import public
from tieryard.settings import Settings
from tieryard.store.deliveries import Due, Tried
from tieryard.webhooks.backoff import next_wait_s, rest_s
from tieryard.webhooks.fairness import SLOW_MS
from tieryard.webhooks.payloads import payload
from tieryard.webhooks.sending import Attempt, Sender
from tieryard.webhooks.signing import signed_headers


@dataclass(frozen=True, slots=True)
class Desk:
    """What all deliveries of a fleet have in common. `secrets` sign what goes to callback addresses."""

    secrets: tuple[str, ...]
    public_url: str | None
    retry_first_s: float

    @classmethod
    def of(cls, settings: Settings) -> Desk:
        secret = settings.webhook_secret
        secrets = () if secret is None else tuple(secret.get_secret_value().split())
        return cls(secrets, settings.public_url, settings.webhook_retry_first_s)


async def deliver(due: Due, sender: Sender, desk: Desk) -> Tried:
    """One attempt. The message's id is the event's, the same at every attempt and to every endpoint."""
    if due.off is not None:
        return _never(due, f"the endpoint was {due.off}")
    secrets = desk.secrets if due.endpoint_id is None else due.secrets
    if not secrets:
        return _never(due, "TIERYARD_WEBHOOK_SECRET is not set")
    try:
        body = payload(
            due.event,
            due.subject_id,
            at=due.created_at,
            data=due.data,
            result=due.result,
            too_long=due.too_long,
            public_url=desk.public_url,
        )
        headers = signed_headers(public("msg", due.outbox_id), datetime.now(tz=UTC), body, secrets)
        attempt = await sender.attempt(due.url, headers, body, steady=due.lane_steady)
    except Exception as fault:  # one address that trips us must not be tried every minute for ever
        attempt = Attempt(datetime.now(tz=UTC), 0.0, error=f"{type(fault).__name__} while delivering")
    return judge(due, attempt, retry_first_s=desk.retry_first_s)


def judge(due: Due, attempt: Attempt, *, retry_first_s: float) -> Tried:
    """What came of it, and when the next one is due, if there is to be one."""
    retry_in_s, rest = None, 0.0
    if not attempt.delivered:
        asked = attempt.retry_after_s
        rest = rest_s(due.lane_failures + 1, status=attempt.status, retry_after_s=asked, first_s=retry_first_s)
        if not (attempt.gone or attempt.for_good):
            retry_in_s = next_wait_s(
                due.failures + 1, due_for_s=due.due_for_s, retry_after_s=asked, first_s=retry_first_s
            )
    return Tried(
        due,
        attempt.at,
        latency_ms=attempt.latency_ms,
        status=attempt.status,
        error=attempt.error,
        answer=attempt.answer,
        address=attempt.address,
        retry_in_s=retry_in_s,
        steady=attempt.delivered and attempt.latency_ms < SLOW_MS,
        rest_s=rest,
    )


def _never(due: Due, why: str) -> Tried:
    """Given up before anything was sent: that says nothing of its receiver."""
    return Tried(due, datetime.now(tz=UTC), error=why, counts=False)
