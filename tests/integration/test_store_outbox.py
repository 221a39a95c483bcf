"""What happened and is to be told: fanned out once, by one worker at a time, to whom it was promised."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests import factories as make
from tests.integration.receivers import endpoint, fan_out, happen, rows, take
from tieryard.job import State
from tieryard.store import Store, batches, expansion, finish, jobs, outbox, rescue
from tieryard.store.expansion import Verdict
from tieryard.store.migrate import _config

URL = "https://hooks.example.com/a?b=%20"


def told(store: Store) -> list[tuple[str, int]]:
    """Events in the outbox: what happened to what."""
    return rows(store, "event, subject_id", "outbox")


def test_a_jobs_address_is_read_from_its_line(store: Store, tenant: int) -> None:
    ids = make.save_jobs(store, tenant, text=make.body(callback_url=URL), wants_callback=True)
    make.route(store, ids, deployment=None)
    assert fan_out(store) == 1
    [due] = take(store)
    assert (due.url, due.subject_id, due.event, due.attempt) == (URL, ids[0], "job.failed", 1)


def test_callback_addresses_share_a_lane_by_tenant_and_server(store: Store, tenant: int) -> None:
    for url in (
        "https://a.example.com/1",
        "https://a.example.com/2",
        "https://A.example.com:443/",
        "http://a.example.com",
    ):
        happen(store, tenant, url=url)
    happen(store, tenant + 1, url="https://a.example.com/")
    assert fan_out(store) == 5
    assert rows(store, "tenant_id, origin", "delivery_lane", "tenant_id, origin") == [
        (tenant, "http://a.example.com:80"),
        (tenant, "https://a.example.com:443"),
        (tenant + 1, "https://a.example.com:443"),
    ]


def test_an_event_that_is_held_is_passed_over(store: Store, tenant: int) -> None:
    ids = happen(store, tenant, 2, url=URL)
    with store.transaction() as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("SELECT 1 FROM outbox WHERE id = %s FOR UPDATE", [ids[0]])
        assert pool.submit(fan_out, store).result(5) == 1
    assert rows(store, "outbox_id") == [(ids[1],)]


def test_nobodys_event_waits_for_a_million_of_anothers(store: Store, tenant: int) -> None:
    happen(store, tenant, 50, url=URL)
    [late] = happen(store, tenant + 1, url=URL)

    def part() -> tuple[int, bool]:
        with store.transaction() as connection:
            return outbox.fan_out(connection, lambda _: "x", most=10)

    assert part() == (6, True)
    assert late in [row[0] for row in rows(store, "outbox_id")]
    assert [part() for _ in range(6)] == [(10, True)] * 4 + [(5, False), (0, False)]


def test_a_fan_out_that_breaks_off_has_done_nothing(store: Store, tenant: int) -> None:
    endpoint(store, tenant)
    happen(store, tenant, 3, url=URL)

    def breaks_off() -> None:
        with store.transaction() as connection:
            assert outbox.fan_out(connection, lambda _: "x") == (6, False)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        breaks_off()
    assert make.count(store, "delivery") == 0
    assert fan_out(store) == 6


def test_many_at_once_make_each_delivery_once(store: Store, tenant: int) -> None:
    for _ in range(3):
        endpoint(store, tenant)
    happen(store, tenant, 1200, url=URL)
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(lambda _: fan_out(store), range(6))) == 4 * 1200
    assert make.count(store, "delivery") == 4 * 1200
    assert make.count(store, "outbox", "fanned_at IS NULL") == 0


def test_nobody_who_asked_and_nobody_who_listens(store: Store, tenant: int) -> None:
    endpoint(store, tenant, make.HOOK, "batch.completed")
    endpoint(store, tenant + 1)
    claimed = make.running(store, tenant, 2)
    with store.transaction() as connection:
        assert finish.finish(connection, [make.ending(job) for job in claimed]).callbacks == 0
    assert told(store) == []


@pytest.mark.parametrize("events", [(), ("job.completed", "job.failed", "job.cancelled", "job.expired")])
def test_every_way_a_job_can_end_is_told_to_who_listens(store: Store, tenant: int, events: tuple[str, ...]) -> None:
    """Every statement that ends jobs."""
    endpoint(store, tenant, make.HOOK, *events)
    refused = make.save_jobs(store, tenant)
    make.route(store, refused, deployment=None)
    cancelled = make.save_jobs(store, tenant)
    jobs.cancel(store, cancelled, tenant_id=tenant)
    done, failed, stopped, orphan = make.running(store, tenant, 4)
    store.fetch("UPDATE job SET stop_requested = 'cancelled' WHERE id = %(i)s RETURNING 1", {"i": stopped.id})
    with store.transaction() as connection:
        endings = [make.ending(done), make.ending(failed, state=State.FAILED, error="x"), make.hand_back(stopped)]
        assert finish.finish(connection, endings).callbacks == 3
    store.fetch("UPDATE worker SET stopped_at = now() RETURNING 1")
    store.fetch("UPDATE job SET worker_deaths = 2, ran_alone = true WHERE id = %(i)s RETURNING 1", {"i": orphan.id})
    late = make.save_jobs(store, tenant, window_s=-1)
    with store.transaction() as connection:
        rescue.requeue_orphans(connection)
        rescue.stop(connection)
    assert sorted(told(store), key=lambda row: row[1]) == sorted(
        [
            ("job.failed", refused[0]),
            ("job.cancelled", cancelled[0]),
            ("job.completed", done.id),
            ("job.failed", failed.id),
            ("job.cancelled", stopped.id),
            ("job.failed", orphan.id),
            ("job.expired", late[0]),
        ],
        key=lambda row: row[1],
    )


def test_lines_that_are_refused_are_told_of_too(store: Store, tenant: int) -> None:
    endpoint(store, tenant, make.HOOK, "job.failed")
    batch_id = make.save_batch(store, tenant, 3)
    verdicts = iter([Verdict(), Verdict("no"), Verdict("no", wants_callback=True)])
    expansion.expand_chunk(store, lambda *_: next(verdicts))
    assert told(store) == [("job.failed", batch_id + 2), ("job.failed", batch_id + 3)]


def test_a_batchs_end_is_told_to_who_listens(store: Store, tenant: int) -> None:
    endpoint(store, tenant, make.HOOK, "batch.completed")
    ids = make.released_batch(store, tenant, 2)
    jobs.cancel(store, ids, tenant_id=tenant)
    [batch_id] = {row[0] for row in store.fetch("SELECT batch_id FROM job")}
    with store.transaction() as connection:
        batches.complete(connection, [batch_id])
    assert told(store) == [("batch.completed", batch_id)]
    assert rows(store, "url", "outbox") == [(None,)]


def test_what_was_owed_before_is_owed_after_the_migration(store: Store, database_url: str) -> None:
    """And back again. What was settled stays settled."""
    from alembic import command

    command.downgrade(_config(database_url), "0009")
    with psycopg.connect(database_url) as connection:
        for settled in ("NULL", "now()", "NULL"):
            connection.execute(
                "INSERT INTO outbox (tenant_id, event, subject_id, url, attempts, next_at, settled_at) "
                f"VALUES (1, 'batch.completed', 7, '{URL}', 3, now() + interval '1 hour', {settled})"
            )
    command.upgrade(_config(database_url), "head")
    store.close()
    assert fan_out(store) == 2
    assert rows(store, "outbox_id, url") == [(1, URL), (3, URL)]
    store.fetch("UPDATE delivery SET settled_at = now() WHERE outbox_id = 3 RETURNING 1")
    endpoint(store, 1)
    [unfanned] = happen(store, 1)
    happen(store, 1, url=URL)
    store.close()
    command.downgrade(_config(database_url), "0009")
    with psycopg.connect(database_url) as connection:
        owed = connection.execute("SELECT id FROM outbox WHERE settled_at IS NULL ORDER BY id").fetchall()
    assert owed == [(1,), (unfanned + 1,)]
    command.upgrade(_config(database_url), "head")
