"""One attempt at a delivery: a POST to an address that was checked, and what came of it.

No client stands behind it, which would keep cookies, follow redirects, and read proxies from the environment: only a
transport, which opens a connection for each attempt and verifies its certificate against the URL's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from tieryard.webhooks.addresses import (
    ForbiddenAddressError,
    GetAddrInfo,
    Target,
    UnresolvedError,
    check_url,
    resolve,
)
from tieryard.webhooks.backoff import read_retry_after

TIMEOUT_S = 15.0
_CONNECT_S = 5.0
_RESOLVERS = 64
_RESOLVERS_OF_OTHERS = 512
_KEPT_BYTES = 1024
_READING_S = 2.0
"""Of the answer's body, which nobody needs: its status is what counts."""
_USER_AGENT = "Tieryard-Webhook/1"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one: a 2xx `status` and no `error`, or why not.

    `answer` is the first 1 kB of what the receiver said. `for_good`: no attempt can do better. `retry_after_s` is what
    it asked for, a day at the most.
    """

    at: datetime
    latency_ms: float
    status: int | None = None
    error: str | None = None
    answer: str | None = None
    address: str | None = None
    retry_after_s: float | None = None
    for_good: bool = False

    @property
    def delivered(self) -> bool:
        return self.error is None

    @property
    def gone(self) -> bool:
        """410: the receiver wants no more of anything."""
        return self.status == 410


class Sender:
    """Makes attempts, many at once, in one event loop."""

    def __init__(
        self, *, allow_private: bool = False, timeout_s: float = TIMEOUT_S, getaddrinfo: GetAddrInfo | None = None
    ) -> None:
        self._allow_private = allow_private
        self._timeout_s = timeout_s
        self._getaddrinfo = getaddrinfo or socket.getaddrinfo
        # A look-up that hangs keeps its thread for half a minute, whatever became of the attempt: names that nobody
        # answers for take none from receivers that are known to be well.
        self._resolvers = {
            True: ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve"),
            False: ThreadPoolExecutor(_RESOLVERS_OF_OTHERS, thread_name_prefix="resolve-others"),
        }
        self._transport = httpx.AsyncHTTPTransport(
            verify=httpx.create_ssl_context(),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def attempt(self, url: str, headers: dict[str, str], body: bytes, *, steady: bool = False) -> Attempt:
        """`steady`: its receiver answered last, well and soon. Never raises but for a fault of ours."""
        at, began = datetime.now(tz=UTC), time.perf_counter()
        found: dict[str, Any]
        tried: list[str] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._post(url, headers, body, tried, self._resolvers[steady])
            found = await _outcome(answer)  # has a time of its own: what was answered in time counts
        except TimeoutError:
            found = {"error": f"the receiver took longer than {self._timeout_s:g} s"}
        except ForbiddenAddressError as refused:
            found = {"error": str(refused), "for_good": refused.for_good}
        except UnresolvedError as error:
            found = {"error": str(error)}
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            found = {"error": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}
        latency_ms = 1000 * (time.perf_counter() - began)
        return Attempt(at, latency_ms, address=tried[-1] if tried else None, **found)

    async def close(self) -> None:
        await self._transport.aclose()
        for pool in self._resolvers.values():
            pool.shutdown(wait=False, cancel_futures=True)

    async def _post(
        self, url: str, headers: dict[str, str], body: bytes, tried: list[str], pool: Executor
    ) -> httpx.Response:
        """The answer, its body unread, of the first of the host's addresses that takes a connection; the ones tried are
        put down in `tried`."""
        target = check_url(url, allow_private=self._allow_private)
        addresses = await resolve(target, allow_private=self._allow_private, pool=pool, getaddrinfo=self._getaddrinfo)
        for n, address in enumerate(addresses, start=1):
            tried.append(address)
            try:
                return await self._transport.handle_async_request(self._request(target, address, headers, body))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if n == len(addresses):
                    raise
        raise UnresolvedError("no address")  # there is one at least

    def _request(self, target: Target, address: str, headers: dict[str, str], body: bytes) -> httpx.Request:
        host = f"[{address}]" if ":" in address else address
        limits = dict.fromkeys(("read", "write", "pool"), self._timeout_s)
        return httpx.Request(
            "POST",
            httpx.URL(f"{target.scheme}://{host}:{target.port}", raw_path=target.path),
            headers={
                "host": target.host_header,
                "accept": "*/*",
                "accept-encoding": "identity",
                "connection": "close",
                "content-type": "application/json",
                "user-agent": _USER_AGENT,
                **headers,
            },
            content=body,
            extensions={
                "sni_hostname": target.host,
                "timeout": {"connect": min(_CONNECT_S, self._timeout_s), **limits},
            },
        )


async def _outcome(answer: httpx.Response) -> dict[str, Any]:
    said = await _first_bytes(answer)
    text = said.decode("utf-8", "replace").replace("\0", "\ufffd")
    found: dict[str, Any] = {"status": answer.status_code, "answer": text}
    if 200 <= answer.status_code < 300:
        return found
    retry_after = read_retry_after(answer.headers.get("retry-after", ""), datetime.now(tz=UTC))
    more = "; redirects are not followed" if 300 <= answer.status_code < 400 else ""
    return {**found, "error": f"the receiver answered {answer.status_code}{more}", "retry_after_s": retry_after}


async def _first_bytes(answer: httpx.Response) -> bytes:
    """As they came, whatever encoding they claim. A body that breaks off or trickles takes nothing from the status."""
    said = bytearray()
    with contextlib.suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(_READING_S):
            async for piece in answer.aiter_raw():
                said += piece
                if len(said) >= _KEPT_BYTES:
                    break
    with contextlib.suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(_READING_S):
            await answer.aclose()
    return bytes(said[:_KEPT_BYTES])
