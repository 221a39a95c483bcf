"""A decision names the benchmark that measured what it rests on."""

from __future__ import annotations

from dataclasses import replace

import orjson

from tests.factories import candidate, features, snapshot
from tieryard.routing import Profile, Snapshot, decide

MEASURED = Profile(
    100,
    1.0,
    ttft_ms=100.0,
    tpot_ms=10.0,
    output_tokens=60.0,
    benchmark="benchmark_12",
    benchmark_timestamp=1_785_553_440.0,
)
SAID = "one's profile for chat was measured by benchmark_12, 2026-08-01 03:04 UTC"


def test_each_candidates_benchmark_is_named_also_when_it_is_told_later() -> None:
    other = candidate("two", profiles={"chat": replace(MEASURED, benchmark="")})
    seen = snapshot(candidate("one", profiles={"chat": MEASURED}), other)
    for one in (seen, Snapshot.from_json(orjson.loads(seen.to_json()))):
        notes = [note for note in decide(features(), one).notes if "measured by" in note]
        assert notes == [SAID]


def test_of_a_profile_that_is_borrowed_no_benchmark_is_named() -> None:
    seen = snapshot(candidate("one", profiles={"code": MEASURED}))
    assert not [note for note in decide(features(), seen).notes if "measured by" in note]
