"""Puts a request's own headers on its answer, whoever makes that: a route, an error handler, a stream. Each answer has
an `x-request-id`, as OpenAI's do; others are what the key has left of its limits, and what became of a call."""

from __future__ import annotations

import secrets

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def note_headers(request: Request, headers: dict[str, str]) -> None:
    """Headers that this request's answer will carry; the newest of a name counts."""
    request.state.rate_headers.update(headers)


def noted_headers(request: Request) -> dict[str, str]:
    noted: dict[str, str] = request.state.rate_headers
    return noted


class RateHeaders:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        noted = {"x-request-id": f"req_{secrets.token_hex(12)}"}
        scope.setdefault("state", {})["rate_headers"] = noted

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(noted)
            await send(message)

        await self._app(scope, receive, with_headers)
