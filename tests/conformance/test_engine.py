"""What every engine promises, whatever serves the model."""

import asyncio
import json

import httpx
import pytest

from tests.conformance.conftest import recorded
from tieryard.engines import Delta, Done, Recording, record
from tieryard.errors import BadRequestError, ContextLengthError, EngineDownError

pytestmark = pytest.mark.asyncio(loop_scope="session")


def asking(text="Say hello.", **fields):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, **fields}


# Both vLLM and llama.cpp take ignore_eos: it makes an answer as long as we like.
ENDLESS = asking("Count.", max_tokens=900, ignore_eos=True)


async def test_content_comes_first_and_one_done_last(subject):
    events = [event async for event in subject.engine.stream(asking())]
    *deltas, done = events
    assert deltas
    assert all(isinstance(delta, Delta) and delta.text for delta in deltas)
    assert isinstance(done, Done)
    assert done.finish_reason in ("stop", "length")
    assert done.usage.prompt_tokens > 0
    assert done.fingerprint


async def test_usage_is_what_the_server_says(server):
    body = asking(max_tokens=10, ignore_eos=True)
    async with httpx.AsyncClient() as client:
        whole = (await client.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)).json()
    recording = await recorded(server, body)
    usage = recording.done.usage
    assert usage.prompt_tokens == whole["usage"]["prompt_tokens"]
    assert recording.usage.completion_tokens == usage.completion_tokens == whole["usage"]["completion_tokens"] == 10
    assert recording.text == whole["choices"][0]["message"]["content"]


async def test_the_running_count_never_falls_and_ends_at_the_usage(server):
    *deltas, done = [event async for event in server.engine.stream(asking(max_tokens=10, ignore_eos=True))]
    counts = [delta.usage.completion_tokens for delta in deltas]
    assert counts == sorted(counts)
    assert 0 < counts[0] <= counts[-1] <= done.usage.completion_tokens


async def test_first_content_comes_before_the_end(subject):
    recording = await recorded(subject, asking())
    assert 0 < recording.ttft_ms <= recording.latency_ms


async def test_max_tokens_cuts_the_answer(server):
    recording = await recorded(server, asking("Tell me a long story.", max_tokens=5))
    assert recording.done.finish_reason == "length"
    assert recording.done.usage.completion_tokens == 5


async def test_a_prompt_beyond_the_context_is_refused(server):
    with pytest.raises(ContextLengthError) as refusal:
        await recorded(server, asking("word " * server.context))
    assert refusal.value.status == 400


@pytest.mark.parametrize("wrong", [{"temperature": "hot"}, {"response_format": {"type": "nonsense"}}], ids=str)
async def test_a_bad_request_is_permanent(server, wrong):
    with pytest.raises(BadRequestError) as refusal:
        await recorded(server, asking(**wrong))
    assert refusal.value.status == 400


async def test_an_enum_schema_answers_only_members(server):
    labels = ["refund", "delivery", "praise"]
    schema = {"type": "json_schema", "json_schema": {"name": "label", "schema": {"enum": labels}}}
    for text in ("Where is my parcel?", "I want my money back.", "I love it."):
        recording = await recorded(server, asking(text, max_tokens=16, response_format=schema))
        assert json.loads(recording.text) in labels


async def test_every_token_has_its_logprobs(server):
    recording = await recorded(server, asking(max_tokens=10, ignore_eos=True, logprobs=True, top_logprobs=2))
    tokens = recording.extra["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == recording.text
    assert len(tokens) == recording.usage.completion_tokens == 10
    for token in tokens:
        assert token["bytes"] == list(token["token"].encode())
        first, second = token["top_logprobs"]
        assert first["token"] == token["token"]  # as the temperature is 0
        assert 0 >= first["logprob"] >= second["logprob"]


async def test_an_answer_of_text_has_nothing_beside_it(subject):
    assert (await recorded(subject, asking())).extra is None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}], ids=str)
async def test_a_tool_call_comes_whole(tool_user, choice):
    city = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Lima"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": city}}]
    recording = await recorded(tool_user, asking(tools=tools, tool_choice=choice))
    [call] = recording.extra["tool_calls"]
    assert call == {
        "id": call["id"],
        "type": "function",
        "function": {"name": "look_up", "arguments": '{"city":"Oslo"}'},
    }
    assert call["id"]
    assert (recording.text, recording.done.finish_reason) == ("", "tool_calls")
    assert 0 < recording.ttft_ms <= recording.latency_ms


async def test_a_servers_url_is_known(server):
    assert server.engine.url.startswith("http://127.0.0.1:")


async def test_closing_a_stream_early_frees_the_server(server, eventually):
    async def idle():
        return await server.held() == 0

    for _ in range(2):  # the second time all of it must be free again
        streams = [server.engine.stream(ENDLESS) for _ in range(server.capacity)]
        for first in await asyncio.gather(*(anext(stream) for stream in streams)):
            assert first.text
        assert await server.held() == server.capacity
        await asyncio.gather(*(stream.aclose() for stream in streams))
        await eventually(idle)


async def test_a_cancelled_recording_holds_the_partial_answer(server, eventually):
    recording = Recording()
    running = asyncio.create_task(record(server.engine, ENDLESS, recording))

    async def some_text():
        return len(recording.pieces) >= 2 or running.done()

    await eventually(some_text)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert recording.text
    assert recording.done is None
    assert 0 < recording.usage.completion_tokens < 900
    assert 0 < recording.ttft_ms <= recording.latency_ms

    async def idle():
        return await server.held() == 0

    await eventually(idle)


async def test_requests_beyond_capacity_wait_and_complete(subject):
    count = 2 * subject.capacity + 1
    bodies = [asking(f"Say the number {i}.", max_tokens=6) for i in range(count)]
    recordings = await asyncio.gather(*(recorded(subject, body) for body in bodies))
    assert all(recording.done and recording.text for recording in recordings)


async def test_a_served_engine_is_healthy(subject):
    assert await subject.engine.healthy()


async def test_a_dead_server_is_engine_down(mortal):
    assert await mortal.engine.healthy()
    await mortal.die()
    assert not await mortal.engine.healthy()
    with pytest.raises(EngineDownError):
        await recorded(mortal, asking())


async def test_a_server_that_dies_in_mid_stream_is_engine_down(mortal):
    stream = mortal.engine.stream({**ENDLESS, "max_tokens": 200})
    await anext(stream)
    await mortal.die()
    with pytest.raises(EngineDownError):
        _ = [event async for event in stream]


async def test_closing_twice_is_fine_and_closed_is_down(mortal):
    await mortal.die()
    await mortal.engine.close()
    await mortal.engine.close()
    assert not await mortal.engine.healthy()
    with pytest.raises(EngineDownError):
        await recorded(mortal, asking())
