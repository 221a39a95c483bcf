"""A small receiver on this machine: takes what is delivered, says whether it is signed, and hands it on to be shown."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from standardwebhooks import Webhook, WebhookVerificationError
from standardwebhooks.webhooks import EmptyWebhookSecretError

from tieryard.errors import UserError

HOST = "127.0.0.1"
_MOST_BYTES = 1 << 20  # fifty times what the fleet sends
_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request as it came. `signed_at` is its `webhook-timestamp`, seconds since 1970; `attempt` counts those of its
    id that came here; `fault` says why it is not verified."""

    at: datetime
    signed_at: int | None
    id: str
    attempt: int
    fault: str | None
    payload: Any

    @property
    def type(self) -> str:
        found = self.payload.get("type") if isinstance(self.payload, dict) else None
        return found if isinstance(found, str) else "no type"

    def shown(self) -> dict[str, Any]:
        told = {"at": self.at, "signed_at": self.signed_at, "id": self.id, "type": self.type, "attempt": self.attempt}
        return {**told, "verified": self.fault is None, "fault": self.fault, "payload": self.payload}


def check_secret(secret: str) -> str:
    """The secret itself. Raises UserError for what can sign nothing."""
    with contextlib.suppress(ValueError, EmptyWebhookSecretError):
        if secret.startswith("whsec_") and Webhook(secret):
            return secret
    raise UserError(
        "expected whsec_ and base64, as the endpoint's creation or the fleet's setting has it", param="secret"
    )


def fault_of(secrets: Sequence[str], headers: dict[str, str], body: bytes) -> str | None:
    """None where one of the secrets has signed it within the last five minutes, else what is wrong."""
    said = "there is no secret to verify it with"
    for secret in secrets:
        try:
            Webhook(secret).verify(body, headers, json_parse=False)
        except WebhookVerificationError as refused:
            said = str(refused)
        except ValueError:  # which the library raises of its own reading: base64, UTF-8, a signature without a comma
            said = "its headers or its body cannot be read"
        else:
            return None
    return said


class Receiver:
    """Listens while it is entered. `deliveries()` waits for what comes; each is answered with `status` before it is
    shown."""

    def __init__(self, *, port: int = 0, status: int = 204) -> None:
        self.secrets: list[str] = []
        """May be set after the start: the fleet tells an endpoint's secret when it knows the address."""
        self._came: queue.Queue[Delivery] = queue.Queue()
        self._seen: Counter[str] = Counter()
        self._status = status
        try:
            self._server = ThreadingHTTPServer((HOST, port), self._handler())
        except OSError as error:
            raise UserError(f"cannot listen on port {port}: {error.strerror}", param="port") from None
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}/"

    def deliveries(self) -> Iterator[Delivery]:
        """What comes, as it comes. Ends never."""
        while True:
            with contextlib.suppress(queue.Empty):  # a wait without an end would be deaf to Ctrl-C on some systems
                yield self._came.get(timeout=0.2)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, headers: dict[str, str], body: bytes) -> None:
        number = headers.get("webhook-id", "no id")
        self._seen[number] += 1
        try:
            payload = orjson.loads(body)
        except ValueError:
            payload = None
        stamp = headers.get("webhook-timestamp", "")
        signed_at = int(stamp) if stamp.isascii() and stamp.isdecimal() and len(stamp) < 16 else None
        fault = fault_of(self.secrets, headers, body)
        self._came.put(Delivery(datetime.now(tz=UTC), signed_at, number, self._seen[number], fault, payload))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _WITHIN_S

            def do_POST(self) -> None:
                length = self.headers.get("content-length", "")
                if not length.isdecimal() or int(length) > _MOST_BYTES:
                    self.send_error(413)
                    return
                body = self.rfile.read(int(length))
                receiver._take({name.lower(): value for name, value in self.headers.items()}, body)
                self.send_response(receiver._status)  # and no body, whose end this connection's is
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Says nothing: what came is shown by whoever asked for it."""

        return Handler
