"""A service that asked for a callback gets one, signed, when its job and its batch are done."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.acceptance.conftest import Running
from tests.conftest import eventually


class Receiver:
    """A webhook endpoint that refuses the first delivery of each message with 500 and takes the second."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {k.lower(): v for k, v in self.headers.items()}
                first = headers["webhook-id"] not in {h["webhook-id"] for h, _ in receiver.seen}
                receiver.seen.append((headers, body))
                self.send_response(500 if first else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


def test_job_and_batch_callbacks_are_signed_and_tried_again(local_fleet: Running, receiver: Receiver) -> None:
    api, short = local_fleet.api, {"max_tokens": 4}
    job = api.post("/v1/jobs", json={"prompt": "Hi.", "callback_url": receiver.url, **short}).json()
    several = [{"prompt": "A", **short}, {"prompt": "B", **short}]
    batch = api.post(f"/v1/jobs?callback_url={receiver.url}", json=several).json()
    eventually(lambda: len(receiver.seen) == 4, within_s=40, what="two messages, each sent twice")
    secret = (local_fleet.fleet.data_dir / "webhook_secret").read_text()
    told = {(m["type"], m["data"]["id"]) for m in (Webhook(secret).verify(b, h) for h, b in receiver.seen)}
    assert told == {("job.completed", job["id"]), ("batch.completed", batch["id"])}
    by_id = [h["webhook-id"] for h, _ in receiver.seen]
    assert {by_id.count(i) for i in by_id} == {2}, "a retry has the same id"
    eventually(
        lambda: local_fleet.rows("SELECT bool_and(delivered_at IS NOT NULL) FROM delivery") == [(True,)],
        what="both settled",
    )
