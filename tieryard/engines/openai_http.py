"""Any OpenAI-compatible server over HTTP, on httpx with aiohttp's connection pool beneath it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from tieryard.engines import Delta, Done, Stream, Usage
from tieryard.errors import (
    BadRequestError,
    ContextLengthError,
    EngineBusyError,
    EngineDownError,
    EngineError,
    EngineTimeoutError,
)

# What each server takes to say, while it streams, how many tokens it has made so far.
_RUNNING_USAGE: dict[str, dict[str, Any]] = {
    "vllm": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "llama_cpp": {"stream_options": {"include_usage": True}, "timings_per_token": True},
    "openai": {"stream_options": {"include_usage": True}},
}


class OpenAIHttpEngine:
    """Streams chat completions from `url`."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        server: str = "vllm",
        key: str | None = None,
        connections: int = 512,
        read_timeout_s: float = 120.0,
    ) -> None:
        self.url = url.rstrip("/")
        self._model = model
        self._options = _RUNNING_USAGE[server]
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._connections = connections
        self._timeout = httpx.Timeout(connect=5.0, read=read_timeout_s, write=30.0, pool=None)
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Waits until the server answers. Raises EngineDownError after 30 s of refusals."""
        for pause_s in (0.05, 0.1, 0.2, 0.4, 0.8, *[1.0] * 28):
            if await self.healthy():
                return
            await asyncio.sleep(pause_s)
        raise EngineDownError(f"no answer from {self.url}/v1/models in 30 s")

    async def healthy(self) -> bool:
        try:
            answer = await self._http().get(f"{self.url}/v1/models", timeout=2.0)
        except httpx.HTTPError:
            return False
        return answer.is_success

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def stream(self, body: dict[str, Any]) -> Stream:
        request = {"model": self._model, **body, **self._options, "stream": True, "n": 1}
        finish_reason, usage, fingerprint = None, None, None
        async with self._open(request) as response:
            async for chunk in _events(response):
                if error := chunk.get("error"):
                    raise _translate(chunk, int(error.get("code") or 500) if isinstance(error, dict) else 500)
                fingerprint = chunk.get("system_fingerprint") or fingerprint
                usage = _usage(chunk) or usage
                for choice in chunk.get("choices") or ():
                    finish_reason = choice.get("finish_reason") or finish_reason
                    text = (choice.get("delta") or {}).get("content")
                    if text:
                        yield Delta(text, _running_count(chunk))
        if usage is None or finish_reason is None:
            raise EngineDownError("the stream ended without a finish reason and usage")
        yield Done(finish_reason, usage, fingerprint)

    def _http(self) -> httpx.AsyncClient:
        """Made on first use: aiohttp's connector wants a running loop."""
        if self._client is None:
            limits = httpx.Limits(max_connections=self._connections, keepalive_expiry=30)
            transport = AiohttpTransport(limits=limits, trust_env=False)
            self._client = httpx.AsyncClient(transport=transport, headers=self._headers, timeout=self._timeout, trust_env=False)
        return self._client

    @contextlib.asynccontextmanager
    async def _open(self, request: dict[str, Any]) -> AsyncIterator[httpx.Response]:
        """One POST, its failures translated. Leaving it early closes the connection, which aborts the request."""
        try:
            async with self._http().stream(
                "POST",
                f"{self.url}/v1/chat/completions",
                content=orjson.dumps(request),
                headers={"content-type": "application/json"},
            ) as response:
                if response.status_code != 200:
                    raise _translate(_json(await response.aread()), response.status_code, response.headers)
                yield response
        except httpx.TimeoutException as error:
            raise EngineTimeoutError(f"{type(error).__name__} from {self.url}") from error
        except (httpx.TransportError, aiohttp.ClientError, OSError) as error:
            raise EngineDownError(f"{type(error).__name__} from {self.url}: {error}") from error


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to `[DONE]`."""
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        try:
            yield orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise EngineDownError(f"the stream broke off in the middle of an event: {error}") from error


def _usage(chunk: dict[str, Any]) -> Usage | None:
    found = chunk.get("usage")
    if not found:
        return None
    details = found.get("prompt_tokens_details") or {}
    return Usage(
        int(found.get("prompt_tokens") or 0),
        int(found.get("completion_tokens") or 0),
        int(details.get("cached_tokens") or 0),
    )


def _running_count(chunk: dict[str, Any]) -> int | None:
    if usage := chunk.get("usage"):
        return int(usage.get("completion_tokens") or 0)
    if timings := chunk.get("timings"):
        return int(timings.get("predicted_n") or 0)
    return None


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _translate(body: dict[str, Any], status: int, headers: httpx.Headers | None = None) -> EngineError:
    """The one place where a server's refusal becomes ours. Servers word it differently; all give a status."""
    error = body.get("error")
    detail = error if isinstance(error, dict) else body
    message = str(detail.get("message") or error or f"HTTP {status}")[:500]
    kind = f"{detail.get('type') or ''} {detail.get('code') or ''} {message}".lower()
    if status in (429, 503) or "overloaded" in kind:
        wait = headers.get("retry-after", "") if headers else ""
        return EngineBusyError(message, status=status, retry_after_s=float(wait) if wait.isdigit() else None)
    if status == 408:
        return EngineTimeoutError(message, status=status)
    if status >= 500:
        return EngineDownError(message, status=status)
    if "context" in kind and ("length" in kind or "size" in kind):
        return ContextLengthError(message, status=status)
    return BadRequestError(message, status=status)
