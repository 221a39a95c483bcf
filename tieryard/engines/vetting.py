"""Start-up checks of a vLLM server: is it the model that the catalog means, and does it answer as that model should?

A chat template that is missing or of another model, another tokenizer, a context cut short: none of them stops a
server from starting, and each gives wrong answers or refusals for as long as it runs. So they are looked for first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from tieryard.engines import Done, Recording, Stream
from tieryard.errors import EngineError
from tieryard.tokens import TokenCounter

CHAT_TEMPLATE, TOKENIZER, STOPS, STRUCTURED_OUTPUT = "chat_template", "tokenizer", "stops", "structured_output"

_HELLO = [{"role": "user", "content": "Reply with one short sentence: say hello."}]
_SAMPLE = "The yard moved 1,048,576 wagons — naïve? def f(x):\n\treturn x ** 2  # 東京 🚂"
_LABELS = ["yes", "no"]
_MARKER = re.compile(r"<\|[^|<>\s]+\|>|<(?:start|end)_of_turn>|</?s>|\[/?INST\]|<｜[^｜]+｜>")
_MOST_TOKENS = 512  # a greeting that is longer does not end by itself; reasoning comes before it
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
        STOPS: lambda: _stops(server, expected),
        STRUCTURED_OUTPUT: lambda: _structured(server, expected),
    }
    for name, check in checks.items():
        if name not in expected.unchecked:
            found += [f"{name}: {fault}" async for fault in check()]
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
    found = [f"models: it serves {served}, not '{name}'" for name in expected.names if name not in cards]
    limits = [card["max_model_len"] for card in cards.values() if isinstance(card.get("max_model_len"), int)]
    if limits and min(limits) < expected.context_limit:
        found.append(
            f"context: the catalog's context_limit is {expected.context_limit}, and the server takes {min(limits)} "
            "tokens; lower context_limit or start it with a larger max_model_len"
        )
    return found


async def _template(server: Server, expected: Expected) -> AsyncIterator[str]:
    """The server renders a chat, and every marker that its template writes is one token: those of another model's
    template fall apart into pieces of text."""
    body = {"model": expected.names[0], "messages": _HELLO, "add_generation_prompt": True, "return_token_strs": True}
    status, answer = await server.ask("/tokenize", body)
    if status != 200:
        yield f"the server cannot render a chat ({_said(status, answer)}); give it one with the flag chat_template"
        return
    tokens, pieces = answer.get("tokens") or [], answer.get("token_strs") or []
    status, answer = await server.ask("/detokenize", {"model": expected.names[0], "tokens": tokens})
    text = str(answer.get("prompt") or "") if status == 200 else ""
    broken = sorted({marker for marker in _MARKER.findall(text) if pieces and marker not in pieces})
    if broken:
        yield f"it writes {', '.join(broken)} which this tokenizer does not have as one token: it is another model's"
    ours = expected.counter.ids(_HELLO) if expected.counter is not None else None
    if TOKENIZER not in expected.unchecked and ours is not None and ours != tokens:
        yield (
            f"a chat of one message is {len(tokens)} tokens to the server and {len(ours)} to the catalog's tokenizer, "
            f"{_difference(ours, tokens)}; give both the same repository and revision"
        )


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


async def _stops(server: Server, expected: Expected) -> AsyncIterator[str]:
    """A greeting ends by itself: a wrong template or end token goes on until it is cut."""
    most = min(_MOST_TOKENS, expected.context_limit // 2)
    done = await _run(server, {"messages": _HELLO, "max_tokens": most, "temperature": 0})
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
    body = {"messages": _HELLO, "max_tokens": 32, "temperature": 0, "response_format": wanted}
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
    await _run(server, {"input": _SAMPLE}, recording)
    return [] if recording.extra and recording.extra.get("embeddings") else ["embeddings: a text gave no vector"]


async def _run(server: Server, body: dict[str, Any], recording: Recording | None = None) -> Done:
    """One request to its end. Raises EngineError."""
    recording = recording or Recording()
    async for event in server.stream(body):
        recording.add(event)
    if recording.done is None:
        raise EngineError("a stream ended without its end")
    return recording.done


def _difference(ours: list[int], theirs: list[int]) -> str:
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return f"from token {first + 1} on"


def _said(status: int, answer: dict[str, Any]) -> str:
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return f"HTTP {status}: {str(message)[:200]}" if message else f"HTTP {status}"
