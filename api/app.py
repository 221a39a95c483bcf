"""The FastAPI application: routes, errors in one shape, and a limit on bodies."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from api import (
    batches,
    benchmarks,
    budgets,
    calls,
    classifications,
    costs,
    files,
    golden,
    health,
    jobs,
    models,
    outcomes,
    prometheus,
    quotes,
    route,
    webhooks,
)
from api.body_limit import BodyLimit
from api.classification_shapes import ClassificationComplete, ClassificationResume
from api.files import MULTIPART_BYTES
from api.rate_headers import RateHeaders, note_headers, noted_headers
from api.refusals import Refusal, internal_error, refuse
from api.state import State
from tieryard import __version__, telemetry
from tieryard.bench.asking import BenchmarkCreate
from tieryard.complaints import complaint
from tieryard.errors import LimitError, RequestError, StoreError, TieryardError, UnavailableError, UserError
from tieryard.requests import BatchCreate, ChatCreate, CompletionCreate, EmbeddingCreate, JobCreate
from tieryard.requests.classification import ClassificationCreate
from tieryard.requests.quote import QuoteCreate
from tieryard.settings import Settings

_PARTS = (
    calls, jobs, outcomes, files, batches, classifications, quotes, costs, benchmarks, budgets, golden, models, route,
    webhooks, health, prometheus,
)  # fmt: skip


def create_app(settings: Settings) -> FastAPI:
    """The application. Its parts are made when the server starts, not here."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        telemetry.configure(json=settings.log_json, level=settings.log_level)
        app.state.tieryard = State(settings)
        await app.state.tieryard.open()
        try:
            yield
        finally:
            await app.state.tieryard.close()

    app = FastAPI(
        title="Tieryard",
        version=__version__,
        summary="A marshalling yard for LLM work.",
        lifespan=lifespan,
        redoc_url=None,
        # Not by `include_router`: each app would build every route anew, with its first request.
        routes=[one for part in _PARTS for one in part.router.routes],
    )
    uploads = {"/v1/files": settings.max_file_bytes + MULTIPART_BYTES}
    of_calls = dict.fromkeys((*calls.PATHS, route.PATH), min(calls.CALL_BYTES, settings.max_body_bytes))
    app.add_middleware(BodyLimit, most=settings.max_body_bytes, at=uploads | of_calls)
    app.add_middleware(RateHeaders)
    for refused in (UserError, UnavailableError, StoreError):
        app.add_exception_handler(refused, _on_refused)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_hang_up)
    app.add_exception_handler(Exception, _on_unexpected)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _answer(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body, status_code=refusal.status, headers=refusal.headers)


async def _on_refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TieryardError)
    if isinstance(error, LimitError):
        note_headers(request, error.headers)
    if isinstance(error, StoreError):
        telemetry.logger().error(telemetry.Event.STORE_AWAY, error=str(error)[:200])
    return _answer(Refusal.of(error))


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":  # its location is a character's
        return _answer(Refusal.of(RequestError(complaint(first))))
    param = ".".join(str(p) for p in first["loc"][1:]) or "body"
    return _answer(Refusal.of(RequestError(complaint(first), param=param)))


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["allow"] = ", ".join(sorted(_methods_at(request)))
    return _answer(refuse(error.status_code, message, code="http_error", headers=headers))


def _methods_at(request: Request) -> set[str]:
    """All methods of a path; Starlette names those of the first route that has it."""
    app: FastAPI = request.app
    asked = {method: {**request.scope, "method": method} for method in ("DELETE", "GET", "PATCH", "POST", "PUT")}
    return {m for m, scope in asked.items() if any(r.matches(scope)[0] is Match.FULL for r in app.routes)}


async def _on_hang_up(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Who leaves while sending a body has done nothing wrong, and nor have we. Nobody reads this."""
    return Response(status_code=400)


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours: logged by its place. The caller learns that it was one, and nothing of the inside."""
    path = request.scope["route"].path if "route" in request.scope else "?"
    telemetry.logger().error(telemetry.Event.REQUEST_FAILED, path=path, **telemetry.fault(error))
    answer = _answer(internal_error())
    answer.headers.update(noted_headers(request))  # Starlette answers here from outside all middleware
    return answer


BODIES_READ_BY_ROUTES: tuple[type[BaseModel], ...] = (
    JobCreate, BatchCreate, ChatCreate, CompletionCreate, EmbeddingCreate, BenchmarkCreate, QuoteCreate,
    ClassificationCreate, ClassificationComplete, ClassificationResume,
)  # fmt: skip


_MAKES_NOTHING = (
    "/cancel", "/complete", "/resume", "/rows", "/outcome", route.PATH, golden.PATH, *webhooks.MAKE_NOTHING,
)  # fmt: skip
"""Or, of a golden set, the same thing however often it is sent."""
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Under one key the same request makes nothing twice.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def _openapi(app: FastAPI) -> dict[str, object]:
    """FastAPI's document, with the schemas of the bodies that routes read by themselves, and with our answer to a
    parameter of the wrong shape: 400."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        components = document["components"]["schemas"]
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                operation["responses"].pop("422", None)
                if method == "post" and not path.endswith(_MAKES_NOTHING):
                    operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
        for unused in ("HTTPValidationError", "ValidationError"):
            components.pop(unused, None)
        for body in BODIES_READ_BY_ROUTES:
            schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
            components |= schema.pop("$defs", {})
            components[body.__name__] = schema
        app.openapi_schema = document
    return app.openapi_schema
