"""An engine inside the worker's own process that answers at once: it measures everything around the engine."""

from __future__ import annotations

import asyncio
from typing import Any

from tieryard.engines import Delta, Done, Stream, Usage
from tieryard.engines.load import Load
from tieryard.engines.made_up import MadeUp, make_up
from tieryard.engines.vetting import Expected

_DIMENSIONS = 4


class InstantEngine:
    """Answers every prompt with one word after `delay_ms`, one under a JSON schema with what `made_up` makes of it, and
    every input with a vector that its length decides. Its prompt token count is the words that it was given."""

    url = None

    def __init__(self, *, delay_ms: float = 0) -> None:
        self._delay_s = delay_ms / 1000

    async def start(self) -> None:
        pass

    async def faults(self, expected: Expected) -> list[str]:  # noqa: ARG002  # there is nothing to doubt
        return []

    async def load(self) -> Load | None:
        return None

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None:
        pass

    async def stream(self, body: dict[str, Any]) -> Stream:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        texts = _texts(body)
        words = sum(len(text.split()) for text in texts)
        if "input" in body:
            size = body.get("dimensions") or _DIMENSIONS
            yield Delta("", extra={"embeddings": [[len(text) / (i + 1) for i in range(size)] for text in texts]})
            yield Done("stop", Usage(prompt_tokens=words, completion_tokens=0), "instant")
            return
        made = _made_up(body, texts)
        usage = Usage(prompt_tokens=words, completion_tokens=len(made.pieces))
        extra = {"logprobs": made.logprobs(body.get("top_logprobs") or 0)} if _wants_logprobs(body) else None
        yield Delta(made.text, usage, extra)
        yield Done("length" if made.cut else "stop", usage, "instant")


def _made_up(body: dict[str, Any], texts: list[str]) -> MadeUp:
    """One word, or what a JSON schema asks for, as far as `max_tokens` goes."""
    schema = (body.get("response_format") or {}).get("json_schema")
    if schema is None:
        return MadeUp(["done"], [[("done", 0.0)]])
    return make_up(schema.get("schema") or {}, "\n".join(texts)).shortened(body.get("max_tokens"))


def _wants_logprobs(body: dict[str, Any]) -> bool:
    return "messages" in body and bool(body.get("logprobs"))


def _texts(body: dict[str, Any]) -> list[str]:
    if "messages" in body:
        return [message["content"] for message in body["messages"]]
    given = body["prompt"] if "prompt" in body else body["input"]
    return [given] if isinstance(given, str) else given
