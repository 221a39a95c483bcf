"""Engines: one protocol, whatever serves the model.

`stream` yields a `Delta` for every piece of an answer and ends with one `Done` that carries the server's own
usage. Every failure is an EngineError. Closing the stream early aborts the request on the server.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tieryard.engines.load import Load
    from tieryard.engines.vetting import Expected


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them. `cached_tokens` of the prompt came from its prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. `usage` is the server's running count, where it gives one. `extra` is what the piece
    holds beside text, in OpenAI's words: parts of `tool_calls`, `logprobs`, `reasoning_content`, `embeddings`."""

    text: str
    usage: Usage | None = None
    extra: dict[str, Any] | None = None

    @property
    def generated(self) -> bool:
        """Whether the model made tokens for it: text, a tool call or reasoning."""
        return bool(self.text or (self.extra and (self.extra.keys() & {"tool_calls", "reasoning_content"})))


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a stream. `fingerprint` is what the server says of its build and weights, `model` what it says that
    it has answered with."""

    finish_reason: str
    usage: Usage
    fingerprint: str | None = None
    model: str | None = None


Stream = AsyncGenerator[Delta | Done, None]


class Engine(Protocol):
    """A model being served."""

    @property
    def url(self) -> str | None:
        """Where its server listens; None before the start, and where the engine is no server."""
        ...

    async def start(self) -> None:
        """Starts or attaches to the server and returns when it answers. Raises EngineDownError."""
        ...

    async def healthy(self) -> bool:
        """Whether the server answers now."""
        ...

    async def faults(self, expected: Expected) -> list[str]:
        """Start-up checks, after `start`: why it must not serve, a sentence each; none when it may. Then it is warm.
        Raises EngineError when it is down."""
        ...

    async def load(self) -> Load | None:
        """What the server says of its own load; None where it says nothing."""
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
    *content*, tool call or reasoning, so role-only chunks and pings do not count; it is None when none came.
    """

    started: float = field(default_factory=time.monotonic)
    pieces: list[str] = field(default_factory=list)
    extras: list[dict[str, Any]] = field(default_factory=list)
    generated: int = 0
    running: Usage | None = None
    ttft_ms: float | None = None
    latency_ms: float | None = None
    done: Done | None = None

    def add(self, event: Delta | Done) -> None:
        now_ms = (time.monotonic() - self.started) * 1000
        if isinstance(event, Done):
            self.done, self.latency_ms = event, now_ms
            return
        if event.generated:
            self.generated += 1
            self.ttft_ms = now_ms if self.ttft_ms is None else self.ttft_ms
        if event.text:
            self.pieces.append(event.text)
        if event.extra:
            self.extras.append(event.extra)
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
    def extra(self) -> dict[str, Any] | None:
        """What came beside text, in the shape that a whole answer has it; None when nothing did."""
        merged = {
            "tool_calls": _whole_calls(part for extra in self.extras for part in extra.get("tool_calls") or ()),
            "logprobs": _joined_lists(extra.get("logprobs") or {} for extra in self.extras),
            "reasoning_content": "".join(extra.get("reasoning_content") or "" for extra in self.extras),
            "embeddings": [vector for extra in self.extras for vector in extra.get("embeddings") or ()],
        }
        return {name: value for name, value in merged.items() if value} or None

    @property
    def usage(self) -> Usage:
        """The server's count: final if it came, else its running one, else a token a delta and no prompt."""
        if self.done is not None:
            return self.done.usage
        return self.running or Usage(0, self.generated)


def _whole_calls(parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Streamed parts of tool calls, put together by their `index`."""
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        said = part.get("function") or {}
        call = calls.setdefault(
            part.get("index") or 0, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = call["id"] or part.get("id")
        call["type"] = part.get("type") or call["type"]
        call["function"]["name"] = call["function"]["name"] or said.get("name") or ""
        call["function"]["arguments"] += said.get("arguments") or ""
    return [calls[index] for index in sorted(calls)]


def _joined_lists(parts: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """Logprobs, a chat's (`content`) or a plain completion's: objects of lists that grow with the stream."""
    joined: dict[str, list[Any]] = {}
    for part in parts:
        for name, items in part.items():
            if items:
                joined.setdefault(name, []).extend(items)
    return joined


async def record(engine: Engine, body: dict[str, Any], recording: Recording) -> None:
    """Runs one request to its end into `recording`. Cancelling this aborts it on the server."""
    stream = engine.stream(body)
    try:
        async for event in stream:
            recording.add(event)
    finally:
        recording.stop()
        await stream.aclose()
