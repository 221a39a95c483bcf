"""Load on an engine: requests at a fixed concurrency, or at a rate that no answer holds up.

Latency counts from when a request was *due*: else a server that stalls is asked less while it does, and the stall
hides in a few slow requests (coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tieryard.bench.percentiles import percentile
from tieryard.bench.trace import Clock, Trace, trace
from tieryard.engines import Engine
from tieryard.errors import UserError

MOST_LAG_MS = 10.0
"""Of the 99th percentile of how late requests were sent: beyond, the client was too busy to measure."""
_WARMING = 8  # requests at once before an open loop

YieldTo = Callable[[], Awaitable[bool]]
"""Awaited before each request. It may take its time, and a closed loop then pauses (an open one is late, so its run is
invalid). True ends the run at once: there is better work for the engine."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A request of the traffic sample: `Request.body`, and its category."""

    body: dict[str, Any]
    category: str = ""


@dataclass(frozen=True, slots=True)
class Closed:
    """`concurrency` requests at any time: the next is due when a slot is free."""

    concurrency: int
    requests: int

    def __post_init__(self) -> None:
        _at_least_one("concurrency", self.concurrency)
        _at_least_one("requests", self.requests)


@dataclass(frozen=True, slots=True)
class Open:
    """Poisson arrivals at `rate_per_s`. `seed` fixes when each request is due, and no answer is waited for. Beyond
    `max_in_flight` a request is held back, and its latency counts from when it was due all the same; the engine must
    let so many through."""

    rate_per_s: float
    requests: int
    seed: int = 0
    max_in_flight: int = 512

    def __post_init__(self) -> None:
        _at_least_one("requests", self.requests)
        _at_least_one("max_in_flight", self.max_in_flight)
        if not (math.isfinite(self.rate_per_s) and self.rate_per_s > 0):
            raise UserError(f"{self.rate_per_s} requests a second is no rate", param="rate_per_s")

    def starts_s(self) -> list[float]:
        """When each request is due: a Poisson process of which just so many requests in so many seconds are known, so
        that the rate of a short run is what it says, and not what chance made of it."""
        dice = random.Random(self.seed)  # noqa: S311  # nothing secret
        until_s = self.requests / self.rate_per_s
        return sorted(dice.uniform(0.0, until_s) for _ in range(self.requests))


Shape = Closed | Open


@dataclass(frozen=True, slots=True)
class Run:
    """What a load has given: the traces in the order in which they were due, warm-up not among them. `at` is when it
    began (epoch seconds), `distinct` how many prompts there were."""

    shape: Shape
    traces: tuple[Trace, ...]
    at: float
    distinct: int
    aborted: bool = False

    @property
    def lag_p99_ms(self) -> float | None:
        lag_s = percentile((one.lag_s for one in self.traces), 0.99)
        return None if lag_s is None else 1000 * lag_s

    @property
    def why(self) -> tuple[str, ...]:
        """Why its figures are worth nothing; nothing when they are sound."""
        found = []
        if self.aborted:
            found.append(f"it was ended after {len(self.traces)} of {self.shape.requests} requests, for better work")
        if self.lag_p99_ms is not None and self.lag_p99_ms > MOST_LAG_MS:
            found.append(
                f"the client was too busy: requests were sent {self.lag_p99_ms:.1f} ms late (p99), "
                f"more than {MOST_LAG_MS:g} ms"
            )
        return tuple(found)

    @property
    def valid(self) -> bool:
        return not self.why

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its figures should know."""
        found = []
        if self.distinct < len(self.traces):
            found.append(f"{self.distinct} prompts for {len(self.traces)} requests: a prefix cache may have helped")
        if held := sum(one.held_s > 0 for one in self.traces):
            found.append(f"{held} requests were held back: so many at once are not let through")
        return tuple(found)


async def run_load(
    engine: Engine,
    requests: Sequence[Sampled],
    shape: Shape,
    *,
    warm_up: int = 0,
    yield_to: YieldTo | None = None,
    timeout_s: float | None = None,
) -> Run:
    """Sends `requests`, from the first again where the shape wants more of them, and tells how each went.

    Before, `warm_up` requests with prompts of their own are answered and left out. A request is given up after
    `timeout_s` seconds. Cancelling this aborts all that is under way. Raises UserError without requests.
    """
    _at_least_one("requests", len(requests))
    load = _Load(engine, requests, yield_to, timeout_s)
    aborted = False
    at = time.time()
    try:
        if warm_up:
            await load.warm_up(warm_up, shape.concurrency if isinstance(shape, Closed) else _WARMING)
        with _without_pauses():
            at = load.begin()
            await (load.closed(shape) if isinstance(shape, Closed) else load.open(shape))
    except* _AbortedError:
        aborted = True
    traces = tuple(sorted(load.traces, key=lambda one: one.intended_s))
    return Run(shape, traces, at, min(len(requests), shape.requests), aborted)


def distinct(body: dict[str, Any], number: int) -> dict[str, Any]:
    """The same request with another beginning, so that no prefix cache knows one by the other."""
    word = f"Warm-up {number}. "
    if "messages" in body:
        first, *rest = body["messages"]
        content = first.get("content")
        parts = [{"type": "text", "text": word}, *content] if isinstance(content, list) else word + (content or "")
        return {**body, "messages": [{**first, "content": parts}, *rest]}
    name = "prompt" if "prompt" in body else "input"
    return {**body, name: _begun(body[name], word, number)}


def _begun(given: Any, word: str, number: int) -> Any:
    if isinstance(given, str):
        return word + given
    if given and isinstance(given[0], int):  # token ids: nothing may be put before them, for lack of a tokenizer
        turned = number % len(given) + 1
        return [*given[turned:], *given[:turned]]
    return [_begun(one, word, number) for one in given]


@contextlib.contextmanager
def _without_pauses() -> Iterator[None]:
    """Keeps the garbage collector from looking through all that is there already: it takes 0.1 s of a large process,
    in which nothing is sent or received. What a run makes is collected as ever."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _AbortedError(Exception):
    """Better work has come."""


class _Load:
    """One run under way."""

    def __init__(
        self, engine: Engine, requests: Sequence[Sampled], yield_to: YieldTo | None, timeout_s: float | None
    ) -> None:
        self.traces: list[Trace] = []
        self._engine = engine
        self._requests = requests
        self._yield_to = yield_to
        self._timeout_s = timeout_s
        self._clock: Clock = asyncio.get_running_loop().time

    def begin(self) -> float:
        """Starts the clock and forgets the warm-up. The time, in epoch seconds."""
        self.traces = []
        now = asyncio.get_running_loop().time  # monotonic, as the loop's own timers are
        started = now()
        self._clock = lambda: now() - started
        return time.time()

    async def warm_up(self, count: int, concurrency: int) -> None:
        asked = self._requests
        self._requests = [
            replace(one, body=distinct(one.body, number))
            for number, one in ((number, asked[number % len(asked)]) for number in range(count))
        ]
        self.begin()
        try:
            await self.closed(Closed(min(concurrency, count), count))
        finally:
            self._requests, self.traces = asked, []

    async def closed(self, shape: Closed) -> None:
        numbers = iter(range(shape.requests))

        async def slot() -> None:
            free_s = 0.0
            for number in numbers:
                free_s += await self._paused_s()
                free_s = (await self._send(number, due_s=free_s)).ended_s

        async with asyncio.TaskGroup() as group:
            for _ in range(min(shape.concurrency, shape.requests)):
                group.create_task(slot())

    async def open(self, shape: Open) -> None:
        room = asyncio.Semaphore(shape.max_in_flight)

        async def arrive(number: int, due_s: float) -> None:
            since_s, full = self._clock(), room.locked()
            async with room:
                await self._send(number, due_s=due_s, held_s=self._clock() - since_s if full else 0.0)

        async with asyncio.TaskGroup() as group:
            for number, due_s in enumerate(shape.starts_s()):
                await self._paused_s()
                await asyncio.sleep(max(0.0, due_s - self._clock()))
                group.create_task(arrive(number, due_s))

    async def _paused_s(self) -> float:
        """Gives way to better work: for how long. Raises _AbortedError when the run is to end."""
        if self._yield_to is None:
            return 0.0
        since_s = self._clock()
        if await self._yield_to():
            raise _AbortedError
        return self._clock() - since_s

    async def _send(self, number: int, *, due_s: float, held_s: float = 0.0) -> Trace:
        asked = self._requests[number % len(self._requests)]
        found = await trace(
            self._engine,
            asked.body,
            clock=self._clock,
            intended_s=due_s,
            category=asked.category,
            held_s=held_s,
            timeout_s=self._timeout_s,
        )
        self.traces.append(found)
        return found


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{value} is too few: at least 1", param=name)
