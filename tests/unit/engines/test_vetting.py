"""Start-up checks against a server that answers from a script, each answer wrong in one way at a time."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tieryard.engines import Delta, Done, Usage
from tieryard.engines.vetting import Expected, faults, warm_up
from tieryard.errors import BadRequestError, EngineBusyError, EngineDownError
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
    raw: tuple[int, dict[str, Any]] | None = None
    tokenizer: TokenCounter = COUNTER
    """Of raw prompts, without an answer in `raw`."""
    greeting: Done = field(default_factory=lambda: Done("stop", Usage(9, 3)))
    label: str = '"yes"'
    refuses_schema: bool = False
    refuses_chats: bool = False
    salts: set[str] = field(default_factory=lambda: {"messages", "prompt", "input"})
    """Requests with these members may be salted; others are refused."""
    ignores_salts: set[str] = field(default_factory=set)
    """The salts of requests with these members make no difference to the prefix cache."""
    caches: bool = True
    held: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def ask(self, path, body=None):
        if path == "/v1/models":
            return 200, {"data": self.models}
        if path == "/detokenize":
            return 200, {"prompt": self.text}
        assert path == "/tokenize"
        if "messages" in body:
            return self.chat
        return self.raw or (200, {"tokens": self.tokenizer.raw_ids(body["prompt"])})

    async def stream(self, body):
        self.bodies.append(body)
        kind = next(name for name in ("messages", "prompt", "input") if name in body)
        if "cache_salt" in body and kind not in self.salts:
            raise BadRequestError("cache_salt is not supported", status=400)
        if kind == "messages" and self.refuses_chats:
            raise BadRequestError("no chat template", status=400)
        if body.get("max_tokens") == 1:
            yield Delta("y")
            yield Done("length", Usage(400, 1, self._cached(kind, body)))
            return
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

    def _cached(self, kind, body):
        key = repr(body[kind]) + ("" if kind in self.ignores_salts else body.get("cache_salt", ""))
        cached = 384 if self.caches and key in self.held else 0
        self.held.add(key)
        return cached


async def test_a_sound_server_has_no_faults():
    server = Scripted()
    assert await faults(server, EXPECTED) == []
    assert len(server.bodies) == 6  # two chats and two raw prompts for the prefix cache, a greeting, and a label


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": [{"id": "other", "max_model_len": 2048}]}, "models: it serves other, not 'm'"),
        ({"models": [{"id": "m", "max_model_len": 1024}]}, "context_limit is 2048, and the server takes 1024 tokens"),
        ({"models": []}, "/v1/models: HTTP 200 without models"),
        ({"chat": (400, {"error": {"message": "no template"}})}, "cannot render a chat (HTTP 400: no template)"),
        ({"chat": (200, {"tokens": [9, *CHAT]})}, "is 10 tokens to the server and 9 to the catalog's"),
        ({"chat": (200, {"tokens": [*CHAT[:4], 99, *CHAT[5:]], "token_strs": PIECES})}, "from token 5 on"),
        ({"raw": (200, {"tokens": [5, 6]})}, "a text of 3 tokens by the catalog's tokenizer is 2 to the server"),
        ({"raw": (404, {})}, "tokenizer: the server does not tokenise (HTTP 404)"),
        ({"ignores_salts": {"messages"}}, "isolation: a chat found 384 tokens in the prefix cache"),
        ({"ignores_salts": {"prompt"}}, "isolation: a raw prompt found 384 tokens in the prefix cache"),
        ({"salts": {"prompt"}}, "isolation: it refuses a chat with cache_salt, as every job has it (cache_salt is not"),
        ({"salts": {"messages"}}, "isolation: it refuses a raw prompt with cache_salt"),
        ({"refuses_chats": True, "chat": (400, {})}, "cannot render a chat (HTTP 400); give it one with the flag"),
        ({"greeting": Done("length", Usage(9, 512))}, "stops: a greeting did not end within 512 tokens"),
        ({"label": '"may'}, "structured_output: asked for one of ['yes', 'no'] it answered '\"may'"),
        ({"label": '"may"'}, "structured_output: asked for one of"),
        ({"refuses_schema": True}, "structured_output: it refuses a JSON schema (no grammar)"),
    ],
)  # fmt: skip
async def test_each_fault_is_said_with_what_to_do(change, said):
    [fault] = await faults(Scripted(**change), EXPECTED)
    assert said in fault


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("chat_template", {"chat": (400, {})}),
        ("tokenizer", {"raw": (404, {})}),
        ("isolation", {"ignores_salts": {"messages"}}),
        ("stops", {"greeting": Done("length", Usage(9, 9))}),
        ("structured_output", {"label": "?"}),
    ],
)
async def test_a_check_can_be_left_out_by_name(name, change):
    assert [f.split(":")[0] for f in await faults(Scripted(**change), EXPECTED)] == [name]
    assert await faults(Scripted(**change), replace(EXPECTED, unchecked=frozenset({name}))) == []


async def test_faults_of_different_kinds_are_said_together():
    bad = Scripted(raw=(404, {}), ignores_salts={"messages"}, greeting=Done("length", Usage(9, 9)), label="?")
    left_out = replace(EXPECTED, unchecked=frozenset({"isolation"}))
    assert [f.split(":")[0] for f in await faults(bad, left_out)] == ["tokenizer", "stops", "structured_output"]
    assert [f.split(":")[0] for f in await faults(bad, EXPECTED)] == ["tokenizer", "isolation"]


async def test_a_server_without_a_template_is_sent_no_chats():
    server = Scripted(chat=(400, {"error": {"message": "no chat template"}}), refuses_chats=True)
    [fault] = await faults(server, EXPECTED)
    assert "give it one with the flag chat_template" in fault
    assert server.bodies == []
    left_out = replace(EXPECTED, unchecked=frozenset({"chat_template", "isolation"}))
    assert [f.split(" (")[0] for f in await faults(server, left_out)] == [
        "stops: it refuses a greeting",
        "structured_output: it refuses a JSON schema",
    ]


async def test_every_request_is_salted_as_jobs_are_and_never_alike_in_two_runs():
    server = Scripted()
    for _ in range(2):
        assert await faults(server, EXPECTED) == []  # what the first run left in the cache is not the second's
        await warm_up(server, EXPECTED)
    salts = [body["cache_salt"] for body in server.bodies]
    assert len(salts) == 2 * (6 + EXPECTED.warm_up)
    assert set(salts[:10]).isdisjoint(salts[10:])


async def test_the_prompts_for_the_prefix_cache_are_longer_than_its_blocks_and_fit():
    for limit, words in ((4096, 400), (600, 100)):
        server = Scripted(models=[{"id": "m", "max_model_len": limit}])
        await faults(server, replace(EXPECTED, context_limit=limit))
        assert [len(body["prompt"].split()) for body in server.bodies if "prompt" in body] == [words] * 2


async def test_a_server_that_does_not_say_what_was_cached_passes():
    assert await faults(Scripted(ignores_salts={"messages", "prompt"}, caches=False), EXPECTED) == []


async def test_a_label_may_follow_reasoning():
    server = Scripted()
    await faults(server, EXPECTED)
    *_, greeting, label = server.bodies
    assert label["max_tokens"] == greeting["max_tokens"] == 512


async def test_without_a_known_tokenizer_markers_are_still_looked_at():
    unknown = replace(EXPECTED, counter=None)
    assert await faults(Scripted(), unknown) == []
    foreign = Scripted(chat=(200, {"tokens": CHAT, "token_strs": ["<", "|", "im", *PIECES[1:4]]}))
    [fault] = await faults(foreign, unknown)
    assert "it writes <|im_end|>, <|im_start|> which this tokenizer does not have as one token" in fault


@pytest.mark.parametrize("text", ["<s>[INST] Hi [/INST]", "<|user|>\nHi</s>\n<|assistant|>\n"])
async def test_markers_that_are_plain_text_to_some_models_are_no_fault(text):
    spelt = Scripted(chat=(200, {"tokens": CHAT, "token_strs": list(text)}), text=text)
    assert await faults(spelt, replace(EXPECTED, counter=None)) == []


async def test_the_catalogs_tokenizer_is_believed_before_the_markers_are():
    spelt = Scripted(chat=(200, {"tokens": CHAT, "token_strs": ["<", "|", "im", "_start"]}))
    assert await faults(spelt, EXPECTED) == []


def dated(text):
    """A tokenizer of one token a word, with a template that renders this whatever the chat is."""

    def ids(words):
        return [sum(map(ord, word)) for word in words.split()]

    return TokenCounter("dir", 0, lambda texts: [len(ids(t)) for t in texts], lambda c: text, ids)


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        ("Today is 22 Nov 2026. Hi", "Today is 1 May 2027. Hi", True),
        ("Sunday, November 22. Hi", "Monday, March 1. Hi", True),
        ("Today is 22 Nov 2026. Hi", "Now it is 22 Nov 2026. Hi", False),
        ("Today is 22 Nov 2026. Hi", "Today is 22 Nov 2026.", False),
    ],
)
async def test_a_template_may_write_another_date_at_the_server(ours, theirs, alike):
    counter = dated(ours)
    server = Scripted(chat=(200, {"tokens": counter.raw_ids(theirs)}), text=theirs, tokenizer=counter)
    found = await faults(server, replace(EXPECTED, counter=counter))
    assert (not found) is alike
    assert alike or "to the catalog's tokenizer" in found[0]


async def test_another_tokenizer_is_not_excused_by_a_date():
    counter = dated("Today is 22 Nov 2026. Hi")
    server = Scripted(chat=(200, {"tokens": [1, 2, 3]}), text="Today is 1 May 2027. Hi", tokenizer=counter)
    [fault] = await faults(server, replace(EXPECTED, counter=counter))
    assert "a chat of one message is 3 tokens to the server and 6 to the catalog's" in fault


async def test_an_adapter_that_is_not_loaded_is_missed():
    [fault] = await faults(Scripted(), Expected(names=("m", "tuned"), context_limit=10))
    assert fault.startswith(
        "models: it serves m, not 'tuned'; load this adapter under that name, or take its deployment"
    )


async def test_embeddings_are_asked_for_a_vector_and_for_no_chat():
    server = Scripted(chat=(400, {}))
    assert await faults(server, Expected(names=("m",), context_limit=10, embeddings=True)) == []
    assert [set(body) for body in server.bodies] == [{"input", "cache_salt"}]


async def test_embeddings_that_are_refused_are_a_fault():
    [fault] = await faults(Scripted(salts=set()), Expected(names=("m",), context_limit=10, embeddings=True))
    assert "embeddings: it refuses a text (cache_salt is not supported)" in fault


async def test_a_busy_server_is_not_unfit():
    class Busy(Scripted):
        async def stream(self, body):
            raise EngineBusyError("full", status=429)
            yield

    with pytest.raises(EngineBusyError):
        await faults(Busy(), EXPECTED)


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
    assert len({body["prompt"] for body in server.bodies}) == EXPECTED.warm_up == 4
