"""Where deliveries may go: a URL's rules, and the addresses that its host stands for.

A name is resolved once for each attempt, all of its addresses are checked, and the connection goes to one of those: a
name that changes its answer gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import httpx

from tieryard.errors import TieryardError

GetAddrInfo = Callable[..., list[tuple[Any, ...]]]
"""`socket.getaddrinfo`, or what a test puts in its place."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LONGEST_URL = 2048
_MOST_ADDRESSES = 4  # that are tried, of those that a name has
_LONGEST_RESOLVE_S = 5.0

_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
"""All that is given out for global unicast."""

# Besides everything that `is_global` refuses, which differs between versions of Python: what is special by IANA's
# registries; what carries an IPv4 address inside a public-looking IPv6 one (6to4 and its relays, Teredo and the rest of
# 2001::/23, NAT64); and a cloud's metadata server that has a public address.
_DENIED = [
    ipaddress.ip_network(net)
    for net in (
        "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/23", "2001:db8::/32", "::ffff:0:0/96", "3fff::/20",
        "ff00::/8", "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
        "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
    )
]  # fmt: skip

# Services that speak no HTTP: a request there can only be meant to be misread.
_DENIED_PORTS = frozenset({
    0, 19, 21, 22, 23, 25, 53, 69, 110, 111, 119, 135, 137, 139, 143, 161, 389, 445, 465, 514, 587, 631, 636, 873, 993,
    995, 1433, 1521, 2049, 2375, 3306, 3389, 5432, 5672, 5900, 6000, 6379, 9092, 11211, 27017,
})  # fmt: skip


class ForbiddenAddressError(TieryardError):
    """The host is, or resolves to, what deliveries may not reach. `for_good`: whatever it may resolve to later."""

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good


class UnresolvedError(TieryardError):
    """The host's name has no address now."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL says: `host` is in ASCII, without the brackets of an IPv6 address; `path` is with its query."""

    scheme: str
    host: str
    port: int
    path: bytes

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _DEFAULT_PORTS[self.scheme] else f"{name}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port: one server."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{name}:{self.port}"


def allowed(address: str) -> bool:
    """Whether deliveries may go to this IP address."""
    if "%" in address:  # a zone: some link of this machine
        return False
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and ip not in _PUBLIC_IPV6:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _DENIED if net.version == ip.version)


def read_url(url: str) -> Target:
    """Raises ForbiddenAddressError that says what is wrong with it."""
    if len(url) > _LONGEST_URL:
        raise _refused(f"the URL is longer than {_LONGEST_URL} characters")
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii")
        port = parsed.port
    except (httpx.InvalidURL, UnicodeError, ValueError, TypeError) as error:
        raise _refused(f"the URL cannot be read: {error}") from error
    if parsed.scheme not in _DEFAULT_PORTS:
        raise _refused(f"'{parsed.scheme}' is no scheme for deliveries; use https, or http")
    if parsed.userinfo:
        raise _refused("the URL has a user name or password; a receiver knows a delivery by its signature")
    if parsed.fragment:
        raise _refused("the URL has a fragment (#…), which no server is sent")
    if not host:
        raise _refused("the URL has no host")
    if port is not None and not 0 < port < 65536:
        raise _refused(f"{port} is no port")
    return Target(parsed.scheme, host, port or _DEFAULT_PORTS[parsed.scheme], parsed.raw_path)


def check_url(url: str, *, allow_private: bool) -> Target:
    """What can be known of a URL before its name is resolved. Raises ForbiddenAddressError."""
    target = read_url(url)
    literal = _literal(target.host)
    if allow_private:
        return target
    if target.port in _DENIED_PORTS:
        raise _refused(f"port {target.port} is of a service that is no web server")
    if literal is not None and not allowed(literal):
        raise _refused(f"{literal} is not a public address")
    name = target.host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        raise _refused(f"'{target.host}' is this machine")
    return target


async def resolve(
    target: Target, *, allow_private: bool, pool: Executor, getaddrinfo: GetAddrInfo = socket.getaddrinfo
) -> list[str]:
    """The addresses to connect to, in order. Raises ForbiddenAddressError when any of the host's is not allowed, and
    UnresolvedError."""
    loop = asyncio.get_running_loop()
    looking = loop.run_in_executor(
        pool, lambda: getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    )
    try:
        async with asyncio.timeout(_LONGEST_RESOLVE_S):
            found = await looking
    except TimeoutError:
        raise UnresolvedError(f"'{target.host}' did not resolve within {_LONGEST_RESOLVE_S:g} s") from None
    except (OSError, UnicodeError) as error:
        raise UnresolvedError(f"'{target.host}' does not resolve: {error}") from error
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if not addresses:
        raise UnresolvedError(f"'{target.host}' has no address")
    if not allow_private and (refused := [address for address in addresses if not allowed(address)]):
        raise ForbiddenAddressError(f"'{target.host}' is at {refused[0]}, where deliveries may not go")
    return addresses[:_MOST_ADDRESSES]


def _literal(host: str) -> str | None:
    """The address that a host is, None for a name. Raises ForbiddenAddressError for one in an unusual spelling: a last
    part that is a number makes it an address (WHATWG URL, "ends in a number"), however many parts there are."""
    if ":" in host:
        if "%" in host:
            raise _refused("the address has a zone, which only means something on one machine")
        return host
    last = host.rstrip(".").rpartition(".")[2].lower()
    if not (last.isdecimal() or last.startswith("0x")):
        return None
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise _refused(f"'{host}' is an unusual spelling of an address; write it as four numbers") from None


def _refused(message: str) -> ForbiddenAddressError:
    return ForbiddenAddressError(message, for_good=True)
