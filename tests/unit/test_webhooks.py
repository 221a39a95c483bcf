"""Callbacks are signed, go to public addresses only, and take nothing but a 2xx for a delivery."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from standardwebhooks import Webhook

from tieryard import webhooks
from tieryard.webhooks import MAX_ATTEMPTS, DeliveryError, ForbiddenAddressError, allowed, deliver, next_wait_s

SECRET = "whsec_" + "c2VjcmV0" * 4


@dataclass
class Receiver:
    """A receiver that answers as it is told and keeps what it got."""

    url: str = ""
    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/hook?a=b"
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


def send(url: str, payload: dict[str, object] | None = None) -> int:
    return deliver(
        url, message_id="msg_7", payload=payload or {"type": "job.completed"}, secret=SECRET, allow_private=True
    )


def test_the_receiver_can_verify_what_it_gets(receiver: Receiver) -> None:
    payload: dict[str, object] = {"type": "job.completed", "data": {"id": "job_7", "note": "€ ü"}}
    assert send(receiver.url, payload) == 204
    [(path, headers, body)] = receiver.got
    assert path == "/hook?a=b"
    assert headers["webhook-id"] == "msg_7"
    assert headers["host"] == receiver.url.split("/")[2]
    assert Webhook(SECRET).verify(body.decode(), headers) == payload == json.loads(body)
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(SECRET).verify(body.decode() + " ", headers)


def test_credentials_in_a_url_are_not_sent_in_the_host_header(receiver: Receiver) -> None:
    send(receiver.url.replace("http://", "http://user:pass@"))
    assert "pass" not in str(receiver.got)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_a_2xx_is_a_delivery(receiver: Receiver, status: int) -> None:
    receiver.status = status
    assert send(receiver.url) == status


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 410, 429, 500, 503])
def test_anything_else_is_a_failure_and_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    receiver.status, receiver.headers = status, {"location": receiver.url}
    with pytest.raises(DeliveryError) as caught:
        send(receiver.url)
    assert (caught.value.status, caught.value.gone) == (status, status == 410)
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    ("header", "wait"), [("120", 120.0), ("0", 0.0), ("-5", None), ("soon", None), ("\u00b2", None)]
)
def test_retry_after_is_read(receiver: Receiver, header: str, wait: float | None) -> None:
    receiver.status, receiver.headers = 429, {"retry-after": header}
    with pytest.raises(DeliveryError) as caught:
        send(receiver.url)
    assert caught.value.retry_after_s == wait


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://nowhere.invalid/", "http://a..b/"])
def test_a_receiver_that_is_not_there_is_a_failure(url: str) -> None:
    with pytest.raises(DeliveryError):
        send(url)


FORBIDDEN = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.255.255.254",
    "169.254.169.254", "172.16.0.1", "172.31.255.254", "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "ff0e::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "2002:7f00:1::1", "2002:a00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "100::1",
]  # fmt: skip


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_that_callbacks_may_not_reach(address: str) -> None:
    assert not allowed(address)


@pytest.mark.parametrize(
    "address", ["::127.0.0.1", "::7f00:1", "::a9fe:a9fe", "fec0::1", "5f00::1", "3fff::1", "4000::1"]
)
def test_ipv6_that_is_no_public_unicast(address: str) -> None:
    assert not allowed(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]
)
def test_public_addresses(address: str) -> None:
    assert allowed(address)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0x7f.1/", "http://2130706433/"]
)
def test_a_name_for_this_machine_is_refused(url: str) -> None:
    with pytest.raises(ForbiddenAddressError, match="callbacks may not go"):
        deliver(url, message_id="m", payload={}, secret=SECRET)


def test_a_name_with_one_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(2, 1, 6, "", ("8.8.8.8", 443)), (2, 1, 6, "", ("10.0.0.1", 443))]
    monkeypatch.setattr(webhooks.socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(ForbiddenAddressError, match=r"10\.0\.0\.1"):
        webhooks.resolve("example.com", 443, allow_private=False)


def test_the_connection_goes_to_the_address_that_was_checked(receiver: Receiver) -> None:
    """The name is never looked up a second time."""
    port = receiver.url.split(":")[2].split("/")[0]
    url = f"http://no-such-name.invalid:{port}/"
    asked = []

    def resolver(host: str, *_: object, **__: object) -> str:
        asked.append(host)
        return "127.0.0.1"

    assert deliver(url, message_id="m", payload={}, secret=SECRET, resolver=resolver) == 204
    assert asked == ["no-such-name.invalid"]
    assert receiver.got[0][1]["host"] == f"no-such-name.invalid:{port}"


def test_waits_grow_are_jittered_and_end() -> None:
    waits = [next_wait_s(n) for n in range(1, MAX_ATTEMPTS)]
    for attempt, wait in enumerate(waits, start=1):
        plain = min(5.0 * 3 ** (attempt - 1), 12 * 3600)
        assert wait is not None
        assert 0.8 * plain <= wait <= 1.2 * plain
    assert next_wait_s(MAX_ATTEMPTS) is None
    assert next_wait_s(MAX_ATTEMPTS, 5.0) is None


def test_retry_after_is_honoured_when_it_is_later() -> None:
    assert next_wait_s(1, 600.0) == 600.0
    wait = next_wait_s(3, 1.0)
    assert wait is not None
    assert wait >= 0.8 * 45
