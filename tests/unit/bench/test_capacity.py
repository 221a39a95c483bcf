"""The search finds a known capacity in ten probes, of a simulated server in virtual time."""

import asyncio
import heapq
import math
import random

import pytest

from tieryard.bench import capacity
from tieryard.bench.capacity import Probe, SearchEnd, probing, search_capacity
from tieryard.bench.figures import Slos
from tieryard.bench.load import Open, Run, Sampled
from tieryard.errors import UserError


def sharp(capacity, n=400):
    """A server that serves all up to its capacity and half beyond."""

    async def probe(rate):
        return Probe(rate, n if rate <= capacity else n // 2, n)

    return probe


def waits_s(starts, slots, service_s):
    """How long each request is under way at a server of `slots`, first come first served."""
    free = [0.0] * slots
    for start in starts:
        begun = max(start, heapq.heappop(free))
        heapq.heappush(free, begun + service_s)
        yield begun + service_s - start


def simulated(slots, service_s, limit_s, *, seed, least=600):
    """An M/D/c queue in virtual time, in runs as long as the search asks for."""
    tried = 0

    async def probe(rate):
        nonlocal tried
        tried += 1
        count = max(least, math.ceil(rate * 20 * (limit_s - service_s)))
        starts = Open(rate, count, seed * 100 + tried).starts_s()
        latencies = list(waits_s(starts, slots, service_s))
        return Probe(rate, sum(wait <= limit_s for wait in latencies), len(latencies))

    return probe


async def true_capacity(slots, service_s, limit_s, *, target):
    """By bisection over runs so long that chance has no part in them."""
    low, high = 0.1 * slots / service_s, 1.5 * slots / service_s
    probe = simulated(slots, service_s, limit_s, seed=7, least=100_000)
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        found = await probe(middle)
        low, high = (middle, high) if found.share >= target else (low, middle)
    return low


@pytest.mark.parametrize("low", [0.1, 1.0, 9.0])
@pytest.mark.parametrize("capacity", [1.0, 3.0, 11.0, 51.0, 97.0])
async def test_a_sharp_edge_is_found_within_ten_per_cent(capacity, low):
    found = await search_capacity(sharp(capacity), low=low)
    assert len(found.probes) <= 10
    if capacity < low:
        assert (found.end, found.rate_per_s) == (SearchEnd.TOO_LOW, None)
        assert "even" in found.says
        return
    assert found.end is SearchEnd.FOUND
    assert 0.9 * capacity <= found.rate_per_s <= capacity < found.misses_at


@pytest.mark.parametrize("capacity", [0.013, 2.0, 500.0, 9_000.0])
async def test_a_wide_range_takes_no_more_probes(capacity):
    found = await search_capacity(sharp(capacity), low=0.01, high=10_000)
    assert found.end is SearchEnd.FOUND
    assert 0.9 * capacity <= found.rate_per_s <= capacity
    assert len(found.probes) <= 10


async def test_a_simulated_server_is_found_within_ten_per_cent():
    known = await true_capacity(8, 1.0, 2.0, target=0.95)
    assert 6 < known < 8
    for seed in range(20):
        found = await search_capacity(simulated(8, 1.0, 2.0, seed=seed), low=1.0)
        assert abs(found.rate_per_s / known - 1) <= 0.10, (seed, found)
        assert len(found.probes) <= 10


async def test_chance_at_the_edge_is_tried_again():
    """Every request near the edge meets its SLO by a coin's toss; a single false miss does not end the search."""
    for seed in range(20):
        coin = random.Random(seed)

        async def probe(rate, coin=coin):
            p = min(1.0, max(0.0, 0.95 + 0.5 * math.log(50 / rate)))  # 0.95 at 50
            return Probe(rate, sum(coin.random() < p for _ in range(300)), 300)

        found = await search_capacity(probe, low=2.0)
        assert abs(found.rate_per_s / 50 - 1) <= 0.10, (seed, found)
        assert len(found.probes) <= 10


async def test_a_false_miss_at_the_lowest_rate_is_made_good():
    answers = iter([Probe(1, 94, 100), Probe(1, 99, 100)])

    async def probe(rate):
        return next(answers, Probe(rate, 100 if rate < 30 else 0, 100))

    found = await search_capacity(probe, low=1.0)
    assert found.end is SearchEnd.FOUND
    assert 27 <= found.rate_per_s < 30


async def test_the_highest_rate_may_hold():
    found = await search_capacity(sharp(1_000), low=1, high=10)
    assert (found.end, found.rate_per_s, found.misses_at) == (SearchEnd.TOO_HIGH, 10, None)
    assert "highest" in found.says


async def test_out_of_probes_says_the_bracket():
    found = await search_capacity(sharp(50), low=1, most=5)
    assert (found.end, len(found.probes)) == (SearchEnd.WIDE, 5)
    assert found.rate_per_s <= 50 < found.misses_at
    assert "out of probes" in found.says
    endless = await search_capacity(sharp(math.inf), low=1, most=3)
    assert (endless.end, endless.rate_per_s, endless.misses_at) == (SearchEnd.WIDE, 16, None)


async def test_a_client_that_lags_is_not_a_server_that_misses():
    async def probe(rate):
        return Probe(rate, 100, 100, rate < 20, "the client was too busy" if rate >= 20 else "")

    found = await search_capacity(probe, low=1)
    assert found.end is SearchEnd.CLIENT
    assert 17 < found.rate_per_s < 20
    assert "too busy" in found.says


async def test_a_run_spoilt_once_is_run_again():
    spoilt = {16.0}

    async def probe(rate):
        valid = rate not in spoilt
        spoilt.discard(rate)
        return Probe(rate, 100 if rate <= 20 else 0, 100, valid, "" if valid else "busy")

    found = await search_capacity(probe, low=1)
    assert found.end is SearchEnd.FOUND
    assert 18 <= found.rate_per_s <= 20


async def test_the_highest_rate_is_not_tried_twice_for_what_rounding_leaves():
    found = await search_capacity(sharp(1000), low=0.5, high=200)
    assert found.end is SearchEnd.TOO_HIGH
    assert [one.rate_per_s for one in found.probes][-1] == 200
    assert len(found.probes) == 4


async def test_better_work_ends_the_search():
    async def probe(rate):
        return Probe(rate, 0, 0, valid=False, why="ended for better work", aborted=True) if rate > 3 else ok(rate)

    def ok(rate):
        return Probe(rate, 10, 10)

    found = await search_capacity(probe, low=1)
    assert (found.end, found.rate_per_s, len(found.probes)) == (SearchEnd.ABORTED, 1, 2)


@pytest.mark.parametrize("wrong", [{"low": 0}, {"low": 2, "high": 1}, {"low": 1, "most": 0}, {"low": 1, "target": 1.5}])
async def test_a_search_of_nothing_is_refused(wrong):
    with pytest.raises(UserError):
        await search_capacity(sharp(1), **wrong)


def test_no_probe_is_helped_by_what_another_left_in_a_cache(monkeypatch):
    salts = []

    async def run_load(engine, requests, shape, **_):
        salts.append({one.body["cache_salt"] for one in requests})
        return Run(shape, (), 0.0, distinct=4)

    monkeypatch.setattr(capacity, "run_load", run_load)
    sample = [Sampled({"prompt": f"{i}", "cache_salt": "run"}) for i in range(4)]
    probe = probing(None, sample, Slos(max_latency_ms=300), seconds=1, least=4)
    for rate in (1.0, 2.0):
        asyncio.run(probe(rate))
    assert salts == [{"run:1"}, {"run:2"}]
    assert sample[0].body["cache_salt"] == "run"
