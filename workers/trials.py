"""Watches canaries, and tells deciders what is promoted and what is on trial: the rescue leader does, in each sweep.

What stands in Postgres is told to Redis again each time, so that a Redis which has lost it hears of it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import redis

from tieryard.bench import PASS_MARK
from tieryard.bench import canary as bench
from tieryard.bench.canary import Limits, Look, Side
from tieryard.catalog import Catalog
from tieryard.catalog.tiers import Tier
from tieryard.routing.trials import Trials
from tieryard.store import Connection, trials
from tieryard.store.trials import OnTrial, Start
from tieryard.telemetry import Event
from workers.yard import Yard

Scores = Collection[tuple[bool, float]]
"""Whether the candidate answered, and the score."""

_LOOKED = "tieryard:canaries"
"""A key that exists for some seconds after somebody has looked at them."""

_LOOK_EVERY_S = 10
_CATALOG_SETTLES_S = 60.0  # a canary may be of a catalog that this process has yet to take over


@dataclass(frozen=True, slots=True)
class _Ended:
    """`report`: of the look that has found a breach."""

    canary: OnTrial
    why: str
    report: dict[str, Any] | None = None


def look(yard: Yard, connection: Connection) -> None:
    """On the connection of whoever leads."""
    try:
        ended: list[_Ended] = []
        owed = 0
        with connection.transaction():
            running = trials.canaries(connection)
            if running and yard.redis.set(_LOOKED, 1, nx=True, ex=_LOOK_EVERY_S):
                ended = [end for canary in running if (end := _watch(connection, canary, yard.catalog)) is not None]
                owed = sum(_end(connection, end, yard.catalog.benchmarks.callback_url) for end in ended)
            promoted = trials.promotions(connection)
        _tell_of(yard, ended, owed)
        over = {end.canary.id for end in ended}
        on_trial = tuple(row.told for row in running if row.id not in over)
        found = Trials(tuple(row.told for row in promoted), on_trial)
        yard.metrics.publish_trials(found.holding(yard.catalog))
    except redis.RedisError as error:
        yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])


def _tell_of(yard: Yard, ended: list[_Ended], owed: int) -> None:
    """After the commit."""
    for end in ended:
        about = {"canary": end.canary.public_id, "deployment": end.canary.candidate, "serving": end.canary.serving}
        log = yard.log.warning if end.report is None else yard.log.error
        log(Event.CANARY_ENDED, **about, breached=end.report is not None, why=end.why)
    if owed:
        yard.nudge_callbacks()


def _watch(connection: Connection, canary: OnTrial, catalog: Catalog) -> _Ended | None:
    """Why it must not go on; None when it may."""
    if not Trials(canaries=(canary.told,)).holding(catalog).canaries:
        why = f"the catalog has no {canary.candidate} of this build beside {canary.serving}"
        return _Ended(canary, why) if canary.age_s > _CATALOG_SETTLES_S else None
    starts = trials.starts(connection, canary)
    found = judged(canary, starts, partial(trials.scores, connection, canary), catalog)
    if found is None:
        return None
    report = found.report() | {"through": max(start.ended_at for start in starts).isoformat()}
    if found.breach:
        return _Ended(canary, found.breach, report)
    trials.keep_report(connection, canary, report)
    return None


def _end(connection: Connection, end: _Ended, callback_url: str | None) -> int:
    """How many callbacks are owed."""
    breached = end.report is not None
    ended = trials.end_canary(
        connection, end.canary, end.why, breached=breached, report=end.report, callback_url=callback_url
    )
    return ended or 0


def judged(canary: OnTrial, starts: Collection[Start], scores: Callable[[], Scores], catalog: Catalog) -> Look | None:
    """The next look at it; None while none is due."""
    last = canary.report or {}
    through = datetime.fromisoformat(last["through"]) if "through" in last else canary.started_at
    ours = [start for start in starts if start.taken]
    new = sum(start.ended_at > through for start in ours)
    if not bench.is_due(len(ours) - new, new, len(starts) - len(ours)):
        return None
    scored = scores()
    gate = catalog.benchmarks.gate
    limits = Limits(catalog.routing.max_error_rate, gate.allowed_drop, gate.alpha)
    candidate, serving = (_side(taken, starts, scored, catalog) for taken in (True, False))
    return bench.look(last.get("look", 0) + 1, candidate, serving, limits)


def _side(taken: bool, starts: Collection[Start], scores: Scores, catalog: Catalog) -> Side:
    mine = [start for start in starts if start.taken == taken]
    ran = [start for start in mine if start.outcome == "succeeded" and start.latency_ms is not None]
    scored = [score for of, score in scores if of == taken]
    return Side(
        n=len(mine),
        failed=sum(start.outcome != "succeeded" for start in mine),
        missed=sum(_missed(start, catalog.tiers.get(start.tier)) for start in ran),
        latencies_ms=[start.latency_ms or 0.0 for start in ran],
        scored=len(scored),
        passed=sum(score >= PASS_MARK for score in scored),
    )


def _missed(start: Start, tier: Tier | None) -> bool:
    """Its tier's SLO; a job's own may be anything."""
    if tier is None:
        return False
    waited_ms = 0.0 if tier.slo_from == "claimed" else start.wait_ms
    times = (start.ttft_ms, tier.slo.max_ttft_ms), (start.latency_ms, tier.slo.max_latency_ms)
    return any(ms is not None and most is not None and ms + waited_ms > most for ms, most in times)
