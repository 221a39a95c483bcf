"""What may be asked of a load, and how much of it there is by default."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tieryard.bench.specs import CapacitySpec, SpeedSpec


@pytest.mark.parametrize(
    ("spec", "in_flight", "count"),
    [
        (SpeedSpec(), 2, 48),
        (SpeedSpec(), 7, 48),
        (SpeedSpec(), 256, 1024),
        (SpeedSpec(rate_per_s=0.5), 8, 48),
        (SpeedSpec(rate_per_s=4), 8, 120),
        (SpeedSpec(rate_per_s=10_000), 8, 100_000),
        (SpeedSpec(requests=5), 256, 5),
    ],
)
def test_as_many_requests_as_a_full_load_needs(spec: SpeedSpec, in_flight: int, count: int) -> None:
    assert spec.count(in_flight) == count


REFUSED: list[tuple[type[SpeedSpec | CapacitySpec], dict[str, Any]]] = [
    (SpeedSpec, {"concurrency": 4, "rate_per_s": 2}),
    (SpeedSpec, {"concurrency": 0}),
    (SpeedSpec, {"requests": 100_001}),
    (SpeedSpec, {"colour": "red"}),
    (CapacitySpec, {"most": 11}),
    (CapacitySpec, {"low": 4, "high": 2}),
    (CapacitySpec, {"target": 0}),
]


@pytest.mark.parametrize(("kind", "given"), REFUSED)
def test_what_makes_no_load_is_refused(kind: type[SpeedSpec | CapacitySpec], given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(given)
