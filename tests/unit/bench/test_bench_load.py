"""Loads keep to their shape: how many at once, when each is due, what does not count, and how a run ends early."""

import asyncio
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.bench.engines import Scripted, answer, chat
from tieryard.bench.figures import measure
from tieryard.bench.load import Closed, Open, Run, Sampled, distinct, run_load
from tieryard.bench.trace import TokenSource, Trace
from tieryard.errors import EngineDownError, UserError

SAMPLE = [Sampled(chat(f"Prompt {n}"), "chat") for n in range(5)]


def late(lag_s, n=100):
    """A run in which two requests in `n` were sent late."""
    traces = tuple(
        Trace("chat", float(i), i + (lag_s if i < 2 else 0.0), i + 1.0, (), 1, 1, TokenSource.SERVER) for i in range(n)
    )
    return Run(Open(1.0, n), traces, at=0.0, distinct=n)


async def test_a_closed_loop_keeps_so_many_under_way():
    engine = Scripted(answer((0.01, 1)))
    run = await run_load(engine, SAMPLE, Closed(3, 10))
    assert (engine.most_open, len(run.traces), run.aborted) == (3, 10, False)
    assert [one.category for one in run.traces] == ["chat"] * 10
    assert run.notes == ("5 prompts for 10 requests: a prefix cache may have helped",)


async def test_a_closed_loops_request_is_due_when_a_slot_is_free():
    run = await run_load(Scripted(answer((0.01, 1))), SAMPLE, Closed(1, 4))
    assert [one.intended_s for one in run.traces] == [0.0, *(one.ended_s for one in run.traces[:-1])]
    assert all(one.lag_s >= 0 for one in run.traces)


async def test_an_open_loop_waits_for_no_answer():
    gate = asyncio.Event()

    async def script(number, body):
        if engine.open == 8:
            gate.set()
        await gate.wait()  # until all are there: a loop that waited for an answer would never end
        async for event in answer((0, 1))(number, body):
            yield event

    engine = Scripted(script)
    shape = Open(400, 8, seed=3)
    run = await run_load(engine, SAMPLE * 2, shape)
    assert engine.most_open == 8
    assert [one.intended_s for one in run.traces] == shape.starts_s()


async def test_beyond_the_bound_a_request_counts_from_when_it_was_due():
    engine = Scripted(answer((0.02, 1)))
    run = await run_load(engine, SAMPLE * 2, Open(10_000, 10, max_in_flight=2))
    assert engine.most_open == 2
    last = max(run.traces, key=lambda one: one.sent_s)
    assert last.held_s > 0.06
    assert last.latency_ms > 80
    assert "8 requests were held back" in run.notes[-1]
    assert last.lag_s < last.held_s  # the wait is no lag of the client's


@given(st.floats(0.01, 1e4), st.integers(1, 200), st.integers())
def test_starts_are_fixed_by_the_seed(rate, requests, seed):
    starts = Open(rate, requests, seed).starts_s()
    assert starts == Open(rate, requests, seed).starts_s() == sorted(starts)
    assert len(starts) == requests
    assert 0 <= starts[0] <= starts[-1] <= requests / rate


def test_arrivals_are_poissons():
    """Gaps of a Poisson process are exponential: mean and standard deviation alike."""
    starts = Open(50, 5_000, seed=1).starts_s()
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.02)
    assert deviation == pytest.approx(mean, rel=0.05)
    assert Open(50, 10, seed=2).starts_s() != starts[:10]


@pytest.mark.parametrize("shape", [Closed(4, 6), Open(1_000, 6)], ids=["closed", "open"])
async def test_warm_up_is_left_out_and_has_prompts_of_its_own(shape):
    engine = Scripted(answer((0.001, 1)))
    run = await run_load(engine, SAMPLE, shape, warm_up=7)
    assert len(engine.bodies) == 13
    assert len(run.traces) == 6
    warm, measured = engine.bodies[:7], engine.bodies[7:]
    texts = [body["messages"][0]["content"] for body in warm]
    assert len(set(texts)) == 7
    assert not any(body in measured for body in warm)
    assert all(one.intended_s >= 0 for one in run.traces)


@pytest.mark.parametrize(
    "body",
    [
        chat("Hi"),
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        {"messages": [{"role": "assistant", "content": None}, {"role": "user", "content": "Hi"}]},
        {"prompt": "Hi"},
        {"prompt": [5, 6, 7]},
        {"input": ["Hi", "you"]},
        {"input": "Hi"},
    ],
    ids=str,
)
def test_a_warm_up_begins_differently(body):
    found = [str(distinct(body, number)) for number in range(2)]
    assert len({*found, str(body)}) == 3
    assert distinct(body, 1).keys() == body.keys()


async def test_a_dead_endpoint_gives_errors_and_no_crash():
    async def script(number, body):
        raise EngineDownError("refused", sent=False)
        yield

    run = await run_load(Scripted(script), SAMPLE, Closed(2, 6), warm_up=2)
    assert [one.error for one in run.traces] == ["engine_down"] * 6


@pytest.mark.parametrize(("lag_s", "valid"), [(0.009, True), (0.5, False)])
def test_a_client_that_lags_makes_the_run_invalid(lag_s, valid):
    run = late(lag_s)
    assert run.valid is valid
    assert bool(run.why) is not valid
    assert valid or "the client was too busy: requests were sent 500.0 ms late" in run.why[0]


async def test_a_busy_client_is_caught():
    """It stops the loop for 50 ms at each request."""

    async def script(number, body):
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(time.sleep, 0.05)
        async for event in answer((0, 1))(number, body):
            yield event

    run = await run_load(Scripted(script), SAMPLE, Open(200, 10))
    assert not run.valid


@pytest.mark.parametrize("shape", [Closed(2, 100), Open(500, 100)], ids=["closed", "open"])
async def test_better_work_ends_a_run(shape):
    async def yield_to():
        return len(engine.bodies) >= 6

    engine = Scripted(answer((0.005, 1)))
    run = await run_load(engine, SAMPLE, shape, yield_to=yield_to)
    assert run.aborted
    assert not run.valid
    assert "for better work" in run.why[0]
    assert measure(run, deployment="d") == {}
    assert engine.open == 0
    assert len(engine.bodies) < 100


@pytest.mark.parametrize("answered", [0, 2])
async def test_better_work_during_the_warm_up(answered):
    async def yield_to():
        return len(engine.bodies) >= answered

    engine = Scripted(answer((0, 1)))
    run = await run_load(engine, SAMPLE, Closed(1, 4), warm_up=3, yield_to=yield_to)
    assert (run.aborted, run.traces, len(engine.bodies)) == (True, (), answered)


async def test_a_closed_loop_pauses_and_its_latency_does_not_count_the_pause():
    paused = asyncio.Event()
    asked = 0

    async def yield_to():
        nonlocal asked
        asked += 1
        if asked == 3:
            asyncio.get_running_loop().call_later(0.3, paused.set)
            await paused.wait()
        return False

    run = await run_load(Scripted(answer((0.01, 1))), SAMPLE, Closed(1, 4), yield_to=yield_to)
    assert not run.aborted
    assert run.traces[2].intended_s - run.traces[1].ended_s >= 0.29
    assert run.traces[2].latency_ms < 290
    assert run.traces[2].lag_s < 0.29


@pytest.mark.parametrize("shape", [Closed(5, 50), Open(1_000, 50)], ids=["closed", "open"])
async def test_cancelling_a_run_closes_every_stream(shape):
    engine = Scripted(answer((0, 1), (3600, 2)))
    running = asyncio.create_task(run_load(engine, SAMPLE, shape))
    for _ in range(5):
        await engine.begun.acquire()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.open == 0
    assert len(engine.bodies) < 50


@pytest.mark.parametrize(
    "make",
    [
        lambda: Closed(0, 1),
        lambda: Closed(1, 0),
        lambda: Open(0, 1),
        lambda: Open(float("inf"), 1),
        lambda: Open(1, 1, max_in_flight=0),
    ],
)
def test_a_shape_of_nothing_is_refused(make):
    with pytest.raises(UserError):
        make()


async def test_a_run_of_nothing_is_refused():
    with pytest.raises(UserError, match="requests"):
        await run_load(Scripted(answer()), [], Closed(1, 1))
