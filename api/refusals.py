"""What a caller is told when it gets no answer: status, error in OpenAI's shape, headers. As a response, or as an
event in a stream that has begun."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from api.shapes import ErrorBody, ErrorPublic
from tieryard.errors import (
    AuthError,
    BudgetError,
    ConflictError,
    EngineBusyError,
    EngineError,
    JobFailedError,
    LimitError,
    ModelNotFoundError,
    NotFoundError,
    ScopeError,
    StoreError,
    TieryardError,
    UnavailableError,
    UserError,
)

_STATUS: dict[type[UserError], int] = {
    AuthError: 401,
    ScopeError: 403,
    NotFoundError: 404,
    ModelNotFoundError: 404,
    ConflictError: 409,
    LimitError: 429,
}
# How a job may end without an answer, by its kind. Anything else is an engine's trouble: 503.
_OF_KIND = {
    "context_length": 400,
    "bad_request": 400,
    "invalid_request": 400,
    "cancelled": 400,
    "internal_error": 500,
    "unstorable": 500,
    "unstorable_answer": 500,
}
_CODES = {"context_length": "context_length_exceeded"}  # OpenAI's word, which callers' code looks for
_RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """`body` is OpenAI's: {"error": {…}}."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: TieryardError) -> Refusal:
        if isinstance(error, UserError):
            return _of_user(error)
        if isinstance(error, UnavailableError):
            return refuse(503, error.message, code=error.code, headers=retry_after(error.retry_after_s))
        if isinstance(error, EngineError):
            wait_s = error.retry_after_s if isinstance(error, EngineBusyError) else None
            return _of_kind(error.kind, error.message, wait_s)
        if isinstance(error, JobFailedError):
            return _of_kind(error.kind, error.message, error.retry_after_s)
        if isinstance(error, StoreError):
            headers = retry_after(_RETRY_AFTER_S)
            return refuse(503, "the store is away; try again", code="store_away", headers=headers)
        raise error  # a fault of ours: whoever catches those shall name it


def refuse(
    status: int,
    message: str,
    *,
    code: str,
    param: str | None = None,
    line: int | None = None,
    headers: dict[str, str] | None = None,
    kind: str | None = None,
) -> Refusal:
    """An error in OpenAI's shape and words; `line` is ours, and left out where there is none."""
    usual = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    kind = kind or usual
    error = ErrorBody(message=message, type=kind, code=code, param=param, line=line)
    shown = ErrorPublic(error=error).model_dump(exclude={"error": {"line"}} if line is None else None)
    return Refusal(status, shown, headers or {})


def internal_error() -> Refusal:
    """A fault of ours: the caller learns that it was one, and nothing of the inside."""
    return refuse(500, "this is a fault of the fleet; its log has more", code="internal_error")


def retry_after(wait_s: float) -> dict[str, str]:
    """Where no wait would help, OpenAI's clients are told not to try by themselves."""
    if math.isinf(wait_s):
        return {"x-should-retry": "false"}
    return {"retry-after": str(max(1, math.ceil(wait_s)))}


def _of_user(error: UserError) -> Refusal:
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 400)
    if isinstance(error, ModelNotFoundError) and error.line is not None:
        status = 400  # the list is at fault, not the address
    headers: dict[str, str] = {"www-authenticate": "Bearer"} if status == 401 else {}
    if isinstance(error, LimitError):
        headers = retry_after(error.retry_after_s)
    kind = "insufficient_quota" if isinstance(error, BudgetError) else None  # OpenAI's word for what money stops
    message = error.message if status == 404 else str(error)  # "no job 'job_7'" names its kind already
    return refuse(status, message, code=error.code, param=error.param, line=error.line, headers=headers, kind=kind)


def _of_kind(kind: str, message: str, wait_s: float | None) -> Refusal:
    status = _OF_KIND.get(kind, 503)
    if status == 503 and wait_s is None:
        wait_s = _RETRY_AFTER_S
    headers = {} if wait_s is None else retry_after(wait_s)
    if status == 500:
        return replace(internal_error(), headers=headers)
    return refuse(status, message, code=_CODES.get(kind, kind), headers=headers)
