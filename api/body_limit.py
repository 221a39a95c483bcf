"""Refuses a body over the limit before it is parsed: by its declared length, or as it streams in."""

from __future__ import annotations

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware. Answers 413 and closes the connection; what was read is dropped."""

    def __init__(self, app: ASGIApp, *, most: int, at: dict[str, int] | None = None) -> None:
        """`most` bytes anywhere, other limits `at` these paths."""
        self._app = app
        self._most = most
        self._at = at or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._at.get(scope["path"], self._most)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            await self._refuse(send, most)
            return
        seen = 0
        refused = False

        async def counted() -> Message:
            nonlocal seen, refused
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def guarded(message: Message) -> None:
            if not refused:
                await send(message)

        try:
            await self._app(scope, counted, guarded)
        except Exception:
            if not refused:
                raise
        if refused:
            await self._refuse(send, most)

    async def _refuse(self, send: Send, most: int) -> None:
        message = f"the body is larger than {most} bytes"
        error = {"message": message, "type": "invalid_request_error", "code": "body_too_large", "param": None}
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": orjson.dumps({"error": error})})
