"""Answers in OpenAI's shapes: whole, and as the chunks of a stream. One place makes them, for calls and for files."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tieryard.engines import Usage
from tieryard.requests import CHAT, EMBEDDINGS, Endpoint

_PREFIX: dict[str, str] = {CHAT: "chatcmpl"}
_MESSAGE_EXTRAS = ("tool_calls", "reasoning_content")


@dataclass(frozen=True, slots=True)
class Answer:
    """A job's answer. `model` is the deployment that gave it; `extra` is what is not text (`result.extra`)."""

    endpoint: Endpoint
    job: str
    created: datetime
    model: str
    text: str
    finish_reason: str
    usage: Usage
    extra: dict[str, Any] | None = None
    fingerprint: str | None = None

    def body(self, *, base64_embeddings: bool = False) -> dict[str, Any]:
        """The whole answer."""
        extra = self.extra or {}
        if self.endpoint == EMBEDDINGS:
            vectors = extra.get("embeddings") or []
            data = [
                {"object": "embedding", "index": i, "embedding": _packed(v) if base64_embeddings else v}
                for i, v in enumerate(vectors)
            ]
            usage = {"prompt_tokens": self.usage.prompt_tokens, "total_tokens": self.usage.prompt_tokens}
            return {"object": "list", "data": data, "model": self.model, "usage": usage}
        choice: dict[str, Any] = {"index": 0}
        if self.endpoint == CHAT:
            more = {name: extra[name] for name in _MESSAGE_EXTRAS if name in extra}
            content = self.text if self.text or "tool_calls" not in extra else None
            choice["message"] = {"role": "assistant", "content": content, "refusal": None, **more}
        else:
            choice["text"] = self.text
        choice |= {"logprobs": extra.get("logprobs"), "finish_reason": self.finish_reason}
        return {
            "id": answer_id(self.endpoint, self.job),
            "object": "chat.completion" if self.endpoint == CHAT else "text_completion",
            "created": int(self.created.timestamp()),
            "model": self.model,
            "choices": [choice],
            "usage": usage_body(self.usage),
            "system_fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, slots=True)
class Chunks:
    """Makes the chunks of one stream. `model` may change until the first token, when a call is routed again."""

    endpoint: Endpoint
    job: str
    created: datetime
    with_usage: bool

    def first(self, model: str) -> dict[str, Any] | None:
        """The chunk that says who speaks; plain completions have none."""
        if self.endpoint != CHAT:
            return None
        return self._chunk(model, {"delta": {"role": "assistant", "content": ""}, "logprobs": None})

    def piece(self, model: str, text: str, extra: dict[str, Any] | None) -> dict[str, Any]:
        more = extra or {}
        logprobs = more.get("logprobs")
        if self.endpoint != CHAT:
            return self._chunk(model, {"text": text, "logprobs": logprobs})
        delta = {name: more[name] for name in _MESSAGE_EXTRAS if name in more}
        if text or not delta:
            delta["content"] = text
        return self._chunk(model, {"delta": delta, "logprobs": logprobs})

    def last(self, model: str, finish_reason: str) -> dict[str, Any]:
        end: dict[str, Any] = {"delta": {}} if self.endpoint == CHAT else {"text": ""}
        return self._chunk(model, {**end, "logprobs": None}, finish_reason)

    def usage(self, model: str, usage: Usage) -> dict[str, Any]:
        return {**self._chunk(model, None), "usage": usage_body(usage)}

    def _chunk(self, model: str, choice: dict[str, Any] | None, finish_reason: str | None = None) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": answer_id(self.endpoint, self.job),
            "object": "chat.completion.chunk" if self.endpoint == CHAT else "text_completion",
            "created": int(self.created.timestamp()),
            "model": model,
            "choices": [] if choice is None else [{"index": 0, **choice, "finish_reason": finish_reason}],
        }
        return {**chunk, "usage": None} if self.with_usage else chunk


def answer_id(endpoint: Endpoint, job: str) -> str:
    return f"{_PREFIX.get(endpoint, 'cmpl')}-{job}"


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _packed(vector: list[float]) -> str:
    """Little-endian 32-bit floats in base64, as OpenAI's client asks for them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
