"""The in-flight limit against a model of a server: it holds so many requests, queues or preempts the rest."""

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tieryard.engines.load import Load
from workers.steering import Steering

LOOKS = 200


@dataclass
class Server:
    """Holds `holds` requests; what is sent beyond is preempted when the KV cache is what limits it, else it waits."""

    holds: int
    preempts: bool
    preempted: int = 0

    def look(self, sent: int) -> Load:
        running = min(sent, self.holds)
        waiting = sent - running
        self.preempted += waiting if self.preempts else 0
        usage = running / self.holds if self.preempts else 0.3
        return Load(running=running, waiting=waiting, kv_usage=usage, preemptions=self.preempted)


def run(
    steering: Steering, server: Server, *, wanted: int = 10_000, looks: int = LOOKS, start: float = 0.0
) -> list[int]:
    """The limits after each look, one a second, with always `wanted` requests at hand."""
    limits = []
    for second in range(looks):
        steering.observe(server.look(min(wanted, steering.limit)), now=start + second)
        limits.append(steering.limit)
    return limits


def test_it_starts_at_the_ceiling_and_stays_there_when_the_server_holds_it():
    steering = Steering(64)
    assert steering.limit == 64
    assert set(run(steering, Server(holds=64, preempts=False))) == {64}


@given(ceiling=st.integers(2, 512), share=st.floats(0.05, 1.5), preempts=st.booleans())
def test_it_settles_at_what_the_server_holds(ceiling, share, preempts):
    holds = max(2, round(ceiling * share))
    steering, server = Steering(ceiling), Server(holds, preempts)
    run(steering, server)
    before = server.preempted
    settled = run(steering, server, start=LOOKS)
    assert server.preempted == before, "a settled limit preempts nobody"
    if holds >= ceiling:
        assert min(settled) >= min(ceiling, 0.8 * holds)
    assert max(settled) <= max(holds * 1.11 + 1, 2)
    assert min(settled) >= min(ceiling, holds) * 0.8 - 1, "it is kept full"


def test_a_preemption_cuts_to_what_runs_and_says_so():
    steering = Steering(64)
    steering.observe(Load(running=64, waiting=0, kv_usage=0.9, preemptions=0), now=0)
    cut = steering.observe(Load(running=20, waiting=44, kv_usage=1.0, preemptions=44), now=1)
    assert cut.limit == steering.limit == 20
    assert "preempted 44 requests; 20 run with 100%" in cut.why


def test_a_preemption_that_is_seen_when_few_are_left_does_not_say_that_few_fit():
    steering = Steering(64)
    steering.observe(Load(running=64, waiting=0, kv_usage=0.9, preemptions=0), now=0)
    steering.observe(Load(running=1, waiting=0, kv_usage=0.1, preemptions=3), now=1)
    assert steering.limit == 57


def test_growth_that_led_to_a_cut_is_tried_again_later_and_later():
    steering, preempted = Steering(20), 0
    cuts = []
    for second in range(1000):  # 10 fit; what the cache says lags behind, so that growth always finds out too late
        preempted += steering.limit > 10
        if steering.observe(Load(min(steering.limit, 10), 0, kv_usage=0.5, preemptions=preempted), now=second):
            cuts.append(second)
    settled = [later - earlier for earlier, later in itertools.pairwise(cuts) if later - earlier > 2]
    assert settled[:5] == [11, 21, 41, 81, 161]
    assert set(settled[5:]) <= {301, 302}


def test_requests_that_wait_while_more_and_more_run_are_no_overload():
    steering = Steering(64)
    for second in range(8):  # a burst whose prompts are read one after another
        steering.observe(Load(running=8 * second, waiting=64 - 8 * second, kv_usage=0.2, preemptions=0), now=second)
    assert steering.limit == 64


def test_others_who_fill_a_shared_server_do_not_starve_us():
    steering = Steering(64)
    for second in range(100):
        steering.observe(Load(running=40, waiting=30, kv_usage=0.8, preemptions=0), now=second)
    assert steering.limit == 42


def test_it_grows_again_only_when_the_limit_is_what_holds_it_back_and_after_a_while():
    steering, full = Steering(64), Server(holds=10, preempts=True)
    run(steering, full, looks=2)
    assert steering.limit == 10
    roomy = Server(holds=1000, preempts=True, preempted=full.preempted)
    assert run(steering, roomy, wanted=1, looks=60, start=20)[-1] == 10, "nobody asks for more"
    assert run(steering, roomy, looks=60, start=80)[-1] == 64
    run(steering, Server(holds=10, preempts=True, preempted=roomy.preempted), looks=2, start=140)
    held = run(steering, Server(holds=1000, preempts=True, preempted=10_000), looks=1, start=142)
    assert held[-1] <= 10


def test_the_floor_holds():
    steering = Steering(64, floor=5)
    run(steering, Server(holds=1, preempts=True))
    assert steering.limit == 5


def realtime(steering: Steering, ttft_ms, *, seconds: int, start: int = 0) -> list[int]:
    """The limits while realtime jobs see this TTFT (of the limit), twelve a second; the engine is full of others."""
    limits = []
    for second in range(start, start + seconds):
        for _ in range(12):
            steering.realtime_began(ttft_ms(steering.limit), now=second)
        steering.observe(Load(running=steering.limit, waiting=0, kv_usage=0.2, preemptions=0), now=second)
        limits.append(steering.limit)
    return limits


def test_realtime_jobs_that_are_late_for_the_load_are_given_room():
    steering = Steering(64, promised_ms=300)
    limits = realtime(steering, lambda limit: 10 * limit, seconds=400)
    assert min(limits) >= 16, "a quarter is kept"
    assert 20 <= limits[-1] <= 36, "what keeps the promise, and about no less"


def test_a_cut_that_helps_no_realtime_job_is_taken_back():
    steering = Steering(64, promised_ms=300)
    limits = realtime(steering, lambda limit: 2500, seconds=200)
    assert min(limits) >= 57, "one try"
    assert limits[-1] == 64


def test_bulk_prompts_that_take_long_cut_nothing():
    steering = Steering(64, promised_ms=300)
    for second in range(60):
        counts = ((0.1, 0), (1.0, 20 * second), (float("inf"), 20 * second))
        steering.observe(Load(running=64, waiting=0, kv_usage=0.2, preemptions=0, ttft_counts=counts), now=second)
    assert steering.limit == 64
    assert steering.ttft_ms == 1000, "it is told all the same"


def test_two_servers_behind_one_address_are_not_taken_for_preemptions():
    steering = Steering(64)
    for second in range(100):
        steering.observe(Load(64, 0, 0.5, preemptions=40 if second % 2 else 2), now=second)
    assert steering.limit == 64


def test_a_restarted_server_is_given_the_ceiling_again():
    steering = Steering(64)
    run(steering, Server(holds=10, preempts=True), looks=3)
    steering.restarted()
    assert steering.limit == 64
    assert steering.observe(Load(running=0, waiting=0, kv_usage=0, preemptions=0), now=9) is None


def test_refusals_of_a_provider_halve_the_limit_once_a_round_trip():
    steering = Steering(64, floor=3)
    cuts = [steering.refused(began=began, now=10.0) for began in (9.0, 9.1, 9.2)]
    assert [cut and cut.limit for cut in cuts] == [32, None, None]
    assert steering.refused(began=9.9, now=11.0) is None, "it was under way at the cut"
    assert [steering.refused(began=n, now=n).limit for n in range(12, 17)] == [16, 8, 4, 3, 3]


def test_answers_of_a_provider_raise_the_limit_by_one_a_round_trip():
    steering = Steering(64)
    steering.refused(began=0.0, now=1.0)
    for _ in range(32):
        steering.answered()
    assert steering.limit == 32
    for _ in range(2):
        steering.answered()
    assert steering.limit == 33
    for _ in range(10_000):
        steering.answered()
    assert steering.limit == 64
