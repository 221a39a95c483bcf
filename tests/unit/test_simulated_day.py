"""The simulated day keeps its own laws, whatever it says of routers: nothing is lost, nothing exceeds its slots."""

from __future__ import annotations

import functools
import heapq
import math
import random
from collections import Counter
from decimal import Decimal
from xml.etree import ElementTree

import pytest

from tests.benchmarks.day import outcome, picture
from tests.benchmarks.day.feeder import Feeder
from tests.benchmarks.day.hardware import BY_NAME, LARGE, MIXED, SMALL, Curve, Hardware
from tests.benchmarks.day.policies import Fixed, Ours, by_length
from tests.benchmarks.day.prompts import Prompt
from tests.benchmarks.day.servers import Replica, Run, Server
from tests.benchmarks.day.traffic import Job, Maker, Traffic, day
from tests.benchmarks.day.world import Outage, World
from tieryard.catalog import SizeClass
from tieryard.routing import text_features

TEXTS = {
    "trivia_qa": "Which river runs through Vienna?",
    "math": "Compare the two proofs step by step and explain why the second one fails.",
    "mbpp": "Write a Python function that reverses the words of a sentence. " * 5,
    "mmlu": "A statement of a case, and four answers to choose from. " * 15,
}


@functools.cache
def prompts() -> list[Prompt]:
    scores = {"small": 0.4, "medium": 0.6, "large": 0.8, "toy": 0.5}
    return [Prompt(text, task, len(text) // 4, text_features(text), scores, {}) for task, text in TEXTS.items()]


def job(number: int = 1, tier: str = "bulk", *, at: float = 0.0, due: float = 1e6, tokens: int = 100) -> Job:
    return Job(number, tier, at, due, prompts()[0], 100, tokens, 4 * tokens, 1.0, 1.0, 0.5)


def small_day(*, jobs: int = 1500) -> Traffic:
    return day(prompts(), jobs=jobs, seed=3)


OUTAGE = Outage("large", 12 * 3600, 12.5 * 3600)


# --- hardware ----------------------------------------------------------------------------------------


def test_a_curve_goes_through_what_was_published_and_straight_between():
    assert SMALL.curve.tpot(128) == 36.0
    assert SMALL.curve.tpot(96) == pytest.approx((27.5 + 36.0) / 2)
    assert LARGE.curve.tpot(1) == pytest.approx(1000 / 58.64)


def test_beyond_what_was_measured_there_is_no_more_throughput():
    assert LARGE.curve.throughput_tps(512) == pytest.approx(LARGE.curve.throughput_tps(256))


def test_a_longer_prompt_takes_its_prefill_longer():
    longer = LARGE.curve.ttft(4, 1480) - LARGE.curve.ttft(4, 480)
    assert longer == pytest.approx(1000 * LARGE.curve.prefill_ms)


# --- the laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [lambda: Ours("ours"), lambda: Fixed("by length", MIXED, by_length)])
def test_every_job_ends_once(policy):
    arrivals = small_day()
    world = World(policy(), arrivals, prompts(), outage=OUTAGE)
    runs = world.run()
    assert Counter(run.job.id for run in runs) == Counter(range(1, arrivals.total + 1))
    assert {run.end for run in runs} <= {"succeeded", "expired"}
    assert all(run.ended_s >= run.job.arrived_s for run in runs)
    assert not any(server.queue or server.in_flight for server in world.servers.values())


def test_an_answer_takes_at_least_its_own_tokens():
    for run in World(Ours("ours"), small_day(), prompts()).run():
        fastest_ms = BY_NAME[run.deployment].curve.tpot(1) * (run.job.output_tokens - 1) * run.job.tpot_luck
        assert 1000 * (run.ended_s - run.first_s) >= fastest_ms - 1e-6


def test_the_same_traffic_gives_the_same_day():
    def whole() -> list[tuple[object, ...]]:
        runs = World(Ours("ours"), small_day(), prompts(), outage=OUTAGE).run()
        return [(r.job.id, r.deployment, r.claimed_s, r.first_s, r.ended_s, r.end, r.deferrals) for r in runs]

    assert whole() == whole()


def test_no_replica_takes_more_than_its_slots_and_others_leave_the_reserve(monkeypatch):
    seen: list[tuple[int, int, Hardware]] = []
    enter, of = Replica.enter, Server.of
    owner: dict[int, Hardware] = {}

    def watched(self: Replica, run: Run, now_s: float) -> None:
        enter(self, run, now_s)
        patient = sum(r.job.tier != "realtime" for r in self.requests)
        seen.append((len(self), patient if run.job.tier != "realtime" else 0, owner[id(self)]))

    def remembered(hardware: Hardware, replicas: int) -> Server:
        server = of(hardware, replicas)
        owner.update((id(replica), hardware) for replica in server.replicas)
        return server

    monkeypatch.setattr(Replica, "enter", watched)
    monkeypatch.setattr(Server, "of", remembered)
    maker = Maker(prompts(), 5)
    crowd = [maker.single(tier, at / 100) for at in range(900) for tier in ("realtime", "interactive")]
    World(Fixed("all to one", {"large": 1}, lambda _: "large"), Traffic(tuple(crowd), ()), prompts()).run()
    assert max(n for n, _, _ in seen) == LARGE.slots  # it was full, and no more
    assert all(patient <= hardware.slots - hardware.reserve for _, patient, hardware in seen)


SERVERS = 8


def toy_runs(monkeypatch: pytest.MonkeyPatch, *, rate_per_s: float, n: int) -> list[Run]:
    """Exponential times between arrivals, exponential lengths of a second in the mean, a speed that no load changes."""
    flat = Curve((1, SERVERS), (1.0, 1.0), (5.0, 5.0), 100, 0.0)
    toy = Hardware("toy", SizeClass.SMALL, "toy", flat, SERVERS, 0, "", Decimal(1), Decimal(1), Decimal(1))
    monkeypatch.setitem(BY_NAME, "toy", toy)
    r, at, arrivals = random.Random(11), 0.0, []
    for number in range(1, n + 1):
        at += r.expovariate(rate_per_s)
        arrivals.append(job(number, at=at, due=1e9, tokens=1 + int(r.expovariate(1 / 1000))))
    return World(Fixed("one", {"toy": 1}, lambda _: "toy"), Traffic(tuple(arrivals), ()), prompts()).run()


def test_with_a_speed_that_no_load_changes_each_job_waits_for_the_first_free_slot(monkeypatch):
    free = [0.0] * SERVERS  # Kiefer and Wolfowitz 1955
    for run in toy_runs(monkeypatch, rate_per_s=7.0, n=4000):
        begins = max(run.job.arrived_s, heapq.heappop(free))
        assert run.claimed_s == pytest.approx(begins, abs=1e-4)
        heapq.heappush(free, begins + 0.005 + (run.job.output_tokens - 1) / 1000)


def test_with_a_speed_that_no_load_changes_as_many_wait_as_erlang_says(monkeypatch):
    runs = toy_runs(monkeypatch, rate_per_s=5.6, n=40_000)
    rate_per_s = len(runs) / runs[-1].job.arrived_s
    load = rate_per_s * sum(run.ended_s - run.claimed_s for run in runs) / len(runs)
    last = load**SERVERS / math.factorial(SERVERS) * SERVERS / (SERVERS - load)
    expected = last / (sum(load**k / math.factorial(k) for k in range(SERVERS)) + last)  # Erlang's C, 1917
    waited = sum(run.claimed_s > run.job.arrived_s for run in runs) / len(runs)
    assert waited == pytest.approx(expected, rel=0.05)


# --- the outage --------------------------------------------------------------------------------------


def test_what_is_away_answers_nothing_and_what_was_in_it_starts_again():
    runs = World(Fixed("always", {"large": 2}, lambda _: "large"), small_day(), prompts(), outage=OUTAGE).run()
    assert not any(OUTAGE.start_s < run.ended_s < OUTAGE.end_s for run in runs if run.end == "succeeded")
    assert all(run.starts >= 1 for run in runs if run.end == "succeeded")
    assert any(run.end == "expired" for run in runs)


# --- lists -------------------------------------------------------------------------------------------


def test_the_feeder_releases_the_earliest_deadline_first_and_says_what_rate_they_need():
    feeder = Feeder()
    late = [Run(job(n, due=2000, tokens=10)) for n in range(1, 601)]
    early = [Run(job(n, due=1000, tokens=10)) for n in range(601, 1201)]
    feeder.add("bulk", 2000, late)
    feeder.add("bulk", 1000, early)
    assert feeder.needed_tps(0.0) == {"bulk": pytest.approx(max(6000 / 1000, 12_000 / 2000))}
    released = list(feeder.release(0.0))
    assert released[:512] == early[:512]
    assert set(released[512:]) <= set(late)  # a list's first 64, whatever the room
    while released:
        for run in released:
            feeder.ended(run)
        released = list(feeder.release(10.0))
    assert not feeder.open
    assert not any(feeder.needed_tps(10.0).values())


# --- what is reported --------------------------------------------------------------------------------


def finished(tier: str, *, latency_s: float, deployment: str = "small") -> Run:
    done = job(1, tier, at=10.0, due=1e6)
    return Run(done, deployment, 10.0, 10.0, 10.0 + latency_s / 2, 10.0 + latency_s, "succeeded", 1)


@pytest.mark.parametrize(
    ("tier", "latency_s", "late"),
    [("realtime", 0.5, False), ("realtime", 1.1, True), ("interactive", 1.9, False), ("interactive", 5.1, True),
     ("batch", 59, False), ("batch", 61, True), ("bulk", 5000, False)],
)  # fmt: skip
def test_a_miss_is_what_breaks_the_tiers_slo(tier, latency_s, late):
    assert outcome.missed(finished(tier, latency_s=latency_s)) is late


def test_what_is_never_answered_is_a_miss_and_costs_nothing():
    lost = Run(job(1, "realtime"), end="expired")
    assert outcome.missed(lost)
    assert outcome.cost_usd([lost]) == 0


def test_answers_cost_their_tokens_at_their_deployments_prices():
    run = finished("batch", latency_s=5, deployment="large")
    assert outcome.cost_usd([run]) == (100 * Decimal("1.00") + 100 * Decimal("4.00")) / 1_000_000


def test_the_picture_is_whole():
    runs = World(Ours("ours"), small_day(jobs=300), prompts()).run()
    drawn = ElementTree.fromstring(picture.svg({"a & b": outcome.Outcome("a & b", MIXED, runs)}))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}polyline")) == 2
