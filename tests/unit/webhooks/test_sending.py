"""One attempt: what is sent, and what each answer comes to."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.receivers import Receiver, receiver
from tieryard.webhooks.sending import Attempt, Sender


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


def send(url: str, body: bytes = b"{}", **fields: Any) -> Attempt:
    async def one() -> Attempt:
        sender = Sender(**{"allow_private": True, **fields})
        try:
            return await sender.attempt(url, {"webhook-id": "msg_1"}, body)
        finally:
            await sender.close()

    return asyncio.run(one())


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


@contextlib.contextmanager
def scripted(said: bytes, *, pause_s: float = 0.0, close: bool = False) -> Iterator[str]:
    """A server that says this to whoever comes first, line by line where it pauses: its URL. It keeps the connection
    open to the end unless told to `close`."""

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                for piece in said.splitlines(keepends=True) if pause_s else [said]:
                    connection.sendall(piece)
                    time.sleep(pause_s)
                if not close:
                    done.wait(10)

    done = threading.Event()
    with listening() as server:
        thread = threading.Thread(target=serve, args=[server])
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        done.set()
        thread.join()


@contextlib.contextmanager
def secure(directory: Path) -> Iterator[tuple[int, list[str | None]]]:
    """A TLS server that takes everything: its port, and the names that it was asked for."""
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    context.sni_callback = lambda _, name, __: asked.append(name)

    def serve(server: socket.socket) -> None:
        for _ in range(2):
            with contextlib.suppress(OSError):
                plain, _ = server.accept()
                with context.wrap_socket(plain, server_side=True) as connection:
                    said = b""
                    while not said.endswith(b"{}"):  # what is left unread resets the connection
                        said += connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with listening() as server:
        thread = threading.Thread(target=serve, args=[server])
        thread.start()
        yield server.getsockname()[1], asked
        thread.join()


def test_what_is_sent(hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    found = send(hook.url + "?a=b%20c", "{€}".encode())
    [got] = hook.got
    assert (found.status, found.error, found.address, found.delivered) == (204, None, "127.0.0.1", True)
    assert (got.path, got.body) == ("/hook?a=b%20c", "{€}".encode())
    assert got.headers["host"] == hook.url.split("/")[2]
    assert got.headers["accept-encoding"] == "identity"
    assert got.headers["connection"] == "close"
    assert got.headers["content-type"] == "application/json"
    assert "cookie" not in got.headers


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_a_2xx_is_a_delivery(hook: Receiver, status: int) -> None:
    hook.says(status)
    assert send(hook.url).delivered


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308, 400, 401, 404, 410, 418, 429, 500, 503])
def test_anything_else_is_a_failure_and_a_redirect_is_not_followed(hook: Receiver, status: int) -> None:
    hook.says(status, {"location": hook.url, "retry-after": "7"})
    found = send(hook.url)
    assert (found.status, found.delivered, found.gone, found.for_good) == (status, False, status == 410, False)
    assert found.retry_after_s == 7
    assert f"answered {status}" in str(found.error)
    assert len(hook.got) == 1


def test_cookies_are_not_kept(hook: Receiver) -> None:
    hook.says(204, {"set-cookie": "a=b; Path=/"})

    async def two() -> None:
        sender = Sender(allow_private=True)
        for _ in range(2):
            await sender.attempt(hook.url, {}, b"{}")
        await sender.close()

    asyncio.run(two())
    assert ["cookie" in got.headers for got in hook.got] == [False, False]


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b"", ""),
        (b"taken", "taken"),
        (b"a" * 5000, "a" * 1024),
        (b"a\0b", "a\ufffdb"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("é".encode() * 5000, "é" * 512),
    ],
)
def test_the_first_kilobyte_of_an_answer_is_kept(hook: Receiver, body: bytes, kept: str) -> None:
    hook.says(500, {"content-encoding": "gzip"}, body)
    assert send(hook.url).answer == kept


def test_a_body_that_never_ends_takes_nothing_from_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tieryard.webhooks.sending._READING_S", 0.2)
    with scripted(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nok") as url:
        found = send(url)
    assert (found.status, found.answer, found.error) == (200, "ok", None)


def test_what_was_taken_in_time_is_delivered_however_slowly_its_body_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tieryard.webhooks.sending._READING_S", 0.6)
    with scripted(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nok") as url:
        found = send(url, timeout_s=0.3)
    assert (found.status, found.answer, found.error) == (200, "ok", None)


def test_a_receiver_that_never_answers_is_left_in_time() -> None:
    with scripted(b"") as url:
        began = time.monotonic()
        found = send(url, timeout_s=0.3)
    assert time.monotonic() - began < 2
    assert (found.status, found.error, found.for_good) == (None, "the receiver took longer than 0.3 s", False)


def test_headers_that_trickle_do_not_hold_it() -> None:
    with scripted(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50, pause_s=0.05) as url:
        assert send(url, timeout_s=0.4).error == "the receiver took longer than 0.4 s"


@pytest.mark.parametrize("said", [b"nonsense\r\n\r\n", b"HTTP/1.1 99999 OK\r\n\r\n", b"\0" * 100 + b"\r\n\r\n"])
def test_who_speaks_no_http_has_failed(said: bytes) -> None:
    with scripted(said, close=True) as url:
        found = send(url, timeout_s=2)
    assert not found.delivered
    assert found.address == "127.0.0.1"


@pytest.mark.parametrize("url", ["http://nowhere.invalid/", "http://a..b/"])
def test_a_name_that_is_unknown_is_tried_again(url: str) -> None:
    found = send(url)
    assert not found.delivered
    assert not found.for_good
    assert "does not resolve" in str(found.error)


def test_names_that_hang_keep_no_steady_receiver_from_being_found(
    hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tieryard.webhooks.sending._RESOLVERS_OF_OTHERS", 2)
    found, asked = threading.Event(), threading.Semaphore(0)

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        if host == "hangs.example.com":
            asked.release()
            found.wait(10)
        return [(2, 1, 6, "", ("127.0.0.1", 0))]

    async def run() -> tuple[Attempt, Attempt]:
        sender = Sender(allow_private=True, timeout_s=1.0, getaddrinfo=getaddrinfo)
        hanging = [asyncio.create_task(sender.attempt("http://hangs.example.com/", {}, b"{}")) for _ in range(2)]
        for _ in hanging:
            await asyncio.to_thread(asked.acquire)
        both = [await sender.attempt(hook.url, {}, b"{}", steady=steady) for steady in (True, False)]
        found.set()
        await asyncio.wait(hanging)
        await sender.close()
        return both[0], both[1]

    known, unknown = asyncio.run(run())
    assert known.delivered
    assert str(unknown.error) == "the receiver took longer than 1 s", "as it shares the threads of those that hang"


def test_a_refused_connection_is_a_failure() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    found = send(f"http://127.0.0.1:{port}/")
    assert str(found.error).startswith("ConnectError")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "http://[::1]/", "http://0x7f.1/", "ftp://8.8.8.8/", "http://u@a.b/"]
)
def test_what_can_never_be_allowed_is_not_tried_again(url: str) -> None:
    found = send(url, allow_private=False)
    assert (found.for_good, found.address, found.status) == (True, None, None)


def test_the_connection_goes_to_the_address_that_was_checked_and_the_next_one_if_it_refuses(hook: Receiver) -> None:
    port = int(hook.url.split(":")[2].split("/")[0])
    asked: list[str] = []

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [(2, 1, 6, "", (address, port)) for address in ("127.0.0.77", "127.0.0.1")]

    found = send(f"http://no-such-name.invalid:{port}/", getaddrinfo=getaddrinfo)
    assert (found.status, found.address) == (204, "127.0.0.1")
    assert asked == ["no-such-name.invalid"]
    assert hook.got[0].headers["host"] == f"no-such-name.invalid:{port}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_is_verified_against_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the connection goes to the address: the name is asked for in the handshake."""
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout key.pem -out cert.pem"
    names = ["-addext", "subjectAltName=DNS:right.example.com"]
    subprocess.run(["openssl", *made.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with secure(tmp_path) as (port, asked):

        def getaddrinfo(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
            return [(2, 1, 6, "", ("127.0.0.1", port))]

        right = send(f"https://right.example.com:{port}/", getaddrinfo=getaddrinfo)
        wrong = send(f"https://wrong.example.com:{port}/", getaddrinfo=getaddrinfo)
    assert (right.status, right.error) == (204, None)
    assert wrong.status is None
    assert "CERTIFICATE_VERIFY_FAILED" in str(wrong.error)
    assert asked == ["right.example.com", "wrong.example.com"]
