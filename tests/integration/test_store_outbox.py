"""Callbacks owed: taken by one worker at a time, and out of sight until they are settled or due again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import factories as make
from tieryard.store import Store, outbox


def owe(store: Store, n: int = 1) -> list[int]:
    """`n` callbacks for batches: their outbox ids."""
    return [
        store.fetch(
            "INSERT INTO outbox (tenant_id, event, subject_id, url, next_at) "
            "VALUES (1, 'batch.completed', %(i)s, %(url)s, now() - interval '1 hour' + %(i)s * interval '1 s') "
            "RETURNING id",
            {"i": i, "url": make.HOOK},
        )[0][0]
        for i in range(n)
    ]


def test_what_is_due_is_taken_oldest_first_and_hidden(store: Store) -> None:
    ids = owe(store, 3)
    first = outbox.take_due(store, most=2)
    assert [(o.id, o.attempt, o.url) for o in first] == [(ids[0], 1, make.HOOK), (ids[1], 1, make.HOOK)]
    assert [o.id for o in outbox.take_due(store)] == [ids[2]]
    assert outbox.take_due(store) == []


def test_a_row_taken_by_a_worker_that_died_is_due_again(store: Store) -> None:
    [owed] = owe(store)
    assert [o.attempt for o in outbox.take_due(store, hold_s=0)] == [1]
    assert [(o.id, o.attempt) for o in outbox.take_due(store)] == [(owed, 2)]


def test_a_jobs_address_is_read_from_its_line(store: Store, tenant: int) -> None:
    url = "https://hooks.example.com/a?b=%20"
    ids = make.save_jobs(store, tenant, text=make.body(callback_url=url), wants_callback=True)
    make.route(store, ids, deployment=None)
    [owed] = outbox.take_due(store)
    assert (owed.url, owed.subject_id, owed.event) == (url, ids[0], "job.failed")


@pytest.mark.parametrize(
    ("error", "retry", "settled", "delivered", "due"),
    [
        (None, None, True, True, False),
        ("500", 0.0, False, False, True),
        ("500", 60.0, False, False, False),
        ("gone", None, True, False, False),
    ],
)
def test_settling(
    store: Store, error: str | None, retry: float | None, settled: bool, delivered: bool, due: bool
) -> None:
    [owed] = owe(store)
    outbox.take_due(store)
    outbox.settle(store, owed, status=500 if error else 204, error=error, retry_in_s=retry)
    row = store.fetch("SELECT settled_at IS NOT NULL, delivered_at IS NOT NULL, last_status, last_error FROM outbox")
    assert row == [(settled, delivered, 500 if error else 204, error)]
    assert bool(outbox.take_due(store)) == due


def test_a_row_that_is_held_is_passed_over(store: Store) -> None:
    ids = owe(store, 2)
    with store.transaction() as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("SELECT 1 FROM outbox WHERE id = %s FOR UPDATE", [ids[0]])
        assert [o.id for o in pool.submit(outbox.take_due, store).result(5)] == [ids[1]]


def test_many_takers_take_each_row_once(store: Store) -> None:
    ids = owe(store, 60)

    def take_all(_: int) -> list[int]:
        taken = []
        while owed := outbox.take_due(store, most=3):
            taken += [o.id for o in owed]
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [i for part in pool.map(take_all, range(6)) for i in part]
    assert sorted(taken) == ids
