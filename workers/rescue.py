"""Receives a tick a second from beat. Takes jobs from dead workers, ends those past their window, and sends
again the nudges that were lost: one by one when they are overdue, all at once when Redis lost its memory.
Next: a rescued job is at `workers/classify.py` (queued) or `workers/infer.py` (routed) again."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import defaultdict

import redis

from tieryard.job import State
from tieryard.lease import API
from tieryard.queues import BrokerError, Parcel, model_queue, parcels_to_classify, parcels_to_infer, replica_queue
from tieryard.store import Connection, files, idempotency, rescue
from tieryard.store.leader import lead
from tieryard.store.rescue import Nudge
from tieryard.telemetry import Event
from workers.yard import Yard

EPOCH = "tieryard:epoch"
"""A key that exists as long as Redis remembers. Its absence means that every nudge on its way is gone."""

_LATE_S = 60.0  # after a replica has left nobody sends to its queue: its gauge is believed for 5 s


class Rescuer:
    """Sweeps, and declares nobody dead before the living have had the time to show themselves.

    After an outage of Postgres every lease has run out, this process's own among them. So workers are buried only
    by a rescuer that has swept without a gap for as long as a lease lasts.
    """

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._steady_since = self._swept_at = time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._swept_at > self._yard.settings.lease_s / 2:
            self._steady_since = now
        sweep(self._yard, bury=now - self._steady_since >= self._yard.settings.lease_s)
        self._swept_at = time.monotonic()


def sweep(yard: Yard, *, bury: bool = True) -> None:
    """One pass. Skipped when another process is in the middle of one."""
    with lead(yard.store, "rescue") as connection:
        if connection is None:
            return
        with connection.transaction():
            buried = rescue.bury(connection) if bury else []
            left = rescue.left_since(connection, seconds=_LATE_S)
            moved = rescue.requeue_orphans(connection)
            rerouted = rescue.reroute(connection, yard.catalog.deployments)
            idempotency.forget_old(connection)
            files.purge_expired(connection)
        stopped = _stop_all(connection)
        _forget(yard, buried)
        _empty_queues(yard, left)
        if moved or rerouted:
            yard.log.warning(Event.RESCUED, **moved, rerouted=rerouted)
        if stopped:  # what their callers asked for, or their windows
            yard.log.info(Event.RESCUED, stopped=stopped)
        if moved or stopped or rerouted:
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


def _forget(yard: Yard, buried: list[tuple[int, str, str | None]]) -> None:
    """What dead workers said of their load: it would be too old to count in a moment anyway."""
    for worker_id, kind, deployment in buried:
        yard.log.warning(Event.WORKER_DIED, worker=worker_id, kind=kind, deployment=deployment)
        with contextlib.suppress(redis.RedisError):
            if deployment is not None:
                yard.metrics.withdraw_gauge(deployment, worker_id)
            for name in yard.catalog.deployments if kind == API else ():
                yard.metrics.forget_calls(name, api=worker_id)


def _empty_queues(yard: Yard, left: list[tuple[int, str]]) -> None:
    """What is on the own queues of replicas that have left goes where the others look. A classifier may send them
    more for a moment, until it has heard."""
    with contextlib.suppress(redis.RedisError):  # what it has forgotten is published again
        for worker_id, deployment in left:
            for name in (deployment, *yard.catalog.adapters_of(deployment)):
                while yard.redis.lmove(replica_queue(name, worker_id), model_queue(name), "RIGHT", "LEFT"):
                    pass


def _stop_all(connection: Connection) -> int:
    """Jobs past their window or of cancelled batches, a chunk a transaction: how many were ended."""
    ended, more = 0, True
    while more:
        with connection.transaction():
            n, more = rescue.stop(connection)
        ended += n
    return ended


def _parcels(nudges: list[Nudge]) -> list[Parcel]:
    """Parcels by where the jobs wait, due when the first of them is."""
    groups: dict[tuple[str, str, str | None], list[Nudge]] = defaultdict(list)
    for nudge in nudges:
        groups[nudge.state, nudge.tier, nudge.deployment].append(nudge)
    parcels: list[Parcel] = []
    for (state, tier, deployment), members in groups.items():
        due = min(n.deadline for n in members).timestamp()
        if state == State.ROUTED and deployment is not None:
            parcels += parcels_to_infer(deployment, tier, due, ((n.id, 0) for n in members))
        else:
            parcels += parcels_to_classify(tier, due, (n.id for n in members))
    return parcels
