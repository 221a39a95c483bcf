"""Homes: every process finds the same one, few keys move when replicas come and go, and none is overrun."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard import affinity
from tieryard.affinity import Homes, home, ranked
from tieryard.metrics import Replica

KEYS = range(1, 2001)


def fleet(n: int, *, capacity: int = 16, in_flight: int = 0, backlog: int = 0) -> list[Replica]:
    return [Replica(100 + i, f"http://{i}", capacity, in_flight, {}, backlog) for i in range(n)]


def mixed(capacities: Iterable[int]) -> list[Replica]:
    return [Replica(100 + i, f"http://{i}", capacity, 0, {}) for i, capacity in enumerate(capacities)]


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


@given(st.integers(1, 2**32 - 1), st.lists(st.tuples(st.integers(0, 500), st.integers(1, 256)), min_size=1, max_size=6))
def test_a_home_has_no_more_than_its_share(key: int, states: list[tuple[int, int]]) -> None:
    replicas = mixed(capacity for _, capacity in states)
    load = {r.worker_id: loaded for r, (loaded, _) in zip(replicas, states, strict=True)}
    able = [r for r in replicas if load[r.worker_id] < r.capacity] or replicas
    most = 1.25 * sum(load[r.worker_id] for r in able) / sum(r.capacity for r in able) + 0.25
    found = home(key, replicas, lambda r: load[r.worker_id])
    assert found in able, "nobody waits beside an idle engine"
    passed = ranked(key, able)[: ranked(key, able).index(found)]
    assert load[found.worker_id] <= most * found.capacity
    assert all(load[r.worker_id] > most * r.capacity for r in passed), "it is the first that has room"


@given(st.lists(st.integers(1, 256), min_size=2, max_size=6), st.integers(0, 600), st.integers(0, 2**20))
def test_each_gets_about_what_its_capacity_is_a_part_of(capacities: list[int], keys: int, first: int) -> None:
    replicas = mixed(capacities)
    jobs = [(n, 1 + first + n // 2) for n in range(2 * keys)]
    sent = {at: len(found) for at, found in Homes().share_out(jobs, replicas).items()}
    assert sum(sent.values()) == len(jobs)
    for replica in replicas:
        share = len(jobs) * replica.capacity / sum(capacities)
        assert sent.get(replica.worker_id, 0) <= 1.25 * share + replica.capacity / 4 + 1


def test_a_replica_that_was_cut_to_an_eighth_is_home_to_less() -> None:
    large, small = replicas = mixed([64, 8])
    sent = Homes().share_out([(n, 1 + n % 500) for n in range(1000)], replicas)
    assert len(sent[small.worker_id]) < 145, "1.25 times a ninth of them"
    assert len(sent[large.worker_id]) > 855


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
    alike = [(1, 7), (2, 7)]  # what takes them still runs them together
    assert Homes().share_out(alike, fleet(1)) == {None: alike}
    assert Homes().share_out(alike, []) == {None: alike}


def test_what_shares_its_beginning_with_nothing_is_anybodys() -> None:
    homes, replicas = Homes(), fleet(4)
    distinct = [(n, 1 + n) for n in range(1000)]
    assert homes.share_out(distinct, replicas) == {None: [(n, 0) for n in range(1000)]}
    [(at, found)] = homes.share_out([(5000, 8)], replicas).items()
    assert (at is not None, found) == (True, [(5000, 8)]), "the second of its key goes home"
    [(at, found)] = homes.share_out([(n, 2000) for n in range(6000, 6004)], replicas).items()
    assert (at is not None, len(found)) == (True, 4), "several at once need no earlier one"
    assert homes.share_out([(7000, 3000)], fleet(1)) == {None: [(7000, 0)]}


def test_only_the_keys_that_came_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "_REMEMBERED", 100)
    homes, replicas = Homes(), fleet(2)
    homes.share_out([(n, 1 + n) for n in range(100)], replicas)
    assert None not in homes.share_out([(1000, 1)], replicas)
    assert None in homes.share_out([(1001, 101)], replicas), "a new key, for which the oldest is forgotten: 2"
    assert None in homes.share_out([(1002, 2)], replicas)
    assert None not in homes.share_out([(1003, 1)], replicas), "it came lately"
    assert len(homes._came) == 100


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
