"""A fake vLLM: its OpenAI wire format over a real socket, with a set speed, capacity and fault plan.

In a test's own loop: `async with FakeVllm(plan) as fake: fake.url`; from synchronous tests:
`FakeVllm.in_thread(plan)`; as a process: `python -m tieryard.testing.fake_vllm --port 0`, which prints
`ready http://127.0.0.1:PORT`.

A prompt's tokens are its words, and 4 more a message. `GET /fake/state` is the fake's own: what it counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import math
import signal
import socket
import struct
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import orjson
from aiohttp import web

from tieryard.testing.fake_embeddings import read_embedding
from tieryard.testing.fake_limits import RateWindow
from tieryard.testing.fake_pace import Pace, Sent
from tieryard.testing.fake_prefixes import PrefixCache
from tieryard.testing.fake_wire import (
    Ask,
    Generation,
    RefusalError,
    event,
    read_generation,
    read_object,
    read_prompt,
)
from tieryard.testing.fault_plan import FakePlan

_TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip

_A = TypeVar("_A", bound=Ask)


@dataclass(slots=True)
class FakeState:
    """What the fake has seen. `aborted` requests were ended by their client, `faulted` ones by the plan. Of the
    `refused` ones, `limited` were answered 429."""

    running: int = 0
    waiting: int = 0
    requests: int = 0
    finished: int = 0
    aborted: int = 0
    faulted: int = 0
    refused: int = 0
    limited: int = 0
    max_running_seen: int = 0
    connections: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    held_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    success: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0})
    ttft_sum_s: float = 0.0
    ttft_counts: list[int] = field(default_factory=lambda: [0] * (len(_TTFT_BUCKETS_S) + 1))

    def first_token(self, ask: Ask) -> None:
        waited_s = time.monotonic() - ask.arrived
        self.prompt_tokens += ask.prompt_tokens
        self.ttft_sum_s += waited_s
        self.ttft_counts[bisect_left(_TTFT_BUCKETS_S, waited_s)] += 1

    def metrics(self, plan: FakePlan) -> str:
        """The state in Prometheus' text format, under vLLM's names."""
        labels = f'engine="0",model_name="{plan.model}"'
        lines: list[str] = []

        def family(name: str, kind: str, samples: dict[str, float]) -> None:
            lines.append(f"# TYPE vllm:{name} {kind}")
            lines.extend(f"vllm:{sample} {value}" for sample, value in samples.items())

        held = self.held_tokens / (plan.capacity * plan.context_limit)
        for name, value in (
            ("num_requests_running", self.running),
            ("num_requests_waiting", self.waiting),
            ("kv_cache_usage_perc", held),
        ):
            family(name, "gauge", {f"{name}{{{labels}}}": value})
        for name, value in (
            ("prompt_tokens_total", self.prompt_tokens),
            ("generation_tokens_total", self.generation_tokens),
            ("prefix_cache_queries_total", self.prefix_queries),
            ("prefix_cache_hits_total", self.prefix_hits),
            ("num_preemptions_total", 0),
        ):
            family(name, "counter", {f"{name}{{{labels}}}": value})
        name = "request_success_total"
        family(name, "counter", {f'{name}{{{labels},finished_reason="{r}"}}': n for r, n in self.success.items()})
        name, total = "time_to_first_token_seconds", sum(self.ttft_counts)
        bounds = [*map(str, _TTFT_BUCKETS_S), "+Inf"]
        samples: dict[str, float] = {
            f'{name}_bucket{{{labels},le="{bound}"}}': sum(self.ttft_counts[: i + 1]) for i, bound in enumerate(bounds)
        }
        samples |= {f"{name}_sum{{{labels}}}": self.ttft_sum_s, f"{name}_count{{{labels}}}": total}
        family(name, "histogram", samples)
        return "\n".join(lines) + "\n"


class _FaultedError(Exception):
    """The plan ends this stream here, cleanly as far as TCP knows."""


class FakeVllm:
    """The server. `state` is live; `url` is known once it is started."""

    def __init__(self, plan: FakePlan | None = None, *, port: int = 0) -> None:
        self.plan = plan or FakePlan()
        self.state = FakeState()
        self.url = ""
        self._port = port
        self._slots = asyncio.Semaphore(self.plan.capacity)
        self._prefixes = PrefixCache()
        self._rates = RateWindow()
        self.pace = Pace(self.plan)
        self._peers: set[object] = set()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(middlewares=[self._guard], client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", functools.partial(self._complete, chat=True))
        app.router.add_post("/v1/completions", functools.partial(self._complete, chat=False))
        app.router.add_post("/v1/embeddings", self._embed)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/fake/state", self._state)
        # handler_cancellation: a client that goes away must free its slot at once, as it does in vLLM.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=1024).start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Breaks off what is running and stops listening. A later start takes the same port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @classmethod
    @contextlib.contextmanager
    def in_thread(cls, plan: FakePlan | None = None) -> Iterator[Self]:
        """The fake on a thread and loop of its own."""
        fake, loop = cls(plan), asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="fake-vllm", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(fake.start(), loop).result(10)
            yield fake
        finally:
            asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    async def _complete(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        ask = await self._ask(request, functools.partial(read_generation, chat=chat))
        return await (self._stream(request, ask) if ask.stream else self._answer(ask))

    async def _embed(self, request: web.Request) -> web.Response:
        return await self._answer(await self._ask(request, read_embedding))

    async def _ask(self, request: web.Request, read: Callable[..., _A]) -> _A:
        """Counts and reads a request, and does what its fault says of the moment before it is answered."""
        arrived = time.monotonic()
        self.state.requests += 1
        self.pace.begin()
        number = self.state.requests
        ask = read(read_object(await request.read()), self.plan, number=number, arrived=arrived)
        fault = ask.fault
        if fault is not None and fault.status is not None:
            wait_s = math.ceil(fault.amount(1)) if fault.status in (429, 503) or fault.number is not None else None
            raise RefusalError(fault.status, f"fault: HTTP {fault.status}", retry_after_s=wait_s)
        self._rates.admit(self.plan, ask.prompt_tokens + ask.completion_tokens)
        if ask.has("reset"):
            self.state.faulted += 1
            await _reset(request)
        return ask

    async def _answer(self, ask: Ask) -> web.Response:
        async with self._slot(ask) as started:
            await self.pace.until(started + self._due_s(ask, 0))
            self.state.first_token(ask)
            await self.pace.until(started + self._due_s(ask, max(ask.completion_tokens - 1, 0)))
            self.state.generation_tokens += ask.completion_tokens
        return _json(ask.whole())

    async def _stream(self, request: web.Request, ask: Generation) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        sent = self.pace.record(ask.prompt, ask.arrived)
        # A ConnectionResetError is the client leaving between two writes; `_slot` has counted it.
        with contextlib.suppress(_FaultedError, ConnectionResetError):
            await response.prepare(request)
            async with self._slot(ask) as started:
                await self._write_content(request, response, ask, started, sent)
            sent.ended = time.monotonic()
            await self.pace.write(response, ask.tail())
            if ask.fault is not None and ask.has("late_end"):
                await asyncio.sleep(ask.fault.amount(0.02))
        return response

    async def _write_content(
        self, request: web.Request, response: web.StreamResponse, ask: Generation, started: float, sent: Sent
    ) -> None:
        role = ask.event(0, "", role="assistant") if ask.chat else b""
        ping = b": ping\n\n" if self.plan.pings or ask.has("slow_role") else b""
        if ping:
            await self.pace.write(response, role + ping)
            role = b""
        await self.pace.until(started + self._due_s(ask, 0))
        self.state.first_token(ask)
        packing = 1 if ask.call else self.plan.packing  # a call's opening and its arguments are two events
        for number, first in enumerate(range(0, len(ask.pieces), packing)):
            await self.pace.until(started + self._due_s(ask, first))
            await self._go_wrong(request, response, ask, number)
            tokens = len(ask.pieces[first : first + packing])
            self.state.generation_tokens += tokens
            sent.sends.append((time.monotonic(), first + tokens))
            await self.pace.write(response, role + ping + ask.piece(first, packing))
            role = b""

    async def _go_wrong(self, request: web.Request, response: web.StreamResponse, ask: Generation, number: int) -> None:
        """Does what the request's fault says of the moment before event `number` of its content, from 0."""
        fault = ask.fault
        if fault is None or number != (int(fault.amount(2)) if fault.name in ("reset_midstream", "ends_early") else 2):
            return
        match fault.name:
            case "reset_midstream":
                ask.faulted = True
                await asyncio.sleep(0.01)  # else the reset may overtake what was written
                await _reset(request)
            case "ends_early":
                raise _FaultedError
            case "stall":
                await asyncio.sleep(fault.amount(3600))
            case "error_event":
                error = RefusalError(int(fault.amount(500)), "fault: the engine failed").body
                await response.write(event(error) + b"data: [DONE]\n\n")
                raise _FaultedError
            case "broken_event":
                await response.write(ask.event(number, "cut")[:40] + b"\n\n")
            case "odd_event":
                await response.write(event(17))

    @contextlib.asynccontextmanager
    async def _slot(self, ask: Ask) -> AsyncIterator[float]:
        """Waits for a slot, holds it, and counts how the request ended. Gives the time at which its prompt is read."""
        state = self.state
        state.waiting += 1
        try:
            await self._slots.acquire()
        except asyncio.CancelledError:
            state.aborted += 1
            state.success["abort"] += 1
            raise
        finally:
            state.waiting -= 1
        held = ask.prompt_tokens + ask.completion_tokens
        state.running += 1
        state.held_tokens += held
        state.max_running_seen = max(state.max_running_seen, state.running)
        try:
            yield time.monotonic() + self._prefill_s(ask)
        except BaseException as error:
            if ask.faulted or isinstance(error, _FaultedError):
                state.faulted += 1
            else:
                state.aborted += 1
                state.success["abort"] += 1
            raise
        else:
            state.finished += 1
            state.success[ask.ended] += 1
        finally:
            state.running -= 1
            state.held_tokens -= held
            self._slots.release()

    def _prefill_s(self, ask: Ask) -> float:
        """How long its prompt takes, less what the prefix cache has of it."""
        if self.plan.cache_blocks and ask.prompt:
            tokens = ask.prompt.split()
            ask.cached_tokens = self._prefixes.read(tokens, ask.salt, blocks=self.plan.cache_blocks)
            self.state.prefix_queries += len(tokens)
            self.state.prefix_hits += ask.cached_tokens
        return (ask.prompt_tokens - (ask.cached_tokens or 0)) / self.plan.prefill_tokens_per_s

    def _due_s(self, ask: Ask, token: int) -> float:
        times = ask.fault.amount(10) if ask.fault is not None and ask.has("slow") else 1
        return times * (self.plan.ttft_ms / 1000 + token / self.plan.tokens_per_s)

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Counts connections, checks the key as vLLM does (only under /v1), and writes refusals."""
        self._peers.add(request.transport and request.transport.get_extra_info("peername"))
        self.state.connections = len(self._peers)
        wanted = f"Bearer {self.plan.key}"
        if self.plan.key and request.path.startswith("/v1") and request.headers.get("Authorization") != wanted:
            return _json({"error": "Unauthorized"}, status=401)
        try:
            return await handler(request)
        except RefusalError as refusal:
            self.state.refused += 1
            self.state.limited += refusal.status == 429
            return _json(refusal.body, status=refusal.status, headers=refusal.headers)

    async def _models(self, _request: web.Request) -> web.Response:
        name = self.plan.model
        card = {"id": name, "object": "model", "created": 0, "owned_by": "vllm", "root": name, "parent": None}
        return _json({"object": "list", "data": [{**card, "max_model_len": self.plan.context_limit}]})

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=self.state.metrics(self.plan))

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = read_object(await request.read())
        _, count = read_prompt(body, chat="messages" in body)
        return _json({"count": count, "max_model_len": self.plan.context_limit, "tokens": list(range(count))})

    async def _state(self, _request: web.Request) -> web.Response:
        return _json(asdict(self.state))


def _json(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers=headers, content_type="application/json")


async def _reset(request: web.Request) -> None:
    """Closes the connection with a TCP reset. Does not return: the lost connection cancels the handler."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    await asyncio.Event().wait()


async def _serve(plan: FakePlan, port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with FakeVllm(plan, port=port) as fake:
        sys.stdout.write(f"ready {fake.url}\n")
        sys.stdout.flush()
        await stopping.wait()


def _main() -> None:
    defaults = FakePlan()
    parser = argparse.ArgumentParser(prog="tieryard.testing.fake_vllm", description="A fake vLLM server.")
    parser.add_argument("--port", type=int, default=0)
    for name in ("model", "ttft_ms", "tokens_per_s", "capacity", "context_limit", "length", "packing", "cache_blocks"):
        default = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--key", default=None)
    wanted = vars(parser.parse_args())
    port = wanted.pop("port")
    asyncio.run(_serve(FakePlan(**wanted), port))


if __name__ == "__main__":
    _main()
