"""Fault by fault, what an OpenAI-compatible server can do to a request and which error it becomes."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import orjson
import pytest

from tieryard.engines import Done, Recording, record
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.errors import (
    BadRequestError,
    ContextLengthError,
    EngineBusyError,
    EngineDownError,
    EngineError,
    EngineTimeoutError,
    PermanentError,
    RetryableError,
)
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan, Fault

BEFORE_CONTENT = {
    "http_400": BadRequestError,
    "http_401": EngineDownError,  # a wrong key or model name is the deployment's fault, not the job's
    "http_404": EngineDownError,
    "http_408": EngineTimeoutError,
    "http_429": EngineBusyError,
    "http_500": EngineDownError,
    "http_503": EngineBusyError,
    "http_504": EngineDownError,
    "reset": EngineDownError,
}
IN_CONTENT = {
    "reset_midstream": EngineDownError,
    "ends_early": EngineDownError,
    "stall": EngineTimeoutError,
    "error_event": EngineDownError,
    "error_event:400": BadRequestError,
    "error_event:503": EngineBusyError,
    "broken_event": EngineDownError,
    "odd_event": EngineDownError,
    "no_usage": EngineDownError,
}


def asking(text="Say hello.", **fields):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 10, **fields}


def faulty(fault):
    return asking(f"Say hello. [[fault:{fault}]]")


@pytest.fixture
async def fake():
    async with FakeVllm(FakePlan(packing=3, capacity=2, context_limit=200)) as server:
        yield server


@pytest.fixture
async def engine(fake):
    engine = OpenAIHttpEngine(fake.url, model="fake", read_timeout_s=0.25)
    yield engine
    await engine.close()


async def recorded(engine, body):
    recording = Recording()
    await record(engine, body, recording)
    return recording


async def until(condition, within_s=5.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        await asyncio.sleep(0.005)


async def failure(handler, body=None):
    """What the engine raises when its transport does as `handler` says."""
    engine = OpenAIHttpEngine("http://engine", model="m")
    engine._client = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    try:
        with pytest.raises(EngineError) as raised:
            await recorded(engine, body or asking())
    finally:
        await engine.close()
    return raised.value


@pytest.mark.parametrize(("fault", "kind"), BEFORE_CONTENT.items())
async def test_a_fault_before_content(engine, fault, kind):
    with pytest.raises(EngineError) as raised:
        await recorded(engine, faulty(fault))
    assert type(raised.value) is kind


@pytest.mark.parametrize(("fault", "kind"), IN_CONTENT.items())
async def test_a_fault_in_content_keeps_what_came(engine, fault, kind):
    recording = Recording()
    with pytest.raises(EngineError) as raised:
        await record(engine, faulty(fault), recording)
    assert type(raised.value) is kind
    assert recording.text.startswith("tok0 tok1 tok2 tok3 tok4 tok5")
    assert recording.latency_ms >= recording.ttft_ms


async def test_the_server_is_whole_after_every_fault(fake, engine):
    for fault in (*BEFORE_CONTENT, *IN_CONTENT):
        with pytest.raises(EngineError):
            await recorded(engine, faulty(fault))
    assert (await recorded(engine, asking())).done
    assert fake.state.running == fake.state.waiting == 0


async def test_nothing_listening_is_engine_down(fake, engine):
    assert await engine.healthy()
    await fake.stop()
    assert not await engine.healthy()
    with pytest.raises(EngineDownError):
        await recorded(engine, asking())
    await fake.start()
    assert (await recorded(engine, asking())).done


async def test_role_and_pings_are_not_the_first_token():
    async with FakeVllm(FakePlan(ttft_ms=60)) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake")
        recording = await recorded(engine, faulty("slow_role"))
        await engine.close()
    assert 60 <= recording.ttft_ms <= recording.latency_ms
    assert recording.text == "".join(recording.pieces)
    assert all(recording.pieces)


async def test_an_empty_answer_is_an_answer(engine):
    recording = await recorded(engine, faulty("empty"))
    assert (recording.text, recording.ttft_ms, recording.usage.completion_tokens) == ("", None, 1)


async def test_packed_events_are_not_tokens(engine):
    recording = await recorded(engine, asking())
    assert len(recording.pieces) == 4
    assert recording.usage.completion_tokens == recording.done.usage.completion_tokens == 10


async def test_unicode_line_separators_do_not_end_a_line(engine):
    recording = await recorded(engine, faulty("line_separators"))
    assert recording.text.count("\u2028\u2029\x85") == 10


async def test_connections_are_used_again_though_the_body_ends_after_done(fake, engine):
    for _ in range(5):
        await recorded(engine, faulty("late_end"))
    assert fake.state.connections == 1


async def test_capacity_is_kept_by_waiting(fake, engine):
    recordings = await asyncio.gather(*(recorded(engine, asking()) for _ in range(7)))
    assert all(recording.done for recording in recordings)
    assert fake.state.max_running_seen == 2


async def test_leaving_aborts_running_and_waiting_requests():
    async with FakeVllm(FakePlan(capacity=1, length=100, tokens_per_s=100)) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake")
        tasks = [asyncio.create_task(recorded(engine, asking(max_tokens=100))) for _ in range(3)]
        await until(lambda: (fake.state.running, fake.state.waiting) == (1, 2))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: fake.state.aborted == 3)
        assert (fake.state.running, fake.state.waiting, fake.state.held_tokens) == (0, 0, 0)
        assert (await recorded(engine, asking(max_tokens=1))).done
        await engine.close()


async def test_closing_the_engine_breaks_off_its_streams():
    async with FakeVllm(FakePlan(length=1000, tokens_per_s=100)) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake")
        stream = engine.stream(asking(max_tokens=1000))
        await anext(stream)
        await engine.close()
        with pytest.raises(EngineDownError):
            _ = [event async for event in stream]


async def test_a_key_is_sent():
    async with FakeVllm(FakePlan(key="sesame")) as fake:
        keyed, bare = (OpenAIHttpEngine(fake.url, model="fake", key=key) for key in ("sesame", None))
        assert await keyed.healthy()
        assert not await bare.healthy()
        assert (await recorded(keyed, asking())).done
        with pytest.raises(EngineDownError, match="Unauthorized"):
            await recorded(bare, asking())
        await keyed.close()
        await bare.close()


async def test_a_server_that_serves_another_model_is_not_started():
    async with FakeVllm(FakePlan(model="other")) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake")
        with pytest.raises(EngineDownError, match="serves other, not 'fake'"):
            await engine.start()
        await engine.close()


async def test_faults_by_request_number():
    async with FakeVllm(FakePlan(faults={1: Fault("http_503", 7)})) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake")
        with pytest.raises(EngineBusyError) as raised:
            await recorded(engine, asking())
        assert raised.value.retry_after_s == 7
        assert isinstance((await recorded(engine, asking())).done, Done)
        await engine.close()


def _family(root):
    return {root}.union(*(_family(kind) for kind in root.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(_family(httpx.RequestError), key=lambda k: k.__name__))
async def test_every_transport_error_is_translated(kind):
    def broken(request):
        raise kind("broken")

    error = await failure(broken)
    reached = kind is not httpx.ConnectTimeout
    late = issubclass(kind, httpx.TimeoutException) and reached
    assert type(error) is (EngineTimeoutError if late else EngineDownError)
    assert error.sent == reached


async def test_every_status_is_translated():
    for status in range(400, 600):
        error = await failure(lambda request, status=status: httpx.Response(status, json={"error": {"message": "no"}}))
        busy, late = status in (429, 503), status == 408
        misconfigured = status in (401, 403, 404)
        retryable = busy or late or misconfigured or status >= 500
        assert isinstance(error, RetryableError if retryable else PermanentError), status
        assert not (misconfigured and error.sent)
        assert isinstance(error, EngineBusyError) == busy
        assert isinstance(error, EngineTimeoutError) == late
        assert (error.status, error.message) == (status, "no")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'"no"', b'{"error":"no"}', b'{"detail":"no"}', b'{"error":null}']
)
async def test_error_bodies_of_any_shape(body):
    error = await failure(lambda request: httpx.Response(400, content=body))
    assert type(error) is BadRequestError
    assert error.message


async def test_undecodable_bytes_are_engine_down():
    def garbage(request):
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"not gzip"))

    assert type(await failure(garbage)) is EngineDownError


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8 tokens. However, you requested 9 output tokens and your prompt …",
        "You passed 9 input tokens and requested 1 output tokens. However, the model's context length is only 8 tokens",
        "The decoder prompt (length 9) is longer than the maximum model length of 8.",
        "request (9 tokens) exceeds the available context size (8 tokens), try increasing it",
    ],
)
async def test_every_wording_of_too_long(message):
    error = await failure(lambda request: httpx.Response(400, json={"error": {"message": message, "code": 400}}))
    assert type(error) is ContextLengthError


async def test_words_of_the_caller_in_a_refusal_do_not_make_it_retryable():
    echoed = {
        "error": {"message": "invalid value: 'is the server overloaded?'", "type": "BadRequestError", "code": 400}
    }
    assert type(await failure(lambda request: httpx.Response(400, json=echoed))) is BadRequestError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}, EngineBusyError),
        ({"message": "busy", "type": "overloaded_error"}, EngineBusyError),
        ({"message": "no", "type": "invalid_request_error", "code": "context_length_exceeded"}, ContextLengthError),
        ({"message": "no", "type": "invalid_request_error", "code": None}, BadRequestError),
        ({"message": "no", "type": "server_error", "code": "server_error"}, EngineDownError),
        ({"message": "no", "code": "500"}, EngineDownError),
        ("no", EngineDownError),
    ],
)
async def test_error_events_with_worded_codes(error, kind):
    event = b"data: " + orjson.dumps({"error": error}) + b"\n\n"
    assert type(await failure(lambda request: httpx.Response(200, content=event))) is kind


@pytest.mark.parametrize(
    ("header", "expected"),
    [("3", 3.0), ("1.5", 1.5), ("0", 0.0), ("-4", None), ("soon", None), ("\u00b2", None), ("nan", None), (None, None)],
)
async def test_retry_after_in_seconds(header, expected):
    headers = {} if header is None else {"retry-after": header.encode("latin-1")}
    error = await failure(lambda request: httpx.Response(429, headers=headers))
    assert error.retry_after_s == expected


async def test_retry_after_as_a_date():
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    error = await failure(lambda request: httpx.Response(503, headers={"retry-after": when}))
    assert 55 < error.retry_after_s <= 60
