"""Estimates, break-even and ownership: to the cent, and by what must hold of any prices."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.catalog import Price
from tieryard.catalog.price_book import PrintedLimits
from tieryard.costs.ownership import Effort, Option, Rent, compare, read_option
from tieryard.costs.planning import Needed, Throughput, Workload, breakeven, saved_share
from tieryard.errors import CatalogError, UserError

LOAD = Workload(daily_queries=10_000, input_tokens=1500, output_tokens=300)

usd = st.decimals(min_value=0, max_value=1000, places=6)
some_usd = st.decimals(min_value="0.000001", max_value=1000, places=6)
more = st.decimals(min_value="0.000001", max_value=100, places=6)
tokens = st.integers(min_value=1, max_value=1_000_000)
workloads = st.builds(Workload, st.integers(min_value=1, max_value=10**7), tokens, tokens)
efforts = st.builds(
    Effort,
    **dict.fromkeys(("evaluation_usd", "setup_usd", "monitoring_usd"), usd),
    **dict.fromkeys(
        ("engineering_hours", "prompt_migration_hours", "model_update_hours", "maintenance_hours"),
        st.decimals(min_value=0, max_value=1000, places=2),
    ),
)


def price(into: str | Decimal, out: str | Decimal) -> Price:
    return Price(input_usd_per_1m=Decimal(into), output_usd_per_1m=Decimal(out))


options = st.one_of(
    st.builds(Option, st.just("api"), st.builds(price, usd, usd), efforts),
    st.builds(Option, st.just("gpu"), st.builds(Rent, usd_per_h=some_usd, instances=st.integers(1, 50)), efforts),
)


@pytest.mark.parametrize(
    ("into", "out", "month_usd"),
    [("2.50", "10.00", "2025.00"), ("0.15", "0.60", "121.50"), ("0.25", "1.25", "225.00")],
)
def test_a_month_to_the_cent(into: str, out: str, month_usd: str) -> None:
    assert LOAD.month_usd(price(into, out)) == Decimal(month_usd)


@given(workloads, usd, usd, more)
def test_a_month_costs_more_with_each_price(load: Workload, into: Decimal, out: Decimal, by: Decimal) -> None:
    least = load.month_usd(price(into, out))
    assert load.month_usd(price(into + by, out)) > least
    assert load.month_usd(price(into, out + by)) > least


def test_what_is_saved() -> None:
    assert saved_share(Decimal(18_400), Decimal(6_624)) == Decimal("0.64")
    assert saved_share(Decimal(0), Decimal(5)) is None


def test_the_busiest_minute_beside_limits() -> None:
    needed = Needed.of(LOAD, Decimal(3))
    assert (needed.requests, needed.input_tokens, needed.output_tokens, needed.tokens) == (21, 31_250, 6_250, 37_500)
    small = PrintedLimits(usage_tier="1", requests_per_minute=21, tokens_per_minute=30_000, source="a page")
    assert needed.beyond(small) == {"tokens": Decimal("1.25")}
    split = PrintedLimits(usage_tier="1", input_tokens_per_minute=40_000, output_tokens_per_minute=5_000, source="x")
    assert needed.beyond(split) == {"output tokens": Decimal("1.25")}


@pytest.mark.parametrize(("into", "out", "millions"), [("2.50", "10.00", "6.4"), ("0.15", "0.60", "106.7")])
def test_24_dollars_a_day(into: str, out: str, millions: str) -> None:
    found = breakeven(rent_usd_per_day=Decimal(24), input_tokens=1500, output_tokens=300, price=price(into, out))
    assert found.tokens_a_day is not None
    assert f"{found.tokens_a_day / 1_000_000:.1f}" == millions
    assert (found.capacity, found.is_reached) == (None, None)


@given(some_usd, tokens, tokens, usd, some_usd, more)
def test_break_even_solves_its_equation(
    rent: Decimal, into: int, out: int, input_price: Decimal, output_price: Decimal, by: Decimal
) -> None:
    rate = price(input_price, output_price)
    found = breakeven(rent_usd_per_day=rent, input_tokens=into, output_tokens=out, price=rate)
    assert found.tokens_a_day is not None
    assert found.queries_a_day is not None
    assert abs(found.queries_a_day * Workload(1, into, out).query_usd(rate) - rent) <= rent * Decimal("1e-24")
    assert abs(found.tokens_a_day * found.api_usd_per_1m / 1_000_000 - rent) <= rent * Decimal("1e-24")
    for dearer in (price(input_price + by, output_price), price(input_price, output_price + by)):
        sooner = breakeven(rent_usd_per_day=rent, input_tokens=into, output_tokens=out, price=dearer)
        assert sooner.tokens_a_day is not None
        assert sooner.tokens_a_day < found.tokens_a_day


def test_what_the_gpu_can_do_has_the_last_word() -> None:
    """86,400 s ÷ (1,500 ÷ 3,000 + 300 ÷ 600) = 86,400 queries, of 1,800 tokens."""
    able = Throughput(Decimal(3000), Decimal(600))
    found = breakeven(
        rent_usd_per_day=Decimal(24), input_tokens=1500, output_tokens=300, price=price("0.15", "0.60"), throughput=able
    )
    assert (found.capacity, found.is_reached) == (155_520_000, True)
    assert found.rented_usd_per_1m is not None
    assert found.rented_usd_per_1m * 155_520_000 == pytest.approx(24_000_000)
    half = Throughput(Decimal(3000), Decimal(600), utilization=Decimal("0.5"))
    never = breakeven(
        rent_usd_per_day=Decimal(24), input_tokens=1500, output_tokens=300, price=price("0.15", "0.60"), throughput=half
    )
    assert (never.capacity, never.is_reached) == (77_760_000, False)


def test_a_free_api_is_never_beaten() -> None:
    found = breakeven(rent_usd_per_day=Decimal(24), input_tokens=1, output_tokens=1, price=price("0", "0"))
    assert (found.tokens_a_day, found.is_reached) == (None, False)


def test_the_pages_option_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "costs.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```yaml\n(name: .*?)```", page, re.DOTALL)
    (tmp_path / "b.yaml").write_text(example)
    option = read_option(tmp_path / "b.yaml")
    assert option.running == Rent(usd_per_h=Decimal("1.624"), instances=2)
    assert option.effort.engineering_hours == 120
    (tmp_path / "b.yaml").write_text("name: neither\n")
    with pytest.raises(CatalogError, match="give `tokens` or `rent`, one of both"):
        read_option(tmp_path / "b.yaml")


def test_ownership_month_by_month() -> None:
    a = Option("api", price("2.50", "10.00"))
    b = Option(
        "gpu",
        Rent(usd_per_h=Decimal("1.624")),
        Effort(evaluation_usd=Decimal(500), engineering_hours=Decimal(40), maintenance_hours=Decimal(2)),
    )
    found = compare(a, b, LOAD, months=12, usd_per_hour=Decimal(100))
    assert found.spent(0) == (0, 4500)
    assert found.spent(12) == (24_300, Decimal("20931.36"))
    assert found.payback_month == 7


@given(options, options, workloads, st.integers(6, 12), st.decimals(min_value=0, max_value=500, places=2))
def test_it_has_paid_back_when_it_says_and_not_before(
    a: Option, b: Option, load: Workload, months: int, rate: Decimal
) -> None:
    found = compare(a, b, load, months=months, usd_per_hour=rate)
    for month in range(months + 1):
        for spent, option in zip(found.spent(month), (a, b), strict=True):
            lines = option.lines(load, rate)
            assert spent == sum(line.once_usd + month * line.month_usd for line in lines)
    if found.payback_month is None:
        once_a, once_b = found.spent(0)
        a_month, b_month = (after - before for before, after in zip(found.spent(0), found.spent(1), strict=True))
        assert b_month > a_month or (b_month == a_month and once_b > once_a)
    else:
        then, before = found.spent(found.payback_month), found.spent(found.payback_month - 1)
        assert then[1] <= then[0]
        assert found.payback_month == 1 or before[1] > before[0]


@given(usd, usd, more)
def test_ownership_costs_more_with_each_price(into: Decimal, out: Decimal, by: Decimal) -> None:
    def total(rate: Price) -> Decimal:
        return compare(Option("a", rate), Option("b", rate), LOAD, months=6, usd_per_hour=Decimal(1)).spent(6)[0]

    assert total(price(into + by, out)) > total(price(into, out)) < total(price(into, out + by))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Workload(-1, 1, 1), "--daily-queries: must not be below 0, not -1"),
        (lambda: Workload(1, 0, 0), "--input-tokens: a query has tokens"),
        (lambda: Needed.of(LOAD, Decimal("0.5")), "--peak-factor: must be 1 or more, not 0.5"),
        (lambda: Throughput(Decimal(0), Decimal(1)), "--prefill-tps: must be greater than 0, not 0"),
        (lambda: Throughput(Decimal(1), Decimal(1), Decimal(2)), "--utilization: must be at most 1, not 2"),
        (
            lambda: breakeven(rent_usd_per_day=Decimal(0), input_tokens=1, output_tokens=1, price=price("1", "1")),
            "--rent-per-day: must be greater than 0, not 0",
        ),
        (
            lambda: compare(
                Option("a", price("1", "1")), Option("b", price("1", "1")), LOAD, months=13, usd_per_hour=Decimal(1)
            ),
            "--months: must be 6 to 12, not 13",
        ),
    ],
)
def test_what_cannot_be(wrong: object, says: str) -> None:
    assert callable(wrong)
    with pytest.raises(UserError) as caught:
        wrong()
    assert says in str(caught.value)
