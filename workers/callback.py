"""Receives a nudge that callbacks are owed. Takes due rows of the outbox, one after another.
Delivers each, signed, to an address that was checked, and writes down how it went.
Next: a delivered row is settled; a failed one waits for its next attempt, and beat's tick finds it."""

from __future__ import annotations

from tieryard import webhooks
from tieryard.ids import public
from tieryard.store import outbox
from tieryard.store.outbox import Owed
from tieryard.telemetry import Event
from tieryard.webhooks import DeliveryError, ForbiddenAddressError
from workers.yard import Yard


def deliver_due(yard: Yard) -> int:
    """Delivers one row after another until none is due: how many were tried."""
    tried = 0
    while owed := outbox.take_due(yard.store, most=1):
        deliver_one(yard, owed[0])
        tried += 1
    return tried


def deliver_one(yard: Yard, owed: Owed) -> None:
    """One attempt. The message's id is the outbox row's, the same at every attempt."""
    secret = yard.settings.webhook_secret
    status, error, wait_s = None, None, None
    try:
        if secret is None:
            raise ForbiddenAddressError("TIERYARD_WEBHOOK_SECRET is not set")
        status = webhooks.deliver(
            owed.url,
            message_id=public("msg", owed.id),
            payload=_payload(owed),
            secret=secret.get_secret_value(),
            allow_private=yard.settings.webhook_allow_private,
        )
    except ForbiddenAddressError as refused:
        error = str(refused)
    except DeliveryError as failed:
        status, error = failed.status, str(failed)
        wait_s = None if failed.gone else webhooks.next_wait_s(owed.attempt, failed.retry_after_s)
    except Exception as fault:  # one address that trips us must not be tried every minute for ever
        error, wait_s = f"{type(fault).__name__} while delivering", webhooks.next_wait_s(owed.attempt)
    outbox.settle(yard.store, owed.id, status=status, error=error, retry_in_s=wait_s)
    if error is None:
        yard.log.info(Event.CALLBACK_SENT, outbox=owed.id, attempt=owed.attempt)
    else:
        yard.log.warning(
            Event.CALLBACK_FAILED, outbox=owed.id, attempt=owed.attempt, error=error[:200], again_in_s=wait_s
        )


def _payload(owed: Owed) -> dict[str, object]:
    """Thin: what happened to which job or batch; the receiver reads the rest with its key. What would have changed by
    then is told."""
    kind = owed.event.partition(".")[0]
    return {
        "type": owed.event,
        "timestamp": owed.created_at.isoformat(),
        "data": {"id": public(kind, owed.subject_id), **(owed.data or {})},
    }
