"""One request of a benchmark, as its client sees it: when it was due, sent, answered and over, and what it used."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from tieryard.engines import Delta, Done, Engine, Usage
from tieryard.errors import EngineError, EngineTimeoutError

Clock = Callable[[], float]
"""Seconds since the run's start, by a clock that never goes back."""


class TokenSource(StrEnum):
    """Who counted the output tokens. Where the server says nothing, each piece of the answer counts as one: a piece may
    hold several tokens, so such a count is a lower bound."""

    SERVER = "server"
    COUNTED = "counted"


class Arrival(NamedTuple):
    """A piece of an answer: when it came, and how many tokens the server had made by then, where it says so."""

    at_s: float
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Trace:
    """Times are seconds since the run's start. `intended_s` is when the request was due, `held_s` how long the load's
    own bound on requests in flight kept it back; `arrivals` are of text, tool calls and reasoning, never of role-only
    chunks or pings. `cached_tokens` are those of the prompt that a prefix cache had. `error` is the kind of
    `tieryard.errors`, None when it succeeded."""

    category: str
    intended_s: float
    sent_s: float
    ended_s: float
    arrivals: tuple[Arrival, ...]
    prompt_tokens: int
    output_tokens: int
    token_source: TokenSource
    error: str | None = None
    held_s: float = 0.0
    cached_tokens: int = 0

    @property
    def first_s(self) -> float | None:
        """When the first content came."""
        return self.arrivals[0].at_s if self.arrivals else None

    @property
    def lag_s(self) -> float:
        """How late the client was to send it, by its own fault."""
        return self.sent_s - self.intended_s - self.held_s

    @property
    def ttft_ms(self) -> float | None:
        """From the intended start to the first content."""
        return None if self.first_s is None else 1000 * (self.first_s - self.intended_s)

    @property
    def service_ttft_ms(self) -> float | None:
        """From the sending to the first content: what the router calls TTFT, as its queues are counted apart."""
        return None if self.first_s is None else 1000 * (self.first_s - self.sent_s)

    @property
    def latency_ms(self) -> float:
        """From the intended start to the end of the stream."""
        return 1000 * (self.ended_s - self.intended_s)

    @property
    def tpot_ms(self) -> float | None:
        """(end-to-end latency - TTFT) / (output tokens - 1); None for less than two tokens."""
        if self.first_s is None or self.output_tokens < 2:
            return None
        return 1000 * (self.ended_s - self.first_s) / (self.output_tokens - 1)


@dataclass(slots=True)
class _Watch:
    """What a stream has given so far."""

    arrivals: list[Arrival] = field(default_factory=list)
    running: Usage | None = None
    done: Usage | None = None

    def add(self, event: Delta | Done, now_s: float) -> None:
        if isinstance(event, Done):
            self.done = event.usage
            return
        self.running = event.usage or self.running
        if event.generated:
            self.arrivals.append(Arrival(now_s, event.usage.completion_tokens if event.usage else None))

    def counts(self) -> tuple[Usage, TokenSource]:
        """What it used by the server's final usage, else its running one; else a token a piece. A server
        that says it made none of what has come is taken to have said nothing."""
        said = self.done or self.running
        if said is not None and (said.completion_tokens or not self.arrivals):
            return said, TokenSource.SERVER
        return replace(said or Usage(0, 0), completion_tokens=len(self.arrivals)), TokenSource.COUNTED


async def trace(
    engine: Engine,
    body: dict[str, Any],
    *,
    clock: Clock,
    intended_s: float,
    category: str = "",
    held_s: float = 0.0,
    timeout_s: float | None = None,
) -> Trace:
    """Runs one request to its end and tells how it went; an engine's failure is told, never raised. One that is not
    over after `timeout_s` seconds is aborted and counts as an engine's timeout. Cancelling this aborts the request."""
    watch = _Watch()
    error: str | None = None
    sent_s = clock()
    try:
        async with asyncio.timeout(timeout_s), contextlib.aclosing(engine.stream(body)) as stream:
            async for event in stream:
                watch.add(event, clock())
        if watch.done is None:
            error = EngineError.kind  # no engine may end so
    except EngineError as failure:
        error = failure.kind
    except TimeoutError:
        error = EngineTimeoutError.kind
    used, source = watch.counts()
    return Trace(
        category=category,
        intended_s=intended_s,
        sent_s=sent_s,
        ended_s=clock(),
        arrivals=tuple(watch.arrivals),
        prompt_tokens=used.prompt_tokens,
        cached_tokens=used.cached_tokens,
        output_tokens=used.completion_tokens,
        token_source=source,
        error=error,
        held_s=held_s,
    )
