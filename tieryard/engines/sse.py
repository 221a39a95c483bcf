"""The server-sent events of an HTTP answer, read as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
import orjson

from tieryard.errors import EngineDownError

_LONGEST_LINE = 16 * 2**20


async def events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON objects of a server-sent event stream, up to `[DONE]`."""
    async with contextlib.aclosing(_lines(response)) as lines:
        async for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                await _finish(lines)
                return
            try:
                chunk = orjson.loads(data)
            except orjson.JSONDecodeError as error:
                raise EngineDownError(f"the stream broke off in the middle of an event: {error}") from error
            if not isinstance(chunk, dict):
                raise EngineDownError("the stream held an event that is no object")
            yield chunk


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body's lines. httpx's `aiter_lines` also splits at U+2028 and its like, which JSON strings may hold."""
    begun: list[bytes] = []  # joined once: a long line comes in thousands of parts
    size = 0
    async with contextlib.aclosing(parts(response)) as received:
        async for part in received:
            *lines, rest = part.split(b"\n")
            if lines:
                lines[0] = b"".join([*begun, lines[0]])
                begun, size = [], 0
            for line in lines:
                yield line
            begun.append(rest)
            size += len(rest)
            if size > _LONGEST_LINE:
                raise EngineDownError(f"the stream held a line of more than {_LONGEST_LINE} bytes")
    if size:
        yield b"".join(begun)


async def parts(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    try:
        async for part in response.aiter_bytes():
            yield part
    except RuntimeError as error:  # aiohttp's, when the engine was closed under its streams
        raise EngineDownError(f"the stream broke off: {error}") from error


async def _finish(lines: AsyncIterator[bytes]) -> None:
    """Reads to the body's end, which follows `[DONE]` at once: only then is the connection used again."""
    with contextlib.suppress(httpx.HTTPError, OSError, EngineDownError):
        async with asyncio.timeout(0.1):
            async for _ in lines:
                pass
