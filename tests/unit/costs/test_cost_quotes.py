"""The arithmetic of quotes: ranges of cost and time, samples and their error, which tier is the cheapest in time."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal
from statistics import mean, pstdev
from typing import Any

import pytest

from tieryard.catalog import Price
from tieryard.costs.quotes import (
    Ahead,
    Drawn,
    Line,
    Meets,
    Offer,
    Range,
    Tariff,
    ahead_of,
    answer_tokens,
    cheapest,
    meets,
    offer,
)

PRICE = Price(input_usd_per_1m=Decimal("0.15"), output_usd_per_1m=Decimal("0.60"))
NOBODY = Ahead()


def line(deployment: str = "one", **fields: Any) -> Line:
    plain = Line(deployment, 1500, Range(150, 300, 600), Range(1000.0, 2000.0, 4000.0), 0.0, 1000.0)
    return replace(plain, **fields)


def offered(lines: list[Line], *, requests: int | None = None, ahead: Ahead = NOBODY, **tariff: Any) -> Offer:
    known = {one.deployment: Tariff(PRICE, **tariff) for one in lines}
    return offer(lines, Drawn(requests or len(lines), len(lines)), known, ahead)


@pytest.mark.parametrize(
    ("most", "usual", "expected"),
    [
        (256, 100.0, Range(50, 100, 256)),
        (256, 99.2, Range(50, 100, 256)),
        (64, 100.0, Range(50, 64, 64)),
        (16, 100.0, Range(16, 16, 16)),
        (256, None, Range(1, 256, 256)),
        (0, None, Range(0, 0, 0)),
    ],
)
def test_how_long_an_answer_is_likely_to_be(most: int, usual: float | None, expected: Range[int]) -> None:
    assert answer_tokens(most, usual) == expected


def test_cost_is_exact_where_all_was_read() -> None:
    found = offered([line() for _ in range(10_000)])
    assert found.cost_usd == Range(Decimal("3.15"), Decimal("4.05"), Decimal("5.85"))
    assert found.error_usd == 0
    assert found.prompt_tokens == 15_000_000
    assert found.output_tokens == Range(1_500_000, 3_000_000, 6_000_000)


def test_a_sample_stands_for_all_and_widens_the_range_by_its_error() -> None:
    lines = [line(prompt_tokens=n) for n in (1000, 2000, 1000, 2000)]
    found = offered(lines, requests=400)
    assert found.prompt_tokens == 600_000
    assert found.cost_usd.expected == Decimal("0.162")
    # N √((1 − n/N) s²/n): a line is $0.00033 or $0.00048, so s² = 7.5e-9 and the error 400 √(0.99 × 7.5e-9 ÷ 4)
    assert found.error_usd == Decimal("0.017234")
    assert found.cost_usd.worst == Decimal("0.234") + 2 * found.error_usd
    assert found.cost_usd.low == Decimal("0.126") - 2 * found.error_usd


def test_the_stated_error_is_how_far_samples_are_off() -> None:
    chance = random.Random(7)
    every = [chance.lognormvariate(5, 1) for _ in range(5000)]
    drawn = Drawn(len(every), 200)
    samples = [chance.sample(every, 200) for _ in range(1000)]
    stated = mean(drawn.error(sample) for sample in samples)
    assert stated == pytest.approx(pstdev(drawn.total(sample) for sample in samples), rel=0.1)


def test_lines_that_nothing_takes_count_nothing_in_total_and_error() -> None:
    assert Drawn(100, 4).total([10.0, 10.0]) == 500
    assert Drawn(100, 4).error([10.0, 10.0]) == pytest.approx(Drawn(100, 4).error([10.0, 10.0, 0.0, 0.0]))


def test_a_batch_takes_its_tokens_over_the_throughput() -> None:
    found = offered([line(wait_ms=3000.0) for _ in range(100)])
    assert found.finish_s is not None
    assert found.finish_s.low == pytest.approx(15.0)
    assert found.finish_s.expected == pytest.approx(3 + 30 + 1)
    assert found.finish_s.worst == pytest.approx((3 + 60) / 0.8 + 5)


def test_a_short_batch_takes_as_long_as_its_longest_answer() -> None:
    found = offered([line(), line(latency_ms=Range(2000.0, 9000.0, 9000.0))])
    assert found.finish_s is not None
    assert (found.finish_s.low, found.finish_s.expected) == (2.0, 10.0)


def test_others_jobs_ahead_take_as_long_as_ones_own() -> None:
    found = offered([line() for _ in range(100)], ahead=Ahead(50, 200))
    assert found.finish_s is not None
    assert found.finish_s.expected == pytest.approx(30 + 15 + 1)
    assert found.finish_s.worst == pytest.approx((60 + 60) / 0.8 + 5)


def test_deployments_work_side_by_side() -> None:
    found = offered([line() for _ in range(100)] + [line("two", throughput_tps=100.0) for _ in range(100)])
    assert found.finish_s is not None
    assert found.finish_s.expected == pytest.approx(300 + 1)
    assert [(s.deployment, s.requests, s.cost_usd) for s in found.shares] == [
        ("one", 100, Decimal("0.0405")),
        ("two", 100, Decimal("0.0405")),
    ]


def test_where_one_serves_nothing_nobody_can_say_when_it_is_done() -> None:
    found = offered([line(), line("away", throughput_tps=0.0)])
    assert found.finish_s is None
    assert [s.finish_s is None for s in found.shares] == [True, False]
    assert meets(found.finish_s, 1e9) is Meets.UNKNOWN


@pytest.mark.parametrize("limit", [{"requests_per_minute": 10}, {"tokens_per_minute": 18_000}])
def test_a_providers_limits_hold_it_back(limit: dict[str, int]) -> None:
    found = offered([line() for _ in range(100)], **limit)
    assert found.finish_s is not None
    assert found.finish_s.expected == pytest.approx(600 + 1)


def test_tenants_take_turns() -> None:
    assert ahead_of(100, 20, [1000, 30]) == Ahead(20 + 120 + 30, 1050)
    assert ahead_of(100, 0, []) == Ahead(0, 0)


def test_whether_it_is_done_in_time() -> None:
    span = Range(10.0, 20.0, 40.0)
    assert [meets(span, s) for s in (40, 39, 20, 19)] == [Meets.SURELY, Meets.LIKELY, Meets.LIKELY, Meets.NO]


WINDOWS_S = {"fast": 60.0, "slow": 3600.0, "late": 86_400.0}


def tiers(**found: tuple[int, Meets, int]) -> dict[str, tuple[Offer, Meets, int]]:
    """By tier: prompt tokens, whether it is in time, requests missed."""
    return {name: (offered([line(prompt_tokens=n)]), met, missed) for name, (n, met, missed) in found.items()}


def test_the_cheapest_that_is_surely_in_time() -> None:
    found = tiers(fast=(900, Meets.SURELY, 0), slow=(500, Meets.SURELY, 0), late=(100, Meets.LIKELY, 0))
    assert cheapest(found, WINDOWS_S) == "slow"


def test_where_none_surely_is_the_cheapest_that_likely_is() -> None:
    found = tiers(fast=(900, Meets.LIKELY, 0), slow=(500, Meets.NO, 0), late=(100, Meets.UNKNOWN, 0))
    assert cheapest(found, WINDOWS_S) == "fast"
    assert cheapest(tiers(fast=(900, Meets.NO, 0)), WINDOWS_S) is None


def test_of_equal_cost_the_least_urgent() -> None:
    found = tiers(fast=(900, Meets.SURELY, 0), slow=(900, Meets.SURELY, 0), late=(900, Meets.SURELY, 0))
    assert cheapest(found, WINDOWS_S) == "late"


def test_one_that_leaves_requests_out_is_not_cheap() -> None:
    found = tiers(fast=(900, Meets.SURELY, 0), slow=(500, Meets.SURELY, 3))
    assert cheapest(found, WINDOWS_S) == "fast"
