"""Every figure is its formula; nothing succeeded is None; what failed is in the error rate alone."""

import math
import time
from dataclasses import fields, replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard import profiles
from tieryard.bench.figures import Rent, Slos, duration_s, gaps_ms, goodput, measure, to_profile
from tieryard.bench.load import Closed, Open, Run
from tieryard.bench.trace import Arrival, TokenSource, Trace
from tieryard.catalog import Price
from tieryard.routing import Profile

PRICE = Price(input_usd_per_1m=Decimal("0.50"), output_usd_per_1m=Decimal("2.00"))


def made(
    intended_s=0.0,
    *,
    wait_s=0.1,
    ttft_s=0.2,
    gap_s=0.05,
    packing=1,
    tokens=5,
    error=None,
    category="chat",
    running=True,
):
    """A request that waits, then answers `tokens` in pieces of `packing`."""
    sent_s = intended_s + wait_s
    counts = [min(tokens, first + packing) for first in range(0, tokens, packing)]
    arrivals = tuple(
        Arrival(sent_s + ttft_s + i * packing * gap_s, n if running else None) for i, n in enumerate(counts)
    )
    ended_s = arrivals[-1].at_s if arrivals else sent_s + ttft_s
    return Trace(category, intended_s, sent_s, ended_s, arrivals, 10, tokens, TokenSource.SERVER, error)


def run_of(*traces, shape=None, **changes):
    return Run(shape or Open(1.0, max(1, len(traces))), tuple(traces), at=1_000.0, distinct=len(traces), **changes)


def one_of(*traces, **options):
    [found] = measure(run_of(*traces), deployment="d", **options).values()
    return found


def test_the_formulas():
    found = one_of(*(made(float(i), tokens=5) for i in range(4)))
    assert found.ttft_ms.mean == pytest.approx(300)
    assert found.service_ttft_ms.mean == pytest.approx(200)
    assert found.latency_ms.mean == pytest.approx(500)
    assert found.tpot_ms.mean == pytest.approx((500 - 300) / 4)
    assert found.itl_ms.mean == pytest.approx(50)
    assert (found.ttft_ms.n, found.itl_ms.n) == (4, 16)
    assert found.requests_per_s == pytest.approx(4 / 3.5)
    assert found.output_tps == found.total_output_tps == pytest.approx(20 / 3.5)
    assert (found.prompt_tokens, found.output_tokens) == (10, 5)
    assert (found.error_rate, found.errors, found.goodput) == (0, {}, None)
    assert (found.token_source, found.valid, found.at) == (TokenSource.SERVER, False, 1_000.0)  # sent 100 ms late


@given(packing=st.integers(1, 8), tokens=st.integers(1, 60), gap_s=st.floats(0.001, 0.1))
def test_tokens_of_one_piece_share_its_gap(packing, tokens, gap_s):
    one = made(packing=packing, tokens=tokens, gap_s=gap_s)
    gaps = list(gaps_ms(one))
    first = min(packing, tokens)
    assert sum(n for _, n in gaps) == tokens - first
    assert sum(gap * n for gap, n in gaps) == pytest.approx(1000 * (one.ended_s - one.first_s))
    whole = gaps[: (tokens // packing) - 1]
    assert [gap for gap, _ in whole] == pytest.approx([1000 * gap_s] * len(whole))


@given(packing=st.integers(1, 8), pieces=st.integers(2, 20))
def test_without_a_running_count_pieces_hold_alike(packing, pieces):
    one = made(packing=packing, tokens=packing * pieces, running=False)
    gaps = list(gaps_ms(one))
    assert [n for _, n in gaps] == [packing] * (pieces - 1)
    assert [gap for gap, _ in gaps] == pytest.approx([50] * (pieces - 1))


def test_a_piece_without_tokens_adds_its_gap_to_the_next():
    arrivals = (Arrival(1.0, 1), Arrival(1.1, 1), Arrival(1.3, 3), Arrival(1.4, 3))
    assert list(gaps_ms(replace(made(), arrivals=arrivals))) == [(pytest.approx(150), 2)]
    assert list(gaps_ms(replace(made(), arrivals=()))) == []


def test_what_failed_is_in_the_error_rate_alone():
    good = [made(float(i)) for i in range(3)]
    bad = [made(3.0, ttft_s=99, error="engine_down"), made(4.0, ttft_s=99, error="engine_busy", tokens=0)]
    both, alone = one_of(*good, *bad), one_of(*good)
    for name in ("ttft_ms", "service_ttft_ms", "tpot_ms", "itl_ms", "latency_ms", "output_tokens"):
        assert getattr(both, name) == getattr(alone, name), name
    assert (both.n, both.succeeded, both.error_rate) == (5, 3, 0.4)
    assert both.errors == {"engine_down": 1, "engine_busy": 1}


def test_nothing_succeeded_is_none():
    found = one_of(made(tokens=0, error="engine_down"), made(1.0, error="engine_down"), slos=Slos(), cost=PRICE)
    assert found.error_rate == 1.0
    assert (found.goodput.share, found.goodput.met, found.goodput.n) == (0.0, 0, 2)
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "latency_ms", "requests_per_s", "output_tps", "total_output_tps"):
        assert getattr(found, name) is None, name
    assert found.output_tokens is found.cost_per_1k is found.token_source is None
    assert measure(run_of(), deployment="d") == {}


def test_categories_are_apart_and_share_the_engine():
    found = measure(run_of(made(category="code"), made(0.5, tokens=9), made(1.0, tokens=9)), deployment="d")
    assert list(found) == ["chat", "code"]
    assert [f.n for f in found.values()] == [2, 1]
    assert found["chat"].total_output_tps == found["code"].total_output_tps
    assert sum(f.output_tps for f in found.values()) == pytest.approx(found["chat"].total_output_tps)


def test_an_aborted_run_has_no_figures():
    assert measure(run_of(made(), aborted=True), deployment="d") == {}


@pytest.mark.parametrize(
    ("slos", "met"),
    [
        (Slos(), 4),
        (Slos(max_ttft_ms=350), 2),
        (Slos(max_ttft_ms=10_000), 3),
        (Slos(max_tpot_ms=60), 3),
        (Slos(max_latency_ms=550), 2),
        (Slos(max_latency_ms=550, max_ttft_ms=350, max_tpot_ms=60), 1),
    ],
    ids=str,
)
def test_goodput(slos, met):
    quick, slow_start, slow_rate = made(), made(ttft_s=0.9, gap_s=0.01), made(gap_s=0.1)
    silent = made(ttft_s=0.4, tokens=0)
    failed = made(error="engine_down")
    found = goodput([quick, slow_start, slow_rate, silent, failed], slos, seconds=2.0)
    assert (found.met, found.n, found.share, found.per_s) == (met, 5, met / 5, met / 2)
    assert goodput([], slos, seconds=1) is None


@given(st.lists(st.builds(made, ttft_s=st.floats(0.01, 2)), min_size=1, max_size=20), st.floats(10, 3000))
def test_stricter_slos_are_met_by_no_more(traces, limit):
    looser = goodput(traces, Slos(max_ttft_ms=limit * 2), seconds=1)
    stricter = goodput(traces, Slos(max_ttft_ms=limit), seconds=1)
    both = goodput(traces, Slos(max_ttft_ms=limit, max_latency_ms=limit), seconds=1)
    assert both.met <= stricter.met <= looser.met <= len(traces)


def test_cost_by_the_token_is_from_usage():
    found = one_of(made(tokens=5), made(1.0, tokens=15), made(2.0, error="engine_down", tokens=900), cost=PRICE)
    assert found.cost_per_1k == 1000 * (Decimal("0.5") * 20 + Decimal("2") * 20) / 1_000_000 / 20


def test_cached_prompt_tokens_are_told_and_have_a_price_of_their_own():
    traces = [replace(made(tokens=5), cached_tokens=4), made(1.0, tokens=15)]
    price = PRICE.model_copy(update={"cached_input_usd_per_1m": Decimal("0.1")})
    found = one_of(*traces, cost=price)
    assert found.cached_tokens == 2
    paid = Decimal("0.5") * 16 + Decimal("0.1") * 4 + Decimal("2") * 20
    assert found.cost_per_1k == 1000 * paid / 1_000_000 / 20


def test_cost_by_the_hour_is_rent_over_throughput_under_load():
    run = run_of(*(made(i / 10, tokens=50) for i in range(10)))
    rent = Rent(Decimal("3.60"))
    [found] = measure(run, deployment="d", cost=rent, replicas=2, full=True).values()
    tps = 500 / duration_s(run)
    assert float(found.cost_per_1k) == pytest.approx(2 * 3.60 / 3600 / tps * 1000)
    [idle] = measure(run, deployment="d", cost=rent, replicas=2).values()
    assert idle.cost_per_1k is None  # what it costs idle says nothing of what it can do


def test_a_closed_loops_time_leaves_pauses_out():
    traces = [made(0.0, wait_s=0), made(0.2, wait_s=0), made(60.0, wait_s=0)]
    assert duration_s(run_of(*traces, shape=Closed(2, 3))) == pytest.approx(0.6 + 0.4)
    assert duration_s(run_of(*traces)) == pytest.approx(60.4)
    assert duration_s(run_of()) == 0


def test_one_count_that_is_not_the_servers_is_said():
    found = one_of(made(), replace(made(1.0), token_source=TokenSource.COUNTED))
    assert found.token_source is TokenSource.COUNTED


# What the router gets


def profile_of(figures):
    """As the router reads it from Redis."""
    raw = {name.encode(): str(value).encode() for name, value in to_profile(figures).items()}
    return profiles.read(raw, stale_before=0.0)


def test_a_profile_is_what_the_router_reads():
    traces = [made(float(i), wait_s=0.001, ttft_s=0.1 + i / 1000) for i in range(100)]
    run = replace(run_of(*traces), at=time.time())
    [found] = measure(run, deployment="d", replicas=2, full=True, cost=PRICE).values()
    profile = profile_of(found)
    assert profile.samples == 100
    assert profile.timestamp == run.at
    assert profile.ttft_ms == pytest.approx(149.5)  # from the sending: queues are counted apart
    assert profile.tpot_ms == pytest.approx(50)
    assert profile.ttft_p95_ms == pytest.approx(found.service_ttft_ms.p95, rel=0.05)
    assert profile.tpot_p95_ms == pytest.approx(50, rel=0.01)
    assert profile.throughput_tps == pytest.approx(found.total_output_tps / 2)
    assert profile.output_tokens == 5
    assert profile.cost_per_1k == pytest.approx(0.003)
    assert profile.error_rate == 0
    unmeasured = {"lengths", "quality_score", "quality_samples", "quality_timestamp", "stale", "quality_stale"}
    unmeasured |= {"benchmark", "benchmark_timestamp", "regressed", "drifted"}  # told beside it
    given = {f.name for f in fields(Profile) if getattr(profile, f.name) != f.default}
    assert {f.name for f in fields(Profile)} - given <= unmeasured


def test_a_dead_endpoint_gives_an_error_profile():
    found = one_of(made(wait_s=0, tokens=0, error="engine_down"), made(1.0, wait_s=0, tokens=0, error="engine_down"))
    assert to_profile(found) == {"samples": 2, "timestamp": 1_000.0, "error_rate": 1.0}
    assert profile_of(found).ttft_ms is None


def test_an_invalid_run_tells_only_what_failed():
    found = one_of(made(wait_s=5.0), full=True)
    assert not found.valid
    assert to_profile(found).keys() == {"samples", "timestamp", "error_rate"}


def test_a_load_that_was_not_full_has_no_throughput_to_tell():
    assert "throughput_tps" not in to_profile(one_of(made(wait_s=0)))
    assert to_profile(one_of(made(wait_s=0), full=True))["throughput_tps"] > 0


@given(
    st.lists(
        st.builds(
            made,
            st.floats(0, 100),
            wait_s=st.floats(0, 0.009),
            ttft_s=st.floats(0.001, 10),
            tokens=st.integers(0, 20),
            error=st.sampled_from([None, None, "engine_down"]),
            category=st.sampled_from(["chat", "code"]),
        ),
        max_size=20,
    )
)
def test_figures_are_finite_and_add_up(traces):
    found = measure(run_of(*traces), deployment="d", slos=Slos(max_ttft_ms=500), cost=PRICE, full=True)
    assert sum(f.n for f in found.values()) == len(traces)
    for f in found.values():
        assert sum(f.errors.values()) == f.n - f.succeeded
        assert f.goodput.met <= f.succeeded
        for spread in (f.ttft_ms, f.service_ttft_ms, f.tpot_ms, f.itl_ms, f.latency_ms):
            assert spread is None or (spread.n > 0 and math.isfinite(spread.p99))
        assert (f.latency_ms is None) == (f.succeeded == 0)
        assert all(math.isfinite(value) for value in to_profile(f).values())
