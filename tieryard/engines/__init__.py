"""Engines: one protocol, whatever serves the model.

`stream` yields a `Delta` for every piece of text and ends with one `Done` that carries the server's own
usage. Every failure is an EngineError. Closing the stream early aborts the request on the server.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them. `cached_tokens` of the prompt came from its prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. `usage` is the server's running count, where it gives one. `extra` is what the piece
    holds beside text, in OpenAI's words: parts of `tool_calls`, `logprobs`, `reasoning_content`, `embeddings`."""

    text: str
    usage: Usage | None = None
    extra: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a stream. `fingerprint` is what the server says of its build and weights."""

    finish_reason: str
    usage: Usage
    fingerprint: str | None = None


Stream = AsyncGenerator[Delta | Done, None]


class Engine(Protocol):
    """A model being served."""

    async def start(self) -> None:
        """Starts or attaches to the server and returns when it answers. Raises EngineDownError."""
        ...

    async def healthy(self) -> bool:
        """Whether the server answers now."""
        ...

    def stream(self, body: dict[str, Any]) -> Stream:
        """Runs one request (`Request.body`): a chat, a raw prompt or embeddings, by the members that it has."""
        ...

    async def close(self) -> None:
        """Lets go of connections, and of the server where the engine started it."""
        ...


@dataclass(slots=True)
class Recording:
    """What one request has given so far: read it after a cancellation and it holds the partial answer.

    Times are milliseconds on the monotonic clock since the request was sent. TTFT is the time to the first
    *content*, so role-only chunks and pings do not count; it is None when no content came.
    """

    started: float = field(default_factory=time.monotonic)
    pieces: list[str] = field(default_factory=list)
    running: Usage | None = None
    ttft_ms: float | None = None
    latency_ms: float | None = None
    done: Done | None = None

    def add(self, event: Delta | Done) -> None:
        now_ms = (time.monotonic() - self.started) * 1000
        if isinstance(event, Done):
            self.done, self.latency_ms = event, now_ms
            return
        if event.text and self.ttft_ms is None:
            self.ttft_ms = now_ms
        self.pieces.append(event.text)
        if event.usage is not None:
            self.running = event.usage

    def stop(self) -> None:
        """Marks the end of a request that was aborted or failed."""
        if self.latency_ms is None:
            self.latency_ms = (time.monotonic() - self.started) * 1000

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def usage(self) -> Usage:
        """The server's count: final if it came, else its running one, else a token a delta and no prompt."""
        if self.done is not None:
            return self.done.usage
        return self.running or Usage(0, sum(1 for p in self.pieces if p))


async def record(engine: Engine, body: dict[str, Any], recording: Recording) -> None:
    """Runs one request to its end into `recording`. Cancelling this aborts it on the server."""
    stream = engine.stream(body)
    try:
        async for event in stream:
            recording.add(event)
    finally:
        recording.stop()
        await stream.aclose()
