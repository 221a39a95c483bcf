"""Delivering callbacks: signed (Standard Webhooks), to a public address, and nowhere else.

A name is resolved once, each of its addresses is checked, and the connection goes to the address checked,
so a name that changes its answer gains nothing. Redirects are failures.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx
import orjson
from standardwebhooks import Webhook

from tieryard.errors import TieryardError

MAX_ATTEMPTS = 12
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 12 * 3600.0
_LONGEST_RETRY_AFTER_S = 24 * 3600.0
_WITHIN_S = 30.0  # less than the time for which a taken row is out of sight
_TIMEOUT = httpx.Timeout(15.0, connect=5.0)

# Besides everything `is_global` refuses: ways to write a private IPv4 address inside a public-looking IPv6 one.
_DENIED = [
    ipaddress.ip_network(n)
    for n in (
        "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::ffff:0:0/96",
        "3fff::/20", "100.64.0.0/10", "224.0.0.0/4", "ff00::/8",
    )
]  # fmt: skip


_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
"""All that is given out for global unicast."""


class ForbiddenAddressError(TieryardError):
    """The callback's host is, or resolves to, an address that callbacks may not reach."""


class DeliveryError(TieryardError):
    """The receiver did not take it. `gone` (410) means it never will."""

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        """What the receiver asked for, a day at the most."""
        self.gone = status == 410


def allowed(address: str) -> bool:
    """Whether callbacks may go to this IP address."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and ip not in _PUBLIC_IPV6:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _DENIED if net.version == ip.version)


def resolve(host: str, port: int, *, allow_private: bool) -> str:
    """The address to connect to. Raises ForbiddenAddressError when any of the host's addresses is not allowed."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise DeliveryError(f"'{host}' does not resolve: {error}") from error
    if not allow_private:
        for address in found:
            if not allowed(address):
                raise ForbiddenAddressError(f"'{host}' is at {address}, where callbacks may not go")
    return found[0]


def deliver(
    url: str,
    *,
    message_id: str,
    payload: dict[str, object],
    secret: str,
    allow_private: bool = False,
    resolver: Callable[..., str] = resolve,
) -> int:
    """One attempt: the receiver's 2xx status. Raises DeliveryError or ForbiddenAddressError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = resolver(host, port, allow_private=allow_private)
    now = datetime.now(tz=UTC)
    body = orjson.dumps(payload)
    headers = {
        "host": parts.netloc.rpartition("@")[2],
        "content-type": "application/json",
        "user-agent": "Tieryard-Webhook/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body.decode()),
    }
    target = httpx.URL(url).copy_with(host=address, port=port, username="", password="")
    try:
        status, retry_after = asyncio.run(_post(target, body, headers, host))
    except TimeoutError:
        raise DeliveryError(f"the receiver took longer than {_WITHIN_S:g} s") from None
    except httpx.HTTPError as error:
        raise DeliveryError(f"{type(error).__name__}: {error}") from error
    if 200 <= status < 300:
        return status
    wait = (
        min(float(retry_after), _LONGEST_RETRY_AFTER_S) if retry_after.isdecimal() and retry_after.isascii() else None
    )
    raise DeliveryError(f"the receiver answered {status}", status=status, retry_after_s=wait)


async def _post(target: httpx.URL, body: bytes, headers: dict[str, str], host: str) -> tuple[int, str]:
    """(status, Retry-After), within a time for all of it: httpx's own limits are per read, and reads can trickle."""
    async with (
        asyncio.timeout(_WITHIN_S),
        httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, follow_redirects=False) as client,
        client.stream("POST", target, content=body, headers=headers, extensions={"sni_hostname": host}) as answer,
    ):
        return answer.status_code, answer.headers.get("retry-after", "")


def next_wait_s(attempt: int, retry_after_s: float | None = None) -> float | None:
    """Seconds until the next attempt after `attempt` failures, with jitter; None to give up."""
    if attempt >= MAX_ATTEMPTS:
        return None
    backoff: float = min(_FIRST_WAIT_S * 3 ** (attempt - 1), _LONGEST_WAIT_S) * random.uniform(0.8, 1.2)  # noqa: S311
    return max(backoff, retry_after_s or 0)
