"""How a call's answer goes out: whole, or as a stream. And the response that runs a call beside a watch on the
connection: whoever hangs up stops the call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.refusals import Refusal
from api.switchboard import SHUTDOWN
from tieryard.answers import Answer, Chunks
from tieryard.engines import Delta
from tieryard.errors import TieryardError

GONE = "gone"
"""The reason of a stop: nobody is there to read the answer."""

_LARGE_NUMBERS = 50_000  # of vectors: about a megabyte

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would otherwise hold tokens back
]


class CallerGoneError(Exception):
    """The caller reads nothing any more."""


class Stoppable(Protocol):
    """What a `CallResponse` runs."""

    def begin(self, reply: Reply) -> asyncio.Task[None]: ...
    def stop(self, reason: str) -> None: ...


class Reply(Protocol):
    """The caller's end of a call. All of it may raise CallerGoneError."""

    async def open(self, chunks: Chunks) -> None:
        """The call has a job and its engine is being asked."""
        ...

    async def piece(self, model: str, delta: Delta) -> None: ...
    async def finish(self, answer: Answer) -> None: ...
    async def fail(self, error: TieryardError | Refusal) -> None: ...
    async def close(self) -> None:
        """In any case, in the end."""
        ...


@dataclass(slots=True)
class Wire:
    """ASGI's `send`, for a caller that may have stopped reading: what it buffers is all that is buffered."""

    send: Send
    timeout_s: float

    async def put(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.send(message)
        except (TimeoutError, OSError) as error:
            raise CallerGoneError from error


class WholeReply:
    """Says nothing until the answer is there."""

    def __init__(self, wire: Wire, *, base64_embeddings: bool) -> None:
        self._wire = wire
        self._base64 = base64_embeddings

    async def open(self, chunks: Chunks) -> None:
        pass

    async def piece(self, model: str, delta: Delta) -> None:
        pass

    async def finish(self, answer: Answer) -> None:
        make = partial(_whole, answer, base64_embeddings=self._base64)
        await self._write(200, await asyncio.to_thread(make) if _is_large(answer) else make(), {})

    async def fail(self, error: TieryardError | Refusal) -> None:
        refusal = error if isinstance(error, Refusal) else Refusal.of(error)
        await self._write(refusal.status, orjson.dumps(refusal.body), refusal.headers)

    async def close(self) -> None:
        pass

    async def _write(self, status: int, body: bytes, more: dict[str, str]) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in more.items()]
        await self._wire.put({"type": "http.response.start", "status": status, "headers": headers})
        await self._wire.put({"type": "http.response.body", "body": body})


class StreamReply:
    """Server-sent events. Headers and a comment at once, comments until the first token, then what the engine gives."""

    def __init__(self, wire: Wire, whole: WholeReply, *, keepalive_s: float, hung_up: Callable[[], None]) -> None:
        self._wire = wire
        self._whole = whole  # until this one is open, a failure is an answer like any other
        self._keepalive_s = keepalive_s
        self._hung_up = hung_up
        self._chunks: Chunks | None = None
        self._comments: asyncio.Task[None] | None = None
        self._spoke = False

    async def open(self, chunks: Chunks) -> None:
        self._chunks = chunks
        await self._wire.put({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        await self._write(b": accepted\n\n")
        self._comments = asyncio.create_task(self._keep_alive())

    async def piece(self, model: str, delta: Delta) -> None:
        await self._write(await self._opening(model) + _event(self._made.piece(model, delta.text, delta.extra)))

    async def finish(self, answer: Answer) -> None:
        end = _event(self._made.last(answer.model, answer.finish_reason))
        if self._made.with_usage:
            end += _event(self._made.usage(answer.model, answer.usage))
        await self._write(await self._opening(answer.model) + end + b"data: [DONE]\n\n", more=False)

    async def fail(self, error: TieryardError | Refusal) -> None:
        if self._chunks is None:
            await self._whole.fail(error)
            return
        await self._quiet()
        refusal = error if isinstance(error, Refusal) else Refusal.of(error)
        await self._write(_event(refusal.body), more=False)

    async def close(self) -> None:
        await self._quiet()

    @property
    def _made(self) -> Chunks:
        assert self._chunks is not None
        return self._chunks

    async def _opening(self, model: str) -> bytes:
        """The chunk that says who speaks, once; it goes out with what follows it."""
        if self._spoke:
            return b""
        self._spoke = True
        await self._quiet()
        first = self._made.first(model)
        return _event(first) if first is not None else b""

    async def _keep_alive(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._keepalive_s)
                await self._write(b": keep-alive\n\n")
        except CallerGoneError:
            self._hung_up()

    async def _quiet(self) -> None:
        if self._comments is not None:
            self._comments.cancel()
            await asyncio.wait({self._comments})
            self._comments = None

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        await self._wire.put({"type": "http.response.body", "body": data, "more_body": more})


class CallResponse(Response):
    """Runs a call until it ends or its caller hangs up, whichever is first."""

    def __init__(self, call: Stoppable, reply: Callable[[Send], Reply]) -> None:
        super().__init__()
        self._call = call
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        work = self._call.begin(self._reply(send))
        watch = asyncio.create_task(_hang_up(receive))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._call.stop(GONE)
            await asyncio.wait({work})
        except asyncio.CancelledError:  # the server stops
            self._call.stop(SHUTDOWN)
            await asyncio.wait({work})
            raise
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        if not work.cancelled():
            work.result()


async def _hang_up(receive: Receive) -> None:
    """Returns when the connection has ended. The request's body has been read, so nothing else comes."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_large(answer: Answer) -> bool:
    """Whether writing it would take the loop longer than a thread is worth."""
    vectors = (answer.extra or {}).get("embeddings") or [[]]
    return len(vectors) * len(vectors[0]) > _LARGE_NUMBERS


def _whole(answer: Answer, *, base64_embeddings: bool) -> bytes:
    """Vectors one by one: orjson keeps the interpreter to itself while it writes, in a thread too."""
    content = answer.body(base64_embeddings=base64_embeddings)
    for item in content.get("data") or ():
        item["embedding"] = orjson.Fragment(orjson.dumps(item["embedding"]))
    return orjson.dumps(content)


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
