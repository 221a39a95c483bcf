"""Where deliveries may go, and where they may not."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tieryard.webhooks.addresses import (
    ForbiddenAddressError,
    UnresolvedError,
    allowed,
    check_url,
    read_url,
    resolve,
)

FORBIDDEN = [
    # this network, private, shared, loopback, link-local with the metadata of clouds
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.254", "127.0.0.1",
    "127.255.255.254", "169.254.0.1", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.254", "192.0.0.1",
    "192.0.0.192", "192.168.1.1", "168.63.129.16",
    # documentation, benchmarking, relays, multicast, reserved, broadcast
    "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "192.88.99.1", "224.0.0.1", "232.1.1.1",
    "239.255.255.250", "240.0.0.1", "250.1.2.3", "255.255.255.255",
    # of IPv6: unspecified, loopback, link- and site-local, unique local, multicast, documentation, discard, reserved
    "::", "::1", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "fc00::1", "fd00::1", "fd00:ec2::254", "fd20:ce::254",
    "ff02::1", "ff0e::1", "2001:db8::1", "3fff::1", "100::1", "5f00::1", "4000::1", "2606:4700::1%1",
    # an IPv4 address inside an IPv6 one
    "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "::127.0.0.1", "::7f00:1",
    "::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1", "64:ff9b:1:ffff::a00:1",
    "2002:7f00:1::1", "2002:a00:1::", "2002:a9fe:a9fe::", "2002:808:808::1", "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:20::1", "2001:2::1",
]  # fmt: skip

PUBLIC = [
    "8.8.8.8", "1.1.1.1", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "126.1.1.1", "128.0.0.1",
    "169.253.1.1", "169.255.1.1", "172.15.1.1", "172.32.0.1", "192.167.1.1", "192.169.1.1", "198.17.1.1", "198.20.1.1",
    "223.255.255.254", "2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888", "2400:cb00::1",
]  # fmt: skip


def test_there_are_many() -> None:
    assert len(set(FORBIDDEN)) == len(FORBIDDEN) >= 60


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_that_deliveries_may_not_reach(address: str) -> None:
    assert not allowed(address)
    with pytest.raises(ForbiddenAddressError) as caught:
        check_url(f"https://[{address}]/" if ":" in address else f"https://{address}/", allow_private=False)
    assert caught.value.for_good


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert allowed(address)
    host = f"[{address}]" if ":" in address else address
    assert check_url(f"https://{host}/a?b=c", allow_private=False).host == address


SPELLINGS = [
    "0x7f.1", "0x7f000001", "2130706433", "127.1", "127.0.1", "017700000001", "0177.0.0.1", "127.0.0.01",
    "0x08080808", "134744072", "8.8.8.8.8", "256.1.1.1", "1.2.3.4.", "0x", "127.0.0.0x1", "10.1", "169.254.43518",
]  # fmt: skip


@pytest.mark.parametrize("allow_private", [True, False])
@pytest.mark.parametrize("host", SPELLINGS)
def test_an_address_has_one_spelling(host: str, allow_private: bool) -> None:
    with pytest.raises(ForbiddenAddressError, match=r"unusual spelling|Invalid IPv4 address"):
        check_url(f"http://{host}/", allow_private=allow_private)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("ftp://example.com/", "'ftp' is no scheme"),
        ("file:///etc/passwd", "'file' is no scheme"),
        ("example.com/hook", "no scheme"),
        ("", "no scheme"),
        ("https:///hook", "has no host"),
        ("https://user@example.com/", "user name or password"),
        ("https://user:pass@example.com/", "user name or password"),
        ("https://127.0.0.1\\@example.com/", "user name or password"),
        ("https://example.com/#there", "fragment"),
        ("https://example.com:99999/", "99999 is no port"),
        ("https://example.com:0/", "0 is no port"),
        ("https://example.com:x/", "cannot be read"),
        ("https://exa\nmple.com/", "cannot be read"),
        ("https://example.com/" + "a" * 2048, "longer than 2048"),
        ("http://localhost/", "is this machine"),
        ("http://Foo.LOCALHOST:8080/", "is this machine"),
        ("http://localhost./", "is this machine"),
        ("https://example.com:22/", "port 22"),
        ("http://example.com:6379/", "port 6379"),
        ("http://example.com:5432/", "port 5432"),
        ("http://127。0。0。1/", "not a public address"),
        ("http://[fe80::1%25eth0]/", "zone"),
        ("http://[::ffff:127.0.0.1]:80/", "not a public address"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, what: str) -> None:
    with pytest.raises(ForbiddenAddressError, match=what) as caught:
        check_url(url, allow_private=False)
    assert caught.value.for_good
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/", "http://[::1]/", "http://localhost:22/", "http://10.0.0.1/"])
def test_a_fleet_for_development_reaches_what_is_private(url: str) -> None:
    assert check_url(url, allow_private=True).scheme == "http"


@pytest.mark.parametrize(
    ("url", "origin", "host_header", "path"),
    [
        ("https://Example.com", "https://example.com:443", "example.com", b"/"),
        ("http://example.com:80/a?b=%20", "http://example.com:80", "example.com", b"/a?b=%20"),
        ("http://example.com:81/", "http://example.com:81", "example.com:81", b"/"),
        ("https://[2606:4700::1111]:8443/x", "https://[2606:4700::1111]:8443", "[2606:4700::1111]:8443", b"/x"),
        ("https://exämple.com/ü", "https://xn--exmple-cua.com:443", "xn--exmple-cua.com", b"/%C3%BC"),
    ],
)
def test_a_url_is_read(url: str, origin: str, host_header: str, path: bytes) -> None:
    target = read_url(url)
    assert (target.origin, target.host_header, target.path) == (origin, host_header, path)


def resolved(*addresses: str | Exception, allow_private: bool = False) -> list[str]:
    def getaddrinfo(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        for found in addresses:
            if isinstance(found, Exception):
                raise found
        return [(2, 1, 6, "", (address, 443)) for address in addresses]

    async def look() -> list[str]:
        with ThreadPoolExecutor(1) as pool:
            return await resolve(
                read_url("https://example.com"), allow_private=allow_private, pool=pool, getaddrinfo=getaddrinfo
            )

    return asyncio.run(look())


def test_one_private_address_among_public_ones_is_enough() -> None:
    with pytest.raises(ForbiddenAddressError, match=r"example\.com' is at 10\.0\.0\.1") as caught:
        resolved("8.8.8.8", "10.0.0.1", "1.1.1.1")
    assert not caught.value.for_good, "its owner can mend that"


def test_each_address_is_tried_once_and_not_too_many() -> None:
    assert resolved("8.8.8.8", "8.8.8.8", "1.1.1.1") == ["8.8.8.8", "1.1.1.1"]
    assert len(resolved(*(f"8.8.8.{n}" for n in range(9)))) == 4
    assert resolved("10.0.0.1", allow_private=True) == ["10.0.0.1"]


@pytest.mark.parametrize("error", [OSError("unknown"), UnicodeError("label too long")])
def test_a_name_that_is_unknown(error: Exception) -> None:
    with pytest.raises(UnresolvedError, match="does not resolve"):
        resolved(error)
    with pytest.raises(UnresolvedError, match="no address"):
        resolved()


async def test_a_look_up_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tieryard.webhooks.addresses._LONGEST_RESOLVE_S", 0.1)

    def hangs(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        time.sleep(0.6)
        return []

    with ThreadPoolExecutor(1) as pool, pytest.raises(UnresolvedError, match=r"within 0\.1 s"):
        await resolve(read_url("https://example.com"), allow_private=False, pool=pool, getaddrinfo=hangs)
