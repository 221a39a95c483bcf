"""Receives parcels from the tier queues. Loads the jobs, routes them on a fresh snapshot, saves the decisions.
A job that no deployment can take is failed here, with the reason.
Next: `workers/infer.py` claims the job from its model queue."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial

from tieryard.admission import Admission, Surroundings
from tieryard.affinity import Homes, Keyed, Sessions
from tieryard.catalog import REALTIME, Catalog
from tieryard.errors import RequestError
from tieryard.ids import Run, from_runs
from tieryard.metrics import Replica
from tieryard.queues import BrokerError, Parcel, parcels_to_infer
from tieryard.requests import Request, parse_request
from tieryard.routing import JobFeatures, Snapshot, decide_many
from tieryard.snapshots import Snapshots
from tieryard.store import Connection, catalogs, jobs, keys
from tieryard.store.jobs import Routed, Waiting
from tieryard.telemetry import Event
from workers.shadowing import Shadows
from workers.yard import Yard

_UNTIL_TOLD_S = 5.0  # heartbeats tell of catalogs


class Classifier:
    """Routes parcels, one at a time."""

    def __init__(self, yard: Yard, admission: Admission) -> None:
        self._yard = yard
        self._admission = admission
        self._snapshots = Snapshots(yard.metrics, admission.catalog, yard.log, learned=admission.load_model())
        self._shadows = Shadows(yard, admission.catalog)
        self._homes = Homes()
        self._sessions = Sessions()
        self._tenants: dict[int, str] = {}
        self._next: Admission | None = None

    def prepare(self, _: Catalog, catalog: Catalog) -> Callable[[], None]:
        """The next parcel is routed by this catalog, and none by two. Raises UserError."""
        admission = self._yard.admission(catalog)
        admission.load_model()
        return partial(setattr, self, "_next", admission)

    def _take_over(self) -> None:
        if (admission := self._next) is not None:
            self._admission, self._next = admission, None
            self._snapshots.take_over(admission.catalog, learned=admission.load_model())
            self._shadows.catalog = admission.catalog

    def classify(self, tier: str, due: float, runs: list[Run]) -> int:
        """One parcel: how many of its jobs are now routed."""
        started = time.monotonic()
        known = self._yard.in_force.known
        self._take_over()
        snapshot = self._snapshots.newest()
        with self._yard.store.transaction() as connection:
            # A decision that a crash of Postgres forgets is made again: not worth waiting for the disk.
            connection.execute("SET LOCAL synchronous_commit = off")
            waiting = jobs.load_parcel(connection, list(from_runs(runs)))
            if not waiting:
                return 0
            if self._admission.catalog.routing.policies:
                self._learn_names(connection, {job.tenant_id for job in waiting})
            decisions = self._decide(tier, waiting, snapshot)
            if any(map(_is_refusal, decisions)) and not catalogs.is_newest(connection, known):
                decisions = [_until_told(d) if _is_refusal(d) else d for d in decisions]
            body = snapshot.to_json()
            snapshot_id = self._snapshots.stored_as(body) or jobs.save_snapshot(connection, body)
            routed = jobs.save_decisions(
                connection, decisions, snapshot_id=snapshot_id, patience_s=self._yard.patience_s
            )
            moved = [d for d in decisions if d.job_id in routed]
            bodies = {job.id: job.body for job in waiting}
            copies = self._shadows.save(connection, tier, bodies, moved, snapshot)
        self._snapshots.remember(body, snapshot_id)
        if extra_usd := sum((d.extra_usd for d in moved), Decimal(0)):
            self._snapshots.explored(extra_usd)
        self._publish(tier, due, moved, self._shadows.parcels(copies))
        if any(map(_is_refusal, decisions)):
            self._yard.nudge_callbacks()
        self._yard.log.debug(
            Event.PARCEL_ROUTED, tier=tier, jobs=len(routed), ms=round((time.monotonic() - started) * 1000, 2)
        )
        return len(routed)

    def _learn_names(self, connection: Connection, tenants: set[int]) -> None:
        """Tenants keep their names, so each is asked for once."""
        if unknown := tenants - self._tenants.keys():
            self._tenants |= keys.tenant_names(connection, sorted(unknown))

    def _decide(self, tier: str, waiting: list[Waiting], snapshot: Snapshot) -> list[Routed]:
        """A decision for each job."""
        asked: list[_Asked] = []
        refused: list[Routed] = []
        for job in waiting:
            try:
                request = parse_request(job.body)
                # Realtime jobs have no prefix key, for they go to whichever replica is free first.
                key = 0 if tier == REALTIME else request.prefix_key(job.tenant_id)
                asked.append(_Asked(job, request, self._around(tier, job, key), key))
            except RequestError as error:  # saved under an older version's rules
                refused.append(_refused(job, error))
        features: list[JobFeatures] = []
        try:
            features = self._features(asked)
        except RequestError:  # a chat template refuses one of them: find out which
            every, asked = asked, []
            for one in every:
                try:
                    features += self._features([one])
                    asked.append(one)
                except RequestError as error:
                    refused.append(_refused(one.job, error))
        decisions = decide_many(features, snapshot)
        for one, decision in zip(asked, decisions, strict=True):
            if decision.deployment is not None:
                self._sessions.went(one.key, decision.deployment)
        return refused + [
            Routed(
                one.job.id,
                one.job.fence,
                d.deployment,
                f.text.category,
                d.reason,
                f,
                one.key,
                d.defer_s,
                d.fallback,
                d.explored,
                d.extra_usd,
                d.canary,
            )
            for one, f, d in zip(asked, features, decisions, strict=True)
        ]

    def _features(self, asked: list[_Asked]) -> list[JobFeatures]:
        return self._admission.features([one.request for one in asked], [one.around for one in asked])

    def _around(self, tier: str, job: Waiting, key: int) -> Surroundings:
        tenant = self._tenants.get(job.tenant_id, "")
        sticky = self._sessions.last(key) if self._admission.sticks(tenant) else ""
        return Surroundings(tier, tenant, job.id, job.created_at, job.deadline, sticky)

    def _publish(self, tier: str, due: float, decisions: list[Routed], copies: list[Parcel]) -> None:
        """After the commit. A nudge that is lost here is rescue's to send again."""
        by_deployment: dict[str, list[Keyed]] = defaultdict(list)
        for decision in decisions:
            if decision.deployment is not None:
                by_deployment[decision.deployment].append((decision.job_id, decision.prefix_key))
        parcels: list[Parcel] = []
        for deployment, keyed in by_deployment.items():
            replicas = self._snapshots.live.replicas.get(deployment, ())
            parcels += parcels_home(self._homes, deployment, tier, due, keyed, replicas)
        try:
            self._yard.publisher.publish(parcels + copies)
        except BrokerError as error:
            self._yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])


@dataclass(frozen=True, slots=True)
class _Asked:
    """A job that can be read, with what routing needs beside it."""

    job: Waiting
    request: Request
    around: Surroundings
    key: int


def _is_refusal(decision: Routed) -> bool:
    return decision.deployment is None and not decision.defer_s


def _until_told(refusal: Routed) -> Routed:
    """The catalog that is in force may have what this process' lacks, and be what the job was made for."""
    return replace(refusal, defer_s=_UNTIL_TOLD_S, reason=f"a newer catalog may say otherwise: {refusal.reason}")


def _refused(job: Waiting, error: RequestError) -> Routed:
    return Routed(job.id, job.fence, None, "chat", str(error), None)


def parcels_home(
    homes: Homes, deployment: str, tier: str, due: float, keyed: Iterable[Keyed], replicas: Sequence[Replica]
) -> list[Parcel]:
    """Parcels of these jobs of one deployment and tier, to the replicas where those that begin alike are at home; the
    others go to the queue that all replicas share. Rescue sends them again by the same rule."""
    return [
        parcel
        for home, members in homes.share_out(keyed, replicas).items()
        for parcel in parcels_to_infer(deployment, tier, due, members, home=home)
    ]
