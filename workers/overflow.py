"""Jobs that wait here and would be served sooner elsewhere: by another replica when the engine is down, by another
deployment when it is held."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import redis

from tieryard.errors import RequestError, StoreError
from tieryard.ids import KeyedRun
from tieryard.queues import BrokerError, Parcel, parcels_to_classify, parcels_to_infer
from tieryard.requests import parse_request
from tieryard.store import overflow
from tieryard.store.jobs import Claimed
from tieryard.telemetry import Event
from workers.inbox import Inbox
from workers.ready import Ready
from workers.yard import Yard

_TOLD = 2  # looks in a row at which it is held: then the router knows, and sends nothing back here without need
_MOST = 1000  # jobs of the inbox that are looked at


class Overflow:
    """Of the deployments that one infer process serves. On its loop; what blocks is done in threads."""

    def __init__(self, yard: Yard, names: list[str]) -> None:
        self._yard, self._names = yard, names
        self._endpoints = yard.catalog.deployments[names[0]].endpoints
        self._looks = 0
        self._sent: set[int] = set()  # one that comes back has nowhere better to go

    async def pass_on(self, inbox: Inbox) -> None:
        """To whichever replica serves: what waits here, and on the queues that nobody else consumes."""
        try:
            for tier, due, keyed in inbox.take_all():
                parcels = parcels_to_infer(self._names[0], tier, due, keyed)
                await asyncio.to_thread(self._yard.publisher.publish, parcels)
            for name in self._names:
                await asyncio.to_thread(self._yard.empty_own, name, self._yard.worker_id)
        except (BrokerError, redis.RedisError) as error:  # rescue sends them again
            self._yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])

    def due(self, *, held: bool) -> bool:
        """Whether it is time to send jobs to other deployments. Asked at every look."""
        self._looks = self._looks + 1 if held else 0
        if not held:
            self._sent.clear()
        return self._looks > _TOLD

    async def relieve(self, inbox: Inbox, ready: Ready) -> list[Claimed]:
        """Has jobs of the inbox routed again, as many as others have room for, after those that are claimed already:
        these, which it takes, are to be handed back."""
        if not len(inbox) and not len(ready):
            return []
        back: list[Claimed] = []
        try:
            room = await asyncio.to_thread(self._room)
            movable = [job for job in ready if self._movable(job)]
            back = [job for job in movable[:room] if ready.take(job.id) is not None]
            self._sent |= {job.id for job in back}
            if (rest := room - len(back)) > 0 and len(inbox):
                await self._release(inbox, rest)
        except (StoreError, BrokerError, redis.RedisError) as error:
            self._yard.log.warning(Event.STORE_AWAY, error=str(error)[:200])
        return back

    def _room(self) -> int:
        """Jobs that other deployments of the same kind could take at once. In a thread. Raises redis.RedisError."""
        catalog, gauges = self._yard.catalog, self._yard.metrics.read(self._yard.catalog).gauges
        alike = [n for n, d in catalog.deployments.items() if n not in self._names and d.endpoints == self._endpoints]
        others = [gauges[name] for name in alike if name in gauges and not gauges[name].broken]
        return sum(max(other.capacity - other.in_flight - other.backlog, 0) for other in others)

    def _movable(self, job: Claimed) -> bool:
        try:
            return job.id not in self._sent and parse_request(job.body).model != job.deployment
        except RequestError:
            return False

    async def _release(self, inbox: Inbox, room: int) -> None:
        """What does not go stays in the inbox; a nudge that is lost on the way is rescue's to send again."""
        taken = inbox.take_out(_MOST)
        ids = [number for _, _, (first, n, _) in taken for number in range(first, first + n)]
        ids = [number for number in ids if number not in self._sent]
        gone: dict[int, str] = {}
        try:
            gone = await asyncio.to_thread(self._release_now, ids, room)
        finally:
            for tier, due, run in taken:
                inbox.push(tier, due, _without(run, gone))
        self._sent |= gone.keys()
        await asyncio.to_thread(self._yard.publisher.publish, self._parcels(gone))
        if gone:
            self._yard.log.info(Event.OVERFLOWED, jobs=len(gone))

    def _release_now(self, ids: list[int], room: int) -> dict[int, str]:
        yard = self._yard
        return overflow.release(yard.store, ids, self._names, most=room, patience_s=yard.patience_s) if ids else {}

    def _parcels(self, gone: dict[int, str]) -> list[Parcel]:
        by_tier: dict[str, list[int]] = defaultdict(list)
        for number, tier in gone.items():
            by_tier[tier].append(number)
        due = self._yard.due
        return [p for tier, ids in by_tier.items() for p in parcels_to_classify(tier, due(tier), sorted(ids))]


def _without(run: KeyedRun, gone: dict[int, str]) -> list[KeyedRun]:
    first, n, key = run
    if gone.keys().isdisjoint(range(first, first + n)):
        return [run]
    return [(number, 1, key) for number in range(first, first + n) if number not in gone]
