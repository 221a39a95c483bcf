"""Any OpenAI-compatible server over HTTP, on httpx with aiohttp's connection pool beneath it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import accumulate
from typing import Any

import aiohttp
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from tieryard.catalog import OWN_SERVERS
from tieryard.engines import Delta, Done, Stream, Usage, vetting
from tieryard.engines.load import Load, read_load
from tieryard.engines.sse import events, parts
from tieryard.engines.vetting import Expected
from tieryard.errors import (
    BadRequestError,
    ContextLengthError,
    EngineBusyError,
    EngineDownError,
    EngineError,
    EngineTimeoutError,
)
from tieryard.requests import CHAT, COMPLETIONS, EMBEDDINGS, Endpoint

# What each server takes to say, while it streams, how many tokens it has made so far.
_RUNNING_USAGE: dict[str, dict[str, Any]] = {
    "vllm": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "llama_cpp": {"stream_options": {"include_usage": True}, "timings_per_token": True},
    "openai": {"stream_options": {"include_usage": True}},
    "mistral": {},  # says it unasked, and refuses what it does not know
}
_OPENAI_HOSTS = ("api.openai.com", ".openai.azure.com")
# llama.cpp closes the connection after each stream and does not say so; a request sent on it again would be lost.
_HEADERS: dict[str, dict[str, str]] = {"llama_cpp": {"connection": "close"}}
_TOO_LARGE = re.compile(r"input \(\d+ tokens\) is too large to process")  # llama.cpp's words, with a 500
_VECTOR = re.compile(rb'"embedding"\s*:\s*(\[[^][{}"]*\])')
_LARGE_BYTES = 2**20  # of a body: below, reading it takes a few milliseconds
_NO_KEY = (401, 403)
_HOSTED_S = 5.0
_ASIDE_S = 10.0  # for a question beside the completions
_KEEPALIVE_S = 4.0  # below uvicorn's 5 s, or the server may close a connection just as a request goes out on it


class OpenAIHttpEngine:
    """Chats, plain completions and embeddings from `url`. What is generated is streamed."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        server: str = "vllm",
        key: str | None = None,
        missing: str = "",
        connections: int = 512,
        read_timeout_s: float = 120.0,
    ) -> None:
        self.url = url.rstrip("/")
        self._missing = missing
        self._model = model
        self.server = server
        self._options = _RUNNING_USAGE[server]
        # OpenAI's newer models refuse the older name; most servers that speak its protocol know no other.
        self._renames_limit = server == "openai" and (httpx.URL(url).host or "").endswith(_OPENAI_HOSTS)
        self._headers = _HEADERS.get(server, {}) | ({"authorization": f"Bearer {key}"} if key else {})
        self._connections = connections
        self._timeout = httpx.Timeout(connect=5.0, read=read_timeout_s, write=30.0, pool=None)
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Waits until the server answers. Raises EngineDownError after 30 s of refusals, or for want of its key."""
        self._check_key()
        last = "no answer"
        try:
            async with asyncio.timeout(30):
                while True:
                    served, last = await self._served()
                    if served is not None:
                        break
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise EngineDownError(f"{self.url}/v1/models: {last} for 30 s", sent=False) from None
        if self.server != "llama_cpp" and served and self._model not in served:  # llama.cpp answers to any name
            raise EngineDownError(f"{self.url} serves {', '.join(sorted(served)[:5])}, not '{self._model}'", sent=False)

    def _check_key(self) -> None:
        if self._missing:
            raise EngineDownError(self._missing, sent=False)

    async def healthy(self) -> bool:
        return (await self._served())[0] is not None

    async def _served(self) -> tuple[set[str] | None, str]:
        """The names of the models served, empty where the server does not say; None, and why, when it is not well."""
        hosted = self.server not in OWN_SERVERS
        try:
            answer = await self._http().get(f"{self.url}/v1/models", timeout=_HOSTED_S if hosted else 2.0)
            if hosted and answer.status_code in _NO_KEY:  # its list may want another kind of key than its completions
                nothing = {"model": self._model, "messages": []}
                answer = await self._http().post(f"{self.url}{CHAT}", json=nothing, timeout=_HOSTED_S)
        except (httpx.HTTPError, RuntimeError) as error:
            return None, type(error).__name__
        if not answer.is_success:
            # A hosted API that lists no models, or not so often, is well; one that refuses the key is not.
            spared = hosted and answer.status_code < 500 and answer.status_code not in _NO_KEY
            return (set() if spared else None), f"HTTP {answer.status_code}"
        listed = _json(answer.content).get("data")
        return {str(m.get("id")) for m in listed if isinstance(m, dict)} if isinstance(listed, list) else set(), "ok"

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """(HTTP status, JSON object) of one question beside the completions. Raises EngineDownError."""
        try:
            if body is None:
                answer = await self._http().get(f"{self.url}{path}", timeout=_ASIDE_S)
            else:
                answer = await self._http().post(f"{self.url}{path}", json=body, timeout=_ASIDE_S)
        except (httpx.HTTPError, RuntimeError) as error:
            raise EngineDownError(f"{path}: {_named(error)}", sent=False) from error
        return answer.status_code, _json(answer.content)

    async def faults(self, expected: Expected) -> list[str]:
        if self.server != "vllm":
            return []
        found = await vetting.faults(self, expected)
        if not found:
            await vetting.warm_up(self, expected)
        return found

    async def load(self) -> Load | None:
        if self.server != "vllm":
            return None
        try:
            answer = await self._http().get(f"{self.url}/metrics", timeout=2.0)
        except (httpx.HTTPError, RuntimeError):
            return None
        return read_load(answer.text) if answer.is_success else None

    def stream(self, body: dict[str, Any]) -> Stream:
        if self.server != "vllm":
            body = {name: value for name, value in body.items() if name != "cache_salt"}
        if "input" in body:
            return self._embed(body)
        return self._generate(CHAT if "messages" in body else COMPLETIONS, body)

    async def _generate(self, endpoint: Endpoint, body: dict[str, Any]) -> Stream:
        request = {"model": self._model, **body, **self._options, "stream": True, "n": 1}
        if self._renames_limit and endpoint == CHAT and "max_tokens" in request:
            request["max_completion_tokens"] = request.pop("max_tokens")
        if self.server == "llama_cpp" and endpoint == COMPLETIONS:
            request |= _llama_cpp_schema(body)
        finish_reason, usage, fingerprint, model, written = None, None, None, None, 0
        async with self._open(endpoint, request) as response, contextlib.aclosing(events(response)) as chunks:
            async for chunk in chunks:
                if error := chunk.get("error"):
                    raise _translate(chunk, _status(error))
                fingerprint = chunk.get("system_fingerprint") or fingerprint
                model = chunk.get("model") or model
                running = _usage(chunk)
                usage = running if chunk.get("usage") else usage
                for choice in chunk.get("choices") or ():
                    finish_reason = choice.get("finish_reason") or finish_reason
                    text, extra = _piece(choice, written if endpoint == COMPLETIONS else None)
                    written += len(text)
                    if text or extra:
                        yield Delta(text, running, extra)
        if usage is None or finish_reason is None:
            raise EngineDownError("the stream ended without a finish reason and usage")
        yield Done(finish_reason, usage, fingerprint, model)

    async def _embed(self, body: dict[str, Any]) -> Stream:
        request = {"model": self._model, **body, "encoding_format": "float"}
        async with self._open(EMBEDDINGS, request) as response:
            raw = b"".join([part async for part in parts(response)])
        answer = await asyncio.to_thread(_read_vectors, raw) if len(raw) > _LARGE_BYTES else _json(raw)
        if error := answer.get("error"):
            raise _translate(answer, _status(error))
        vectors, usage = _vectors(answer, 1 if isinstance(body["input"], str) else len(body["input"]))
        size = body.get("dimensions")
        if size is not None and len(vectors[0]) != size:  # llama.cpp takes no notice of what it cannot do
            raise BadRequestError(f"the model gives {len(vectors[0])} dimensions and cannot give {size}")
        yield Delta("", extra={"embeddings": vectors})
        yield Done("stop", usage, answer.get("system_fingerprint"), answer.get("model"))

    def _http(self) -> httpx.AsyncClient:
        """Made on first use: aiohttp's connector wants a running loop."""
        if self._client is None:
            limits = httpx.Limits(max_connections=self._connections, keepalive_expiry=_KEEPALIVE_S)
            transport = AiohttpTransport(limits=limits, trust_env=False)
            self._client = httpx.AsyncClient(
                transport=transport, headers=self._headers, timeout=self._timeout, trust_env=False
            )
        return self._client

    @contextlib.asynccontextmanager
    async def _open(self, endpoint: Endpoint, request: dict[str, Any]) -> AsyncIterator[httpx.Response]:
        """One POST, its failures translated. Leaving it early closes the connection, which aborts the request."""
        self._check_key()
        try:
            async with self._http().stream(
                "POST",
                f"{self.url}{endpoint}",
                content=orjson.dumps(request),
                headers={"content-type": "application/json"},
            ) as response:
                if response.status_code != 200:
                    raise _translate(_json(await response.aread()), response.status_code, response.headers)
                yield response
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            # httpx-aiohttp calls every refused or lost connection a ConnectTimeout; aiohttp's own error knows better.
            real = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
            message = _named(real)
            if isinstance(real, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | httpx.ConnectTimeout):
                raise EngineDownError(message, sent=False) from error
            if isinstance(real, httpx.TimeoutException | TimeoutError):
                raise EngineTimeoutError(message) from error
            raise EngineDownError(message) from error


def _named(error: Exception) -> str:
    """Without an address: this is kept with the job's start, whose story its tenant may read."""
    number = error.errno if isinstance(error, OSError) else None
    return f"{type(error).__name__}: {os.strerror(number)}" if number and number > 0 else type(error).__name__


def _piece(choice: dict[str, Any], offset: int | None) -> tuple[str, dict[str, Any] | None]:
    """What a chunk's choice adds: its text, and what is not text. `offset` is None in a chat."""
    delta = choice.get("delta") or {}
    logprobs = choice.get("logprobs") or {}
    if offset is not None and "content" in logprobs:
        logprobs = _plain_logprobs(logprobs["content"] or [], offset)
    found = {
        "tool_calls": delta.get("tool_calls"),
        "logprobs": logprobs if any(logprobs.values()) else None,
        "reasoning_content": delta.get("reasoning_content") or delta.get("reasoning"),  # as newer vLLM says
    }
    extra = {name: value for name, value in found.items() if value}
    return delta.get("content") or choice.get("text") or "", extra or None


def _plain_logprobs(items: list[dict[str, Any]], offset: int) -> dict[str, list[Any]]:
    """llama.cpp gives plain completions a chat's logprobs; OpenAI's and vLLM's are lists side by side."""
    tokens = [item["token"] for item in items]
    return {
        "tokens": tokens,
        "token_logprobs": [item["logprob"] for item in items],
        "top_logprobs": [{top["token"]: top["logprob"] for top in item.get("top_logprobs") or ()} for item in items],
        "text_offset": list(accumulate(map(len, tokens), initial=offset))[:-1],
    }


def _llama_cpp_schema(body: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp overlooks `response_format` beside a raw prompt, and has a member of its own."""
    wanted = body.get("response_format") or {"type": "text"}
    match wanted.get("type"):
        case "text":
            return {}
        case "json_object":
            return {"json_schema": {"type": "object"}}
        case "json_schema":
            return {"json_schema": (wanted.get("json_schema") or {}).get("schema") or {}}
    raise BadRequestError("response_format.type must be one of 'text', 'json_object' and 'json_schema'", status=400)


def _vectors(answer: dict[str, Any], count: int) -> tuple[list[list[float]], Usage]:
    """An answer's vectors in the order of the inputs. Raises EngineDownError when they are not all there."""
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = [row["embedding"] for row in rows]
        usage = Usage(int(answer["usage"]["prompt_tokens"]), 0)
        whole = [row["index"] for row in rows] == list(range(count))
    except (KeyError, TypeError, ValueError) as error:
        raise EngineDownError(f"an answer without vectors or usage: {type(error).__name__} {error}") from error
    if not whole or not all(isinstance(vector, list) and vector for vector in vectors):
        raise EngineDownError(f"an answer that has no vector for each of {count} inputs")
    return vectors, usage


def _usage(chunk: dict[str, Any]) -> Usage | None:
    """The chunk's usage; llama.cpp gives its running count as `timings`."""
    found = chunk.get("usage")
    if not found:
        timings = chunk.get("timings")
        if not timings:
            return None
        cached = int(timings.get("cache_n") or 0)
        return Usage(cached + int(timings.get("prompt_n") or 0), int(timings.get("predicted_n") or 0), cached)
    details = found.get("prompt_tokens_details") or {}
    return Usage(
        int(found.get("prompt_tokens") or 0),
        int(found.get("completion_tokens") or 0),
        int(details.get("cached_tokens") or 0),
    )


def _read_vectors(body: bytes) -> dict[str, Any]:
    """A large answer with embeddings, vector by vector: orjson keeps the interpreter to itself while it reads, in a
    thread too, so that a whole one would stop every other call for seconds."""
    vectors: list[bytes] = []

    def taken_out(found: re.Match[bytes]) -> bytes:
        vectors.append(found[1])
        return b'"embedding":%d' % (len(vectors) - 1)

    answer = _json(_VECTOR.sub(taken_out, body))
    rows = answer.get("data")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and type(place := row.get("embedding")) is int and 0 <= place < len(vectors):
            row["embedding"] = _array(vectors[place])
    return answer


def _array(text: bytes) -> list[Any] | None:
    try:
        found: list[Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _status(error: Any) -> int:
    """The HTTP status that an error event stands for. Some servers write it as `code`, some only a word."""
    code, kind = (error.get("code") or "", error.get("type") or "") if isinstance(error, dict) else ("", "")
    if str(code).isdecimal():
        return int(code)
    if "rate_limit" in f"{code} {kind}":
        return 429
    return 400 if "invalid_request" in f"{code} {kind}" or "context_length" in f"{code}" else 500


def _retry_after_s(headers: httpx.Headers | None) -> float | None:
    """Seconds from a Retry-After header, which holds a number or a date; None when it holds neither."""
    wait = headers.get("retry-after", "") if headers else ""
    exact_ms = headers.get("retry-after-ms", "") if headers else ""
    if re.fullmatch(r"\d{1,9}(\.\d+)?", exact_ms):  # as OpenAI says it beside the other
        return float(exact_ms) / 1000
    try:
        seconds = float(wait)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(wait) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a zone
            return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _translate(body: dict[str, Any], status: int, headers: httpx.Headers | None = None) -> EngineError:
    """The one place where a server's refusal becomes ours. Servers word it differently; all give a status."""
    error = body.get("error")
    detail = error if isinstance(error, dict) else body
    message = str(detail.get("message") or error or f"HTTP {status}")[:500]
    kind = f"{detail.get('type') or ''} {detail.get('code') or ''}".lower()  # never the message: it quotes the caller
    if "insufficient_quota" in kind:  # a 429 of OpenAI's that no wait mends: the account has no money left
        return EngineDownError(message, status=status, sent=False)
    if status in (429, 503) or "overloaded" in kind:
        return EngineBusyError(message, status=status, retry_after_s=_retry_after_s(headers))
    if _TOO_LARGE.match(message):
        return ContextLengthError(message, status=status)
    if status == 408:
        return EngineTimeoutError(message, status=status)
    if status >= 500:
        return EngineDownError(message, status=status)
    if status in (401, 403, 404):  # a wrong key or model name: the deployment's fault, and of every job alike
        return EngineDownError(message, status=status, sent=False)
    words = f"{kind} {message.lower()}"
    if ("context" in words and ("length" in words or "size" in words)) or "maximum model length" in words:
        return ContextLengthError(message, status=status)
    return BadRequestError(message, status=status)
