"""Receives batches whose lines are jobs. Releases them to their tier's queue, a few seconds of work ahead,
by tenant fairness, then deadline; benchmarks' behind all; and sees when a batch's last job is final.
Next: `workers/classify.py` gives each released job a deployment."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime

import redis

from tieryard.errors import StoreError
from tieryard.queues import EXPAND, BrokerError, Parcel, parcels_to_classify
from tieryard.routing import Profile
from tieryard.store import Connection, batches
from tieryard.store.batches import OpenBatch
from tieryard.store.leader import lead
from tieryard.telemetry import Event
from workers.yard import Yard

_BUSY_S, _IDLE_S = 0.05, 0.25
_LEAST = 512  # jobs a tier always has released, however slow it is measured
_MOST = 20_000
_FLOOR_BATCHES = 16
_TELL_S = 1.0  # between two words on what the deadlines need
_LATEST = 144  # samples that a profile's averages still hold
_STEP = 64  # jobs given to one tenant before the next has its turn


@dataclass(slots=True)
class Rate:
    """A tier's measured finishing rate."""

    per_s: float = 0.0
    at: float = field(default_factory=time.monotonic)

    def observe(self, finished: int) -> None:
        """So many of its jobs have finished since the last look."""
        now = time.monotonic()
        elapsed = now - self.at
        if elapsed <= 0:
            return
        # Quick to rise, so that a fast engine is not starved; slow to fall, over about a second.
        seen = finished / elapsed
        weight = 1.0 if seen > self.per_s else min(1.0, elapsed)
        self.per_s += (seen - self.per_s) * weight
        self.at = now

    def window(self, seconds: float) -> int:
        return min(_MOST, max(_LEAST, int(self.per_s * seconds)))


def finished_since(before: dict[int, int], now: list[OpenBatch]) -> int:
    """How many jobs have finished, of those `before` outstanding by batch. What a stop has ended was not worked off."""
    left = {b.id: None if b.stopping else b.outstanding for b in now}
    ended = 0
    for batch_id, outstanding in before.items():
        remains = left.get(batch_id, 0)
        ended += 0 if remains is None else max(0, outstanding - remains)
    return ended


def share_out(open_batches: list[OpenBatch], room: int) -> dict[int, int]:
    """How many jobs each batch of one tier may release now: {batch id: n}, `room` in all.

    Turns of _STEP jobs go to the tenant with the fewest jobs in the yard; inside a tenant, earliest deadline first.
    """
    queues: dict[int, list[OpenBatch]] = defaultdict(list)
    in_yard: dict[int, int] = defaultdict(int)
    for batch in open_batches:  # earliest deadline first
        in_yard[batch.tenant_id] += batch.outstanding
        if batch.releasable:
            queues[batch.tenant_id].append(batch)
    granted: dict[int, int] = defaultdict(int)
    while room > 0 and queues:
        tenant = min(queues, key=lambda t: (in_yard[t], t))
        batch = queues[tenant][0]
        take = min(_STEP, room, batch.releasable - granted[batch.id])
        granted[batch.id] += take
        in_yard[tenant] += take
        room -= take
        if granted[batch.id] == batch.releasable:
            queues[tenant].pop(0)
            if not queues[tenant]:
                del queues[tenant]
    return dict(granted)


def room_for(open_batches: list[OpenBatch], window: int) -> int:
    """How many more jobs of a tier may be released. Those that rest take no room in the window, as they would keep out
    jobs for deployments that have some; there is a bound all the same."""
    released, resting = (sum(getattr(b, name) for b in open_batches) for name in ("outstanding", "resting"))
    return int(min(window - (released - resting), _MOST - released))


def floors(open_batches: list[OpenBatch]) -> dict[int, int]:
    """What each tenant's first batches may release whatever the room: {batch id: n}, up to _STEP in the yard each.

    A window that a slow or dead deployment has filled must not hold back jobs that go elsewhere. Batches that are
    behind have no such right.
    """
    granted: dict[int, int] = {}
    seen: dict[int, int] = defaultdict(int)
    for batch in open_batches:  # earliest deadline first
        seen[batch.tenant_id] += 1
        n = min(_STEP - batch.outstanding, batch.releasable)
        if n > 0 and not batch.behind and seen[batch.tenant_id] <= _FLOOR_BATCHES:
            granted[batch.id] = n
    return granted


def grants(open_batches: list[OpenBatch], window: int) -> dict[int, int]:
    """How many jobs each batch of one tier may release now: {batch id: n}. Those that are behind get what the window
    still holds when all others have theirs, and take no room from these."""
    granted = floors(open_batches)

    def share(*, behind: bool) -> None:
        released = [b.released_further(granted.get(b.id, 0)) for b in open_batches if behind or not b.behind]
        sharing = [b for b in released if b.behind == behind]
        for batch_id, n in share_out(sharing, room_for(released, window)).items():
            granted[batch_id] = granted.get(batch_id, 0) + n

    share(behind=False)
    share(behind=True)
    return granted


def needed_tps(open_batches: list[OpenBatch], tokens_a_job: float, now: datetime) -> float:
    """Output tokens a second that it takes to finish every batch of a tier by its deadline, the earliest first: of all
    deadlines, the most that any asks for what is due by then. For what is behind nobody is to pay more."""
    due, most = 0.0, 0.0
    for batch in open_batches:  # earliest deadline first
        if batch.stopping or batch.behind:
            continue
        due += (batch.total - batch.released_to + batch.outstanding) * tokens_a_job
        left_s = (batch.deadline - now).total_seconds()
        most = max(most, due / max(left_s, 1.0))
    return most


def usual_length(profiles: dict[str, dict[str, Profile]]) -> float | None:
    """Mean output tokens of the fleet's latest answers; None before there are any."""
    seen = [p for of in profiles.values() for p in of.values() if p.output_tokens is not None]
    samples = sum(min(p.samples, _LATEST) for p in seen)
    return sum(min(p.samples, _LATEST) * (p.output_tokens or 0.0) for p in seen) / samples if samples else None


class Feeder:
    """Runs in a thread of the expand process; one of them in the fleet leads at a time."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._rates: dict[str, Rate] = defaultdict(Rate)
        self._outstanding: dict[str, dict[int, int]] = {}
        self._floors: dict[int, int] = {}
        self._told_at = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        """Leads when nobody else does. A fault of ours ends the process, which is seen, and not the thread alone."""
        try:
            self._lead()
        except Exception as error:
            self._yard.die(error)

    def _lead(self) -> None:
        while not self._stop.is_set():
            try:
                with lead(self._yard.store, "feeder") as connection:
                    wait_s = _BUSY_S
                    while connection is not None and not self._stop.is_set():
                        wait_s = _BUSY_S if self.tick(connection) else min(2 * wait_s, _IDLE_S)
                        self._stop.wait(wait_s)
            except StoreError as error:
                self._yard.log.warning(Event.STORE_AWAY, error=str(error)[:200])
            except BrokerError as error:  # what was released and not published is rescue's
                self._yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
            self._stop.wait(1.0)

    def tick(self, connection: Connection) -> bool:
        """One look: release what there is room for, publish it, finish what is done. Whether there was any of that: if
        not, the next look can wait longer, for the engines take a while over what they have."""
        found = batches.open_batches(connection, self._floors, self._wishes())
        self._floors = {b.id: b.first_job_id + b.released_to if b.lowest is None else b.lowest for b in found}
        by_tier: dict[str, list[OpenBatch]] = defaultdict(list)
        for batch in found:
            by_tier[batch.tier].append(batch)
        self._tell_needed(by_tier)
        advances: list[tuple[int, int, int]] = []
        released: list[tuple[int, int, int]] = []
        added: dict[int, int] = {}
        parcels: list[Parcel] = []
        for tier, waiting in by_tier.items():
            rate = self._rates[tier]
            rate.observe(finished_since(self._outstanding.get(tier, {}), waiting))
            granted = grants(waiting, rate.window(self._yard.settings.window_s))
            for batch in waiting:
                if n := granted.get(batch.id, 0):
                    first = batch.first_job_id + batch.released_to
                    due = self._yard.due(tier, behind=batch.behind)
                    parcels += parcels_to_classify(tier, due, range(first, first + n))
                    advances.append((batch.id, batch.released_to, batch.released_to + n))
                    released.append((batch.id, first, n))
        if advances:
            with connection.transaction():
                batches.release(connection, advances)
                # Lines that were refused or reused are final already: they are nobody's work.
                added = batches.unfinished(connection, released)
            self._yard.publisher.publish(parcels)
        self._outstanding = {
            tier: {b.id: b.outstanding + added.get(b.id, 0) for b in waiting if not b.stopping}
            for tier, waiting in by_tier.items()
        }
        if done := [b.id for b in found if b.done]:
            with connection.transaction():
                completed = batches.complete(connection, done)
            self._tell(completed)
        return bool(advances or done)

    def _wishes(self) -> dict[str, float]:
        """By tier, the seconds from acceptance within which it wants its jobs done."""
        wished = ((name, tier.slo.deadline) for name, tier in self._yard.catalog.tiers.items())
        return {name: deadline.total_seconds() for name, deadline in wished if deadline is not None}

    def _tell_needed(self, by_tier: dict[str, list[OpenBatch]]) -> None:
        """The router moves jobs up to dearer deployments when the cheap ones cannot meet the deadlines."""
        if not by_tier or time.monotonic() - self._told_at < _TELL_S:
            return
        self._told_at = time.monotonic()
        metrics, now = self._yard.metrics, datetime.now(tz=UTC)
        try:
            tokens_a_job = usual_length(metrics.read(self._yard.catalog).profiles)
            if tokens_a_job is not None:
                metrics.publish_needed({tier: needed_tps(found, tokens_a_job, now) for tier, found in by_tier.items()})
        except redis.RedisError as error:
            self._yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])

    def _tell(self, completed: list[tuple[int, bool]]) -> None:
        """After the commit: a batch that is finished with its jobs, or one that waits to be closed."""
        for batch_id, finished in completed:
            if finished:
                self._yard.log.info(Event.BATCH_FINISHED, batch=batch_id)
                self._yard.nudge_callbacks()
            else:
                self._yard.publisher.nudge(EXPAND)
