"""What was found wrong with rent windows and budgets by looking for it: each of these failed once."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import psycopg
import pytest

from tests import factories as make
from tieryard.catalog import Price
from tieryard.costs.terms import Terms
from tieryard.store import Store, budgets, rescue, windows
from tieryard.store.budgets import Wanted
from tieryard.store.connection import Connection
from tieryard.store.finish import finish

_PRICE = Price(input_usd_per_1m=Decimal("0.10"), output_usd_per_1m=Decimal("0.40"))
TERMS = Terms(Decimal("1.006"), 1, "on_demand", _PRICE, "0123456789ab")
PLACE = "host/one/1"


def connect(store: Store) -> Connection:
    return psycopg.connect(store.url, autocommit=True)


def worker(connection: Connection, *, lease_s: float) -> int:
    row = connection.execute(
        "INSERT INTO worker (kind, deployment, host, pid, place, lease_until) "
        "VALUES ('infer', 'one', 'host', 1, %s, now() + %s * interval '1 second') RETURNING id",
        [PLACE, lease_s],
    ).fetchone()
    assert row is not None
    return int(row[0])


def overlaps(connection: Connection) -> int:
    """Pairs of windows that pay for the same moment of the place."""
    [[n]] = connection.execute(
        "SELECT count(*) FROM rent_window a JOIN rent_window b ON a.place = b.place AND a.id < b.id "
        "WHERE tstzrange(a.started_at, a.stopped_at) && tstzrange(b.started_at, b.stopped_at)"
    ).fetchall()
    return int(n)


@pytest.mark.parametrize("gone", ["cut", "buried"])
def test_a_place_is_not_paid_twice_for_the_time_of_a_registration(store: Store, gone: str) -> None:
    """A process registers in a transaction that began before its predecessor's window was cut, or stopped at the end of
    a lease that ran out meanwhile: its own window may not start before that."""
    with connect(store) as one, connect(store) as other:
        before = worker(one, lease_s=60)
        with one.transaction():
            first = windows.open_window(
                one, store.next_id(), place=PLACE, worker_id=before, deployment="one", terms=TERMS
            )
        with one.transaction():
            after = worker(one, lease_s=60)
            if gone == "cut":
                assert windows.cut(other, first, datetime.now(tz=UTC), TERMS) is not None
            else:
                other.execute("UPDATE worker SET lease_until = clock_timestamp() WHERE id = %s", [before])
                assert [row[0] for row in rescue.bury(other)] == [before]
            windows.open_window(one, store.next_id(), place=PLACE, worker_id=after, deployment="one", terms=TERMS)
        assert overlaps(one) == 0


def test_a_budget_counts_what_was_in_flight_when_it_was_set(store: Store, tenant: int) -> None:
    """Its jobs have no reservation there, so nothing settled them: a limit that was set under way, or removed and set
    again, never learnt what they cost."""
    [job] = make.running(store, tenant)
    budgets.set_budget(store, Wanted("tests", Decimal("0.01"), "day"))
    with store.transaction() as connection:
        finish(connection, [make.ending(job, cost_usd=Decimal("0.004"))])
    with store.transaction() as connection:
        budgets.settle(connection)
    [found] = budgets.list_budgets(store)
    assert found.spent_usd == Decimal("0.004")


def test_setting_a_budget_again_counts_nothing_in_two_periods(store: Store, tenant: int) -> None:
    """A job counts for the period in which it was accepted. A budget that was set again before anything was accepted
    in the next period began that one with what had just been posted for the last."""
    wanted = Wanted("tests", Decimal(1), "day")
    budgets.set_budget(store, wanted)
    [job_id] = make.save_jobs(store, tenant, worst_usd=Decimal("0.75"))
    store.fetch("UPDATE budget_period SET starts_on = starts_on - 1 RETURNING budget_id")
    store.fetch("UPDATE reservation SET starts_on = starts_on - 1 RETURNING budget_id")
    make.route(store, [job_id])
    [job] = make.claim(store, [job_id], make.worker(store))
    with store.transaction() as connection:
        finish(connection, [make.ending(job, cost_usd=Decimal("0.5"))])
        budgets.settle(connection)
    assert budgets.set_budget(store, wanted).spent_usd == 0
    assert store.fetch("SELECT sum(spent_usd) FROM budget_period") == [(Decimal("0.5"),)]


def test_a_raised_limit_is_told_of_anew(store: Store, tenant: int) -> None:
    """Whoever raised a limit after it was reached was told nothing more for the rest of its period."""
    marks = []
    for limit in ("1", "10"):
        budgets.set_budget(store, Wanted("tests", Decimal(limit), "month", alert_url="https://hooks.example.com/money"))
        [job] = make.running(store, tenant, worst_usd=Decimal(limit) / 2)
        with store.transaction() as connection:
            finish(connection, [make.ending(job, cost_usd=Decimal(limit) / 2)])
            marks.append([period.marks for period in budgets.settle(connection)])
    assert marks == [[[50]], [[50]]]


def test_removing_a_budget_does_not_wait_for_what_is_being_settled(store: Store, tenant: int) -> None:
    """Both deleted its reservations, in no common order: one of the two ended in a deadlock."""
    budget = budgets.set_budget(store, Wanted("tests", Decimal(1), "day"))
    make.save_jobs(store, tenant, worst_usd=Decimal("0.1"))
    hasty = Store(store.url, lock_timeout_s=0.2)
    with connect(store) as settling, settling.transaction():
        settling.execute("DELETE FROM reservation")
        assert budgets.remove(hasty, f"budget_{budget.id}") == f"budget_{budget.id}"
    hasty.close()
    assert budgets.list_budgets(store) == []
