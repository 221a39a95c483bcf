"""Receives parcels from its deployment's model queue. Claims jobs under a fence, keeps the engine full, times
every token, and hands each ending to the writer: result, timing, ledger and outbox in one transaction.
Next: the job is final, or back at `workers/classify.py`; `workers/callback.py` tells whoever asked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import redis

from tieryard.catalog import REALTIME, AttachedEngine, Catalog
from tieryard.endings import DRAINED, Endings
from tieryard.engines import Engine, Recording
from tieryard.errors import EngineError, StoreError
from tieryard.ids import KeyedRun, Run, read_keyed
from tieryard.metrics import Gauge
from tieryard.store import Store, jobs
from tieryard.store.finish import Finished, HandBack
from tieryard.store.jobs import Claimed
from tieryard.store.writer import POSTING_TIMEOUT_S, Writer
from tieryard.telemetry import Event, fault
from workers.attempts import Attempts
from workers.claims import Claims
from workers.inbox import Inbox
from workers.overflow import Overflow
from workers.pacing import Pacing
from workers.ready import Ready
from workers.standing import Standing
from workers.upkeep import Upkeep
from workers.yard import Yard

_MOST_CLAIMED = 256  # jobs a claim: one statement's worth
_POLL_S = 0.5
_TOLD_S = 2.0  # after which every API process has read that this replica takes nothing, and told of its calls here


class Inference:
    """One deployment's engine and the asyncio loop that feeds it, in a thread of its own.

    Celery's task only calls `offer`; it neither claims nor waits. The loop claims for the free slots and a
    short look-ahead, so that the engine's batch never runs dry between parcels.
    """

    def __init__(self, yard: Yard, name: str, *, engine: Engine | None = None) -> None:
        self._yard = yard
        self._name = name
        self._spec = yard.catalog.deployments[name]
        self._names = [name, *yard.catalog.adapters_of(name)]
        self._engine = engine or yard.engine(name)
        self._upkeep = Upkeep(yard, name, self._engine, changed=self._engine_changed)
        self._standing = Standing(yard, self._names)
        self._ready = Ready()
        self._pacing = Pacing(yard, self._names, self._upkeep, waits=self._ready.holds, changed=self._more_may_start)
        self._overflow = Overflow(yard, self._names)
        self._claims = Claims(yard, self._names)
        self._inbox = Inbox(within_s=yard.settings.window_s)
        self._running: dict[int, asyncio.Task[None]] = {}
        self._realtime_running = 0
        self._stopping: dict[int, str] = {}
        self._closed_at: float | None = None  # since when these are told that there is no room
        self._suspect: Claimed | None = None  # waits for an empty engine
        self._alone: int | None = None  # the suspect that runs
        self._draining = False
        # An ending that took longer than a window's grace would post to a closed one: that is balanced, but told late.
        self._posting = Store(yard.settings.database_url.get_secret_value(), pool_size=1, timeout_s=POSTING_TIMEOUT_S)
        self._writer = Writer(self._posting, flushed=self._flushed)
        self._endings = Endings(yard.lease, yard.catalog, yard.log)
        self._attempts = Attempts(yard.store, name, self._engine, self._upkeep, self._pacing, self._endings)
        self._gate: Callable[[bool], None] = lambda _: None
        self._gate_open = self._inbox_open = True
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._pumps: list[asyncio.Task[None]] = []
        self._asking: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run_loop, name="inference", daemon=True)

    # --- called from Celery's threads ---------------------------------------------------------------

    def start(self, gate: Callable[[bool], None]) -> None:
        """`gate(False)` stops consumption from the broker, `gate(True)` starts it again. It is stopped until the engine
        is up."""
        self._gate = gate
        self._set_gate()
        self._writer.start()
        self._thread.start()

    def offer(self, tier: str, due: float, runs: list[Run] | list[KeyedRun]) -> None:
        """Takes a parcel and returns at once."""
        self._loop.call_soon_threadsafe(self._take, tier, due, read_keyed(runs))

    def take_over(self, catalog: Catalog) -> None:
        """Works by this catalog from now on, which leaves the engine as it is. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it what could change
            self._loop.call_soon_threadsafe(self._take_over, catalog)

    def drain(self) -> None:
        """Lets running jobs finish for a while, hands everything else back, and returns when all is written."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._drain(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._writer.close()
        self._posting.close()
        self._yard.log.info(Event.WORKER_DRAINED)

    # --- the loop ------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._pumps = [
            self._loop.create_task(pump()) for pump in (self._upkeep.run, self._feed, self._poll, self._stops)
        ]
        for pump in self._pumps:
            pump.add_done_callback(self._pump_ended)
        self._loop.run_forever()

    def _pump_ended(self, pump: asyncio.Task[None]) -> None:
        """If one fails, this worker must not keep its lease and do nothing."""
        if not pump.cancelled() and (error := pump.exception()) is not None:
            self._yard.die(error)

    async def _feed(self) -> None:
        """Claims whenever there may be room, and starts what is claimed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while ids := self._next_ids():
                try:
                    self._accept(await self._claims.make(ids))
                except StoreError as error:
                    self._yard.log.warning(Event.STORE_AWAY, error=str(error)[:200])
                    found = await self._claims.settle(ids)
                    held = {*self._running, *(job.id for job in self._ready), *self._writer.pending}
                    self._accept([job for job in found if job.id not in held])
            self._set_gate()

    async def _poll(self) -> None:
        """Every half second: gauges, live metrics, and the room that calls need."""
        while True:
            await asyncio.sleep(_POLL_S)
            if self._writer.failure is not None:
                raise self._writer.failure
            gauge = self._gauge()
            try:
                await asyncio.to_thread(self._standing.publish, gauge, self._standing.take())
                await self._pacing.exchange()
                self._closed_at = None if gauge.capacity else self._closed_at or time.monotonic()
            except redis.RedisError as error:
                self._standing.unheard()
                self._pacing.unheard()
                self._closed_at = None
                self._yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
            if not self._upkeep.up and self._standing.others_serve:
                await self._overflow.pass_on(self._inbox)
            if self._upkeep.up and self._overflow.due(held=self._pacing.most() == 0):
                await self._send_elsewhere()
            self._more_may_start()

    def _more_may_start(self) -> None:
        self._start_ready()
        self._wake.set()

    def _engine_changed(self) -> None:
        """It came up, has more room, or went down: what was claimed and not started is then for whoever serves."""
        if not self._upkeep.up:
            self._let_go(HandBack.OUTAGE, "its engine went down", wait_s=1.0)
        self._set_gate()
        self._more_may_start()

    @property
    def _slots(self) -> int:
        """For all jobs that come through the queues: what the engine may hold, less the calls in it."""
        return self._upkeep.limit - self._standing.calls

    @property
    def _open_to_calls(self) -> bool:
        """A suspect that waits or runs is alone in its engine: calls of the API are kept away too."""
        return self._upkeep.up and not self._draining and self._suspect is None and self._alone is None

    @property
    def _unused(self) -> bool:
        """Whether nothing is in the engine, and nothing can come."""
        used = self._running or self._standing.calls or self._closed_at is None
        return not used and time.monotonic() - (self._closed_at or 0.0) > _TOLD_S

    def _gauge(self) -> Gauge:
        backlog = len(self._inbox) + len(self._ready) + self._pacing.asking
        gauge = self._upkeep.gauge(open_to_calls=self._open_to_calls, in_flight=len(self._running), backlog=backlog)
        window = self._yard.lease.window
        return replace(gauge, held=self._pacing.held, behind=self._inbox.behind, window=window)

    @property
    def _unstarted(self) -> list[Claimed]:
        """What is claimed and waits here."""
        return [*self._ready, *([self._suspect] if self._suspect is not None else [])]

    def _take_over(self, catalog: Catalog) -> None:
        self._spec = catalog.deployments[self._name]
        self._endings.take_over(catalog)
        self._upkeep.take_over(catalog)

    # --- intake --------------------------------------------------------------------------------------

    def _take(self, tier: str, due: float, runs: list[KeyedRun]) -> None:
        self._inbox.push(tier, due, runs)
        self._set_gate()
        self._wake.set()

    def _set_gate(self) -> None:
        """Takes from the broker while the inbox has room, and the engine is up: else others may have it."""
        if (change := self._inbox.crossed()) is not None:
            self._inbox_open = change
        wanted = self._inbox_open and self._upkeep.up
        if wanted != self._gate_open and not self._draining:
            self._gate_open = wanted
            self._yard.log.info(Event.CONSUMER_RESUMED if wanted else Event.CONSUMER_PAUSED, inbox=len(self._inbox))
            self._gate(wanted)

    def _next_ids(self) -> list[int]:
        """Ids to claim now, in order. Realtime may use every slot that calls leave; the others leave its reserve."""
        if not self._upkeep.up or self._draining or self._writer.full or self._suspect or self._alone is not None:
            return []
        waiting = len(self._ready) + self._pacing.asking + self._claims.under_way
        ahead = max(2, self._upkeep.limit // 4)
        room = min(self._slots + ahead - len(self._running) - waiting, _MOST_CLAIMED)
        room = min(room, self._pacing.claimable(waiting, urgent=False))
        realtime_room = self._slots - self._realtime_running - self._ready.realtime
        realtime_room = min(realtime_room, self._pacing.claimable(waiting, urgent=True))
        return self._inbox.pop(max(room, 0), realtime=max(realtime_room, 0))

    def _accept(self, claimed: list[Claimed]) -> None:
        for job in claimed:
            if not jobs.starts_alone(job):
                self._ready.add(job)
            elif self._suspect is None:
                self._suspect = job
            else:  # a suspect that only waits here must not be at risk of the first one's start
                another = EngineError("waits for another suspect's start")
                self._writer.put(self._endings.hand_back(job, HandBack.DRAIN, another, wait_s=2.0))
        if not self._upkeep.up:  # it went down meanwhile
            self._let_go(HandBack.OUTAGE, "its engine went down", wait_s=1.0)
        self._start_ready()

    def _let_go(self, why: HandBack, said: str, *, wait_s: float) -> None:
        """Hands back what is claimed and not started."""
        for job in self._unstarted:
            self._writer.put(self._endings.hand_back(job, why, EngineError(said), wait_s=wait_s))
        self._ready.clear()
        self._suspect = None

    async def _send_elsewhere(self) -> None:
        """What may not start here for a while, and other deployments have room for."""
        for job in await self._overflow.relieve(self._inbox, self._ready):
            why = EngineError(self._pacing.why)
            self._writer.put(self._endings.hand_back(job, HandBack.OUTAGE, why, wait_s=0))

    # --- running -------------------------------------------------------------------------------------

    def _start_ready(self) -> None:
        """Starts claimed jobs while slots are free, then, in an empty engine, one that may be killing workers."""
        if self._draining or not self._upkeep.up:
            return
        if self._pacing.free:
            for job in self._ready.let_out(self._room):
                self._start(job)
        elif (self._asking is None or self._asking.done()) and (found := self._ready.let_out(self._room)):
            self._asking = self._loop.create_task(self._start_as_allowed(found))
            self._asking.add_done_callback(self._pump_ended)
        if self._suspect is not None and self._unused:
            suspect, self._suspect = self._suspect, None
            self._alone = suspect.id
            self._start(suspect)

    def _room(self, starting: int, urgent: int) -> tuple[int, int]:
        """Slots that are free for any job, and for realtime ones, beside those that are `starting`."""
        running = len(self._running) + starting
        others = running - self._realtime_running - urgent
        kept = max(self._spec.realtime_reserve - self._standing.calls, 0)  # calls are as urgent
        realtime_room = min(self._slots, self._pacing.most(urgent=True)) - running
        return min(realtime_room, self._slots - kept - others, self._pacing.most() - running), realtime_room

    async def _start_as_allowed(self, jobs: list[Claimed]) -> None:
        """Starts as many of these, from the first on, as a hosted API takes now. The rest wait on."""
        granted = await self._pacing.ask(jobs)
        for number, job in enumerate(jobs):
            if not self._ready.holds(job):  # it was stopped or handed back meanwhile
                self._pacing.never_started(job.id)
            elif number < granted:
                self._start(job)
            else:
                self._ready.add(job)
        if granted:
            self._more_may_start()

    def _start(self, job: Claimed) -> None:
        """One that is ready, or the suspect."""
        self._ready.take(job.id)
        self._running[job.id] = self._loop.create_task(self._run(job))
        self._realtime_running += job.tier == REALTIME

    async def _run(self, job: Claimed) -> None:
        """One start of one job, from request to ending."""
        recording = Recording()
        try:
            ending = await self._attempts.make(job, recording, alone=self._alone == job.id)
        except asyncio.CancelledError:
            ending = self._endings.stopped(job, recording, self._stopping.get(job.id, DRAINED))
        except Exception as error:  # a fault of ours must cost this job an attempt, not the worker its loop
            self._yard.log.error(Event.JOB_RETRIED, job=job.id, **fault(error))
            ending = self._endings.failed(job, recording, EngineError(f"{type(error).__name__} in the worker"))
        reason = self._stopping.pop(job.id, None)
        if reason is not None and ending.hand_back is not None:  # the abort itself failed; the stop still holds
            ending = self._endings.stopped(job, recording, reason)
        del self._running[job.id]
        self._realtime_running -= job.tier == REALTIME
        if self._alone == job.id:
            self._alone = None
        self._standing.add(job, ending)
        self._pacing.ended(job, recording, ending)
        if job.tier == REALTIME and recording.ttft_ms is not None:
            self._upkeep.realtime_began(recording.ttft_ms)
        self._writer.put(ending)
        self._start_ready()
        self._wake.set()

    def _flushed(self, done: Finished) -> None:
        """In the writer's thread, after each commit."""
        if done.callbacks:
            self._yard.nudge_callbacks()

    # --- stopping ------------------------------------------------------------------------------------

    async def _stops(self) -> None:
        """Every half second: stops that were asked for. Apart from the gauges: while Postgres is slow this replica
        still serves, and must not be taken for gone."""
        while True:
            await asyncio.sleep(_POLL_S)
            await self._honour_stops()

    async def _honour_stops(self) -> None:
        held = [*self._running, *(job.id for job in self._unstarted)]
        if not held:
            return
        try:
            asked = await asyncio.to_thread(jobs.stops_requested, self._yard.store, held)
        except StoreError as error:
            self._yard.log.warning(Event.STORE_AWAY, error=str(error)[:200])
            return
        for job_id, reason in asked.items():
            if (task := self._running.get(job_id)) is not None and job_id not in self._stopping:
                self._stopping[job_id] = reason
                task.cancel()
            elif self._suspect is not None and self._suspect.id == job_id:
                self._writer.put(self._endings.stopped(self._suspect, Recording(), reason))
                self._suspect = None
            elif (job := self._ready.take(job_id)) is not None:
                self._writer.put(self._endings.stopped(job, Recording(), reason))

    async def _drain(self) -> None:
        self._draining = True
        deadline = time.monotonic() + self._yard.settings.drain_s
        while self._claims.under_way:  # noqa: ASYNC110  # a claim under way returns in milliseconds
            await asyncio.sleep(0.01)
        self._let_go(HandBack.DRAIN, "its worker was stopped", wait_s=0)
        if self._asking is not None:
            await asyncio.wait([self._asking])
        await self._overflow.pass_on(self._inbox)
        await self._empty(deadline)
        for pump in self._pumps:  # and no other task: those of the engine must see to its end
            pump.cancel()
        await asyncio.wait(self._pumps)
        try:
            await self._engine.close()
        except Exception as error:  # what it answered must still be written
            self._yard.log.error(Event.ENGINE_DOWN, **fault(error))
        with contextlib.suppress(redis.RedisError):  # the router should know at once rather than in five seconds
            self._standing.withdraw()

    async def _empty(self, deadline: float) -> None:
        """Returns when nothing is in the engine any more; what is not done by the deadline is stopped."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=max(0.0, deadline - time.monotonic()))
        own = not isinstance(self._spec.engine, AttachedEngine)  # it ends with this process, and calls in it too
        while own and self._standing.calls and time.monotonic() < deadline:  # noqa: ASYNC110  # a pump asks for them
            await asyncio.sleep(0.1)
        for task in list(self._running.values()):
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values())
