"""Holds quotes against what their batches came to, and tells how far they were off."""

from __future__ import annotations

import redis

from tieryard.ids import public
from tieryard.store import Connection, quotes
from tieryard.telemetry import Event
from workers.yard import Yard

_TOLD = "tieryard:quotes"
"""A key that exists for a minute after the errors were told: being of the last days, they change by themselves."""

_TELL_EVERY_S = 60


def look(yard: Yard, connection: Connection) -> None:
    """One pass. On the connection of whoever leads."""
    with connection.transaction():
        settled = quotes.settle(connection)
    for quote_id, batch_id, actual in settled:
        found = {figure: actual[figure]["ratio"] for figure in ("cost", "finish")}
        yard.log.info(
            Event.QUOTE_SETTLED, quote=public("quote", quote_id), batch=batch_id, outcome=actual["outcome"], **found
        )
    try:
        if yard.redis.set(_TOLD, 1, nx=True, ex=_TELL_EVERY_S):
            yard.metrics.publish_quote_errors(quotes.errors(connection))
    except redis.RedisError as error:
        yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
