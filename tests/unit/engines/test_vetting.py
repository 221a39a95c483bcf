"""Start-up checks against a server that answers from a script, each answer wrong in one way at a time."""

from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from tieryard.engines import Delta, Done, Usage
from tieryard.engines.vetting import Expected, faults, warm_up
from tieryard.errors import BadRequestError, EngineDownError
from tieryard.tokens import TokenCounter

PIECES = ["<|im_start|>", "user", "\n", "hello", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]
CHAT, RAW = [1, 10, 11, 12, 2, 11, 1, 13, 11], [5, 6, 7]
COUNTER = TokenCounter(
    "dir",
    8,
    lambda texts: [len(CHAT)] * len(texts),
    lambda c: "chat",
    lambda t: list(CHAT) if t == "chat" else list(RAW),
)
EXPECTED = Expected(names=("m",), context_limit=2048, json_schema=True, counter=COUNTER)


@dataclass
class Scripted:
    """A sound server; tests change what it says."""

    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "m", "max_model_len": 2048}])
    chat: tuple[int, dict[str, Any]] = (200, {"tokens": CHAT, "token_strs": PIECES})
    text: str = "".join(PIECES)
    raw: tuple[int, dict[str, Any]] = field(default_factory=lambda: (200, {"tokens": RAW}))
    greeting: Done = field(default_factory=lambda: Done("stop", Usage(9, 3)))
    label: str = '"yes"'
    refuses_schema: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def ask(self, path, body=None):
        if path == "/v1/models":
            return 200, {"data": self.models}
        if path == "/detokenize":
            return 200, {"prompt": self.text}
        assert path == "/tokenize"
        return self.chat if "messages" in body else self.raw

    async def stream(self, body):
        self.bodies.append(body)
        if "input" in body:
            yield Delta("", extra={"embeddings": [[1.0]]})
        elif "response_format" in body:
            if self.refuses_schema:
                raise BadRequestError("no grammar", status=400)
            yield Delta(self.label)
        else:
            yield Delta("hello")
            yield self.greeting
            return
        yield Done("stop", Usage(9, 3))


async def test_a_sound_server_has_no_faults():
    server = Scripted()
    assert await faults(server, EXPECTED) == []
    assert len(server.bodies) == 2  # a greeting, and a label


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": [{"id": "other", "max_model_len": 2048}]}, "models: it serves other, not 'm'"),
        ({"models": [{"id": "m", "max_model_len": 1024}]}, "context_limit is 2048, and the server takes 1024 tokens"),
        ({"models": []}, "/v1/models: HTTP 200 without models"),
        ({"chat": (400, {"error": {"message": "no template"}})}, "cannot render a chat (HTTP 400: no template)"),
        ({"text": "<|im_start|><|x|>"}, "it writes <|x|> which this tokenizer does not have as one token"),
        ({"chat": (200, {"tokens": [9, *CHAT]})}, "is 10 tokens to the server and 9 to the catalog's"),
        ({"chat": (200, {"tokens": [*CHAT[:4], 99, *CHAT[5:]], "token_strs": PIECES})}, "from token 5 on"),
        ({"raw": (200, {"tokens": [5, 6]})}, "a text of 3 tokens by the catalog's tokenizer is 2 to the server"),
        ({"raw": (404, {})}, "tokenizer: the server does not tokenise (HTTP 404)"),
        ({"greeting": Done("length", Usage(9, 512))}, "stops: a greeting did not end within 512 tokens"),
        ({"label": '"may'}, "structured_output: asked for one of ['yes', 'no'] it answered '\"may'"),
        ({"label": '"may"'}, "structured_output: asked for one of"),
        ({"refuses_schema": True}, "structured_output: it refuses a JSON schema (no grammar)"),
    ],
)  # fmt: skip
async def test_each_fault_is_said_with_what_to_do(change, said):
    [fault] = await faults(Scripted(**change), EXPECTED)
    assert said in fault


async def test_a_check_can_be_left_out_by_name():
    bad = {"chat": (400, {}), "raw": (404, {}), "greeting": Done("length", Usage(9, 9)), "label": "?"}
    names = ("chat_template", "tokenizer", "stops", "structured_output")
    assert [f.split(":")[0] for f in await faults(Scripted(**bad), EXPECTED)] == list(names)
    for name in names:
        left_out = Expected(**{**_fields(EXPECTED), "unchecked": frozenset({name})})
        assert [f.split(":")[0] for f in await faults(Scripted(**bad), left_out)] == [n for n in names if n != name]


async def test_without_a_known_tokenizer_markers_are_still_looked_at():
    unknown = Expected(names=("m",), context_limit=2048)
    assert await faults(Scripted(), unknown) == []
    foreign = Scripted(chat=(200, {"tokens": CHAT, "token_strs": ["<", "|", "im", *PIECES[1:4]]}))
    [fault] = await faults(foreign, unknown)
    assert "<|im_end|>, <|im_start|>" in fault


async def test_an_adapter_that_is_not_loaded_is_missed():
    [fault] = await faults(Scripted(), Expected(names=("m", "tuned"), context_limit=10))
    assert fault == "models: it serves m, not 'tuned'"


async def test_embeddings_are_asked_for_a_vector_and_for_no_chat():
    server = Scripted(chat=(400, {}))
    assert await faults(server, Expected(names=("m",), context_limit=10, embeddings=True)) == []
    assert [list(body) for body in server.bodies] == [["input"]]


async def test_a_server_that_dies_meanwhile_is_down_and_not_unfit():
    class Dying(Scripted):
        async def stream(self, body):
            raise EngineDownError("reset")
            yield

    with pytest.raises(EngineDownError):
        await faults(Dying(), EXPECTED)


async def test_a_server_that_dies_of_its_warm_up_is_down():
    class Dying(Scripted):
        async def stream(self, body):
            raise EngineDownError("reset")
            yield

    with pytest.raises(EngineDownError):
        await warm_up(Dying(), EXPECTED)


async def test_a_warm_up_has_a_prompt_of_its_own_each_time():
    server = Scripted()
    await warm_up(server, EXPECTED)
    assert len({orjson.dumps(body) for body in server.bodies}) == EXPECTED.warm_up == 4


def _fields(expected):
    return {name: getattr(expected, name) for name in expected.__slots__}
