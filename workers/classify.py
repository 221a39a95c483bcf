"""Receives parcels from the tier queues. Loads the jobs, routes them on a fresh snapshot, saves the decisions.
A job that no deployment can take is failed here, with the reason.
Next: `workers/infer.py` claims the job from its model queue."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tieryard.admission import Admission
from tieryard.affinity import Homes, Keyed
from tieryard.catalog import REALTIME
from tieryard.errors import RequestError
from tieryard.ids import Run, from_runs
from tieryard.metrics import Replica
from tieryard.queues import BrokerError, Parcel, parcels_to_infer
from tieryard.requests import Request, parse_request
from tieryard.routing import Decision, JobFeatures, Snapshot, decide_many
from tieryard.snapshots import Snapshots
from tieryard.store import jobs
from tieryard.store.jobs import Routed, Waiting
from tieryard.telemetry import Event
from workers.yard import Yard


class Classifier:
    """Routes parcels, one at a time."""

    def __init__(self, yard: Yard, admission: Admission) -> None:
        self._yard = yard
        self._admission = admission
        self._snapshots = Snapshots(yard.metrics, yard.catalog, yard.log)
        self._homes = Homes()

    def classify(self, tier: str, due: float, runs: list[Run]) -> int:
        """One parcel: how many of its jobs are now routed."""
        started = time.monotonic()
        snapshot = self._snapshots.newest()
        with self._yard.store.transaction() as connection:
            # A decision that a crash of Postgres forgets is made again: not worth waiting for the disk.
            connection.execute("SET LOCAL synchronous_commit = off")
            waiting = jobs.load_parcel(connection, list(from_runs(runs)))
            if not waiting:
                return 0
            decisions = self._decide(tier, waiting, snapshot)
            body = snapshot.to_json()
            snapshot_id = self._snapshots.stored_as(body) or jobs.save_snapshot(connection, body)
            routed = jobs.save_decisions(
                connection, decisions, snapshot_id=snapshot_id, patience_s=self._yard.patience_s
            )
        self._snapshots.remember(body, snapshot_id)
        self._publish(tier, due, [d for d in decisions if d.job_id in routed])
        if len(routed) < len(decisions):
            self._yard.nudge_callbacks()
        self._yard.log.debug(
            Event.PARCEL_ROUTED, tier=tier, jobs=len(routed), ms=round((time.monotonic() - started) * 1000, 2)
        )
        return len(routed)

    def _decide(self, tier: str, waiting: list[Waiting], snapshot: Snapshot) -> list[Routed]:
        """A decision for each job, with its prefix key; realtime ones have none, for they go to whichever replica is
        free first."""
        keys: dict[int, int] = {}
        requests: list[Request] = []
        readable: list[Waiting] = []
        refused: list[Routed] = []
        for job in waiting:
            try:
                requests.append(parse_request(job.body))
                readable.append(job)
                keys[job.id] = 0 if tier == REALTIME else requests[-1].prefix_key(job.tenant_id)
            except RequestError as error:  # saved under an older version's rules
                refused.append(Routed(job.id, job.fence, None, "chat", str(error), None))
        features: list[JobFeatures] = []
        try:
            features = self._admission.features(requests)
        except RequestError:  # a chat template refuses one of them: find out which
            asked, readable = zip(requests, readable, strict=True), []
            for request, job in asked:
                try:
                    features += self._admission.features([request])
                    readable.append(job)
                except RequestError as error:
                    refused.append(Routed(job.id, job.fence, None, "chat", str(error), None))
        decisions: list[Decision] = decide_many(features, snapshot)
        return refused + [
            Routed(job.id, job.fence, d.deployment, f.text.category, d.reason, f, keys[job.id])
            for job, f, d in zip(readable, features, decisions, strict=True)
        ]

    def _publish(self, tier: str, due: float, decisions: list[Routed]) -> None:
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
            self._yard.publisher.publish(parcels)
        except BrokerError as error:
            self._yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])


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
