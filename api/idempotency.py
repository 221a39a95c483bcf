"""The `Idempotency-Key` header: what a POST with a key made once, the same POST is answered with again."""

from __future__ import annotations

import hashlib

from fastapi import Request

from tieryard.errors import RequestError
from tieryard.store.idempotency import Mark

_HEADER = "idempotency-key"
_MOST_CHARS = 255


def key_of(request: Request) -> str | None:
    """The caller's key. Raises RequestError for one that cannot be kept."""
    key = request.headers.get(_HEADER)
    if key is not None and not (0 < len(key) <= _MOST_CHARS and key.isprintable()):
        raise RequestError(f"expected 1 to {_MOST_CHARS} printable characters", param="Idempotency-Key")
    return key


def mark_of(request: Request, tenant_id: int, body: bytes) -> Mark | None:
    """The key with a digest of what is asked: method, path, query, kind of body and body."""
    key = key_of(request)
    if key is None:
        return None
    kind = request.headers.get("content-type", "")
    asked = f"{request.method} {request.url.path}?{request.url.query}\n{kind}\n".encode() + body
    return Mark(tenant_id, key, hashlib.sha256(asked).digest())
