"""Rent windows in Postgres: opened, cut, stopped and closed, and who comes while one is closed. That their sums hold
whatever happens is tests/integration/test_rent_adds_up.py's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests import factories as make
from tests.conftest import eventually
from tests.integration.rented_windows import PRICE, TERMS, books, closed, opened, row, stopped, used, write
from tieryard.costs.windows import WindowPrice, rent_usd
from tieryard.store import Store, rescue, windows, workers
from tieryard.store.finish import finish


def kinds(store: Store, job_id: int) -> list[tuple[int, str]]:
    return store.fetch("SELECT fence, kind FROM ledger WHERE job_id = %(id)s ORDER BY fence, kind", {"id": job_id})


# --- opening and stopping ---------------------------------------------------------------------------------


def test_a_window_opens_with_its_terms_and_stops_who_stood_there(store: Store) -> None:
    terms = replace(TERMS, gpus=4, purchase="spot", price_id=5, measured_by=(7, 8))
    first = opened(store, terms=terms)
    with store.transaction() as connection:
        [stands] = windows.standing(connection)
    assert (stands.id, stands.terms, stands.place, stands.deployment, stands.served) == (
        first, terms, "host/one/1", "one", False,
    )  # fmt: skip
    second = opened(store)
    elsewhere = opened(store, place="host/one/2")
    assert row(store, first, "stopped_at") == row(store, second, "started_at")
    with store.transaction() as connection:
        assert [window.id for window in windows.standing(connection)] == [second, elsewhere]


def test_a_predecessor_is_paid_to_its_leases_end_at_most(store: Store) -> None:
    gone = make.worker(store)
    window_id = opened(store, worker_id=gone)
    store.fetch("UPDATE rent_window SET started_at = now() - interval '1 h' RETURNING id")
    store.fetch("UPDATE worker SET lease_until = now() - interval '1 min' RETURNING id")
    opened(store)
    lasted, lease_s = row(store, window_id, "stopped_at - started_at"), timedelta(minutes=59)
    assert timedelta() < lasted[0] - lease_s < timedelta(seconds=5)


def test_leaving_stops_the_window_and_dying_stops_it_at_the_leases_end(store: Store) -> None:
    leaves, dies = make.worker(store), make.worker(store)
    left, dead = opened(store, worker_id=leaves), opened(store, place="host/one/2", worker_id=dies)
    workers.retire(store, leaves)
    assert row(store, left, "stopped_at = (SELECT stopped_at FROM worker WHERE id = worker_id)") == (True,)
    store.fetch("UPDATE rent_window SET started_at = now() - interval '1 h' RETURNING id")
    store.fetch("UPDATE worker SET lease_until = now() - interval '9 s' WHERE stopped_at IS NULL RETURNING id")
    with store.transaction() as connection:
        assert [worker_id for worker_id, _, _ in rescue.bury(connection)] == [dies]
    assert row(store, dead, "stopped_at = (SELECT lease_until FROM worker WHERE id = worker_id)") == (True,)


def test_it_has_served_once_and_a_heartbeat_brings_its_window(store: Store) -> None:
    worker_id = make.worker(store)
    assert workers.beat(store, worker_id, lease_s=60).window is None
    window_id = opened(store, worker_id=worker_id)
    assert workers.beat(store, worker_id, lease_s=60).window == WindowPrice(window_id, PRICE)
    assert row(store, window_id, "served_at") == (None,)
    workers.beat(store, worker_id, lease_s=60, served_ago_s=3600)  # it served before: a window that began with a cut
    first = row(store, window_id, "served_at, served_at = started_at")
    workers.beat(store, worker_id, lease_s=60, served_ago_s=0)
    assert row(store, window_id, "served_at, true") == first == (first[0], True)


def test_a_cut_ends_one_window_where_the_next_begins(store: Store) -> None:
    window_id = opened(store)
    store.fetch("UPDATE rent_window SET started_at = now() - interval '1 h', served_at = now() RETURNING id")
    at = datetime.now(tz=UTC) - timedelta(minutes=10)
    dearer = replace(TERMS, usd_per_hour=Decimal("2.5"), catalog="another")
    with store.transaction() as connection:
        assert windows.cut(connection, window_id, at - timedelta(hours=2), dearer) is None
        following = windows.cut(connection, window_id, at, dearer)
        assert windows.cut(connection, window_id, at, dearer) is None
        [stands] = windows.standing(connection)
    assert (stands.id, stands.started_at, stands.terms, stands.served) == (following, at, dearer, True)
    assert row(store, window_id, "stopped_at, usd_per_hour") == (at, TERMS.usd_per_hour)


def test_two_that_come_to_one_place_at_once_leave_one_window(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: opened(store), range(24)))
    assert make.count(store, "rent_window", "stopped_at IS NULL") == 1
    assert make.count(store, "rent_window") == 24


# --- closing ----------------------------------------------------------------------------------------------


def test_closing_posts_what_is_left_of_the_rent(store: Store, tenant: int) -> None:
    window_id = opened(store)
    [job] = make.running(store, tenant)
    write(store, make.ending(job, **used(job, WindowPrice(window_id, PRICE))))
    store.fetch(
        "UPDATE rent_window SET started_at = now() - interval '2 h', served_at = now() - interval '90 min' RETURNING id"
    )
    stopped(store, window_id)
    assert closed(store, grace_s=60) == 0
    assert (closed(store), closed(store)) == (1, 0)
    books(store)
    warmup, idle = (store.fetch("SELECT cost_usd FROM ledger WHERE kind = %(k)s", {"k": k}) for k in ("warmup", "idle"))
    served_at, started_at = row(store, window_id, "served_at, started_at")
    assert warmup == [(rent_usd(TERMS.usd_per_hour, started_at, served_at),)]
    assert 1500 < idle[0][0] < 1510  # of 2 h, 90 min
    theirs = "SELECT DISTINCT name FROM ledger JOIN tenant ON tenant.id = tenant_id WHERE kind <> 'inference'"
    assert store.fetch(theirs) == [("tieryard-rent",)]


def test_a_window_that_never_served_is_warm_up_and_one_that_beat_its_price_has_less_than_nothing_left(
    store: Store, tenant: int
) -> None:
    cold = opened(store)
    stopped(store, cold)
    hot = opened(store, terms=replace(TERMS, usd_per_hour=Decimal("0.000001")))
    [job] = make.running(store, tenant)
    write(store, make.ending(job, **used(job, WindowPrice(hot, PRICE))))
    store.fetch("UPDATE rent_window SET served_at = started_at WHERE id = %(id)s RETURNING id", {"id": hot})
    stopped(store, hot)
    assert closed(store) == 2
    books(store)
    [(left,)] = store.fetch("SELECT cost_usd FROM ledger WHERE kind = 'idle' AND job_id = %(id)s", {"id": hot})
    assert left < 0
    assert store.fetch("SELECT cost_usd FROM ledger WHERE kind = 'idle' AND job_id = %(id)s", {"id": cold}) == [(0,)]
    assert make.count(store, "ledger", "kind = 'warmup'") == 1


def test_a_host_that_serves_no_model_is_overhead(store: Store) -> None:
    with store.transaction() as connection:
        host = windows.open_window(
            connection, store.next_id(), place="router-1", worker_id=None, deployment=None, terms=TERMS
        )
    stopped(store, host)
    assert closed(store) == 1
    books(store)
    assert store.fetch("SELECT job_id, kind, deployment, tier FROM ledger") == [(host, "overhead", None, None)]


# --- the race between finishing and closing ---------------------------------------------------------------


def waits(store: Store) -> bool:
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%rent_window%'"
    return bool(store.fetch(waiting))


def test_closing_leaves_a_window_that_is_being_posted_to(store: Store, tenant: int) -> None:
    """Without the lock it would be closed at once, and the charge that is about to be committed left out."""
    window_id = opened(store)
    [job] = make.running(store, tenant)
    stopped(store, window_id)
    with store.transaction() as connection:
        finish(connection, [make.ending(job, **used(job, WindowPrice(window_id, PRICE)))])
        assert closed(store) == 0
    assert closed(store) == 1
    assert kinds(store, job.id) == [(1, "inference")]
    books(store)


@pytest.mark.parametrize("ends", [True, False], ids=["inference", "retry"])
def test_who_comes_while_it_is_closed_waits_and_brings_a_balance(store: Store, tenant: int, ends: bool) -> None:
    """Without the lock it would not see that the window is closed."""
    window_id = opened(store)
    [job] = make.running(store, tenant)
    stopped(store, window_id)
    ending = make.ending if ends else make.hand_back
    late = ending(job, **used(job, WindowPrice(window_id, PRICE)))
    with ThreadPoolExecutor(1) as pool:
        with store.transaction() as connection:
            connection.execute("SELECT")  # so that this, and not each closing, is the transaction
            assert windows.close_due(connection, 0) == 1
            flushed = pool.submit(write, store, late)
            eventually(lambda: waits(store), what="the flush to wait")
        flushed.result()
    assert kinds(store, job.id) == [(1, "adjustment"), (1, "inference" if ends else "retry")]
    books(store)
