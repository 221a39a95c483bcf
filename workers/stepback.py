"""Holds the learned model to measured outcomes, once a minute: where they contradict it the router goes by its rules
until they no longer do, and says so.

The verdict stands in Postgres; Redis only carries it to those who decide, and is told again each time.
"""

from __future__ import annotations

from datetime import UTC, datetime

import redis

from tieryard.profiles import Observed
from tieryard.store import Connection, outcomes, profiles
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
        with connection.transaction():
            if yard.catalog.routing.classifier == "learned":
                _judge(yard, connection)
            stepped_back = outcomes.stepped_back(connection)
        yard.metrics.publish_step_back(stepped_back)
    except redis.RedisError as error:
        yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])


def _judge(yard: Yard, connection: Connection) -> None:
    """By the outcomes since it last changed. Without a model in force nothing changes: where one cannot be read now, it
    is no better for that."""
    found = outcomes.standing(connection)
    model, verdict = found.quality_model, found.verdict
    if not model:
        return
    for other in outcomes.end_others(connection, model):
        why = f"it had stepped back from another quality model, {other or 'of which the hash was not kept'}"
        yard.log.info(Event.CAME_BACK, quality_model=model, why=why)
    back = found.last is not None and not found.last.over
    if not back and verdict.contradicts:
        why = f"measured outcomes contradict the learned model: {verdict}"
        outcomes.step_back(connection, model, why)
        yard.log.warning(Event.STEPPED_BACK, quality_model=model, why=why)
    elif back and verdict.agrees:
        outcomes.come_back(connection, model)
        why = f"measured outcomes no longer contradict the learned model: {verdict}"
        yard.log.info(Event.CAME_BACK, quality_model=model, why=why)


def tell_qualities(yard: Yard, connection: Connection) -> None:
    """When Redis has lost its memory: what answers were worth comes back from Postgres, those to golden sets and then
    those that somebody has scored. Raises redis.RedisError."""
    known, within = yard.catalog.deployments, yard.catalog.routing.stale_after
    for one in profiles.newest_qualities(connection, deployments=list(known), within=within):
        if one.build == known[one.deployment].build:
            yard.metrics.observe(one.deployment, one.category, Observed(n=one.n, quality_score=one.score))
    since = datetime.now(tz=UTC) - within
    for deployment, category, n, score in outcomes.qualities(connection, after=since, most=_LATEST_SCORES):
        yard.metrics.observe(deployment, category, Observed(n=n, quality_score=score))
