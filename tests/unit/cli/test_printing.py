"""What commands print as JSON, and times with their zone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from tieryard.cli.printing import print_json, shown_time

LOCAL = datetime(2026, 11, 23, 9, 19, 39, 5, tzinfo=timezone(timedelta(hours=2)))


@dataclass(frozen=True, slots=True)
class Row:
    cost_usd: Decimal
    at: datetime
    calls: dict[int, int]
    latency_ms: tuple[float, float] | None = None


def test_rows_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([Row(Decimal("7E-8"), LOCAL.astimezone(UTC), {3: 1}), {"said": "ä\x1b[2J"}])
    out = capsys.readouterr().out
    assert "ä" in out
    assert "\x1b" not in out
    row = {"cost_usd": "0.00000007", "at": "2026-11-23T07:19:39.000005Z", "calls": {"3": 1}, "latency_ms": None}
    assert json.loads(out) == [row, {"said": "ä\x1b[2J"}]
    with pytest.raises(TypeError):
        print_json({"what": object()})


@pytest.mark.parametrize("when", [LOCAL, LOCAL.isoformat(), "2026-11-23T07:19:39.000005Z"])
def test_a_time_has_its_zone(when: datetime | str) -> None:
    assert shown_time(when) == "2026-11-23 07:19:39 UTC"
    assert shown_time(when, "%H:%M:%S") == "07:19:39"
