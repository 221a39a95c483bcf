"""Limits a minute over a real Valkey: what is admitted, what is refused, and when it may be tried again."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tieryard import rates as module
from tieryard.errors import LimitError
from tieryard.rates import Rates, _Window, duration
from tieryard.store.keys import Holder
from tieryard.telemetry import Event


@pytest.fixture
def rates(redis_url: str) -> Iterator[Rates]:
    rates = Rates(redis_url)
    yield rates
    rates.close()


@pytest.fixture
def away() -> Iterator[Rates]:
    rates = Rates("redis://127.0.0.1:9/0")
    yield rates
    rates.close()


def holder(requests: int | None = None, tokens: int | None = None, key_id: int = 1) -> Holder:
    return Holder(1, key_id, frozenset(), requests, tokens)


def refused(call: Callable[[], object]) -> LimitError:
    with pytest.raises(LimitError) as caught:
        call()
    assert caught.value.code == "rate_limit_exceeded"
    return caught.value


def test_what_is_left_is_said(rates: Rates) -> None:
    headers = rates.admit(holder(10, 1000), requests=1, tokens=100)
    assert headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-remaining-requests"] == "9"
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert headers["x-ratelimit-remaining-tokens"] == "900"
    # Each is read from the window a moment after it began: less than a minute is left where the machine is busy.
    assert all(re.match(r"1m|[45]\d", headers[f"x-ratelimit-reset-{n}"]) for n in ("requests", "tokens"))
    assert len(headers) == 6
    assert rates.admit(holder(10, 1000), requests=1, tokens=0)["x-ratelimit-remaining-tokens"] == "900"


@pytest.mark.parametrize(("limited", "name"), [(holder(requests=5), "requests"), (holder(tokens=5), "tokens")])
def test_only_limits_that_the_key_has(rates: Rates, limited: Holder, name: str) -> None:
    headers = rates.admit(limited, requests=1, tokens=1)
    assert set(headers) == {f"x-ratelimit-{what}-{name}" for what in ("limit", "remaining", "reset")}


def test_keys_have_limits_of_their_own(rates: Rates) -> None:
    rates.admit(holder(1), requests=1, tokens=0)
    refused(lambda: rates.admit(holder(1), requests=1, tokens=0))
    rates.admit(holder(1, key_id=2), requests=1, tokens=0)


def test_a_refused_request_uses_up_nothing(rates: Rates) -> None:
    limited = holder(10, 100)
    rates.admit(limited, requests=1, tokens=90)
    error = refused(lambda: rates.admit(limited, requests=1, tokens=20))
    assert error.headers["x-ratelimit-remaining-requests"] == "9"
    assert error.headers["x-ratelimit-remaining-tokens"] == "10"
    assert "100 tokens a minute, of which 90 are used and 20 asked for; try again in " in error.message
    assert rates.admit(limited, requests=1, tokens=10)["x-ratelimit-remaining-requests"] == "8"


def test_what_can_never_pass(rates: Rates) -> None:
    error = refused(lambda: rates.admit(holder(10, 100), requests=1, tokens=101))
    assert "101 at once: it can never pass" in error.message
    assert math.isinf(error.retry_after_s)
    assert error.headers["x-ratelimit-remaining-tokens"] == "100"
    assert error.headers["x-ratelimit-remaining-requests"] == "10"


@pytest.mark.parametrize("limited", [holder(20), holder(None, 200), holder(20, 200), holder(30, 200)])
def test_fifty_threads_get_exactly_what_there_is(rates: Rates, limited: Holder) -> None:
    def one(_: int) -> bool:
        try:
            rates.admit(limited, requests=1, tokens=10)
        except LimitError:
            return False
        return True

    with ThreadPoolExecutor(50) as pool:
        admitted = sum(pool.map(one, range(50)))
    assert admitted == 20


def test_it_may_be_tried_again_when_it_says(rates: Rates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW_S", 2)
    limited = holder(4)
    for _ in range(4):
        rates.admit(limited, requests=1, tokens=0)
    for _ in range(2):  # from a window that is full, then from one that fades
        wait_s = refused(lambda: rates.admit(limited, requests=1, tokens=0)).retry_after_s
        assert 0 < wait_s <= 4
        time.sleep(wait_s)
        rates.admit(limited, requests=1, tokens=0)


@given(
    previous=st.integers(0, 10**7),
    current=st.integers(0, 10**7),
    fading_s=st.floats(0, 60),
    room=st.integers(0, 10**7),
)
def test_the_wait_is_neither_short_nor_long(previous: int, current: int, fading_s: float, room: int) -> None:
    def used(after_s: float) -> int:
        if after_s <= fading_s:
            return _Window(previous, fading_s - after_s, current, 0).used
        return _Window(current, max(0.0, fading_s + 60 - after_s), 0, 0).used

    wait_s = _Window(previous, fading_s, current, fading_s + 60).until_s(room)
    assert used(wait_s) <= room
    if wait_s > 0.002:
        assert used(wait_s - 0.002) > room


def test_without_redis_limits_do_not_bind(away: Rates) -> None:
    with structlog.testing.capture_logs() as logs:
        started = time.monotonic()
        assert [away.admit(holder(1), requests=1, tokens=0) for _ in range(3)] == [{}, {}, {}]
        assert time.monotonic() - started < 1
    assert [line["event"] for line in logs] == [Event.LIMITS_AWAY]  # it is not asked each time


def test_redis_is_asked_again_when_it_is_back(rates: Rates, monkeypatch: pytest.MonkeyPatch) -> None:
    rates._away_until = time.monotonic() + 0.1
    assert rates.admit(holder(5), requests=1, tokens=0) == {}
    time.sleep(0.11)
    assert rates.admit(holder(5), requests=1, tokens=0)["x-ratelimit-remaining-requests"] == "4"


def test_a_key_without_limits_asks_redis_nothing(away: Rates) -> None:
    with structlog.testing.capture_logs() as logs:
        assert away.admit(holder(), requests=1, tokens=10**9) == {}
    assert logs == []


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.0001, "1ms"), (0.02, "20ms"), (1, "1s"), (8.64, "8.64s"), (59.9995, "1m0s"), (360, "6m0s"),
     (86.4, "1m26.4s")],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
