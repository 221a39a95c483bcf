"""The FastAPI application: routes, errors in one shape, and a limit on bodies."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from api import health, jobs
from api.body_limit import BodyLimit
from api.shapes import ErrorBody, ErrorPublic
from api.state import State
from tieryard import __version__, telemetry
from tieryard.errors import AuthError, NotFoundError, StoreError, UserError
from tieryard.requests import JobCreate
from tieryard.settings import Settings

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    500: "server_error",
    503: "unavailable_error",
}


def create_app(settings: Settings) -> FastAPI:
    """The application. Its parts are made when the server starts, not here."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        telemetry.configure(json=settings.log_json, level=settings.log_level)
        app.state.tieryard = State(settings)
        try:
            yield
        finally:
            app.state.tieryard.close()

    app = FastAPI(
        title="Tieryard",
        version=__version__,
        summary="A marshalling yard for LLM work.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    app.include_router(jobs.router)
    app.include_router(health.router)
    app.add_exception_handler(UserError, _on_user_error)
    app.add_exception_handler(StoreError, _on_store_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _answer(status: int, body: ErrorBody, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorPublic(error=body).model_dump(exclude_none=True), status_code=status, headers=headers)


async def _on_user_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    assert isinstance(error, UserError)
    status = 401 if isinstance(error, AuthError) else 404 if isinstance(error, NotFoundError) else 400
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    message = error.message if status == 404 else str(error)  # "no job 'job_7'" names its kind already
    body = ErrorBody(message=message, type=_TYPES[status], code=error.code, param=error.param, line=error.line)
    return _answer(status, body, headers)


async def _on_store_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    telemetry.logger().error(telemetry.Event.STORE_AWAY, error=str(error)[:200])
    body = ErrorBody(message="the store is away; try again", type=_TYPES[503], code="store_away")
    return _answer(503, body, {"retry-after": "5"})


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(p) for p in first["loc"][1:])
    body = ErrorBody(message=f"{param}: {first['msg']}", type=_TYPES[400], code="invalid_request", param=param)
    return _answer(422, body)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
    body = ErrorBody(message=message, type=_TYPES.get(error.status_code, _TYPES[400]), code="http_error")
    return _answer(error.status_code, body, dict(error.headers or {}))


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours: logged by its place. The caller learns that it was one, and nothing of the inside."""
    path = request.scope["route"].path if "route" in request.scope else "?"
    telemetry.logger().error(telemetry.Event.REQUEST_FAILED, path=path, **telemetry.fault(error))
    body = ErrorBody(message="this is a fault of the fleet; its log has more", type=_TYPES[500], code="internal_error")
    return _answer(500, body)


def _openapi(app: FastAPI) -> dict[str, object]:
    """FastAPI's document, with the schema of a body that its route reads by itself."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schema = JobCreate.model_json_schema(ref_template="#/components/schemas/{model}")
        components = document["components"]["schemas"]
        components |= schema.pop("$defs", {})
        components["JobCreate"] = schema
        app.openapi_schema = document
    return app.openapi_schema
