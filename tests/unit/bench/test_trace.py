"""What a trace makes of a stream: of every failure, of a server that counts and of one that does not."""

import asyncio
import itertools

import pytest

from tests.unit.bench.engines import Scripted, answer, chat
from tieryard.bench.trace import Arrival, TokenSource, Trace, trace
from tieryard.engines import Delta, Done, Usage
from tieryard.errors import (
    BadRequestError,
    ContextLengthError,
    EngineBusyError,
    EngineDownError,
    EngineError,
    EngineTimeoutError,
)


def ticking():
    """A clock that is a second further at each look."""
    ticks = itertools.count(10.0)
    return lambda: next(ticks)


async def traced(script, **options):
    return await trace(Scripted(script), chat(), **{"clock": ticking(), "intended_s": 9.0, **options})


def events(*given):
    async def script(number, body):
        for event in given:
            if isinstance(event, Exception):
                raise event
            yield event

    return script


DONE = Done("stop", Usage(7, 3))


async def test_times_and_tokens():
    found = await traced(events(Delta("a", Usage(7, 1)), Delta("bc", Usage(7, 3)), DONE), category="chat", held_s=0.25)
    assert found == Trace(
        category="chat",
        intended_s=9.0,
        sent_s=10.0,
        ended_s=14.0,
        arrivals=(Arrival(11.0, 1), Arrival(12.0, 3)),
        prompt_tokens=7,
        output_tokens=3,
        token_source=TokenSource.SERVER,
        held_s=0.25,
    )
    assert (found.ttft_ms, found.service_ttft_ms, found.latency_ms) == (2000, 1000, 5000)
    assert (found.tpot_ms, found.lag_s) == (1500, 0.75)


async def test_what_a_prefix_cache_had_is_kept():
    found = await traced(events(Delta("a"), Done("stop", Usage(7, 3, cached_tokens=5))))
    assert (found.prompt_tokens, found.cached_tokens) == (7, 5)
    counted = await traced(events(Delta("a"), Done("stop", Usage(7, 0, cached_tokens=5))))
    assert (counted.cached_tokens, counted.output_tokens, counted.token_source) == (5, 1, TokenSource.COUNTED)


async def test_only_content_arrives():
    call = Delta("", extra={"tool_calls": [{"index": 0}]})
    thought = Delta("", extra={"reasoning_content": "hm"})
    nothing = Delta("", Usage(7, 0), {"logprobs": {"content": []}})
    found = await traced(events(nothing, thought, call, Delta("a", Usage(7, 3)), DONE))
    assert [piece.tokens for piece in found.arrivals] == [None, None, 3]
    assert found.first_s == 12.0  # `nothing` came at 11


@pytest.mark.parametrize(
    "error",
    [EngineBusyError, EngineDownError, EngineTimeoutError, ContextLengthError, BadRequestError, EngineError],
    ids=lambda error: error.kind,
)
async def test_a_failure_is_told_and_not_raised(error):
    found = await traced(events(Delta("a", Usage(7, 2)), error("no")))
    assert found.error == error.kind
    assert (found.output_tokens, found.token_source) == (2, TokenSource.SERVER)
    nothing = await traced(events(error("no")))
    assert (nothing.error, nothing.first_s, nothing.ttft_ms, nothing.tpot_ms) == (error.kind, None, None, None)
    assert (nothing.output_tokens, nothing.token_source) == (0, TokenSource.COUNTED)


@pytest.mark.parametrize("end", [[DONE], [Done("stop", Usage(0, 0))], []], ids=["said", "said nothing", "no end"])
async def test_who_counted(end):
    found = await traced(events(Delta("a"), Delta("b"), *end))
    said = end == [DONE]
    assert found.output_tokens == (3 if said else 2)
    assert found.token_source is (TokenSource.SERVER if said else TokenSource.COUNTED)
    assert found.error == (None if end else "engine_error")


async def test_embeddings_have_no_first_token():
    found = await traced(events(Delta("", extra={"embeddings": [[0.5]]}), Done("stop", Usage(7, 0))))
    assert (found.error, found.ttft_ms, found.output_tokens) == (None, None, 0)
    assert found.token_source is TokenSource.SERVER


async def test_what_is_never_over_is_a_timeout():
    engine = Scripted(answer((0, 1), (3600, 2)))
    found = await trace(engine, chat(), clock=ticking(), intended_s=0, timeout_s=0.05)
    assert (found.error, found.output_tokens) == ("engine_timeout", 1)
    assert (engine.open, engine.closed) == (0, 1)


async def test_cancelling_closes_the_stream():
    engine = Scripted(answer((0, 1), (3600, 2)))
    running = asyncio.create_task(trace(engine, chat(), clock=ticking(), intended_s=0))
    await engine.begun.acquire()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.open == 0


async def test_a_fault_of_our_own_is_no_engines_failure():
    with pytest.raises(KeyError):
        await traced(events(KeyError("ours")))
