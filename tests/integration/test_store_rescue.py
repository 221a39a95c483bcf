"""Rescue: dead workers' jobs come back, late jobs end, lost nudges are sent again; waiting is not taken for lost."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests import factories as make
from tieryard.job import MAX_WORKER_DEATHS
from tieryard.store import Store, jobs, rescue, workers
from tieryard.store.finish import finish
from tieryard.store.rescue import Nudge


def sweep(store: Store) -> dict[str, int]:
    with store.transaction() as connection:
        rescue.bury(connection)
        return rescue.requeue_orphans(connection)


def expire(store: Store) -> int:
    with store.transaction() as connection:
        return rescue.stop(connection)[0]


def nudges(store: Store, *, everything: bool = False) -> list[Nudge]:
    with store.transaction() as connection:
        return rescue.due_nudges(connection, patience_s=make.PATIENCE_S, everything=everything)


def nudged(store: Store, **fields: bool) -> list[int]:
    return sorted(n.id for n in nudges(store, **fields))


def later(store: Store, seconds: float) -> None:
    """Lets time pass: every time that is kept moves into the past."""
    shift = {"s": f"{seconds} seconds"}
    store.fetch(
        "UPDATE job SET created_at = created_at - %(s)s::interval, nudge_at = nudge_at - %(s)s::interval, "
        "not_before = not_before - %(s)s::interval RETURNING id",
        shift,
    )
    store.fetch(
        "UPDATE batch SET created_at = created_at - %(s)s::interval, mark_at = mark_at - %(s)s::interval RETURNING id",
        shift,
    )


def interval_s(store: Store, job_id: int) -> int:
    return round(make.column(store, "extract(epoch FROM nudge_at - now())::float8", [job_id])[0])


def die(store: Store, worker_id: int) -> None:
    store.fetch(
        "UPDATE worker SET lease_until = now() - interval '1 s' WHERE id = %(id)s RETURNING id", {"id": worker_id}
    )


def test_only_workers_whose_lease_ran_out_are_buried_and_once(store: Store) -> None:
    alive, dead = make.worker(store), make.worker(store, lease_s=-1)
    with store.transaction() as connection:
        assert rescue.bury(connection) == [(dead, "infer", "one")]
        assert rescue.bury(connection) == []
    workers.beat(store, alive, lease_s=10)


def test_a_dead_workers_jobs_go_back_and_neighbours_stay(store: Store, tenant: int) -> None:
    dead, alive = make.worker(store, lease_s=-1), make.worker(store)
    lost = [c.id for c in make.running(store, tenant, 2, worker_id=dead)]
    batched = make.released_batch(store, tenant, 2)
    make.route(store, batched)
    make.claim(store, batched, dead)
    kept = [c.id for c in make.running(store, tenant, 2, worker_id=alive)]
    assert sweep(store) == {"queued": 4}
    assert sweep(store) == {}
    assert make.column(store, "(state, worker_deaths, fence)", lost + batched) == [("queued", "1", "1")] * 4
    assert make.column(store, "state", kept) == ["running", "running"]
    assert store.fetch("SELECT DISTINCT outcome FROM timing") == [("worker_died",)]
    assert nudged(store) == sorted(lost + batched)


def test_jobs_of_a_worker_that_retired_are_found_too(store: Store, tenant: int) -> None:
    worker = make.worker(store)
    [job] = make.running(store, tenant, worker_id=worker)
    workers.retire(store, worker)
    assert sweep(store) == {"queued": 1}
    assert make.column(store, "state", [job.id]) == ["queued"]


def test_the_worker_that_was_declared_dead_can_no_longer_finish(store: Store, tenant: int) -> None:
    dead = make.worker(store, lease_s=-1)
    claimed = make.running(store, tenant, 3, worker_id=dead)
    sweep(store)
    with store.transaction() as connection:
        assert finish(connection, [make.ending(c) for c in claimed]).ended == set()
    assert make.count(store, "ledger") == make.count(store, "result") == 0


def test_the_third_death_fails_the_job_and_no_other(store: Store, tenant: int) -> None:
    [killer] = make.save_jobs(store, tenant, text=make.body(callback_url=make.HOOK), wants_callback=True)
    for death in range(MAX_WORKER_DEATHS):
        worker = make.worker(store)
        [neighbour] = make.running(store, tenant, worker_id=worker)
        make.route(store, [killer])
        [claimed] = make.claim(store, [killer], worker)
        assert claimed.worker_deaths == death
        last = death == MAX_WORKER_DEATHS - 1
        assert jobs.starts_alone(claimed) == last
        if last:
            assert jobs.mark_alone(store, claimed)
        die(store, worker)
        assert sweep(store) == ({"queued": 1, "failed": 1} if last else {"queued": 2})
        assert make.column(store, "(state, worker_deaths)", [neighbour.id]) == [("queued", "1")]
    assert make.column(store, "state", [killer]) == ["failed"]
    assert store.fetch("SELECT error_kind, error FROM result") == [("worker_died", "in flight at 3 worker deaths")]
    assert store.fetch("SELECT event FROM outbox") == [("job.failed",)]
    assert make.count(store, "ledger") == 0


def test_a_suspect_that_has_not_started_loses_nothing_by_a_death(store: Store, tenant: int) -> None:
    worker = make.worker(store)
    [waiting] = make.running(store, tenant, worker_id=worker)
    store.fetch("UPDATE job SET worker_deaths = 2 RETURNING id")
    die(store, worker)
    assert sweep(store) == {"queued": 1}
    assert make.column(store, "worker_deaths", [waiting.id]) == [2]
    assert not jobs.mark_alone(store, waiting), "it is no longer its worker's"


@pytest.mark.parametrize("stop", ["cancelled", "expired"])
def test_a_stop_asked_of_a_dead_worker_is_honoured_and_never_requeued(store: Store, tenant: int, stop: str) -> None:
    worker = make.worker(store)
    claimed = make.running(
        store, tenant, worker_id=worker, window_s=-1 if stop == "expired" else 60,
        text=make.body(callback_url=make.HOOK), wants_callback=True,
    )  # fmt: skip
    ids = [c.id for c in claimed]
    assert (expire(store) if stop == "expired" else jobs.cancel(store, ids, tenant_id=tenant)[0]) == 0
    assert jobs.stops_requested(store, ids) == {ids[0]: stop}
    die(store, worker)
    assert sweep(store) == {stop: 1}
    assert make.column(store, "state", ids) == [stop]
    assert store.fetch("SELECT error_kind FROM result") == [(stop,)]
    assert store.fetch("SELECT event FROM outbox") == [(f"job.{stop}",)]
    assert nudged(store, everything=True) == []


def test_expiry_ends_what_waits_and_asks_what_runs(store: Store, tenant: int) -> None:
    late = make.save_jobs(store, tenant, 2, window_s=-1)
    make.route(store, late[:1])
    in_time = make.save_jobs(store, tenant, 1)
    [running] = make.running(store, tenant, window_s=-1)
    batch = make.save_batch(store, tenant, 2)
    make.expand(store)
    make.past_window(store, batch)
    assert expire(store) == 4
    assert expire(store) == 0
    states = make.column(store, "state", [*late, *in_time, running.id, batch + 1, batch + 2])
    assert states == ["expired", "expired", "queued", "running", "expired", "expired"]
    assert jobs.stops_requested(store, [running.id]) == {running.id: "expired"}
    assert make.count(store, "result", "error_kind = 'expired'") == 4


def test_a_request_that_postgres_would_not_parse_does_not_stop_a_sweep(store: Store, tenant: int) -> None:
    odd = r'{"prompt": "a\u0000b", "callback_url": "https://hooks.example.com/done"}'
    make.save_jobs(store, tenant, text=odd, wants_callback=True, window_s=-1)
    assert expire(store) == 1
    assert make.count(store, "outbox") == 1


def test_a_nudge_is_not_sent_again_before_patience_is_over(store: Store, tenant: int) -> None:
    [single] = make.save_jobs(store, tenant)
    routed = make.save_jobs(store, tenant, 1)
    make.route(store, routed)
    batched = make.released_batch(store, tenant, 2)
    for _ in range(3):
        assert nudged(store) == []
        later(store, 2.5)
    assert nudged(store) == []
    later(store, 1.0)
    assert nudged(store) == [single, *routed, *batched]
    assert nudged(store) == []


def test_a_job_that_only_waits_is_nudged_ever_less_often(store: Store, tenant: int) -> None:
    [job_id] = make.save_jobs(store, tenant)
    seen = []
    for _ in range(4):
        later(store, 0.5 + (interval_s(store, job_id)))
        assert nudged(store) == [job_id]
        seen.append(interval_s(store, job_id))
    assert [round(b / a) for a, b in itertools.pairwise(seen)] == [2, 2, 2]
    assert seen[0] >= make.PATIENCE_S


def test_the_interval_counts_from_the_release_and_not_from_a_batchs_old_age(store: Store, tenant: int) -> None:
    """Ten hours in the backlog must not mean that a second lost nudge is sent again ten hours later."""
    batch_id = make.save_batch(store, tenant, 4)
    make.expand(store)
    later(store, 10 * 3600)
    make.release(store, batch_id, 2)
    make.route(store, [batch_id + 1])
    assert nudged(store) == []
    later(store, make.PATIENCE_S + 1)
    assert nudged(store) == [batch_id + 1, batch_id + 2]
    assert all(interval_s(store, batch_id + n) <= 2 * make.PATIENCE_S + 2 for n in (1, 2))


def test_backoff_is_not_cut_short_by_a_lost_broker(store: Store, tenant: int) -> None:
    [job_id] = make.save_jobs(store, tenant)
    store.fetch("UPDATE job SET not_before = now() + interval '1 minute' RETURNING id")
    assert nudged(store, everything=True) == []
    store.fetch("UPDATE job SET not_before = NULL RETURNING id")
    assert nudged(store, everything=True) == [job_id]


def test_a_lost_broker_brings_back_all_that_was_released_and_nothing_else(
    store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "_MOST_NUDGES", 2)
    batch_id = make.save_batch(store, tenant, 10)
    make.expand(store)
    make.release(store, batch_id, 6)
    make.route(store, [batch_id + 1, batch_id + 2])
    make.claim(store, [batch_id + 1], make.worker(store))
    [single] = make.save_jobs(store, tenant)
    found = {n.id: (n.state, n.tier, n.deployment) for n in nudges(store, everything=True)}
    assert found == {
        batch_id + 2: ("routed", "bulk", "one"),
        **{batch_id + n: ("queued", "bulk", None) for n in (3, 4, 5, 6)},
        single: ("queued", "batch", None),
    }


def test_nudges_keep_their_keys_and_the_order_in_which_they_were_given_out(store: Store, tenant: int) -> None:
    early, late, plain = make.save_jobs(store, tenant, 3)
    make.route(store, [late], key=7)
    make.route(store, [early], key=2**32 - 1)
    make.route(store, [plain])
    assert make.column(store, "prefix_key", [early, late, plain]) == [2**32 - 1, 7, None]
    found = [(n.id, n.prefix_key) for n in nudges(store, everything=True)]
    assert found == [(late, 7), (early, 2**32 - 1), (plain, 0)]


def test_rescue_waits_for_nobodys_rows(store: Store, tenant: int) -> None:
    """A lock in some other order would be a deadlock; what is held now is left for the next sweep."""
    held, _free = make.save_jobs(store, tenant, 2, window_s=-1)
    dead = make.worker(store, lease_s=-1)
    orphans = [c.id for c in make.running(store, tenant, 2, worker_id=dead)]
    batch_id = make.save_batch(store, tenant, 2)
    make.expand(store)
    make.release(store, batch_id, 2)
    with store.transaction() as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT 1 FROM job WHERE id = ANY(%s) FOR UPDATE", [[held, orphans[0], batch_id + 1]])
        other.execute("SELECT 1 FROM batch FOR UPDATE")
        assert pool.submit(sweep, store).result(5) == {"queued": 1}
        assert pool.submit(expire, store).result(5) == 1
        assert pool.submit(nudged, store, everything=True).result(5) == [orphans[1], batch_id + 2]
    assert sweep(store) == {"queued": 1}
    assert expire(store) == 1


def test_flushes_in_opposite_order_do_not_deadlock(store: Store, tenant: int, database_url: str) -> None:
    claimed = make.running(store, tenant, 60)
    ids = [c.id for c in claimed]

    def flush(order: int) -> int:
        with store.transaction() as connection:
            return len(finish(connection, [make.ending(c) for c in claimed[::order]]).ended)

    def cancel(_: int) -> int:
        return sum(jobs.cancel(store, ids[::-1], tenant_id=tenant))

    with ThreadPoolExecutor(4) as pool:
        flushes = [pool.submit(flush, order) for order in (1, -1) for _ in range(3)]
        cancels = [pool.submit(cancel, 0) for _ in range(3)]
        assert sum(f.result(20) for f in flushes) == 60
        assert all(c.result(20) in (0, 60) for c in cancels)
    with psycopg.connect(database_url) as connection:
        assert connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone() == (0,)
