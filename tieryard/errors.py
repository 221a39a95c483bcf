"""Every error Tieryard raises on purpose, in one tree.

TieryardError
├── UserError                 the caller can mend it; becomes a 4xx, or exit code 2
│   ├── CatalogError          tieryard.yaml or a price book is refused: line, field, what was expected
│   ├── RequestError          a request is refused: field (and line, in a list)
│   │   ├── ModelNotFoundError  it names a model that is not served
│   │   └── PromptTooLongError  prompt + max_tokens exceed every context it could go to
│   ├── AuthError             no key, a wrong key, a revoked key
│   ├── ScopeError            a key that may not do this
│   ├── NotFoundError         no such thing, or not yours
│   ├── ConflictError         it contradicts what is there: an idempotency key used for something else
│   └── LimitError            too much for this key or tenant now; carries `retry_after_s`
│       └── BudgetError       a hard budget does not cover it
├── UnavailableError          nothing that could serve it is up, or it is full; carries `retry_after_s`
│   └── MetricsAwayError      Redis does not answer, and what was asked for is only there
├── UnreadableError           an answer that holds none of the labels that were asked for
├── JobFailedError            a call's job has ended without an answer; `kind` is the word that its result has
├── EngineError               what an engine did to one request
│   ├── RetryableError        the job is fine, try again later
│   │   ├── EngineBusyError   429, or a full queue; carries `retry_after_s`
│   │   ├── EngineDownError   refused, reset, 5xx; `sent` says whether the request had reached it
│   │   └── EngineTimeoutError  no byte within the time allowed
│   └── PermanentError        the same request will fail again
│       ├── ContextLengthError  prompt + max_tokens exceed the served context
│       └── BadRequestError   any other 4xx
└── StoreError                Postgres refused or is away
    └── LeaseLostError        this worker was declared dead; whatever it holds is no longer its own

Errors of libraries are translated once, at the edge that calls the library.
"""

from __future__ import annotations


class TieryardError(Exception):
    """Root of the tree."""


class UserError(TieryardError):
    """The caller can mend it. `param` names the field at fault, `line` its line in a list or file (from 1)."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.line = line

    def __str__(self) -> str:
        where = [f"line {self.line}"] if self.line is not None else []
        where += [self.param] if self.param else []
        return f"{', '.join(where)}: {self.message}" if where else self.message


class CatalogError(UserError):
    """Its message names file, line and field of every fault itself."""

    code = "invalid_catalog"

    def __str__(self) -> str:
        return self.message


class RequestError(UserError):
    pass


class ModelNotFoundError(RequestError):
    code = "model_not_found"


class PromptTooLongError(RequestError):
    """Found by the router, before any engine has seen it; an engine's own word is ContextLengthError."""

    code = "context_length_exceeded"


class AuthError(UserError):
    code = "invalid_api_key"


class ScopeError(UserError):
    code = "insufficient_scope"


class NotFoundError(UserError):
    code = "not_found"


class ConflictError(UserError):
    code = "conflict"


class LimitError(UserError):
    """`code` says which limit: requests or tokens a minute, or tokens enqueued."""

    def __init__(self, message: str, *, code: str, retry_after_s: float, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        self.headers = headers or {}


class BudgetError(LimitError):
    """`retry_after_s` is infinite where nothing but a new period, or a higher limit, would help."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, code="budget_exceeded", retry_after_s=retry_after_s)


class UnavailableError(TieryardError):
    """Nothing can serve this request now. The same request may be served later."""

    code = "no_healthy_deployment"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class MetricsAwayError(UnavailableError):
    code = "metrics_away"


class UnreadableError(TieryardError):
    pass


class JobFailedError(TieryardError):
    """`retry_after_s` is infinite where trying again would only repeat this."""

    def __init__(self, kind: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s


class EngineError(TieryardError):
    """What an engine did to one request. `kind` is the word that results, metrics and logs use."""

    kind = "engine_error"

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class RetryableError(EngineError):
    """`sent` is False when the request never reached the engine."""

    kind = "retryable"
    sent = True


class EngineBusyError(RetryableError):
    kind = "engine_busy"

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class EngineDownError(RetryableError):
    kind = "engine_down"

    def __init__(self, message: str, *, status: int | None = None, sent: bool = True) -> None:
        super().__init__(message, status=status)
        self.sent = sent


class EngineTimeoutError(RetryableError):
    kind = "engine_timeout"


class PermanentError(EngineError):
    kind = "permanent"


class ContextLengthError(PermanentError):
    kind = "context_length"


class BadRequestError(PermanentError):
    kind = "bad_request"


class StoreError(TieryardError):
    pass


class LeaseLostError(StoreError):
    pass
