"""A request as the fleet runs it, however it came in: a native job, a line of a batch file, or a call that waits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import orjson

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]

CHAT: Endpoint = "/v1/chat/completions"
COMPLETIONS: Endpoint = "/v1/completions"
EMBEDDINGS: Endpoint = "/v1/embeddings"
ENDPOINTS: tuple[Endpoint, ...] = (CHAT, COMPLETIONS, EMBEDDINGS)

DEFAULT_MAX_TOKENS = 256
"""The answer that routing plans for where the caller set no limit."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request for one completion. `body` is what an engine is sent, less `model` and streaming options;
    `input_field` is where the caller wrote the prompt. The last five are the caller's wishes for the job."""

    endpoint: Endpoint
    body: dict[str, Any]
    model: str
    needs: frozenset[str]
    input_field: str
    tier: str | None = None
    category: str | None = None
    custom_id: str | None = None
    metadata: dict[str, str] | None = None
    callback_url: str | None = None
    completion_window: timedelta | None = None

    @property
    def max_tokens(self) -> int:
        """Tokens that the answer may take: 0 for embeddings, and DEFAULT_MAX_TOKENS where no limit was set."""
        return 0 if self.endpoint == EMBEDDINGS else int(self.body.get("max_tokens", DEFAULT_MAX_TOKENS))

    @property
    def conversation(self) -> list[dict[str, Any]] | None:
        """The messages that go through a chat template; None for raw prompts."""
        return self.body.get("messages")

    @property
    def raw(self) -> list[str]:
        """Texts that are counted as they are: prompts, inputs, and the declarations of tools."""
        if self.endpoint == COMPLETIONS:
            return [self.body["prompt"]]
        if self.endpoint == EMBEDDINGS:
            given = self.body["input"]
            return [given] if isinstance(given, str) else given
        return [orjson.dumps(self.body["tools"]).decode()] if self.body.get("tools") else []

    def text(self) -> str:
        """What the caller wrote, for features."""
        if self.conversation is None:
            return "\n".join(self.raw)
        return "\n".join(m["content"] for m in self.conversation if m.get("content"))


def needs_of(body: dict[str, Any]) -> frozenset[str]:
    """The capabilities that a body asks of a deployment."""
    wanted = set()
    if (body.get("response_format") or {}).get("type") in ("json_schema", "json_object"):
        wanted.add("json_schema")
    if body.get("tools"):
        wanted.add("tools")
    if body.get("logprobs") not in (None, False):
        wanted.add("logprobs")
    return frozenset(wanted)
