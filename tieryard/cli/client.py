"""The CLI's way to the API: a URL, a key, and errors in one line."""

from __future__ import annotations

import os
from typing import Annotated, Any

import httpx
import typer

from tieryard.errors import AuthError, ConflictError, NotFoundError, TieryardError, UserError

UrlOption = Annotated[str, typer.Option(envvar="TIERYARD_URL", help="The fleet's API.")]
DEFAULT_URL = "http://127.0.0.1:8000"


def checked_url(url: str) -> str:
    """The URL without a slash at its end. Raises UserError when it is not an http one."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UserError(f"'{url}' is not a URL ({error}); expected one such as {DEFAULT_URL}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"'{url}' is not a URL of an API; expected one such as {DEFAULT_URL}")
    return url.rstrip("/")


def key_headers() -> dict[str, str]:
    """What says who calls: the key of TIERYARD_API_KEY. Raises UserError when that is none."""
    key = os.environ.get("TIERYARD_API_KEY")
    if not key:
        raise UserError("set TIERYARD_API_KEY to your key; `tieryard up` shows one on its first start")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError("TIERYARD_API_KEY is no key: a key has only letters, digits, '-' and '_'")
    return {"authorization": f"Bearer {key}"}


def answer_of(answer: httpx.Response, url: str) -> dict[str, Any]:
    """What the API at `url` has answered. Raises a UserError that repeats how it refused, TieryardError for its own
    faults."""
    if answer.status_code == httpx.codes.NO_CONTENT:
        return {}
    try:
        found: Any = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise TieryardError(f"{url} answered HTTP {answer.status_code} without JSON; is this a fleet's API?")
    if answer.is_success:
        return found
    said = found.get("error")
    message = (said.get("message") if isinstance(said, dict) else None) or f"HTTP {answer.status_code}"
    kind = {401: AuthError, 404: NotFoundError, 409: ConflictError}.get(answer.status_code, UserError)
    if answer.status_code >= 500:
        raise TieryardError(f"the fleet answered {answer.status_code}: {message}")
    raise kind(message)


class Client:
    """Calls the API with the key of TIERYARD_API_KEY."""

    def __init__(self, url: str) -> None:
        self._headers = key_headers()
        self._url = checked_url(url)

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return self._call("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return self._call("POST", path, **kwargs)

    def patch(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return self._call("PATCH", path, **kwargs)

    def delete(self, path: str) -> None:
        self._call("DELETE", path)

    def _call(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        """The answer's JSON; empty where it has none (204). Raises a UserError that repeats what the API said."""
        try:
            headers = {**self._headers, **kwargs.pop("headers", {})}
            with httpx.Client(base_url=self._url, headers=headers, timeout=120, trust_env=False) as http:
                answer = http.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise TieryardError(f"no answer from {self._url}: {error}; is the fleet up?") from error
        return answer_of(answer, self._url)

    def jobs(self, batch: str) -> list[dict[str, Any]]:
        """All jobs of a batch, in input order."""
        found: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page = self.get("/v1/jobs", batch=batch, limit=1000, after=after)
            found += page["data"]
            after = page.get("next")
            if after is None:
                return found
