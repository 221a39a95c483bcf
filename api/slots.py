"""Room in the engines for calls: which replica takes the next one, who waits for it, and the engines themselves."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tieryard.affinity import home
from tieryard.catalog import REALTIME, Catalog
from tieryard.engines import Engine
from tieryard.engines.opening import open_replica
from tieryard.errors import EngineBusyError
from tieryard.lease import Lease
from tieryard.metrics import Gauge, Replica
from tieryard.snapshots import Snapshots
from tieryard.telemetry import Event, fault, logger


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in one replica's engine, held until it is given back."""

    deployment: str
    replica: Replica
    engine: Engine

    @property
    def server(self) -> str:
        return server_of(self.deployment, self.replica)


def server_of(deployment: str, replica: Replica) -> str:
    """Names the server behind a replica; several replicas may share one."""
    return replica.url or f"{deployment}:{replica.worker_id}"


@dataclass(slots=True)
class _Waiting:
    """`rank` is its tier's: lower goes first, and among equals whoever came first, by `turn`. `key` is its prefix
    key."""

    rank: int
    turn: int
    deployment: str
    tried: frozenset[str]
    key: int
    granted: asyncio.Future[Replica] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def order(self) -> tuple[int, int]:
        return self.rank, self.turn


class Slots:
    """Bounds this process's calls at each replica to its capacity; beyond it they wait, those of the most urgent tier
    first, and in a tier first come first served.

    A deployment and its LoRA adapters share their replicas' engines: their calls fill the same slots, and wait in one
    order. All of it happens on the loop.
    """

    def __init__(self, catalog: Catalog, snapshots: Snapshots, lease: Lease, *, key: str | None) -> None:
        self._catalog = catalog
        self._snapshots = snapshots
        self._lease = lease
        self._key = key
        self._engines: dict[tuple[str, str, str], Engine] = {}  # by deployment, URL, and what the catalog says of both
        self._held: Counter[tuple[str, int]] = Counter()  # by deployment and replica, to tell
        self._taken: Counter[int] = Counter()  # by replica, whichever deployment the calls are for
        self._users: Counter[tuple[str, str]] = Counter()  # by deployment and URL, as engines are
        self._waiting: dict[str, list[_Waiting]] = defaultdict(list)
        self._turns = itertools.count()
        self._ranks: dict[str, int] = {}
        self._made_of: dict[str, str] = {}
        self.take_over(catalog)
        self._published: dict[tuple[str, int], str] = {}

    def take_over(self, catalog: Catalog) -> None:
        """Opens engines by this catalog from now on; those that it has changed are closed once no call is in them.
        Tiers and deployments that are gone stay known, to calls that have been let in. From any thread."""
        urgent_first = sorted(catalog.tiers, key=lambda tier: tier != REALTIME)  # the rest as the catalog has them
        self._ranks = self._ranks | {tier: rank for rank, tier in enumerate(urgent_first)}
        self._made_of = {name: _made_of(catalog, name) for name in catalog.deployments}
        kept = {name: d for name, d in self._catalog.deployments.items() if name not in catalog.deployments}
        self._catalog = catalog.model_copy(update={"deployments": kept | catalog.deployments}) if kept else catalog

    def has_room(self, deployment: str) -> bool:
        """Whether `take` would give a slot at once."""
        return self._place(deployment, frozenset()) is not None

    def full(self) -> dict[str, str]:
        """Servers where nothing is free, with that as the reason to pass them over."""
        free: set[str] = set()
        found: set[str] = set()
        for deployment, replicas in self._snapshots.live.replicas.items():
            for replica in replicas:
                (free if self._open(replica) else found).add(server_of(deployment, replica))
        return dict.fromkeys(found - free, "every slot of it is taken")

    async def take(
        self, deployment: str, tier: str, *, within_s: float, tried: frozenset[str] = frozenset(), key: int = 0
    ) -> Slot:
        """A slot on a server not among the `tried`: of those that have one free, the home of the prefix `key`, or the
        one with the most room where there is no key. Raises EngineBusyError."""
        waiting = _Waiting(self._ranks[tier], next(self._turns), deployment, tried, key)
        insort(self._waiting[deployment], waiting, key=lambda other: other.order)
        self._grant([deployment])  # there may be room: those before it may be unable to use it
        try:
            if waiting.granted.done():
                return self._slot(deployment, waiting.granted.result())
            async with asyncio.timeout(within_s):
                replica = await waiting.granted
        except BaseException as error:
            self._leave(waiting)
            if isinstance(error, TimeoutError):
                full = f"every slot of {deployment} was taken for {within_s:g} s"
                raise EngineBusyError(full, retry_after_s=1.0) from None
            raise
        return self._slot(deployment, replica)

    def give_back(self, slot: Slot) -> None:
        self._let_go(slot.deployment, slot.replica)

    async def refresh(self) -> None:
        """After a new snapshot: room may have come, and servers may have gone."""
        self._grant(self._waiting)
        alive = {(name, r.url) for name, replicas in self._snapshots.live.replicas.items() for r in replicas}
        gone = [key for key in self._engines if self._is_over(key, alive) and not self._users[key[:2]]]
        for engine in [self._engines.pop(key) for key in gone]:
            await _close(engine)

    def _is_over(self, key: tuple[str, str, str], alive: set[tuple[str, str]]) -> bool:
        return key[:2] not in alive or key[2] != self._made_of.get(key[0])

    def gauges(self) -> Iterable[tuple[str, int, Gauge]]:
        """(deployment, replica, calls there) to publish; one that has just become empty is published once more."""
        held = {key: n for key, n in self._held.items() if n}
        before, self._published = self._published, {}
        live = self._snapshots.live.replicas.items()
        urls = before | {(name, r.worker_id): r.url for name, replicas in live for r in replicas}
        for key in {**before, **held}:
            url = urls.get(key, "")
            if key in held:
                self._published[key] = url
            yield *key, Gauge(capacity=0, in_flight=held.get(key, 0), backlog=0, url=url)

    async def close(self) -> None:
        for engine in self._engines.values():
            await _close(engine)
        self._engines.clear()

    def _place(self, deployment: str, tried: frozenset[str], key: int = 0) -> Replica | None:
        """Where to call now; None where nothing is free."""

        def load(replica: Replica) -> int:
            ours = replica.calls.get(self._lease.worker_id, 0)  # as it was when published
            told = replica.in_flight - ours + self._held[deployment, replica.worker_id]
            return max(told, self._taken[replica.worker_id])  # our calls for others in its engine are told of late

        replicas = self._snapshots.live.replicas.get(deployment, ())
        open_ = [r for r in replicas if self._open(r) and server_of(deployment, r) not in tried]
        if key and open_:
            return home(key, open_, load)
        return max(open_, key=lambda r: r.capacity - load(r), default=None)

    def _open(self, replica: Replica) -> bool:
        return self._taken[replica.worker_id] < replica.capacity

    def _hold(self, deployment: str, replica: Replica) -> None:
        self._held[deployment, replica.worker_id] += 1
        self._taken[replica.worker_id] += 1
        self._users[deployment, replica.url] += 1

    def _slot(self, deployment: str, replica: Replica) -> Slot:
        key = (deployment, replica.url, self._made_of.get(deployment, ""))
        if key not in self._engines:
            self._engines[key] = open_replica(self._catalog, deployment, replica.url, key=self._key)
        return Slot(deployment, replica, self._engines[key])

    def _let_go(self, deployment: str, replica: Replica) -> None:
        self._held[deployment, replica.worker_id] -= 1
        self._taken[replica.worker_id] -= 1
        self._users[deployment, replica.url] -= 1
        # Forgets what is at zero: workers come and go.
        self._held, self._taken, self._users = +self._held, +self._taken, +self._users
        self._grant(self._waiting)  # room at an engine is room for every deployment it serves

    def _grant(self, deployments: Iterable[str]) -> None:
        """Gives room to those who wait, in order; one that may not use what is free lets the next ones pass."""
        queues = {name: list(self._waiting[name]) for name in deployments if self._waiting[name]}
        full: set[str] = set()
        for waiting in heapq.merge(*queues.values(), key=lambda waiting: waiting.order):
            if full == queues.keys():
                return
            if waiting.deployment in full or waiting.granted.done():
                continue  # when done it is about to leave
            if (replica := self._place(waiting.deployment, waiting.tried, waiting.key)) is not None:
                self._waiting[waiting.deployment].remove(waiting)
                self._hold(waiting.deployment, replica)
                waiting.granted.set_result(replica)
            elif not waiting.tried:
                full.add(waiting.deployment)

    def _leave(self, waiting: _Waiting) -> None:
        """Whoever stops waiting may have been given room at that very moment."""
        with contextlib.suppress(ValueError):
            self._waiting[waiting.deployment].remove(waiting)
        if waiting.granted.done() and not waiting.granted.cancelled():
            self._let_go(waiting.deployment, waiting.granted.result())


def _made_of(catalog: Catalog, name: str) -> str:
    """What an engine for calls depends on."""
    own, host = catalog.deployments[name], catalog.deployments[catalog.host_of(name)]
    return f"{host.engine!r} {own.model} {own.max_in_flight}"


async def _close(engine: Engine) -> None:
    """Whatever happens to an engine that nobody uses any more must not touch the others."""
    try:
        await engine.close()
    except Exception as error:
        logger().error(Event.ENGINE_DOWN, **fault(error))
