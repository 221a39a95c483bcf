"""Plain completions: a raw prompt, without a chat template."""

import asyncio
import json

import httpx
import pytest

from tests.conformance.conftest import recorded
from tieryard.engines import Delta, Done, Recording, record
from tieryard.errors import BadRequestError, ContextLengthError

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = "The capital of France is"


def asking(prompt=PROMPT, **fields):
    return {"prompt": prompt, "max_tokens": 8, "temperature": 0, **fields}


async def test_content_comes_first_and_one_done_last(subject):
    *deltas, done = [event async for event in subject.engine.stream(asking())]
    assert deltas
    assert all(isinstance(delta, Delta) and delta.text for delta in deltas)
    assert isinstance(done, Done)
    assert done.usage.prompt_tokens == 5  # a token a word, and none of a template
    assert done.usage.completion_tokens > 0


async def test_text_and_usage_are_what_the_server_says(server):
    body = asking(max_tokens=10, ignore_eos=True)
    async with httpx.AsyncClient() as client:
        whole = (await client.post(f"{server.url}/v1/completions", json=body, timeout=30)).json()
    recording = await recorded(server, body)
    assert recording.text == whole["choices"][0]["text"]
    assert recording.done.finish_reason == whole["choices"][0]["finish_reason"] == "length"
    assert recording.usage.completion_tokens == whole["usage"]["completion_tokens"] == 10
    assert 0 < recording.ttft_ms <= recording.latency_ms


async def test_logprobs_are_lists_side_by_side(server):
    recording = await recorded(server, asking(max_tokens=10, ignore_eos=True, logprobs=2))
    logprobs = recording.extra["logprobs"]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert {len(items) for items in logprobs.values()} == {10}
    for token, logprob, tops, offset in zip(
        *(logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")), strict=True
    ):
        assert recording.text[offset : offset + len(token)] == token
        assert tops[token] == logprob == max(tops.values()) <= 0
        assert len(tops) == 2


async def test_an_enum_schema_answers_only_members(server):
    labels = ["refund", "delivery", "praise"]
    schema = {"type": "json_schema", "json_schema": {"name": "label", "schema": {"enum": labels}}}
    recording = await recorded(server, asking("Review: I love it. Label:", max_tokens=16, response_format=schema))
    assert json.loads(recording.text) in labels


async def test_a_prompt_beyond_the_context_is_refused(server):
    with pytest.raises(ContextLengthError):
        await recorded(server, asking("word " * (server.context + 1)))


async def test_a_bad_request_is_permanent(server):
    with pytest.raises(BadRequestError) as refusal:
        await recorded(server, asking(response_format={"type": "nonsense"}))
    assert refusal.value.status == 400


async def test_an_abort_frees_the_server_and_keeps_the_partial_answer(server, eventually):
    recording = Recording()
    body = asking(max_tokens=900, ignore_eos=True)
    running = asyncio.create_task(record(server.engine, body, recording))

    async def some_text():
        return len(recording.pieces) >= 2 or running.done()

    async def idle():
        return await server.held() == 0

    await eventually(some_text)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert recording.text
    assert recording.done is None
    assert 0 < recording.usage.completion_tokens < 900
    await eventually(idle)
