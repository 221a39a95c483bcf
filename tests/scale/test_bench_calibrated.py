"""Against the fake server, which says what it sent when: tokens are counted without error, and times are its own.

The fake runs on the test's own loop, so that a busy machine delays both sides alike.
"""

import contextlib
import statistics

import pytest

from tieryard.bench.figures import measure
from tieryard.bench.load import Closed, Open, Sampled, run_load
from tieryard.bench.trace import TokenSource
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan, Fault, Freeze

TTFT_MS, GAP_MS, TOKENS, REQUESTS = 1000.0, 40.0, 25, 4


def chats(n, marker=""):
    return [Sampled({"messages": [{"role": "user", "content": f"Prompt {i} {marker}"}]}, "chat") for i in range(n)]


@contextlib.asynccontextmanager
async def served(server="vllm", **plan):
    whole = {"ttft_ms": TTFT_MS, "tokens_per_s": 1000 / GAP_MS, "length": TOKENS, "records": True, **plan}
    async with FakeVllm(FakePlan(**whole)) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake", server=server)
        try:
            yield fake, engine
        finally:
            await engine.close()


@pytest.mark.parametrize(
    ("packing", "wire"),
    [
        (1, {}),
        (1, {"pings": True, "split": 3}),
        (2, {"split": 7}),
        (3, {"pings": True}),
        (5, {}),
        (8, {"pings": True, "split": 3}),
    ],
    ids=str,
)
async def test_tokens_are_exact_and_times_are_the_servers(packing, wire):
    """Role-only chunks, comments, several tokens an event and events in pieces change nothing."""
    async with served(packing=packing, **wire) as (fake, engine):
        run = await run_load(engine, chats(REQUESTS), Closed(REQUESTS, REQUESTS), warm_up=REQUESTS)
    [found] = measure(run, deployment="fake").values()
    sent = [one for one in fake.pace.sent if "Warm-up" not in one.prompt]
    assert found.succeeded == len(sent) == REQUESTS
    assert [one.output_tokens for one in run.traces] == [TOKENS] * REQUESTS
    assert all(one.token_source is TokenSource.SERVER for one in run.traces)
    expected = {tuple(tokens for _, tokens in one.sends) for one in sent}
    assert {tuple(piece.tokens for piece in one.arrivals) for one in run.traces} == expected

    ttft_ms = statistics.median(1000 * (one.sends[0][0] - one.arrived) for one in sent)
    tpot_ms = statistics.median(1000 * (one.ended - one.sends[0][0]) / (TOKENS - 1) for one in sent)
    first, last = sent[0].sends[0], sent[0].sends[-1]
    itl_ms = 1000 * (last[0] - first[0]) / (last[1] - first[1])
    assert ttft_ms >= TTFT_MS
    assert found.service_ttft_ms.p50 == pytest.approx(ttft_ms, rel=0.02)
    assert found.tpot_ms.p50 == pytest.approx(tpot_ms, rel=0.02)
    assert found.itl_ms.mean == pytest.approx(itl_ms, rel=0.02)


async def test_an_error_in_mid_stream_keeps_what_came():
    async with served(packing=3, ttft_ms=100, tokens_per_s=1e4) as (_, engine):
        requests = chats(1, "[[fault:error_event]]") + chats(1, "[[fault:broken_event]]") + chats(2)
        run = await run_load(engine, requests, Closed(1, 4))
    [found] = measure(run, deployment="fake").values()
    assert [one.error for one in run.traces] == ["engine_down", "engine_down", None, None]
    assert [one.output_tokens for one in run.traces] == [6, 6, TOKENS, TOKENS]
    assert (found.error_rate, found.errors, found.latency_ms.n) == (0.5, {"engine_down": 2}, 2)


async def test_a_server_without_usage_is_said_to_be_counted():
    """The fleet could not bill such an answer, so it is a failed one; at a token an event its count is right."""
    async with served(ttft_ms=100, tokens_per_s=1e4) as (_, engine):
        run = await run_load(engine, chats(2, "[[fault:no_usage]]"), Closed(2, 2))
    assert [(one.error, one.token_source, one.output_tokens) for one in run.traces] == [
        ("engine_down", TokenSource.COUNTED, TOKENS)
    ] * 2


async def test_usage_at_the_end_alone_is_the_servers():
    """As hosted APIs give it: each piece is then taken for as many tokens as the next."""
    async with served(server="openai", packing=5, tokens_per_s=250) as (_, engine):
        run = await run_load(engine, chats(4), Closed(4, 4), warm_up=1)
    [found] = measure(run, deployment="fake").values()
    assert (found.token_source, found.output_tokens) == (TokenSource.SERVER, TOKENS)
    assert {piece.tokens for one in run.traces for piece in one.arrivals} == {None}
    assert found.itl_ms.n == 4 * (TOKENS - 5)


async def test_a_stall_is_not_hidden():
    """Five seconds of silence in a run of ten, at 30 requests a second: a closed loop has two slow requests, an open
    one all that were due meanwhile."""
    quick = {"ttft_ms": 20, "tokens_per_s": 1000, "length": 4, "freeze": Freeze(2.0, 5.0)}
    async with served(**quick) as (_, engine):
        run = await run_load(engine, chats(300), Open(30, 300, seed=1))
    [found] = measure(run, deployment="fake").values()
    assert found.error_rate == 0
    assert 4000 <= found.latency_ms.p99 <= 6000
    assert found.latency_ms.p90 >= 2000
    async with served(**quick) as (_, engine):
        closed = await run_load(engine, chats(300), Closed(2, 300))
    [hidden] = measure(closed, deployment="fake").values()
    assert hidden.latency_ms.p99 < 1000


async def test_a_slow_start_is_not_measured():
    """The first ten requests take 40 times as long, as a server's do that compiles."""

    def cold(number, prompt):
        return Fault("slow", 40) if number <= 10 else None

    figures = []
    for faults in (None, cold):
        async with served(ttft_ms=50, tokens_per_s=1000, length=8, faults=faults) as (fake, engine):
            run = await run_load(engine, chats(100), Closed(10, 100), warm_up=10)
        [found] = measure(run, deployment="fake").values()
        served_ms = max(1000 * (one.ended - one.arrived) for one in fake.pace.sent[10:])
        assert (found.n, len(fake.pace.sent)) == (100, 110)
        assert found.latency_ms.p99 <= served_ms * 1.1 + 20
        figures.append(found)
    slowest_s = max(one.ended - one.arrived for one in fake.pace.sent)
    assert slowest_s >= 40 * 0.057
    assert figures[1].latency_ms.p99 < 1000 * slowest_s / 10
