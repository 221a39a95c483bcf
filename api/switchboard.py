"""What all calls of one API process share: its lease, the newest snapshot, room in the engines, and the writer of
endings. Pumps keep it fresh; if one fails, the process must not go on and ends.

What blocks is done in threads, and calls have others than the pumps: however many calls wait for the store, the
engines' room, stops and endings go on. For the same reason pumps and endings have connections of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

import redis

from api.providers import Counts, Providers
from api.repeats import Finals
from api.slots import Slots, server_of
from tieryard import telemetry
from tieryard.admission import Admission, counted_for
from tieryard.affinity import Sessions
from tieryard.costs.windows import WindowPrice
from tieryard.endings import Endings
from tieryard.engines import Recording
from tieryard.errors import StoreError, UnavailableError
from tieryard.in_force import InForce
from tieryard.job import State
from tieryard.lease import API, Lease
from tieryard.metrics import Gauge, Metrics, Replica
from tieryard.observe import Observer, Tallies
from tieryard.queues import CALLBACKS, BrokerError, Publisher
from tieryard.routing import JobFeatures, Snapshot, decide
from tieryard.settings import Settings
from tieryard.snapshots import FRESH_S, Snapshots
from tieryard.store import Store, calls, jobs
from tieryard.store.calls import Choice
from tieryard.store.finish import Ending, Finished
from tieryard.store.jobs import Claimed
from tieryard.store.writer import POSTING_TIMEOUT_S, Writer
from tieryard.telemetry import Event

P = ParamSpec("P")
T = TypeVar("T")

SHUTDOWN = "shutdown"
"""The reason of a stop: this process ends."""

_REPORT_S = 0.5
_STRAYS_S = 5.0
_JOIN_AGAIN_S = 1.0
_CALL_THREADS = 16  # fewer than the store has connections: other routes need some too
_PUMP_THREADS = 8  # more than there are pumps, so that none waits for another
_ENDINGS_KEPT = 8192  # while the store is away
_ENDINGS_A_CALL = 2  # at most: of a move whose commit went unanswered, and of the call
_NOT_SERVING = "no replica of it is serving"
_RETRY_AFTER_S = 5.0


class Running(Protocol):
    """A call, as far as the switchboard cares."""

    def stop(self, reason: str) -> None: ...


class Switchboard:
    """Connects calls to engines. Made at start; `open` and `close` frame the server's life."""

    def __init__(
        self,
        settings: Settings,
        in_force: InForce,
        store: Store,
        *,
        metrics: Metrics,
        admission: Admission,
        publisher: Publisher,
        lock_timeout_s: float,
    ) -> None:
        self.settings = settings
        catalog = admission.catalog
        self.store = store
        self.admission = admission
        self.log = telemetry.logger(process="api", pid=os.getpid())
        self.lease = Lease(API, settings, self.log, in_force)
        self.snapshots = Snapshots(metrics, catalog, self.log, learned=admission.load_model())
        key = settings.engine_key
        self.slots = Slots(catalog, self.snapshots, self.lease, key=key.get_secret_value() if key else None)
        self.providers = Providers(settings.redis_url.get_secret_value(), catalog)
        self._aside = Store(
            settings.database_url.get_secret_value(), lock_timeout_s=lock_timeout_s, timeout_s=POSTING_TIMEOUT_S
        )
        self._call_threads = ThreadPoolExecutor(_CALL_THREADS, "calls")
        self._pump_threads = ThreadPoolExecutor(_PUMP_THREADS, "pumps")
        self.sessions = Sessions()
        self.finals = Finals(lambda ids: self._pumped(calls.finals, self._aside, ids))
        self.endings = Endings(self.lease, catalog, self.log)
        self.running: dict[int, Running] = {}
        """Calls by their job, while they have one that has not ended."""
        self._metrics = metrics
        self._publisher = publisher
        self._observers = {name: Observer(metrics, name) for name in catalog.deployments}
        self._writer = Writer(self._aside, flushed=self._flushed, capacity=_ENDINGS_KEPT)
        self._tasks: dict[asyncio.Task[None], Running] = {}
        self._pumps: list[asyncio.Task[None]] = []
        self._serving: tuple[Snapshot, Snapshot, bytes] | None = None
        self._closing = False

    async def open(self) -> None:
        self._writer.start()
        await self._pumped(self.snapshots.read)
        pumps = [self._refresh(), self._report(), self._watch_stops(), self._end_strays()]
        try:
            await self._pumped(self.lease.join)
        except StoreError as error:  # other routes say so themselves; calls are refused until it is joined
            self.log.error(Event.STORE_AWAY, error=str(error)[:200])
            pumps.append(self._join())
        self._pumps = [asyncio.create_task(pump) for pump in pumps]
        for pump in self._pumps:
            pump.add_done_callback(self._pump_ended)

    async def close(self) -> None:
        """Lets running calls finish for a while, stops the rest, and returns when all is written."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks.keys(), timeout=self.settings.drain_s)
        for call in list(self._tasks.values()):
            call.stop(SHUTDOWN)
        if self._tasks:
            await asyncio.wait(self._tasks.keys())
        for pump in self._pumps:
            pump.cancel()
        await asyncio.wait(self._pumps)
        self.finals.close()
        await self.slots.close()
        await asyncio.to_thread(self._leave)

    def take_over(self, admission: Admission) -> None:
        """Routes by another catalog from its return on, and bills by it. In a thread: each part is replaced at once,
        those first that must know what others may already speak of."""
        catalog = admission.catalog
        self.endings.take_over(catalog)
        self._observers = {name: Observer(self._metrics, name) for name in catalog.deployments} | self._observers
        self.slots.take_over(catalog)
        self.snapshots.take_over(catalog, learned=admission.load_model())
        self.providers.take_over(catalog)
        self.admission = admission

    # --- for calls ------------------------------------------------------------------------------------

    def track(self, task: asyncio.Task[None], call: Running) -> None:
        """A task that `close` waits for, and the call to stop when it takes too long."""
        self._tasks[task] = call
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def check_open(self) -> None:
        """Raises UnavailableError when no new call is taken."""
        if self._closing:
            raise UnavailableError("this API process is stopping", retry_after_s=1.0)
        if self._writer.full:
            raise UnavailableError("the store does not keep up", retry_after_s=_RETRY_AFTER_S)
        # Their endings are put on the loop, which must not wait should the store be away when they all end.
        if self._writer.would_fill(_ENDINGS_A_CALL * len(self._tasks)):
            raise UnavailableError("this API process has all the calls it can end", retry_after_s=1.0)

    async def work(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Runs what blocks, for a call."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._call_threads, partial(function, *arguments, **named))

    def route(self, features: JobFeatures, tried: dict[str, str] | None = None) -> Choice:
        """The router's choice among deployments that serve now, on servers that are not among the `tried` (with why
        they failed). It only looks: what exploring costs is owed by the call that starts there. Raises
        UnavailableError."""
        snapshot, body = self._among_serving() if not tried else self._among_untried(tried)
        decision = decide(counted_for(features, snapshot), snapshot)
        if decision.deployment is None:
            raise UnavailableError(decision.reason, retry_after_s=_RETRY_AFTER_S)
        return Choice(
            decision.deployment,
            decision.reason,
            features,
            body,
            self.snapshots.stored_as(body),
            fallback=decision.fallback,
            explored=decision.explored,
            extra_usd=decision.extra_usd,
            canary=decision.canary,
        )

    def window_at(self, deployment: str, replica: Replica) -> WindowPrice | None:
        """The rent window that stands for a replica now, as it says, or said when it was last heard of."""
        heard = self.snapshots.live.replicas.get(deployment, ())
        return next((r.window for r in heard if r.worker_id == replica.worker_id), replica.window)

    def end(self, job: Claimed, ending: Ending) -> None:
        self._observers[ending.deployment].add(job, ending)
        self.providers.ended(ending)
        self._writer.put(ending)

    def _among_serving(self) -> tuple[Snapshot, bytes]:
        """Made once a snapshot."""
        last, live = self.snapshots.last, self.snapshots.live
        if self._serving is None or self._serving[0] is not last:
            down = {name: _NOT_SERVING for name in (c.name for c in last.candidates) if not live.replicas.get(name)}
            serving = last.refusing(self.providers.lacking | down)
            self._serving = (last, serving, serving.to_json())
        return self._serving[1], self._serving[2]

    def _among_untried(self, tried: dict[str, str]) -> tuple[Snapshot, bytes]:
        refused: dict[str, str] = {}
        for name, replicas in self.snapshots.live.replicas.items():
            servers = {server_of(name, replica) for replica in replicas}
            if servers and servers <= tried.keys():
                refused[name] = "; ".join(sorted({tried[server] for server in servers}))
        snapshot = self._among_serving()[0].refusing(refused)
        return snapshot, snapshot.to_json()

    # --- pumps ----------------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        """Keeps the snapshot new, so that no call waits for Redis."""
        while True:
            await asyncio.sleep(FRESH_S)
            await self._pumped(self.snapshots.read)
            await self.slots.refresh()

    async def _report(self) -> None:
        """Twice a second: gauges and live profiles."""
        while True:
            await asyncio.sleep(_REPORT_S)
            if self._writer.failure is not None:
                raise self._writer.failure
            seen = {name: observer.take() for name, observer in self._observers.items()}
            try:
                await self._pumped(self._publish, list(self.slots.gauges()), seen, self.providers.take())
            except redis.RedisError as error:
                self.log.warning(Event.BROKER_AWAY, error=str(error)[:200])

    async def _watch_stops(self) -> None:
        """Twice a second: stops that were asked for."""
        while True:
            await asyncio.sleep(_REPORT_S)
            if not self.running:
                continue
            try:
                asked = await self._pumped(jobs.stops_requested, self._aside, list(self.running))
            except StoreError as error:
                self.log.warning(Event.STORE_AWAY, error=str(error)[:200])
                continue
            for job_id, reason in asked.items():
                if (call := self.running.get(job_id)) is not None:
                    call.stop(reason)

    async def _end_strays(self) -> None:
        """Ends jobs of this process that it does not run. A start whose connection was lost during its commit may be
        committed after its ending was written, which then matched nothing; and rescue leaves it to this process, which
        lives. Whoever is seen twice is no call that began or ended during the look."""
        before: set[tuple[int, int]] = set()
        while True:
            await asyncio.sleep(_STRAYS_S)
            try:
                found = await self._pumped(calls.running, self._aside, self.lease.worker_id)
            except StoreError as error:
                self.log.warning(Event.STORE_AWAY, error=str(error)[:200])
                continue
            held = self.running.keys() | self._writer.pending
            strays = {(job.id, job.fence): job for job in found if job.id not in held}
            for job in (strays[key] for key in strays.keys() & before):
                away = "the store was away"
                self.end(job, self.endings.final(job, State.FAILED, Recording(), error_kind="store_away", error=away))
            before = set(strays)

    def _publish(self, gauges: list[tuple[str, int, Gauge]], seen: dict[str, Tallies], counts: Counts) -> None:
        for deployment, replica, gauge in gauges:
            self._metrics.publish_calls(deployment, replica, gauge, api=self.lease.worker_id)
        for deployment, tallies in seen.items():
            self._observers[deployment].publish(tallies)
        self.providers.report(counts)

    async def _join(self) -> None:
        while True:
            await asyncio.sleep(_JOIN_AGAIN_S)
            try:
                await self._pumped(self.lease.join)
            except StoreError:
                continue
            return

    async def _pumped(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Runs what blocks, for a pump."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pump_threads, partial(function, *arguments, **named))

    def _pump_ended(self, pump: asyncio.Task[None]) -> None:
        """A pump that fails is a fault of ours: rescue ends the calls of a process that has died."""
        if not pump.cancelled() and (error := pump.exception()) is not None:
            self.lease.die(error)

    # --- in threads -----------------------------------------------------------------------------------

    def _flushed(self, done: Finished) -> None:
        """In the writer's thread, after each commit."""
        if done.callbacks:
            try:
                self._publisher.nudge(CALLBACKS)
            except BrokerError as error:
                self.log.warning(Event.BROKER_AWAY, error=str(error)[:200])

    def _leave(self) -> None:
        self._writer.close()
        try:
            for deployment, replica, _ in self.slots.gauges():
                self._metrics.withdraw_calls(deployment, replica, api=self.lease.worker_id)
        except redis.RedisError as error:
            self.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
        self.lease.leave()
        for threads in (self._call_threads, self._pump_threads):
            threads.shutdown(cancel_futures=True)
        self._aside.close()
        self.providers.close()
