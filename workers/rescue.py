"""Receives a tick a second from beat. Takes jobs from dead workers, ends those past their window, and sends
again the nudges that were lost: one by one when they are overdue, all at once when Redis lost its memory.
Next: a rescued job is at `workers/classify.py` (queued) or `workers/infer.py` (routed) again."""

from __future__ import annotations

import uuid
from collections import defaultdict

from tieryard.job import State
from tieryard.queues import BrokerError, Parcel, parcels_to_classify, parcels_to_infer
from tieryard.store import rescue
from tieryard.store.leader import lead
from tieryard.store.rescue import Nudge
from tieryard.telemetry import Event
from workers.yard import Yard

EPOCH = "tieryard:epoch"
"""A key that exists as long as Redis remembers. Its absence means that every nudge on its way is gone."""


def sweep(yard: Yard) -> None:
    """One pass. Skipped when another process is in the middle of one."""
    with lead(yard.store, "rescue") as connection:
        if connection is None:
            return
        with connection.transaction():
            buried = rescue.bury(connection)
            moved = rescue.requeue_orphans(connection)
            expired = rescue.expire(connection)
        for worker_id, kind, deployment in buried:
            yard.log.warning(Event.WORKER_DIED, worker=worker_id, kind=kind, deployment=deployment)
            if deployment is not None:
                yard.metrics.withdraw_gauge(deployment, worker_id)
        if moved or expired:
            yard.log.warning(Event.RESCUED, **moved, past_window=expired)
            yard.nudge_callbacks()
        flushed = yard.redis.get(EPOCH) is None
        if flushed:
            yard.log.warning(Event.BROKER_FLUSHED)
        with connection.transaction():
            nudges = rescue.due_nudges(
                connection, patience_s=yard.patience_s, everything=flushed, lost=[d for _, _, d in buried if d]
            )
        try:
            yard.publisher.publish(_parcels(nudges))
        except BrokerError as error:
            yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
            return
        if flushed:
            yard.redis.set(EPOCH, str(uuid.uuid4()))
        if nudges:
            yard.log.info(Event.RESCUED, nudged=len(nudges))


def _parcels(nudges: list[Nudge]) -> list[Parcel]:
    """Parcels by where the jobs wait, due when the first of them is."""
    groups: dict[tuple[str, str, str | None], list[Nudge]] = defaultdict(list)
    for nudge in nudges:
        groups[nudge.state, nudge.tier, nudge.deployment].append(nudge)
    parcels: list[Parcel] = []
    for (state, tier, deployment), members in groups.items():
        ids = [n.id for n in members]
        due = min(n.deadline for n in members).timestamp()
        if state == State.ROUTED and deployment is not None:
            parcels += parcels_to_infer(deployment, tier, due, ids)
        else:
            parcels += parcels_to_classify(tier, due, ids)
    return parcels
