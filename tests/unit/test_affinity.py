"""Homes: every process finds the same one, few keys move when replicas come and go, and none is overrun."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tieryard.affinity import Homes, home, ranked
from tieryard.metrics import Replica

KEYS = range(1, 2001)


def fleet(n: int, *, capacity: int = 16, in_flight: int = 0, backlog: int = 0) -> list[Replica]:
    return [Replica(100 + i, f"http://{i}", capacity, in_flight, {}, backlog) for i in range(n)]


def idle(_: Replica) -> int:
    return 0


def homes_of(replicas: list[Replica]) -> dict[int, int]:
    return {key: home(key, replicas, idle).worker_id for key in KEYS}


@given(st.integers(1, 2**32 - 1), st.permutations(fleet(5)))
def test_the_order_in_which_replicas_are_known_does_not_matter(key: int, shuffled: list[Replica]) -> None:
    assert ranked(key, shuffled) == ranked(key, fleet(5))


def test_keys_spread_over_the_replicas() -> None:
    counts = Counter(homes_of(fleet(4)).values())
    assert len(counts) == 4
    assert all(400 < n < 600 for n in counts.values()), counts


def test_a_replica_that_leaves_moves_its_own_keys_and_no_others() -> None:
    before, after = homes_of(fleet(4)), homes_of(fleet(3))
    assert all(after[key] == at for key, at in before.items() if at != 103)
    assert {after[key] for key, at in before.items() if at == 103} == {100, 101, 102}


@given(st.integers(1, 2**32 - 1), st.lists(st.integers(0, 500), min_size=1, max_size=6), st.integers(1, 256))
def test_a_home_has_no_more_than_its_share(key: int, loads: list[int], capacity: int) -> None:
    replicas = fleet(len(loads), capacity=capacity)
    load = dict(zip((r.worker_id for r in replicas), loads, strict=True))
    able = [r for r in replicas if load[r.worker_id] < capacity] or replicas
    most = 1.25 * sum(load[r.worker_id] for r in able) / len(able) + capacity / 4
    found = home(key, replicas, lambda r: load[r.worker_id])
    assert found in able, "nobody waits beside an idle engine"
    passed = ranked(key, able)[: ranked(key, able).index(found)]
    assert load[found.worker_id] <= most
    assert all(load[r.worker_id] > most for r in passed), "it is the first that has room"


def test_jobs_that_begin_alike_go_to_one_replica() -> None:
    jobs = [(n, 1 + n % 8) for n in range(64)]
    shared = Homes().share_out(jobs, fleet(3, capacity=256))
    assert None not in shared
    assert sorted(job for members in shared.values() for job in members) == jobs
    at = {
        key: {worker for worker, members in shared.items() if (key in {k for _, k in members})} for key in range(1, 9)
    }
    assert all(len(workers) == 1 for workers in at.values())


def test_without_a_key_or_a_choice_whoever_is_free_takes_them() -> None:
    assert Homes().share_out([(1, 0), (2, 0)], fleet(3)) == {None: [(1, 0), (2, 0)]}
    assert Homes().share_out([(1, 7)], fleet(1)) == {None: [(1, 7)]}
    assert Homes().share_out([(1, 7)], []) == {None: [(1, 7)]}


def test_what_was_sent_counts_until_the_gauges_show_it() -> None:
    now = [0.0]
    homes, replicas = Homes(now=lambda: now[0]), fleet(2, capacity=16)
    first, second = (r.worker_id for r in ranked(7, replicas))

    def send(n: int) -> dict[int | None, int]:
        return {at: len(members) for at, members in homes.share_out([(i, 7) for i in range(n)], replicas).items()}

    # a ≤ 1.25 (a + b) / 2 + 4: the eleventh is sent on a load of ten, which is within the bound of 10.25; no more are.
    assert send(10) == {first: 10}
    assert send(2) == {first: 1, second: 1}
    now[0] = 1.1
    assert send(10) == {first: 10}, "by now the gauges say what is there: nothing"


def test_one_prefix_for_everybody_overruns_nobody() -> None:
    replicas = fleet(4, capacity=16)
    sent = {at: len(found) for at, found in Homes().share_out([(n, 7) for n in range(1000)], replicas).items()}
    assert len(sent) == 4
    assert max(sent.values()) <= 1.25 * 250 + 4 + 1
