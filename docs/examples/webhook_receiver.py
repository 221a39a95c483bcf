"""Receives Tieryard's webhooks: verifies who sent them, takes each message once, and answers before it works.

    pip install standardwebhooks
    WEBHOOK_SECRET=whsec_… python webhook_receiver.py 8080

Standard library but for the signature. The same four steps in any framework: read the raw body, verify it, look at
`webhook-id`, answer 2xx within 15 seconds.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

# Two, with a space between them, while the secret is changed.
SECRETS = [Webhook(secret) for secret in os.environ["WEBHOOK_SECRET"].split()]
MOST_BYTES = 100_000  # a message has fewer than 20,000

work: queue.Queue[dict[str, Any]] = queue.Queue()
seen: dict[str, None] = {}  # a real receiver keeps these ids in its database, beside what they led to
one_at_a_time = threading.Lock()


def verified(body: bytes, headers: dict[str, str]) -> bool:
    """Whether one of the secrets has signed it within the last five minutes."""
    for secret in SECRETS:
        try:
            secret.verify(body, headers)
        except (WebhookVerificationError, ValueError):  # ValueError: headers or a body that cannot be read
            continue
        return True
    return False


def take(message: str, told: dict[str, Any]) -> None:
    """Deliveries are at least once: the same message may come again, under the same id."""
    with one_at_a_time:
        if message in seen:
            return
        seen[message] = None
        if len(seen) > 100_000:
            del seen[next(iter(seen))]
    work.put(told | {"message": message})


class Receiver(BaseHTTPRequestHandler):
    timeout = 10

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return self.answer(413)
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not verified(body, headers):
            return self.answer(401)
        take(headers["webhook-id"], json.loads(body))
        return self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def run_work() -> None:
    """What takes long happens after the answer. `data.url` has the whole job, for those with a key."""
    while True:
        told = work.get()
        print(told["message"], told["type"], told["data"]["id"], flush=True)


if __name__ == "__main__":
    threading.Thread(target=run_work, daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8080), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_address[1]}/", flush=True)
    server.serve_forever()
