"""When a schedule is due: the latest of its times that is past."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from workers.schedules import latest_slot

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def at(hour: int, minute: int = 0, *, day: int = 0) -> datetime:
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("cron", "after", "now", "slot"),
    [
        ("0 3 * * *", at(2), at(2, 59), None),
        ("0 3 * * *", at(2), at(3), at(3)),
        ("0 3 * * *", at(3), at(23), None),  # it was run
        ("0 3 * * *", at(3), at(4, day=3), at(3, day=3)),  # what was missed before is not made up for
        ("*/15 * * * *", at(0, 1), at(1, 14), at(1)),
        ("0 4 * * 0", at(0), at(5, day=6), at(4, day=6)),  # Sundays
        ("0 4 * * 0", at(0), at(3, day=6), None),
    ],
)
def test_the_latest_time_that_is_past(cron: str, after: datetime, now: datetime, slot: datetime | None) -> None:
    assert latest_slot(cron, after=after, now=now) == slot


def test_times_are_in_utc_wherever_the_last_run_was() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert latest_slot("0 3 * * *", after=at(2).astimezone(tokyo), now=at(4).astimezone(tokyo)) == at(3)


def test_a_long_silence_is_made_up_for_once() -> None:
    assert latest_slot("* * * * *", after=at(0), now=at(0, day=30)) == at(0, day=30)
    assert latest_slot("0 3 1 1 *", after=at(0, day=-800), now=at(0)) == datetime(2026, 1, 1, 3, tzinfo=UTC)
