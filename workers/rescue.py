"""Receives a tick a second from beat. Takes jobs from dead workers, and from deployments that are gone, ends those
past their window, and sends again the nudges that were lost: overdue ones, or all when Redis lost its memory.
Next: a rescued job is at `workers/classify.py` (queued) or `workers/infer.py` (routed) again."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, replace

import redis

from tieryard.affinity import Homes
from tieryard.ids import public
from tieryard.job import State
from tieryard.lease import API
from tieryard.metrics import Replica
from tieryard.queues import BENCHMARK, BrokerError, Parcel, model_queue, parcels_to_classify, replica_of, tier_queue
from tieryard.store import Connection, budgets, files, idempotency, rescue, routes
from tieryard.store.leader import lead
from tieryard.store.rescue import Nudge
from tieryard.telemetry import Event
from workers import fingerprints, quoting, speed, stepback, trials
from workers.classify import parcels_home
from workers.yard import Yard

EPOCH = "tieryard:epoch"
"""A key that exists as long as Redis remembers. Its absence means that every nudge on its way is gone."""

_LOOKED = "tieryard:queues"
"""A key that exists for a minute after somebody has looked for queues of replicas that have left."""

_LOOK_EVERY_S = 60
_LOOK_FOR_S = 3600.0  # for jobs that a deployment kept when it fell silent


@dataclass(frozen=True, slots=True)
class Buried:
    """A worker that was declared dead, with every deployment that it served: its own, then the adapters in its
    engine."""

    worker_id: int
    kind: str
    served: list[str]


class Rescuer:
    """Sweeps, and declares nobody dead before the living have had the time to show themselves.

    After an outage of Postgres every lease has run out, this process's own among them. So workers are buried only
    by a rescuer that has swept without a gap for as long as a lease lasts.
    """

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._homes = Homes()
        self._steady_since = self._swept_at = time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._swept_at > self._yard.settings.lease_s / 2:
            self._steady_since = now
        sweep(self._yard, bury=now - self._steady_since >= self._yard.settings.lease_s, homes=self._homes)
        self._swept_at = time.monotonic()


def sweep(yard: Yard, *, bury: bool = True, homes: Homes | None = None) -> None:
    """One pass. Skipped when another process is in the middle of one."""
    with lead(yard.store, "rescue") as connection:
        if connection is None:
            return
        fallen = _fallen(yard)
        with connection.transaction():
            buried = [
                Buried(worker_id, kind, [name, *yard.catalog.adapters_of(name)] if name is not None else [])
                for worker_id, kind, name in (rescue.bury(connection) if bury else [])
            ]
            moved = rescue.requeue_orphans(connection)
            rerouted = rescue.reroute(connection, yard.catalog.deployments, version=yard.in_force.number)
            rerouted += rescue.reroute_stranded(connection, fallen)
            idempotency.forget_old(connection)
            routes.forget_snapshots(connection, days=yard.settings.snapshots_kept_days)
            files.purge_expired(connection)
        stopped = _stop_all(connection)
        told = _settle(yard, connection)
        _forget(yard, buried)
        _empty_queues(yard, connection)
        stepback.look(yard, connection)
        trials.look(yard, connection)
        quoting.look(yard, connection)
        if moved or rerouted:
            yard.log.warning(Event.RESCUED, **moved, rerouted=rerouted)
        if stopped:  # what their callers asked for, or their windows
            yard.log.info(Event.RESCUED, stopped=stopped)
        if moved or stopped or rerouted or told:
            yard.nudge_callbacks()
        flushed = yard.redis.get(EPOCH) is None
        if flushed:
            yard.log.warning(Event.BROKER_FLUSHED)
        with connection.transaction():
            lost = [name for worker in buried for name in worker.served]
            nudges = rescue.due_nudges(connection, patience_s=yard.patience_s, everything=flushed, lost=lost)
        try:
            yard.publisher.publish(_parcels(yard, nudges, homes or Homes()))
        except BrokerError as error:
            yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
            return
        if flushed:
            stepback.tell_qualities(yard, connection)
            speed.tell_profiles(yard, connection)
            fingerprints.tell_marks(yard, connection)
            yard.redis.set(EPOCH, str(uuid.uuid4()))
        if nudges:
            yard.log.info(Event.RESCUED, nudged=len(nudges))


def _fallen(yard: Yard) -> dict[str, float]:
    """Deployments that serve no more, and until how long ago they were taken to, or nobody else was known to; without
    Redis nobody knows. After a while there is nothing left to find: some are away for good."""
    try:
        found = yard.metrics.fallen(yard.catalog.deployments)
    except redis.RedisError:
        return {}
    return {name: ago_s for name, ago_s in found.items() if ago_s < _LOOK_FOR_S}


def _forget(yard: Yard, buried: list[Buried]) -> None:
    """What dead workers said of their load, which would be too old to count in a moment anyway; and what is on their
    own queues goes where the others look."""
    for worker in buried:
        deployment = next(iter(worker.served), None)
        yard.log.warning(Event.WORKER_DIED, worker=worker.worker_id, kind=worker.kind, deployment=deployment)
        with contextlib.suppress(redis.RedisError):
            for name in worker.served:
                yard.metrics.withdraw_gauge(name, worker.worker_id)
                yard.empty_own(name, worker.worker_id)
            for name in yard.catalog.deployments if worker.kind in (API, BENCHMARK) else ():
                yard.metrics.forget_calls(name, api=worker.worker_id)


def _empty_queues(yard: Yard, connection: Connection) -> None:
    """Own queues of replicas that have left, once a minute, however they left: a classifier may have sent them more
    until it had heard. Which workers live is asked after the look, so a replica that is new is among them."""
    with contextlib.suppress(redis.RedisError):  # what it has forgotten is published again
        if not yard.redis.set(_LOOKED, 1, nx=True, ex=_LOOK_EVERY_S):
            return
        names = yard.redis.scan_iter(match=f"{model_queue('*')}@*", count=1000)
        found = [owner for name in names if (owner := replica_of(name.decode())) is not None]
        living = rescue.living(connection, {worker_id for _, worker_id in found})
        for deployment, worker_id in found:
            if worker_id not in living:
                yard.empty_own(deployment, worker_id)


def _stop_all(connection: Connection) -> int:
    """Jobs past their window or of cancelled batches, a chunk a transaction: how many were ended."""
    ended, more = 0, True
    while more:
        with connection.transaction():
            n, more = rescue.stop(connection)
        ended += n
    return ended


def _settle(yard: Yard, connection: Connection) -> int:
    """Budgets: what was reserved for jobs that are final gives way to what they cost. How many marks were passed."""
    with connection.transaction():
        settled = budgets.settle(connection)
    for period in settled:
        name, spent = public(budgets.KIND, period.budget_id), str(period.spent_usd)
        if period.marks:
            yard.log.warning(Event.BUDGET_PASSED, budget=name, spent_usd=spent, mark=period.marks[-1])
        if period.over:
            yard.log.warning(Event.BUDGET_OVERRUN, budget=name, spent_usd=spent, jobs=period.over)
    return sum(len(period.marks) for period in settled)


def _parcels(yard: Yard, nudges: list[Nudge], homes: Homes) -> list[Parcel]:
    """Parcels by where the jobs wait, in the order given: due as if they were given out now, so behind what is waiting
    there, and to the same homes as the first time."""
    groups: dict[tuple[str, str, str | None, bool], list[Nudge]] = defaultdict(list)
    for nudge in nudges:
        groups[nudge.state, nudge.tier, nudge.deployment, nudge.behind].append(nudge)
    replicas = _replicas(yard) if any(nudge.prefix_key for nudge in nudges) else {}
    parcels: list[Parcel] = []
    for (state, tier, deployment, behind), members in groups.items():
        due = yard.due(tier, behind=behind)
        if state == State.ROUTED and deployment is not None:
            keyed = [(n.id, n.prefix_key) for n in members]
            parcels += parcels_home(homes, deployment, tier, due, keyed, replicas.get(deployment, ()))
        else:
            # Not to the queue of a tier that has gone: a classifier that began since does not read it.
            queue = tier_queue(yard.standing_in(tier))
            parcels += [replace(p, queue=queue) for p in parcels_to_classify(tier, due, [n.id for n in members])]
    return parcels


def _replicas(yard: Yard) -> dict[str, list[Replica]]:
    """Those that serve, by deployment; without Redis nothing can be published either."""
    try:
        return yard.metrics.read(yard.catalog).replicas
    except redis.RedisError:
        return {}
