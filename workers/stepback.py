"""Holds the learned model to measured outcomes, once a minute: where they contradict it the router goes by its rules
until they no longer do, and says so.

The verdict stands in Postgres; Redis only carries it to those who decide, and is told again each time.
"""

from __future__ import annotations

from datetime import UTC, datetime

import redis

from tieryard.metrics import Observed
from tieryard.store import Connection, outcomes
from tieryard.store.outcomes import SteppedBack
from tieryard.telemetry import Event
from workers.yard import Yard

_LOOKED = "tieryard:outcomes"
"""A key that exists for a minute after somebody has looked. It is lost with the rest of Redis, what was told there too:
and both are made good at once."""

_LOOK_EVERY_S = 60
_LATEST_SCORES = 144  # what an average with a half life of 50 stands on


def look(yard: Yard, connection: Connection) -> None:
    """If a minute is over. On the connection of whoever leads."""
    try:
        if not yard.redis.set(_LOOKED, 1, nx=True, ex=_LOOK_EVERY_S):
            return
        last = _judged(yard, connection) if yard.catalog.routing.classifier == "learned" else None
        yard.metrics.publish_step_back(last.why if last is not None and last.until is None else "")
    except redis.RedisError as error:
        yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])


def _judged(yard: Yard, connection: Connection) -> SteppedBack | None:
    """How it stands after a look at the outcomes since it last changed."""
    with connection.transaction():
        last, found = outcomes.standing(connection)
        back = last is not None and last.until is None
        if not back and found.contradicts:
            why = f"measured outcomes contradict the learned model: {found}"
            last = outcomes.step_back(connection, why)
            yard.log.warning(Event.STEPPED_BACK, why=why)
        elif back and found.agrees:
            outcomes.come_back(connection)
            last = None
            yard.log.info(Event.CAME_BACK, why=f"measured outcomes no longer contradict the learned model: {found}")
    return last


def tell_qualities(yard: Yard, connection: Connection) -> None:
    """When Redis has lost its memory: what answers were worth comes back from Postgres. Raises redis.RedisError."""
    since = datetime.now(tz=UTC) - yard.catalog.routing.stale_after
    for deployment, category, n, score in outcomes.qualities(connection, after=since, most=_LATEST_SCORES):
        yard.metrics.observe(deployment, category, Observed(n=n, quality_score=score))
