"""Copies of some jobs for deployments on trial (`routing.shadows`): which, and where they wait.

A copy never delays anybody's job: it waits behind all of them, in the least urgent tier, and is not made where its
deployment is down or has more waiting than it takes at once. Realtime jobs, and calls, are not copied.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tieryard.catalog import REALTIME, Catalog
from tieryard.queues import Parcel, parcels_to_infer
from tieryard.requests import pinned_copy
from tieryard.routing import JobFeatures, Snapshot, decide
from tieryard.store import Connection
from tieryard.store.jobs import Routed
from tieryard.store.shadows import Copy, save_copies
from tieryard.telemetry import Event
from workers.yard import Yard

_CHANCES = (6007, 6011, 6029, 6037, 6043, 6047)  # what a job's chance is for: one for each shadow
_PATIENCE_S = 900.0  # before a lost nudge is sent again: nobody waits
_TELL_EVERY_S = 60.0


class Shadows:
    """Of one classifier. `catalog` is the one that it decides by."""

    def __init__(self, yard: Yard, catalog: Catalog) -> None:
        self._yard, self.catalog = yard, catalog
        self._seen: Snapshot | None = None
        self._given: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._told_at = 0.0

    def save(
        self,
        connection: Connection,
        tier: str,
        bodies: Mapping[int, str],
        routed: Sequence[Routed],
        snapshot: Snapshot,
    ) -> list[Copy]:
        """Copies of some of a parcel's jobs, in the transaction that routes them: one statement, or none."""
        catalog = self.catalog
        if not catalog.routing.shadows or tier == REALTIME or least_urgent(catalog) == REALTIME:
            return []
        copies = [
            Copy(self._yard.store.next_id(), job.job_id, to, job.category, body)
            for job, to in self._chosen(routed, snapshot)
            if (body := _body(bodies[job.job_id], to)) is not None
        ]
        if not copies:
            return []
        last = least_urgent(catalog)
        window_s = catalog.tiers[last].window.total_seconds()
        saved = save_copies(connection, copies, tier=last, window_s=window_s, patience_s=_PATIENCE_S)
        return [copy for copy in copies if copy.id in saved]

    def parcels(self, copies: Iterable[Copy]) -> list[Parcel]:
        """After the commit, to the queues of their deployments."""
        tier = least_urgent(self.catalog)
        waiting: dict[str, list[tuple[int, int]]] = {}
        for copy in copies:
            waiting.setdefault(copy.deployment, []).append((copy.id, 0))
        due = self._yard.due(tier, behind=True)
        return [parcel for to, keyed in waiting.items() for parcel in parcels_to_infer(to, tier, due, keyed)]

    def _chosen(self, routed: Sequence[Routed], snapshot: Snapshot) -> list[tuple[Routed, str]]:
        """Jobs to copy, and where to: by each job's own chance, and as far as there is room."""
        if snapshot is not self._seen:
            self._seen, self._given = snapshot, Counter()
        chosen: list[tuple[Routed, str]] = []
        for place, shadow in enumerate(self.catalog.routing.shadows):
            for job in routed:
                features = job.features
                if features is None or job.deployment != shadow.of:
                    continue
                if features.chance(_CHANCES[place % len(_CHANCES)]) >= shadow.share:
                    continue
                if not _may_take(features, shadow.to, snapshot, tier=least_urgent(self.catalog)):
                    continue
                if self._has_room(shadow.to, snapshot):
                    self._given[shadow.to] += 1
                    chosen.append((job, shadow.to))
                else:
                    self._drop(shadow.to)
        return chosen

    def _has_room(self, name: str, snapshot: Snapshot) -> bool:
        found = next((c for c in snapshot.candidates if c.name == name), None)
        return (
            found is not None
            and found.live
            and not found.broken
            and found.backlog + found.behind + self._given[name] <= found.capacity
        )

    def _drop(self, name: str) -> None:
        """Says so now and then: under load there would be as many lines as jobs."""
        self._dropped[name] += 1
        if time.monotonic() - self._told_at >= _TELL_EVERY_S:
            self._yard.log.info(Event.SHADOWS_DROPPED, dropped=dict(self._dropped))
            self._dropped.clear()
            self._told_at = time.monotonic()


def least_urgent(catalog: Catalog) -> str:
    """The tier in which copies wait."""
    return list(catalog.tiers)[-1]


def _may_take(job: JobFeatures, to: str, snapshot: Snapshot, *, tier: str) -> bool:
    """Whether the deployment could take this job, of this tenant, if it were pinned there. What its owner asked of time
    and money was asked of another answer."""
    pinned = replace(job, model=to, tier=tier, bounds=None, max_cost_usd=None, due_in_s=None, sticky="")
    return decide(pinned, snapshot).deployment == to


def _body(raw: str, to: str) -> str | None:
    try:
        return pinned_copy(raw, to)
    except ValueError:
        return None
