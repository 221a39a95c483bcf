"""Budgets under many requests at once, and whatever happens to their jobs: no hard limit is passed, no cent lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal

import pytest

from tests import factories as make
from tests.integration.test_budgets import now_of, put, run, save, settle
from tieryard.errors import BudgetError
from tieryard.job import State
from tieryard.store import Store, budgets, jobs, keys
from tieryard.store.budgets import Need
from tieryard.store.finish import finish
from tieryard.store.jobs import Claimed


def test_two_hundred_at_once_never_overrun(store: Store, tenant: int) -> None:
    put(store, "0.5", "day")
    put(store, "2", "month")
    worst = Decimal("0.0099")

    def submit(_: int) -> bool:
        try:
            save(store, tenant, str(worst))
        except BudgetError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        accepted = sum(pool.map(submit, range(200)))
    assert accepted == make.count(store, "job") == 50
    assert [row.reserved_usd for row in budgets.list_budgets(store)] == [50 * worst] * 2
    assert store.fetch("SELECT sum(usd), count(*) FROM reservation") == [(100 * worst, 100)]


def test_settling_beside_submits_loses_no_cent(store: Store, tenant: int) -> None:
    """Both lock the same row, again and again: each must see what the other has left there."""
    put(store, "0.05", "day")
    submitting = threading.Event()

    def submit(_: int) -> int:
        try:
            job = save(store, tenant, "0.01")
        except BudgetError:
            return 0
        jobs.cancel(store, [job], tenant_id=tenant)
        return 1

    def settler() -> int:
        looks = 0
        while not submitting.is_set() or looks == 0:
            settle(store)
            assert sum(now_of(store)) <= Decimal("0.05")
            looks += 1
        return looks

    with ThreadPoolExecutor(9) as pool:
        settling = pool.submit(settler)
        accepted = sum(pool.map(submit, range(200)))
        submitting.set()
        settling.result()
    settle(store)
    assert accepted == make.count(store, "job") >= 5
    assert (now_of(store), make.count(store, "reservation")) == ((0, 0), 0)


@dataclass
class Yard:
    """Jobs of one tenant with two keys in every state, beside what their budgets should say of them."""

    store: Store
    tenant: int
    keys: list[int]
    rng: random.Random
    waiting: list[tuple[int, int, Decimal]] = field(default_factory=list)
    running: list[tuple[Claimed, int, Decimal]] = field(default_factory=list)
    charged: list[tuple[int, Decimal]] = field(default_factory=list)

    def submit(self) -> None:
        key, worst = self.rng.choice(self.keys), Decimal(self.rng.randint(1, 40)) / 100
        try:
            job = save(self.store, self.tenant, str(worst), api_key_id=key)
        except BudgetError:
            assert not self.covers(key, worst)
        else:
            self.waiting.append((job, key, worst))

    def covers(self, key: int, worst: Decimal) -> bool:
        """By what Postgres has: the sums of jobs may be lower, until they are settled."""
        rows = [r for r in budgets.list_budgets(self.store) if r.hard and r.api_key_id in (None, key)]
        return all(row.left_usd >= worst for row in rows)

    def start(self) -> None:
        if self.waiting:
            job, key, worst = self.waiting.pop(self.rng.randrange(len(self.waiting)))
            self.running += [(claimed, key, worst) for claimed in run(self.store, [job])]

    def finish(self) -> None:
        if self.running:
            job, key, worst = self.running.pop(self.rng.randrange(len(self.running)))
            used = worst * self.rng.randint(0, 1000) / 1000
            state = self.rng.choice([State.SUCCEEDED, State.FAILED, State.CANCELLED])
            with self.store.transaction() as connection:
                finish(connection, [make.ending(job, state=state, cost_usd=used)])
            self.charged.append((key, used))

    def cancel(self) -> None:
        if self.waiting:
            job, _, _ = self.waiting.pop()
            jobs.cancel(self.store, [job], tenant_id=self.tenant)

    def settle(self) -> None:
        settle(self.store)

    def abandon(self) -> None:
        """A reservation whose jobs never come to be."""
        try:
            with self.store.transaction() as connection:
                need = Need(self.store.next_id(), 1, Decimal("0.05"))
                budgets.reserve(connection, tenant_id=self.tenant, api_key_id=self.keys[0], needs=[need])
        except BudgetError:
            pass

    def check(self) -> None:
        for row in budgets.list_budgets(self.store):
            if row.hard:
                assert row.spent_usd + row.reserved_usd <= row.limit_usd
            theirs = [usd for key, usd in self.charged if row.api_key_id in (None, key)]
            assert row.spent_usd <= sum(theirs, Decimal(0)) <= row.spent_usd + row.reserved_usd


@pytest.mark.parametrize("seed", range(5))
def test_spent_and_reserved_never_pass_a_hard_limit(store: Store, tenant: int, seed: int) -> None:
    keys.add_key(store, "ty_second", tenant="tests", name="second")
    known = [keys.holder_of(store, name).key_id for name in ("ty_test", "ty_second")]
    put(store, "2", "day")
    put(store, "3", "month", hard=False)
    put(store, "1.1", "month", key=f"key_{known[1]}")
    yard = Yard(store, tenant, known, random.Random(seed))
    steps: list[Callable[[], None]] = [
        *[yard.submit] * 5, *[yard.start] * 4, *[yard.finish] * 3, yard.cancel, *[yard.settle] * 2, yard.abandon,
    ]  # fmt: skip
    for _ in range(150):
        yard.rng.choice(steps)()
        yard.check()
    while yard.waiting:
        yard.start()
    while yard.running:
        yard.finish()
    settle(store)
    for row in budgets.list_budgets(store):
        theirs = [usd for key, usd in yard.charged if row.api_key_id in (None, key)]
        assert (row.reserved_usd, row.spent_usd) == (0, sum(theirs, Decimal(0)))
    [(in_ledger,)] = store.fetch("SELECT coalesce(sum(cost_usd), 0) FROM ledger")
    assert in_ledger == sum((usd for _, usd in yard.charged), Decimal(0))
