"""Embeddings: a vector an input, in the inputs' order."""

import asyncio
import math

import pytest
import pytest_asyncio

from tests.conformance.conftest import EMBEDDERS, recorded
from tieryard.engines import Delta, Done
from tieryard.errors import BadRequestError, ContextLengthError, EngineDownError

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXTS = ["The cat sat on the mat. " * 12, "Interest rates rose.", "Oslo", "A kitten slept on the rug. " * 4]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def subject(request):
    """An engine of a deployment that serves embeddings."""
    async with EMBEDDERS[request.param]() as opened:
        yield opened


async def test_one_delta_of_vectors_and_one_done(subject):
    delta, done = [event async for event in subject.engine.stream({"input": "Oslo is a city."})]
    assert isinstance(delta, Delta)
    assert delta.text == ""
    [vector] = delta.extra["embeddings"]
    assert all(isinstance(value, float) for value in vector)
    assert isinstance(done, Done)
    assert done.finish_reason == "stop"
    assert done.usage.prompt_tokens >= 4
    assert done.usage.completion_tokens == 0


async def test_each_input_has_the_vector_that_it_has_alone(subject):
    """Whatever shares its batch, and whatever its length."""
    together = (await recorded(subject, {"input": TEXTS})).extra["embeddings"]
    alone = [(await recorded(subject, {"input": [text]})).extra["embeddings"][0] for text in TEXTS]
    assert len(together) == len(TEXTS)
    for number, vector in enumerate(together):
        distances = [math.dist(vector, other) for other in alone]
        assert distances[number] < 0.05
        assert sorted(distances)[1] > 0.2


async def test_requests_together_have_the_vectors_that_they_have_alone(subject):
    asked = await asyncio.gather(*(recorded(subject, {"input": text}) for text in TEXTS))
    for text, recording in zip(TEXTS, asked, strict=True):
        alone = (await recorded(subject, {"input": text})).extra["embeddings"]
        assert math.dist(recording.extra["embeddings"][0], alone[0]) < 0.05


async def test_vectors_are_no_text_and_no_tokens(subject):
    recording = await recorded(subject, {"input": "Oslo"})
    assert (recording.text, recording.pieces, recording.ttft_ms) == ("", [], None)
    assert recording.usage.completion_tokens == 0
    assert recording.latency_ms > 0


async def test_an_input_as_long_as_the_context_is_taken_and_a_longer_one_refused(server):
    longest = "word " * (server.context - 1)  # llama.cpp counts the last space
    assert (await recorded(server, {"input": longest})).extra
    with pytest.raises(ContextLengthError):
        await recorded(server, {"input": "word " * (server.context + 1)})


async def test_dimensions_that_the_model_cannot_give_are_refused(server):
    with pytest.raises(BadRequestError):
        await recorded(server, {"input": "Oslo", "dimensions": 5000})


async def test_a_cancelled_request_leaves_the_server_free(server, eventually):
    """At once on vLLM, as tests/unit/test_engines.py holds the fake to. llama.cpp ends the whole request first."""
    running = asyncio.create_task(recorded(server, {"input": ["one two three four five six seven eight " * 5] * 8}))

    async def busy():
        return await server.held() > 0 or running.done()

    async def idle():
        return await server.held() == 0

    await eventually(busy)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(idle, within_s=30)
    assert (await recorded(server, {"input": "Oslo"})).extra


async def test_an_engine_that_is_closed_has_no_url_and_is_down():
    async with EMBEDDERS["llama_cpp"]() as opened:
        assert opened.engine.url
    assert opened.engine.url is None
    with pytest.raises(EngineDownError):
        await recorded(opened, {"input": "Oslo"})
