"""When the next attempt is due, and for how long a receiver is left alone."""

from __future__ import annotations

import random
from datetime import datetime
from email.utils import parsedate_to_datetime

FIRST_WAIT_S = 5.0
WITHIN_S = 72 * 3600.0
"""After the first attempt was due, a delivery is tried for so long."""
GIVEN_UP_AFTER_S = WITHIN_S + 3600.0
"""Then it is given up without another attempt, where its receiver fails: the turn of each may never come there."""
DISABLED_AFTER_S = 5 * 86_400.0
"""An endpoint that has failed for so long, without one success, is disabled when it fails again."""
TRIED_FOR_S = 12 * 3600.0
"""And what it fails at was due so long before: where little happens, the last failure may be of another month."""

_LONGEST_WAIT_S = 12 * 3600.0
_LONGEST_RETRY_AFTER_S = 24 * 3600.0
_GROWS = 3.0
_JITTER = 0.2
_PATIENT_FAILURES = 2  # in a row, before a lane rests between its attempts
_LONGEST_REST_S = 15.0


def next_wait_s(
    failures: int, *, due_for_s: float, retry_after_s: float | None = None, first_s: float = FIRST_WAIT_S
) -> float | None:
    """Seconds until the next attempt, after this many failures; None to give up.

    `due_for_s` is how long ago the first attempt was due. The wait triples from `first_s` to 12 hours, give or take a
    fifth; what the receiver asked for is the least. The last attempt is at the end of the 72 hours.
    """
    left_s = WITHIN_S - due_for_s
    if left_s <= 0:
        return None
    plain = min(first_s * _GROWS ** min(failures - 1, 30), _LONGEST_WAIT_S)
    wait: float = plain * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  # spreads, and hides nothing
    return min(max(wait, retry_after_s or 0.0), left_s)


def rest_s(failures: int, *, status: int | None, retry_after_s: float | None, first_s: float = FIRST_WAIT_S) -> float:
    """How long nothing at all is sent to a receiver that has now failed so many times in a row.

    Who says that it is too much (429, 503) is left alone for as long as it asks. Who merely fails is asked again soon,
    but not as fast as it can refuse: the first success sends the rest.
    """
    if status in (429, 503):
        return first_s if retry_after_s is None else retry_after_s
    if failures <= _PATIENT_FAILURES:
        return 0.0
    return float(min(first_s * 2.0 ** min(failures - _PATIENT_FAILURES - 1, 30), _LONGEST_REST_S))


def read_retry_after(header: str, now: datetime) -> float | None:
    """Seconds from now that a `Retry-After` asks for, in seconds or as an HTTP date, a day at the most; None where it
    cannot be read."""
    header = header.strip()
    if header.isascii() and header.isdecimal():
        return min(float(header[:12]), _LONGEST_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(header)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if at.tzinfo is None:  # "-0000": UTC, by RFC 5322, of no known zone
        at = at.replace(tzinfo=now.tzinfo)
    return min(max((at - now).total_seconds(), 0.0), _LONGEST_RETRY_AFTER_S)
