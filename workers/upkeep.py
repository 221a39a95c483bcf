"""One engine's life: it is started, checked, watched and started again; and how many requests it is given at once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import replace

from tieryard.catalog import REALTIME, AttachedEngine, Catalog, Deployment, VllmEngine, served_model
from tieryard.engines import Engine
from tieryard.engines.load import Load
from tieryard.engines.vetting import TOKENIZER, Expected
from tieryard.errors import EngineError, UserError
from tieryard.metrics import EngineState, Gauge
from tieryard.quotas import hosted
from tieryard.telemetry import Event
from tieryard.tokens import TokenCounter, load_counter
from workers.steering import Steering
from workers.yard import Yard

_LOOK_S = 1.0
_LOOK_HOSTED_S = 15.0  # at an API that counts what it is asked
_LOOK_AGAIN_S = 0.2  # after a miss
_MISSES = 3  # health checks in a row before an engine is taken for dead
_STALLED_S = 60.0  # without a token before one that answers is started again
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 30.0  # an engine that has served so long is started again at once
_WARM_UP = 4  # requests


class Upkeep:
    """`up` is whether the engine may be given work; where it is not, `state` and `why` say so to operators."""

    def __init__(self, yard: Yard, name: str, engine: Engine, *, changed: Callable[[], None]) -> None:
        self._yard, self._name, self._engine = yard, name, engine
        self._spec = yard.catalog.deployments[name]
        self._changed = changed
        self._look_s = _LOOK_HOSTED_S if hosted(yard.catalog, name) else _LOOK_S
        self._started = False
        self._fit: float | None = None  # the server that passed its checks, by the time of its start
        self._idle_since: float | None = None
        self._doubted = asyncio.Event()
        self._steering = Steering(
            self._spec.max_in_flight,
            floor=self._spec.realtime_reserve + 1,
            promised_ms=_promised_ms(yard.catalog, self._spec),
        )
        self.state = EngineState.STARTING
        self.why = ""
        self.load: Load | None = None

    @property
    def up(self) -> bool:
        return self.state is EngineState.SERVING

    @property
    def limit(self) -> int:
        """Requests to keep in the engine at once."""
        return self._steering.limit

    @property
    def ttft_ms(self) -> float | None:
        """p95 of TTFT at the server itself, where it says so."""
        return self._steering.ttft_ms

    @property
    def stalled(self) -> bool:
        """Whether the server has made no token for a while though it has requests, whatever else it answers."""
        return self._standstill_s() > _STALLED_S / 2

    def take_over(self, catalog: Catalog) -> None:
        """Goes by this catalog, in which the engine is the same."""
        self._spec = catalog.deployments[self._name]
        self._steering.promise(_promised_ms(catalog, self._spec))

    def gauge(self, *, open_to_calls: bool, in_flight: int, backlog: int) -> Gauge:
        """What the fleet is told of the engine, with what its worker has in it and waiting for it."""
        load = self.load
        return Gauge(
            capacity=self.limit if open_to_calls else 0,
            in_flight=in_flight,
            backlog=backlog,
            url=self._engine.url or "",
            state=self.state,
            why=self.why,
            ttft_ms=self.ttft_ms,
            load=replace(load, ttft_counts=()) if load is not None else None,  # JSON has no infinity
        )

    def doubt(self) -> None:
        """A request found the engine dead: it is looked at at once."""
        self._doubted.set()

    def realtime_began(self, ttft_ms: float) -> None:
        """What a realtime job saw."""
        self._steering.realtime_began(ttft_ms, now=time.monotonic())

    def refused(self, *, began: float) -> bool:
        """The provider answered 429 to a request sent at `began` (monotonic): whether that is news, and not of requests
        that were under way at the last one."""
        was = self.limit
        cut = self._steering.refused(began=began, now=time.monotonic())
        if cut is not None and cut.limit < was:
            self._yard.log.info(Event.LIMIT_CUT, limit=cut.limit, was=was, why=cut.why)
        return cut is not None

    def answered(self) -> None:
        """A provider that may refuse has answered."""
        was = self.limit
        self._steering.answered()
        if self.limit > was:
            self._changed()

    def counter(self) -> TokenCounter:
        """Raises EngineError when the catalog's tokenizer is not on this machine."""
        try:
            return load_counter(self._spec.tokenizer, cache_dir=self._yard.settings.cache_dir)
        except UserError as error:
            raise EngineError(f"its tokenizer cannot be checked: {error}") from error

    async def run(self) -> None:
        """Keeps the engine up, without end."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                found = await self._rise()
            except EngineError as error:
                self._fall(EngineState.DOWN, str(error))
            else:
                if not found:
                    began = time.monotonic()
                    await self._watch()
                    if time.monotonic() - began > _STEADY_S:
                        pause_s = _FIRST_PAUSE_S
                else:
                    self._fall(EngineState.UNFIT, "; ".join(found))
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))  # noqa: S311
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _rise(self) -> list[str]:
        """Starts the engine, unless it runs, and checks it, unless it is the one that was checked: what keeps it from
        serving. Raises EngineError."""
        if not self._started or not await self._engine.healthy():
            self._started = False
            self._fit = None
            await self._engine.start()
            self._started = True
            self._steering.restarted()
        load = await self._engine.load()
        server = load.started_at if load is not None else None
        if server is None or server != self._fit:
            if found := await self._engine.faults(await self._expected()):
                return found
            self._fit = server
        return []

    async def _watch(self) -> None:
        """Returns when the engine is down."""
        self.state, self.why = EngineState.SERVING, ""
        self._yard.lease.serves()
        self._yard.log.info(Event.ENGINE_READY, limit=self.limit)
        self._changed()
        misses = 0
        self._idle_since, self._doubted = None, asyncio.Event()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._doubted.wait(), self._look_s if not misses else _LOOK_AGAIN_S)
            self._doubted.clear()
            misses = 0 if await self._engine.healthy() else misses + 1
            if misses >= _MISSES:
                return self._fall(EngineState.DOWN, f"{misses} health checks in a row went unanswered")
            if (load := await self._engine.load()) is not None:
                self._take(load)
            if self._standstill_s() > _STALLED_S:
                self._started = False  # it answers, and yet only a new one will do
                return self._fall(EngineState.DOWN, f"it has made no token for {_STALLED_S:g} s, with requests in it")

    def _take(self, load: Load) -> None:
        now, before, last = time.monotonic(), self.limit, self.load
        stands = last is not None and load.running > 0 and load.tokens == last.tokens
        self._idle_since = (self._idle_since or now) if stands else None
        self.load = load
        cut = self._steering.observe(load, now=now)
        if cut is not None:
            self._yard.log.info(Event.LIMIT_CUT, limit=cut.limit, was=before, why=cut.why)
        elif self.limit > before:
            self._changed()  # there is more room

    def _standstill_s(self) -> float:
        return 0.0 if self._idle_since is None else time.monotonic() - self._idle_since

    def _fall(self, state: EngineState, why: str) -> None:
        was_up = self.up
        self.state, self.why = state, why[:500]
        self.load = None
        if was_up:
            self._changed()
        event = Event.ENGINE_UNFIT if state is EngineState.UNFIT else Event.ENGINE_DOWN
        self._yard.log.error(event, error=why[:500])

    async def _expected(self) -> Expected:
        spec, catalog = self._spec, self._yard.catalog
        engine = spec.engine
        unchecked = engine.unchecked if isinstance(engine, AttachedEngine | VllmEngine) else frozenset()
        counter = None if TOKENIZER in unchecked else await asyncio.to_thread(self.counter)
        return Expected(
            names=(served_model(spec), *catalog.adapters_of(self._name)),
            context_limit=spec.context_limit,
            embeddings=spec.serves == "embeddings",
            json_schema="json_schema" in spec.capabilities,
            counter=counter,
            unchecked=frozenset(unchecked),
            warm_up=min(_WARM_UP, spec.max_in_flight),
        )


def _promised_ms(catalog: Catalog, spec: Deployment) -> float | None:
    """The TTFT of realtime jobs, where the deployment keeps room for them."""
    tier = catalog.tiers.get(REALTIME)
    return tier.slo.max_ttft_ms if tier is not None and spec.realtime_reserve else None
