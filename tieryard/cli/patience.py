"""The CLI's way to the API for what takes hours: one connection, and what fails for now is tried again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import orjson

from tieryard.cli.client import answer_of, checked_url, key_headers
from tieryard.errors import TieryardError

PATIENCE_S = 600.0
"""So long may the API be away, or have no room, until a command gives up: what it has begun goes on without it."""

_PASSES = (429, 502, 503, 504)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_TIMEOUT_S = 120.0
NDJSON = {"content-type": "application/x-ndjson"}

Told = Callable[[str], None]


class StoppedError(TieryardError):
    """Whoever waits was told to stop."""


class PatientClient:
    """Calls the API with the key of TIERYARD_API_KEY; of one thread. Only what may be sent twice is sent by it."""

    def __init__(
        self, url: str, *, stopping: threading.Event, told: Told = lambda _: None, patience_s: float = PATIENCE_S
    ) -> None:
        """`told` hears why nothing happens. Once `stopping` is set, waiting ends with StoppedError."""
        self._url, self._stopping, self._told, self._patience_s = checked_url(url), stopping, told, patience_s
        self._http = httpx.Client(base_url=self._url, headers=key_headers(), timeout=_TIMEOUT_S, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        """The answer's JSON. Raises as `Client` does, once it has lost its patience."""
        return answer_of(self._send(method, path, **kwargs), self._url)

    def lines(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """The objects of an answer in lines."""
        return self._read(self._send("GET", path, params=params))

    def post_lines(self, path: str, content: bytes, **kwargs: Any) -> list[dict[str, Any]]:
        """Sends lines for which lines come back."""
        return self._read(self._send("POST", path, content=content, headers=NDJSON, **kwargs))

    def wait(self, seconds: float) -> None:
        """Raises StoppedError as soon as it is to stop."""
        if self._stopping.wait(seconds):
            raise StoppedError("stopped")

    def _read(self, answer: httpx.Response) -> list[dict[str, Any]]:
        if not answer.is_success:
            answer_of(answer, self._url)
        return [orjson.loads(line) for line in answer.content.splitlines() if line]

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        deadline = time.monotonic() + self._patience_s
        for attempt in range(10_000):
            if self._stopping.is_set():
                raise StoppedError("stopped")
            wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(attempt, 10)) * random.uniform(0.5, 1)  # noqa: S311
            try:
                answer = self._http.request(method, path, **kwargs)
            except httpx.TransportError as error:
                if time.monotonic() + wait_s > deadline:
                    raise TieryardError(f"no answer from {self._url}: {error}; is the fleet up?") from error
                self._told(f"no answer from {self._url}; trying again")
            else:
                if answer.status_code not in _PASSES or answer.headers.get("x-should-retry") == "false":
                    return answer
                wait_s = max(wait_s, _asked_wait_s(answer))
                if time.monotonic() + wait_s > deadline:
                    return answer
                self._told(f"the fleet answered {answer.status_code}; trying again in {wait_s:.0f} s")
            self.wait(wait_s)
        raise AssertionError("unreachable: the patience ends before")


def _asked_wait_s(answer: httpx.Response) -> float:
    """Whole seconds are all that this API asks for; a proxy's date is not worth more than our own backoff."""
    asked = answer.headers.get("retry-after", "")
    return float(asked) if asked.isascii() and asked.isdigit() else 0.0
