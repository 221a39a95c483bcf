"""A quality is known by its own scores: they have a count and an age of their own, and few of them prove little."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests import factories as make
from tieryard.routing import Profile, Rules, decide
from tieryard.routing.profiles import Known, rating


def rated(score: float, n: int | None, **fields: object) -> Profile:
    return Profile(samples=0, timestamp=0.0, quality_score=score, quality_samples=n, **fields)  # type: ignore[arg-type]


def test_a_single_score_does_not_make_a_quality_and_many_do() -> None:
    assert rating(rated(0.0, 1), (), 0.8).quality == pytest.approx(0.8 * 10 / 11)
    assert rating(rated(0.0, 990), (), 0.8).quality == pytest.approx(0.008)
    assert rating(rated(0.3, None), (), 0.8).quality == 0.3, "measured by whoever does not count"


def test_what_is_not_scored_on_this_category_is_taken_from_the_others() -> None:
    others = [rated(0.2, 30), rated(0.8, 60), Profile(samples=9, timestamp=1.0)]
    found = rating(None, others, 0.6)
    assert found.known is Known.BORROWED
    assert found.quality == pytest.approx((0.2 * 30 + 0.8 * 60 + 0.6 * 10) / 100)
    assert rating(None, others[2:], 0.6) == rating(others[2], others[2:], 0.6)
    assert rating(None, (), 0.6).known is Known.ASSUMED


def test_an_old_score_is_named_and_a_fresh_one_does_not_make_old_times_fresh() -> None:
    old = Profile(samples=50, timestamp=1.0, ttft_ms=9.0, tpot_ms=1.0, output_tokens=5.0, stale=True)
    both = make.candidate("one", profiles={"chat": old})
    fresh = make.candidate("one", profiles={"chat": rated(0.7, 40)})
    aged = make.candidate("one", profiles={"chat": rated(0.7, 40, quality_stale=True)})
    assert decide(make.features(), make.snapshot(both)).notes[0] == "one's profile for chat is stale"
    notes = decide(make.features(), make.snapshot(fresh)).notes
    assert notes == ("one has no profile: taken for a usual small one",)
    assert "one's quality on chat is stale" in decide(make.features(), make.snapshot(aged)).notes


def test_exploring_says_what_it_costs_above_the_choice() -> None:
    cheap = make.candidate("a")
    dear = make.candidate("b", input_usd_per_1m=Decimal(1), output_usd_per_1m=Decimal(4))
    rules = Rules(explore_share=1.0, explore_tiers=frozenset({"bulk"}))
    job = make.features(100, tier="bulk")
    decision = decide(job, make.snapshot(cheap, dear, rules=rules))
    assert (decision.deployment, decision.explored) == ("b", True)
    one, other = (judged.cost_usd for judged in decision.judged)
    assert decision.extra_usd == other - one > 0
    assert decide(job, make.snapshot(cheap, dear)).extra_usd == 0
