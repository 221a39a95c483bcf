"""Start-up checks of a vLLM server: is it the model that the catalog means, and does it answer as that model should?

A chat template that is missing or of another model, another tokenizer, a context cut short: none of them stops a
server from starting, and each gives wrong answers or refusals for as long as it runs. So they are looked for first.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from tieryard.engines import Done, Recording, Stream
from tieryard.errors import EngineError
from tieryard.tokens import TokenCounter

CHAT_TEMPLATE, TOKENIZER, ISOLATION = "chat_template", "tokenizer", "isolation"
STOPS, STRUCTURED_OUTPUT = "stops", "structured_output"

_HELLO = [{"role": "user", "content": "Reply with one short sentence: say hello."}]
_SAMPLE = "The yard moved 1,048,576 wagons — naïve? def f(x):\n\treturn x ** 2  # 東京 🚂"
_LABELS = ["yes", "no"]
_ADAPTER = "; load this adapter under that name, or take its deployment out of the catalog"
# Only those that are one token wherever they are used: `[INST]` and `<|user|>` are plain text to the models of some.
_MARKER = re.compile(r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id)\|>|<(?:start|end)_of_turn>")
DATE = re.compile(r"\d+|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)[a-z]*", re.I)
_MOST_TOKENS = 512  # a greeting that is longer does not end by itself; reasoning comes before it
_LONG_WORDS = 400  # a prefix cache holds whole blocks, of up to 128 tokens
_WARM_UP_TOKENS = 8


class Server(Protocol):
    """What the checks need of an engine."""

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """(HTTP status, JSON object) of one question beside the completions. Raises EngineError."""
        ...

    def stream(self, body: dict[str, Any]) -> Stream: ...


@dataclass(frozen=True, slots=True)
class Expected:
    """What the catalog says of a deployment. `names` are what the server must serve: the model, then its adapters."""

    names: tuple[str, ...]
    context_limit: int
    embeddings: bool = False
    json_schema: bool = False
    counter: TokenCounter | None = None
    unchecked: frozenset[str] = frozenset()
    warm_up: int = 4


async def faults(server: Server, expected: Expected) -> list[str]:
    """Runs the checks: a sentence for each that failed, none when it may serve. Raises EngineError when it is down."""
    found = await _listing(server, expected)
    if found:
        return found
    if expected.embeddings:
        return await _embeds(server)
    checks: dict[str, Callable[[], AsyncIterator[str]]] = {
        CHAT_TEMPLATE: lambda: _template(server, expected),
        TOKENIZER: lambda: _tokenizer(server, expected),
        ISOLATION: lambda: _isolation(server, expected),
        STOPS: lambda: _stops(server, expected),
        STRUCTURED_OUTPUT: lambda: _structured(server, expected),
    }
    pointless: tuple[str, ...] = ()
    for name, check in checks.items():
        if name in expected.unchecked or name in pointless:
            continue
        its_own = [f"{name}: {fault}" async for fault in check()]
        if its_own and name in (CHAT_TEMPLATE, ISOLATION):
            pointless = (ISOLATION, STOPS, STRUCTURED_OUTPUT)  # their chats would only repeat it in other words
        found += its_own
    return found


async def warm_up(server: Server, expected: Expected) -> None:
    """Sends a few requests at once, each with a prompt of its own. The first ones of a server pay for what it compiles
    or allocates on first use; they are nobody's, so that no job pays. Raises EngineError."""
    if expected.embeddings:
        bodies: Iterable[dict[str, Any]] = ({"input": f"{i} {_SAMPLE}"} for i in range(expected.warm_up))
    else:
        bodies = (
            {"prompt": f"{i} {_SAMPLE}", "max_tokens": min(_WARM_UP_TOKENS, expected.context_limit // 2)}
            for i in range(expected.warm_up)
        )
    await asyncio.gather(*(_run(server, body) for body in bodies))


async def _listing(server: Server, expected: Expected) -> list[str]:
    status, answer = await server.ask("/v1/models")
    cards = {card.get("id"): card for card in answer.get("data") or () if isinstance(card, dict)}
    if status != 200 or not cards:
        return [f"/v1/models: HTTP {status} without models"]
    served = ", ".join(map(str, cards))
    # A missing adapter keeps its host from serving too, whose infer process would be sent the adapter's jobs.
    found = [
        f"models: it serves {served}, not '{name}'{_ADAPTER if number else ''}"
        for number, name in enumerate(expected.names)
        if name not in cards
    ]
    limits = [card["max_model_len"] for card in cards.values() if isinstance(card.get("max_model_len"), int)]
    if limits and min(limits) < expected.context_limit:
        found.append(
            f"context: the catalog's context_limit is {expected.context_limit}, and the server takes {min(limits)} "
            "tokens; lower context_limit or start it with a larger max_model_len"
        )
    return found


async def _template(server: Server, expected: Expected) -> AsyncIterator[str]:
    """The server renders a chat as the catalog's tokenizer does. Where that is not known, the markers that its template
    writes are one token each: those of another model's template fall apart into pieces of text."""
    body = {"model": expected.names[0], "messages": _HELLO, "add_generation_prompt": True, "return_token_strs": True}
    status, answer = await server.ask("/tokenize", body)
    if status != 200:
        yield f"the server cannot render a chat ({_said(status, answer)}); give it one with the flag chat_template"
        return
    tokens, pieces = answer.get("tokens") or [], answer.get("token_strs") or []
    counter = expected.counter if TOKENIZER not in expected.unchecked else None
    ours = counter.ids(_HELLO) if counter is not None else None
    if ours == tokens:
        return
    status, answer = await server.ask("/detokenize", {"model": expected.names[0], "tokens": tokens})
    text = str(answer.get("prompt") or "") if status == 200 else ""
    if counter is not None and ours is not None:
        if _differs_in_dates(counter, text, tokens):
            return
        yield (
            f"a chat of one message is {len(tokens)} tokens to the server and {len(ours)} to the catalog's tokenizer, "
            f"{_difference(ours, tokens)}; give both the same repository and revision"
        )
    broken = sorted({marker for marker in _MARKER.findall(text) if pieces and marker not in pieces})
    if broken:
        yield f"it writes {', '.join(broken)} which this tokenizer does not have as one token: it is another model's"


def _differs_in_dates(counter: TokenCounter, text: str, tokens: list[int]) -> bool:
    """Whether the server's rendering of the greeting is ours but for dates. Some templates write today's, and its clock
    or time zone may be another. The text must still be the same tokens to both, so that only the dates are let pass."""
    ours = counter.rendered(_HELLO)
    return ours is not None and counter.raw_ids(text) == tokens and DATE.sub("", text) == DATE.sub("", ours)


async def _tokenizer(server: Server, expected: Expected) -> AsyncIterator[str]:
    """The server's tokens of a text are the catalog's, where the catalog names a tokenizer."""
    ours = expected.counter.raw_ids(_SAMPLE) if expected.counter is not None else None
    if ours is None:
        return
    body = {"model": expected.names[0], "prompt": _SAMPLE, "add_special_tokens": False}
    status, answer = await server.ask("/tokenize", body)
    if status != 200:
        yield f"the server does not tokenise ({_said(status, answer)})"
    elif (theirs := answer.get("tokens") or []) != ours:
        yield (
            f"a text of {len(ours)} tokens by the catalog's tokenizer is {len(theirs)} to the server, "
            f"{_difference(ours, theirs)}; give both the same repository and revision"
        )


async def _isolation(server: Server, expected: Expected) -> AsyncIterator[str]:
    """What one tenant has sent stays unknown to another: a prompt that comes again with another salt finds nothing in
    the prefix cache. It can only be seen where the server says what it had cached."""
    text = "yard " * min(_LONG_WORDS, expected.context_limit // 6)
    for kind, body in (("chat", {"messages": [{"role": "user", "content": text}]}), ("raw prompt", {"prompt": text})):
        try:
            await _run(server, {**body, "max_tokens": 1, "temperature": 0})
            done = await _run(server, {**body, "max_tokens": 1, "temperature": 0})
        except EngineError as error:
            if not _refused(error):
                raise
            yield (
                f"it refuses a {kind} with cache_salt, as every job has it ({error.message[:200]}); take a vLLM that "
                "knows it there, which those of the V0 engine do not"
            )
            return
        if done.usage.cached_tokens:
            yield (
                f"a {kind} found {done.usage.cached_tokens} tokens in the prefix cache that came with another "
                "cache_salt, so that tenants could find out what others send; take a newer vLLM, or set "
                "enable_prefix_caching: false"
            )


async def _stops(server: Server, expected: Expected) -> AsyncIterator[str]:
    """A greeting ends by itself: a wrong template or end token goes on until it is cut."""
    most = _most_tokens(expected)
    try:
        done = await _run(server, {"messages": _HELLO, "max_tokens": most, "temperature": 0})
    except EngineError as error:
        if not _refused(error):
            raise
        yield f"it refuses a greeting ({error.message[:200]}); mend that, or every chat will fail"
        return
    if done.finish_reason != "stop":
        yield (
            f"a greeting did not end within {most} tokens: the chat template or the end-of-turn token is not this "
            "model's, or it is a base model"
        )


async def _structured(server: Server, expected: Expected) -> AsyncIterator[str]:
    if not expected.json_schema:
        return
    wanted = {"type": "json_schema", "json_schema": {"name": "label", "schema": {"type": "string", "enum": _LABELS}}}
    recording = Recording()
    most = _most_tokens(expected)  # as many as without a schema, which only holds once reasoning has ended
    body = {"messages": _HELLO, "max_tokens": most, "temperature": 0, "response_format": wanted}
    try:
        await _run(server, body, recording)
        answer = orjson.loads(recording.text)
    except EngineError as error:
        if not error.status:
            raise
        yield f"it refuses a JSON schema ({error.message[:200]}); take json_schema out of capabilities"
        return
    except orjson.JSONDecodeError:
        answer = None
    if answer not in _LABELS:
        yield f"asked for one of {_LABELS} it answered {recording.text[:40]!r}; take json_schema out of capabilities"


async def _embeds(server: Server) -> list[str]:
    recording = Recording()
    try:
        await _run(server, {"input": _SAMPLE}, recording)
    except EngineError as error:
        if not _refused(error):
            raise
        return [f"embeddings: it refuses a text ({error.message[:200]}); start it as a model for embeddings"]
    return [] if recording.extra and recording.extra.get("embeddings") else ["embeddings: a text gave no vector"]


async def _run(server: Server, body: dict[str, Any], recording: Recording | None = None) -> Done:
    """One request to its end, salted as jobs are. Raises EngineError."""
    recording = recording or Recording()
    async for event in server.stream({"cache_salt": _salt(), **body}):
        recording.add(event)
    if recording.done is None:
        raise EngineError("a stream ended without its end")
    return recording.done


def _salt() -> str:
    """One that nobody has used: the cache may hold what earlier checks left there."""
    return secrets.token_hex(16)


def _refused(error: EngineError) -> bool:
    """Whether the server refuses such a request each time; else it is down, or busy."""
    return error.status is not None and 400 <= error.status < 500 and error.status not in (408, 429)


def _most_tokens(expected: Expected) -> int:
    return min(_MOST_TOKENS, expected.context_limit // 2)


def _difference(ours: list[int], theirs: list[int]) -> str:
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return f"from token {first + 1} on"


def _said(status: int, answer: dict[str, Any]) -> str:
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return f"HTTP {status}: {str(message)[:200]}" if message else f"HTTP {status}"
