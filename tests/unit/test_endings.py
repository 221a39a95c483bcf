"""What a start's end says of its engine."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tieryard.endings import start_kind
from tieryard.job import State
from tieryard.store.finish import Ending, HandBack


def ending(state: State, error_kind: str | None = None, hand_back: HandBack | None = None) -> Ending:
    now = datetime.now(tz=UTC)
    return Ending(1, 1, state, 1, "one", "hash", now, 0.0, error_kind=error_kind, hand_back=hand_back)


@pytest.mark.parametrize(
    ("state", "error_kind", "hand_back", "expected"),
    [
        (State.SUCCEEDED, None, None, "ok"),
        (State.FAILED, "engine_timeout", None, "failed"),
        (State.FAILED, "engine_died", None, "failed"),
        (State.QUEUED, "engine_down", HandBack.FAULT, "failed"),
        (State.QUEUED, "engine_down", HandBack.CRASH, "failed"),
        (State.QUEUED, "engine_down", HandBack.OUTAGE, "failed"),
        (State.QUEUED, "engine_busy", HandBack.OUTAGE, "refused"),
        (State.FAILED, "engine_busy", None, "refused"),
        (State.QUEUED, "engine_error", HandBack.OUTAGE, None),  # the store was away
        (State.QUEUED, "engine_error", HandBack.DRAIN, None),
        (State.FAILED, "bad_request", None, None),
        (State.FAILED, "context_length", None, None),
        (State.FAILED, "store_away", None, None),
        (State.CANCELLED, "cancelled", None, None),
        (State.EXPIRED, "expired", None, None),
    ],
)
def test_only_what_the_engine_did_counts(
    state: State, error_kind: str | None, hand_back: HandBack | None, expected: str | None
) -> None:
    assert start_kind(ending(state, error_kind, hand_back)) == expected
