"""What `tieryard config diff` prints on a narrow terminal: no field and no value is torn."""

from __future__ import annotations

import io

from rich.console import Console

from tieryard.catalog.changes import Change
from tieryard.cli.config import show_changes

FIELD = "deployments.qwen2.5-32b-instruct-awq.price.input_usd_per_1m"
FOUND = [Change(FIELD, "0.55", "0.5"), Change("tiers.nightly", None, "{slo: {}, slo_from: accepted, window: 24h}")]


def shown(width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    show_changes(console, FOUND, "version 4", "tieryard.yaml")
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_where_there_is_room_both_stand_side_by_side() -> None:
    head, _, first, *_ = shown(150)
    assert head.split() == ["field", "version", "4", "tieryard.yaml"]
    assert first.split() == [FIELD, "0.55", "0.5"]


def test_where_there_is_none_they_stand_below_the_field() -> None:
    assert shown(80) == [
        "version 4 → tieryard.yaml",
        FIELD,
        "  0.55 → 0.5",
        "tiers.nightly",
        "  – → {slo: {}, slo_from: accepted, window: 24h}",
    ]
