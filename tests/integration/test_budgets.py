"""Budgets in Postgres: what is reserved with jobs, what is settled after them, and who is told."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from tests import factories as make
from tieryard.errors import BudgetError, NotFoundError, UserError
from tieryard.store import Store, batches, budgets, jobs, keys
from tieryard.store.budgets import BudgetRow, Need, Settled, Wanted, resets_at
from tieryard.store.finish import finish
from tieryard.store.jobs import Claimed

HOOK = "https://hooks.example.com/money"


@pytest.fixture
def key(store: Store, tenant: int) -> int:
    return keys.holder_of(store, "ty_test").key_id


def put(store: Store, usd: str, period: str = "month", **fields: Any) -> BudgetRow:
    return budgets.set_budget(store, Wanted("tests", Decimal(usd), period, **fields))


def settle(store: Store) -> list[Settled]:
    with store.transaction() as connection:
        return budgets.settle(connection)


def save(store: Store, tenant: int, usd: str, **fields: Any) -> int:
    """A job of its own, with its worst case."""
    [job] = make.save_jobs(store, tenant, worst_usd=Decimal(usd), **fields)
    return job


def end(store: Store, job: Claimed, usd: str | None) -> None:
    with store.transaction() as connection:
        finish(connection, [make.ending(job, cost_usd=None if usd is None else Decimal(usd))])


def run(store: Store, ids: list[int]) -> list[Claimed]:
    make.route(store, ids)
    return make.claim(store, ids, make.worker(store))


def now_of(store: Store) -> tuple[Decimal, Decimal]:
    """(spent, reserved) of the only budget."""
    [row] = budgets.list_budgets(store)
    return row.spent_usd, row.reserved_usd


def told(store: Store) -> list[dict[str, Any]]:
    rows = store.fetch("SELECT event, url, data FROM outbox ORDER BY id")
    assert {row[:2] for row in rows} <= {("budget.threshold", HOOK)}
    return [row[2] for row in rows]


# Reserving


def test_a_job_is_saved_with_its_worst_case_or_not_at_all(store: Store, tenant: int, key: int) -> None:
    put(store, "1")
    save(store, tenant, "0.75", api_key_id=key)
    assert now_of(store) == (0, Decimal("0.75"))
    with pytest.raises(BudgetError, match=r"the tenant is \$1 a month: \$0 are spent, \$0.75 reserved .* \$0.2500001"):
        save(store, tenant, "0.2500001", api_key_id=key)
    assert (make.count(store, "job"), make.count(store, "line")) == (1, 1)
    save(store, tenant, "0.25", api_key_id=key)
    assert now_of(store) == (0, 1)
    assert store.fetch("SELECT DISTINCT api_key_id FROM job") == [(key,)]


def test_what_could_never_be_covered_is_not_to_be_tried_again(store: Store, tenant: int) -> None:
    put(store, "1")
    save(store, tenant, "0.75")
    with pytest.raises(BudgetError) as soon:
        save(store, tenant, "0.5")
    with pytest.raises(BudgetError) as never:
        save(store, tenant, "1.5")
    assert (soon.value.retry_after_s, never.value.retry_after_s) == (5.0, float("inf"))


def test_all_of_a_callers_budgets_or_none(store: Store, tenant: int, key: int) -> None:
    put(store, "10", "day")
    put(store, "100", "month")
    own = put(store, "1", "day", key=f"key_{key}")
    with pytest.raises(BudgetError, match=f"key_{key} is"):
        save(store, tenant, "2", api_key_id=key)
    assert {row.reserved_usd for row in budgets.list_budgets(store)} == {Decimal(0)}
    save(store, tenant, "2", api_key_id=key + 1)
    save(store, tenant, "1", api_key_id=key)
    assert [(r.period, r.api_key_id, r.reserved_usd) for r in budgets.list_budgets(store)] == [
        ("day", None, 3), ("month", None, 3), ("day", key, 1),
    ]  # fmt: skip
    assert own.id == budgets.list_budgets(store)[2].id


def test_a_soft_budget_refuses_nothing(store: Store, tenant: int) -> None:
    put(store, "1", hard=False)
    save(store, tenant, "5")
    [row] = budgets.list_budgets(store)
    assert (row.reserved_usd, row.left_usd, row.hard) == (5, -4, False)


def test_a_batch_is_reserved_in_parts(store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_PART", 2)
    put(store, "1")
    parts = batches.in_parts([Decimal("0.1"), Decimal("0.2"), Decimal("0.3")])
    with pytest.raises(BudgetError):
        make.save_batch(store, tenant, worst=batches.in_parts([Decimal("0.5")] * 3))
    batch_id = make.save_batch(store, tenant, worst=parts, api_key_id=7)
    assert store.fetch("SELECT first_job_id, n, usd FROM reservation ORDER BY 1") == [
        (batch_id + 1, 2, Decimal("0.3")),
        (batch_id + 3, 1, Decimal("0.3")),
    ]
    assert settle(store) == []  # its jobs are about to be made
    make.expand(store)
    assert store.fetch("SELECT DISTINCT api_key_id FROM job") == [(7,)]
    make.release(store, batch_id, 3)
    [first, second, third] = run(store, [batch_id + n for n in (1, 2, 3)])
    end(store, first, "0.05")
    assert settle(store) == []
    end(store, second, "0.15")
    settle(store)
    assert now_of(store) == (Decimal("0.2"), Decimal("0.3"))
    end(store, third, None)
    settle(store)
    assert now_of(store) == (Decimal("0.2"), 0)


# Settling


def test_the_worst_case_stands_until_the_ledger_is_known(store: Store, tenant: int) -> None:
    put(store, "1")
    [job] = run(store, [save(store, tenant, "0.75")])
    assert settle(store) == []
    end(store, job, "0.000123456789")
    assert now_of(store) == (0, Decimal("0.75"))
    [settled] = settle(store)
    assert (settled.spent_usd, settled.marks, settled.over) == (Decimal("0.000123456789"), [], 0)
    assert now_of(store) == (Decimal("0.000123456789"), 0)
    assert (settle(store), make.count(store, "reservation")) == ([], 0)


def test_what_ends_without_a_bill_gives_all_back(store: Store, tenant: int) -> None:
    put(store, "1")
    waiting = save(store, tenant, "0.75")
    jobs.cancel(store, [waiting], tenant_id=tenant)
    settle(store)
    assert now_of(store) == (0, 0)


def test_a_reservation_without_jobs_is_swept(store: Store, tenant: int) -> None:
    put(store, "1")
    with store.transaction() as connection:
        need = Need(store.next_id(), 3, Decimal("0.5"))
        budgets.reserve(connection, tenant_id=tenant, api_key_id=None, needs=[need])
    assert now_of(store) == (0, Decimal("0.5"))
    settle(store)
    assert now_of(store) == (0, 0)


def test_a_crash_leaves_neither_job_nor_reservation(store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "1")
    reserve = budgets.reserve

    def crash(*given: Any, **named: Any) -> None:
        reserve(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(budgets, "reserve", crash)
    with pytest.raises(KeyboardInterrupt):
        save(store, tenant, "0.5")
    assert (make.count(store, "job"), make.count(store, "reservation"), now_of(store)) == (0, 0, (0, 0))


def test_an_engine_that_did_more_than_it_was_asked_is_charged_and_said(store: Store, tenant: int) -> None:
    put(store, "1")
    [job] = run(store, [save(store, tenant, "0.75")])
    end(store, job, "1.25")
    [settled] = settle(store)
    assert (settled.over, now_of(store)) == (1, (Decimal("1.25"), 0))
    with pytest.raises(BudgetError):
        save(store, tenant, "0.01")


def test_a_retry_is_nobodys(store: Store, tenant: int) -> None:
    """Only `inference` is charged: a job once, at its end."""
    put(store, "1")
    job = save(store, tenant, "0.5")
    store.fetch(
        "INSERT INTO ledger (job_id, fence, kind, tenant_id, prompt_tokens, completion_tokens, cost_usd, catalog) "
        "SELECT %(id)s, fence, kind, %(tenant)s, 1, 1, 0.3, 'c' "
        "FROM (VALUES (1, 'retry'), (2, 'retry'), (3, 'inference')) AS kinds (fence, kind) RETURNING job_id",
        {"id": job, "tenant": tenant},
    )
    jobs.cancel(store, [job], tenant_id=tenant)
    settle(store)
    assert now_of(store) == (Decimal("0.3"), 0)


def test_a_job_counts_for_the_day_on_which_it_was_accepted(store: Store, tenant: int) -> None:
    put(store, "1", "day")
    [job] = run(store, [save(store, tenant, "0.75")])
    store.fetch("UPDATE budget_period SET starts_on = starts_on - 1 RETURNING budget_id")
    store.fetch("UPDATE reservation SET starts_on = starts_on - 1 RETURNING budget_id")
    save(store, tenant, "0.9")
    assert now_of(store) == (0, Decimal("0.9"))
    end(store, job, "0.5")
    settle(store)
    assert store.fetch("SELECT spent_usd, reserved_usd FROM budget_period ORDER BY starts_on") == [
        (Decimal("0.5"), 0), (0, Decimal("0.9")),
    ]  # fmt: skip


# Telling


def test_each_mark_is_told_once_a_period(store: Store, tenant: int) -> None:
    row = put(store, "1", "day", alert_url=HOOK)
    for usd in ("0.4", "0.1", "0.05", "0.3", "0.15"):
        [job] = run(store, [save(store, tenant, usd)])
        end(store, job, usd)
        settle(store)
    assert [(t["mark"], t["spent_usd"]) for t in told(store)] == [(50, "0.5"), (80, "0.85"), (100, "1")]
    assert told(store)[0] == {
        "tenant": "tests", "key": None, "period": "day", "starts_on": row.starts_on.isoformat(), "limit_usd": "1",
        "spent_usd": "0.5", "mark": 50,
    }  # fmt: skip


def test_marks_that_are_passed_at_once_are_all_told(store: Store, tenant: int, key: int) -> None:
    put(store, "1", alert_url=HOOK, key=f"key_{key}", hard=False)
    [job] = run(store, [save(store, tenant, "3", api_key_id=key)])
    end(store, job, "3")
    assert settle(store)[0].marks == [50, 80, 100]
    assert [(t["mark"], t["key"]) for t in told(store)] == [(mark, f"key_{key}") for mark in (50, 80, 100)]


def test_without_an_address_nobody_is_told(store: Store, tenant: int) -> None:
    put(store, "1")
    [job] = run(store, [save(store, tenant, "1")])
    end(store, job, "1")
    assert settle(store)[0].marks == [50, 80, 100]
    assert told(store) == []


# Setting


def test_a_budget_that_is_set_under_way_begins_with_what_is_spent(store: Store, tenant: int, key: int) -> None:
    [own, other] = make.running(store, tenant, 1, api_key_id=key) + make.running(store, tenant, 1)
    end(store, own, "0.25")
    end(store, other, "0.5")
    assert put(store, "1", "day").spent_usd == Decimal("0.75")
    assert put(store, "1", "day", key=f"key_{key}").spent_usd == Decimal("0.25")


def test_setting_again_changes_the_budget_that_there_is(store: Store, tenant: int) -> None:
    first = put(store, "1", alert_url=HOOK)
    save(store, tenant, "0.75")
    again = put(store, "0.5", hard=False)
    assert (again.id, again.limit_usd, again.hard, again.alert_url) == (first.id, Decimal("0.5"), False, None)
    assert again.left_usd == Decimal("-0.25")


def test_what_was_reserved_of_a_removed_budget_is_swept(store: Store, tenant: int) -> None:
    row = put(store, "1")
    [job] = run(store, [save(store, tenant, "0.75")])
    assert budgets.remove(store, f"budget_{row.id}") == f"budget_{row.id}"
    assert [make.count(store, name) for name in ("budget", "budget_period")] == [0, 0]
    end(store, job, "0.5")
    assert settle(store) == []
    assert make.count(store, "reservation") == 0
    with pytest.raises(NotFoundError, match="no budget 'budget_"):
        budgets.remove(store, f"budget_{row.id}")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"limit_usd": Decimal("-0.01")}, "limit_usd"),
        ({"limit_usd": Decimal("NaN")}, "limit_usd"),
        ({"limit_usd": Decimal("Infinity")}, "limit_usd"),
        ({"limit_usd": Decimal("1e16")}, "limit_usd"),
        ({"period": "week"}, "period"),
        ({"tenant": "nobody"}, "tenant"),
        ({"tenant": "tieryard-shadow"}, "tenant"),
        ({"key": "key_999"}, "key"),
        ({"key": "seven"}, "key"),
    ],
)
def test_what_is_no_budget(store: Store, tenant: int, fields: dict[str, Any], param: str) -> None:
    plain: dict[str, Any] = {"tenant": "tests", "limit_usd": Decimal(1), "period": "day"}
    with pytest.raises(UserError) as refused:
        budgets.set_budget(store, Wanted(**{**plain, **fields}))
    assert refused.value.param == param
    assert make.count(store, "budget") == 0


def test_a_key_of_another_tenant_is_unknown(store: Store, tenant: int) -> None:
    keys.add_key(store, "ty_other", tenant="others", name="other")
    other = keys.holder_of(store, "ty_other").key_id
    with pytest.raises(NotFoundError, match="has no key"):
        put(store, "1", key=f"key_{other}")


@pytest.mark.parametrize(
    ("period", "starts_on", "resets"),
    [
        ("day", date(2026, 12, 31), datetime(2027, 1, 1, tzinfo=UTC)),
        ("month", date(2026, 12, 1), datetime(2027, 1, 1, tzinfo=UTC)),
        ("month", date(2028, 2, 1), datetime(2028, 3, 1, tzinfo=UTC)),
    ],
)
def test_when_it_begins_anew(period: str, starts_on: date, resets: datetime) -> None:
    assert resets_at(period, starts_on) == resets
