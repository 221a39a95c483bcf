"""A request as the fleet runs it, however it came in: a native job, a line of a batch file, or a call that waits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal

import orjson

from tieryard.requests.slo import Slo

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]

CHAT: Endpoint = "/v1/chat/completions"
COMPLETIONS: Endpoint = "/v1/completions"
EMBEDDINGS: Endpoint = "/v1/embeddings"
ENDPOINTS: tuple[Endpoint, ...] = (CHAT, COMPLETIONS, EMBEDDINGS)

DEFAULT_MAX_TOKENS = 256
"""The answer that routing plans for where the caller set no limit."""

_PREFIX_BYTES = 256
"""About 64 tokens. Engines cache whole blocks of 16 and more, so a shorter prompt has little to share."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request for one completion. `body` is what an engine is sent, less `model` and streaming options;
    `input_field` is where the caller wrote the prompt. What follows it are the caller's wishes for the job."""

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
    prompt_cache_key: str | None = None
    slo: Slo | None = None
    max_cost_usd: Decimal | None = None

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

    def prefix_key(self, tenant_id: int) -> int:
        """32 bits that two requests share when an engine's prefix cache may serve one with what the other left there,
        0 for none: the caller's own key, else the first bytes of what the model reads. Tenants never share one."""
        if self.endpoint == EMBEDDINGS:
            return 0
        if self.prompt_cache_key:
            begins = b"key:" + self.prompt_cache_key.encode(errors="surrogatepass")
        else:
            begins = b"text:" + b"".join(_first_bytes(self._as_read(), _PREFIX_BYTES))
            if len(begins) < len(b"text:") + _PREFIX_BYTES:
                return 0
        return _hashed(begins, tenant_id, 4) or 1

    def salted(self, tenant_id: int) -> dict[str, Any]:
        """The body with the tenant's salt for prefix caches: without it the time to a first token would tell one tenant
        whether another has sent the same text. Callers cannot name a salt, so it need not be a secret."""
        return {**self.body, "cache_salt": f"{_hashed(b'salt', tenant_id, 16):032x}"}

    def _as_read(self) -> Iterator[str]:
        """Roles and contents in order, after the declarations of tools, as templates put them; or the raw prompt."""
        yield from self.raw
        for message in self.conversation or ():
            yield from (message["role"], "\n", message.get("content") or "", "\n")

    def text(self) -> str:
        """What the caller wrote, for features."""
        if self.conversation is None:
            return "\n".join(self.raw)
        return "\n".join(m["content"] for m in self.conversation if m.get("content"))


def _first_bytes(texts: Iterator[str], most: int) -> Iterator[bytes]:
    for text in texts:
        piece = text[:most].encode(errors="surrogatepass")[:most]  # a character has a byte or more
        yield piece
        most -= len(piece)
        if most == 0:
            return


def _hashed(data: bytes, tenant_id: int, size: int) -> int:
    digest = hashlib.blake2b(data, digest_size=size, key=tenant_id.to_bytes(8, "big"))
    return int.from_bytes(digest.digest(), "big")


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
