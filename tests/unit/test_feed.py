"""The feeder's sums: who may release how much, and how fast a tier is finishing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import factories as make
from tieryard.routing import Profile
from tieryard.store.batches import OpenBatch
from workers import feed
from workers.feed import Rate, finished_since, floors, grants, needed_tps, room_for, share_out, usual_length

room = st.integers(min_value=-10, max_value=6000)


@st.composite
def open_batches(draw: st.DrawFn) -> list[OpenBatch]:
    """As the feeder gets them: earliest deadline first."""
    found = []
    for i in range(draw(st.integers(min_value=0, max_value=8))):
        expanded = draw(st.integers(min_value=0, max_value=1500))
        released = draw(st.integers(min_value=0, max_value=expanded))
        outstanding = draw(st.integers(min_value=0, max_value=released))
        found.append(
            make.open_batch(
                i + 1, tenant_id=draw(st.integers(min_value=1, max_value=3)), total=1500, expanded_to=expanded,
                released_to=released, outstanding=outstanding, deadline=make.soon(60.0 * i),
            )
        )  # fmt: skip
    return found


@given(open_batches(), room)
def test_room_is_used_and_never_exceeded(found: list[OpenBatch], free: int) -> None:
    granted = share_out(found, free)
    assert sum(granted.values()) == min(max(free, 0), sum(b.releasable for b in found))
    assert all(0 < n <= {b.id: b for b in found}[i].releasable for i, n in granted.items())


@given(open_batches(), room)
def test_inside_a_tenant_the_earliest_deadline_comes_first(found: list[OpenBatch], free: int) -> None:
    granted = share_out(found, free)
    for tenant in {b.tenant_id for b in found}:
        mine = [b for b in found if b.tenant_id == tenant and b.releasable]
        shares = [granted.get(b.id, 0) / b.releasable for b in mine]
        assert shares == sorted(shares, reverse=True)
        assert sum(0 < s < 1 for s in shares) <= 1


@given(open_batches(), room)
def test_no_tenant_is_served_while_one_with_fewer_in_the_yard_waits(found: list[OpenBatch], free: int) -> None:
    granted = share_out(found, free)
    after, given_, left = Counter[int](), Counter[int](), Counter[int]()
    for b in found:
        n = granted.get(b.id, 0)
        after[b.tenant_id] += b.outstanding + n
        given_[b.tenant_id] += n
        left[b.tenant_id] += b.releasable - n
    for served in (t for t in given_ if given_[t]):
        for waiting in (t for t in left if left[t]):
            assert after[served] <= after[waiting] + feed._STEP


def test_a_small_tenant_is_not_stuck_behind_a_big_one() -> None:
    big = make.open_batch(tenant_id=1, total=50_000, expanded_to=50_000, deadline=make.soon(10))
    small = make.open_batch(tenant_id=2, total=100, expanded_to=100, deadline=make.soon(9999))
    assert share_out([big, small], 1000) == {big.id: 900, small.id: 100}
    assert share_out([replace(big, released_to=900, outstanding=900), small], 64) == {small.id: 64}


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(feed, "time", clock)
    return clock


def test_a_rate_rises_at_once_and_falls_slowly(clock: Clock) -> None:
    rate = Rate(at=clock.now)
    clock.now += 0.5
    rate.observe(500)
    assert rate.per_s == 1000
    clock.now += 0.1
    rate.observe(0)
    assert rate.per_s == pytest.approx(900)
    clock.now += 5
    rate.observe(0)
    assert rate.per_s == 0


def test_a_rate_survives_a_clock_that_stands(clock: Clock) -> None:
    rate = Rate(at=clock.now)
    rate.observe(5)
    assert rate.per_s == 0


def test_what_counts_as_finished() -> None:
    """Not what a stop has ended, nor jobs that came back; a batch that is gone has finished what it had."""
    now = [
        make.open_batch(1, outstanding=4),
        make.open_batch(2, outstanding=0, stopping=True),
        make.open_batch(3, outstanding=50),
    ]
    assert finished_since({1: 10, 2: 500, 3: 20, 4: 7}, now) == 6 + 0 + 0 + 7
    assert finished_since({}, now) == 0


@given(open_batches())
def test_a_stopping_batch_releases_nothing(found: list[OpenBatch]) -> None:
    stopping = [replace(batch, stopping=True) for batch in found]
    assert share_out(stopping, 1000) == floors(stopping) == {}


@given(st.floats(min_value=0, max_value=1e9), st.floats(min_value=0, max_value=60))
def test_a_window_has_a_floor_and_a_ceiling(per_s: float, seconds: float) -> None:
    assert feed._LEAST <= Rate(per_s=per_s).window(seconds) <= feed._MOST


@given(open_batches())
def test_every_tenants_first_batches_move_whatever_the_room(found: list[OpenBatch]) -> None:
    granted = floors(found)
    for tenant in {b.tenant_id for b in found}:
        for batch in [b for b in found if b.tenant_id == tenant][:16]:
            assert granted.get(batch.id, 0) == max(0, min(64 - batch.outstanding, batch.releasable))
    assert all(0 < n <= 64 for n in granted.values())


def test_jobs_that_rest_take_no_room_up_to_a_bound() -> None:
    batch = make.open_batch(1, released_to=512, outstanding=512, resting=500)
    assert room_for([batch], 512) == 500
    assert room_for([replace(batch, resting=0)], 512) == 0
    assert room_for([replace(batch, outstanding=20_000, resting=20_000)], 512) == 0


def test_the_rate_that_deadlines_need_is_that_of_the_tightest() -> None:
    now = make.soon(0)
    soon = make.open_batch(1, total=100, released_to=60, outstanding=20, deadline=now + timedelta(seconds=60))
    later = make.open_batch(2, total=1000, deadline=now + timedelta(seconds=120))
    assert needed_tps([soon], 10, now) == pytest.approx(60 * 10 / 60)
    assert needed_tps([soon, later], 10, now) == pytest.approx(1060 * 10 / 120)
    assert needed_tps([soon, replace(later, deadline=now + timedelta(hours=9))], 10, now) == pytest.approx(10)
    assert needed_tps([replace(soon, deadline=now - timedelta(hours=1))], 10, now) == 600  # late: as soon as it can be
    assert needed_tps([replace(soon, stopping=True)], 10, now) == 0 == needed_tps([], 10, now)


def test_the_usual_length_weighs_what_is_seen_often_and_says_nothing_of_nothing() -> None:
    often, once = Profile(10_000, 1.0, output_tokens=20.0), Profile(1, 1.0, output_tokens=3000.0)
    assert usual_length({"one": {"chat": often}, "two": {"code": once}}) == pytest.approx((144 * 20 + 3000) / 145)
    assert usual_length({"one": {"chat": Profile(5, 1.0)}}) is None
    assert usual_length({}) is None


@given(open_batches(), open_batches(), st.integers(min_value=512, max_value=6000))
def test_what_is_behind_takes_no_room_from_others(ours: list[OpenBatch], system: list[OpenBatch], window: int) -> None:
    behind = [replace(b, id=b.id + 100, tenant_id=9, behind=True) for b in system]
    granted = grants([*ours, *behind], window)
    assert {n: granted[n] for n in granted if n < 100} == grants(ours, window)
    released = sum(b.outstanding for b in [*ours, *behind]) + sum(granted.values())
    more = {b.id: granted.get(b.id, 0) for b in behind}
    assert not any(more.values()) or released <= window
    assert all(n == 0 or b.outstanding + n <= 64 for b, n in zip(behind, more.values(), strict=True))


def test_what_is_behind_is_released_a_little_at_a_time_where_nobody_waits() -> None:
    golden = make.open_batch(1, tenant_id=9, behind=True)
    assert grants([golden], 512) == {1: 64}
    assert grants([golden.released_further(64)], 512) == {}
    assert grants([golden.released_further(64), make.open_batch(2)], 512) == {2: 512}
    assert grants([golden, make.open_batch(2, released_to=512, outstanding=512)], 512) == {}


def test_nobody_pays_more_for_what_is_behind() -> None:
    golden = make.open_batch(behind=True)
    assert needed_tps([golden], 100.0, make.soon(0)) == 0.0
    ours = make.open_batch()
    assert needed_tps([ours, golden], 100.0, make.soon(0)) == pytest.approx(
        needed_tps([ours], 100.0, make.soon(0)), 0.01
    )
