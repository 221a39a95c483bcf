"""The capacity of a server that runs is found as that of a simulated one is. Nothing else may use the machine."""

import asyncio

import pytest

from tests.unit.bench.engines import Scripted, VirtualLoop, answer, chat
from tests.unit.bench.test_capacity import true_capacity
from tieryard.bench.capacity import SearchEnd, probing, search_capacity
from tieryard.bench.figures import Slos
from tieryard.bench.load import Sampled
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan


async def test_a_real_servers_capacity():
    """Sixteen slots of 100 ms each: what the simulated queue of the same shape holds is what there is to find. The SLO
    leaves room for waiting, as much as a busy machine takes."""
    known = await true_capacity(16, 0.1, 0.3, target=0.95)
    plan = FakePlan(ttft_ms=50, tokens_per_s=100, length=6, capacity=16)
    sample = [Sampled({"messages": [{"role": "user", "content": f"Prompt {n}"}]}) for n in range(700)]
    async with FakeVllm(plan) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake")
        probe = probing(engine, sample, Slos(max_latency_ms=300), seconds=4, least=400, warm_up=16)
        found = await search_capacity(probe, low=known * 0.7, high=known * 1.4)
        await engine.close()
    off = abs(found.rate_per_s / known - 1)
    if found.end is SearchEnd.CLIENT and off > 0.10:
        pytest.skip(f"this machine is too busy to send {known:.0f} requests a second: {found.says}")
    assert len(found.probes) <= 10
    assert off <= 0.10, (known, found)


def test_whole_runs_find_an_engines_capacity():
    """Open-loop runs on an engine of sixteen slots, in virtual time."""

    async def search():
        slots = asyncio.Semaphore(16)

        async def script(number, body):
            async with slots:
                async for event in answer((0.05, 1), (0.05, 2))(number, body):
                    yield event

        known = await true_capacity(16, 0.1, 0.3, target=0.95)
        sample = [Sampled(chat(f"Prompt {n}")) for n in range(700)]
        probe = probing(Scripted(script), sample, Slos(max_latency_ms=300), seconds=4, warm_up=16)
        return known, await search_capacity(probe, low=10)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        known, found = runner.run(search())
    assert found.end is SearchEnd.FOUND, found.says
    assert abs(found.rate_per_s / known - 1) <= 0.10
    assert len(found.probes) <= 10
