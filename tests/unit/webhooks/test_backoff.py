"""When the next attempt is due: later each time, with jitter, and never after three days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.webhooks.backoff import WITHIN_S, next_wait_s, read_retry_after, rest_s

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def test_waits_triple_are_jittered_and_end_after_72_hours() -> None:
    at, waits = 0.0, []
    for failures in range(1, 100):
        wait = next_wait_s(failures, due_for_s=at)
        if wait is None:
            break
        plain = min(5.0 * 3 ** (failures - 1), 12 * 3600)
        assert wait <= 1.2 * plain
        assert wait >= 0.8 * plain or at + wait == pytest.approx(WITHIN_S)
        waits.append(wait)
        at += wait
    assert at == pytest.approx(WITHIN_S), "the last attempt is made at the end"
    assert 12 <= len(waits) <= 18
    assert len({next_wait_s(3, due_for_s=0) for _ in range(20)}) > 10


@given(
    failures=st.integers(1, 10_000),
    due_for_s=st.floats(0, 2 * WITHIN_S),
    retry=st.none() | st.floats(0, 86_400),
    first_s=st.floats(0.01, 3600),
)
def test_no_wait_reaches_past_the_end_or_is_shorter_than_asked(
    failures: int, due_for_s: float, retry: float | None, first_s: float
) -> None:
    wait = next_wait_s(failures, due_for_s=due_for_s, retry_after_s=retry, first_s=first_s)
    if due_for_s >= WITHIN_S:
        assert wait is None
        return
    assert wait is not None
    assert 0 < wait <= WITHIN_S - due_for_s
    assert wait >= min(retry or 0, WITHIN_S - due_for_s)


@pytest.mark.parametrize("status", [429, 503])
def test_who_says_it_is_too_much_rests(status: int) -> None:
    assert rest_s(1, status=status, retry_after_s=120.0) == 120.0
    assert rest_s(9, status=status, retry_after_s=None) == 5.0


def test_who_merely_fails_is_asked_less_and_less_but_soon() -> None:
    rests = [rest_s(n, status=500, retry_after_s=None) for n in range(1, 9)]
    assert rests == [0, 0, 5, 10, 15, 15, 15, 15]
    assert rest_s(10**6, status=None, retry_after_s=None) == 15


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("86401", 86_400.0),
        ("9" * 400, 86_400.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("\u00b2", None),
        ("\u0661", None),
        ("Mon, 23 Nov 2026 12:02:00 GMT", 120.0),
        ("Mon, 23 Nov 2026 12:02:00 -0000", 120.0),
        ("Mon, 23 Nov 2026 14:02:00 +0200", 120.0),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("Fri, 25 Dec 2026 12:00:00 GMT", 86_400.0),
        ("Mon, 99 Nov 2026 12:02:00 GMT", None),
        ("Mon, 23 Nov 99999 12:02:00 GMT", None),
    ],
)
def test_retry_after_is_read(header: str, wait: float | None) -> None:
    assert read_retry_after(header, NOW) == wait


@given(st.text(max_size=60))
def test_any_header_is_survived(header: str) -> None:
    found = read_retry_after(header, NOW + timedelta(seconds=1))
    assert found is None or 0 <= found <= 86_400
