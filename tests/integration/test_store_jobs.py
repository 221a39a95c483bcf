"""From acceptance to the claim: every move is guarded, so a nudge that comes twice, late or never does no harm."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests import factories as make
from tests.conftest import eventually
from tieryard.errors import LeaseLostError, NotFoundError, StoreError
from tieryard.ids import public
from tieryard.job import FINAL
from tieryard.store import Store, jobs, reads, workers
from tieryard.store.jobs import Routed
from tieryard.store.leader import lead


def test_a_saved_job_is_queued_with_its_request(store: Store, tenant: int) -> None:
    [job_id] = make.save_jobs(store, tenant, text=make.body("Hello"))
    row = reads.get_job(store, job_id, tenant_id=tenant)
    assert (row.job.state, row.job.fence, row.body) == ("queued", 0, make.body("Hello"))
    with pytest.raises(NotFoundError, match=public("job", job_id)):
        reads.get_job(store, job_id, tenant_id=tenant + 1)


def test_reserved_blocks_never_overlap(database_url: str) -> None:
    stores = [Store(database_url) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        firsts = list(pool.map(lambda i: stores[i % 2].reserve_ids(7 + i % 5), range(200)))
        singles = list(pool.map(lambda i: stores[i % 2].next_id(), range(400)))
    taken = [first + k for i, first in enumerate(firsts) for k in range(7 + i % 5)] + singles
    assert len(set(taken)) == len(taken)
    for store in stores:
        store.close()


def test_a_parcel_is_loaded_once_it_waits_and_not_before(store: Store, tenant: int) -> None:
    ids = make.save_jobs(store, tenant, 3)
    store.fetch(
        "UPDATE job SET not_before = now() + interval '1 minute' WHERE id = %(id)s RETURNING id", {"id": ids[0]}
    )
    make.route(store, [ids[1]])
    with store.transaction() as connection:
        assert [w.id for w in jobs.load_parcel(connection, [*ids, 10**15])] == [ids[2]]


def test_routing_twice_moves_once_and_keeps_the_decision(store: Store, tenant: int) -> None:
    [job_id] = make.save_jobs(store, tenant)
    with store.transaction() as connection:
        decision = Routed(job_id, 0, "one", "chat", "short and plain", make.features())
        at = jobs.save_snapshot(connection, b"{}")
        assert jobs.save_decisions(connection, [decision], snapshot_id=at, patience_s=8) == {job_id}
        assert jobs.save_decisions(connection, [decision], snapshot_id=at, patience_s=8) == set()
    story = reads.get_story(store, job_id, tenant_id=tenant)
    assert [(d.deployment, d.reason) for d, _ in story.decisions] == [("one", "short and plain")]


def test_a_job_that_nothing_can_take_is_failed_with_the_reason(store: Store, tenant: int) -> None:
    [job_id] = make.save_jobs(store, tenant, text=make.body(callback_url=make.HOOK), wants_callback=True)
    assert make.route(store, [job_id], deployment=None, reason="too \x00 long") == set()
    row = reads.get_job(store, job_id, tenant_id=tenant)
    assert row.job.state == "failed"
    assert row.result is not None
    assert (row.result.error_kind, row.result.error) == ("no_deployment", "too \ufffd long")
    assert store.fetch("SELECT event, subject_id FROM outbox") == [("job.failed", job_id)]


def test_a_job_that_cannot_be_read_is_failed_beside_its_neighbours(store: Store, tenant: int) -> None:
    bad, good = make.save_jobs(store, tenant, 2)
    with store.transaction() as connection:
        at = jobs.save_snapshot(connection, b"{}")
        decisions = [
            Routed(bad, 0, None, "chat", "cannot be read", None),
            Routed(good, 0, "one", "chat", "plain", make.features()),
        ]
        assert jobs.save_decisions(connection, decisions, snapshot_id=at, patience_s=8) == {good}
    assert make.column(store, "state", [bad, good]) == ["failed", "routed"]


def test_the_second_claim_gets_nothing(store: Store, tenant: int) -> None:
    ids = make.save_jobs(store, tenant, 3)
    make.route(store, ids)
    first, second = make.worker(store), make.worker(store)
    assert {(c.id, c.fence) for c in make.claim(store, ids, first)} == {(i, 1) for i in ids}
    assert make.claim(store, ids, second) == []
    assert make.column(store, "worker_id", ids) == [first] * 3


def test_a_claim_is_for_routed_jobs_of_its_deployment_that_may_start(store: Store, tenant: int) -> None:
    queued, elsewhere, later, ready = make.save_jobs(store, tenant, 4)
    make.route(store, [elsewhere], deployment="other")
    make.route(store, [later, ready])
    store.fetch("UPDATE job SET not_before = now() + interval '1 minute' WHERE id = %(id)s RETURNING id", {"id": later})
    claimed = make.claim(store, [queued, elsewhere, later, ready], make.worker(store))
    assert [c.id for c in claimed] == [ready]


def test_a_worker_that_was_declared_dead_cannot_claim(store: Store, tenant: int) -> None:
    ids = make.save_jobs(store, tenant, 2)
    make.route(store, ids)
    buried = make.worker(store)
    workers.retire(store, buried)
    assert make.claim(store, ids, buried) == []
    with pytest.raises(LeaseLostError, match=f"worker {buried}"):
        workers.beat(store, buried, lease_s=10)
    assert make.column(store, "state", ids) == ["routed", "routed"]


def test_two_threads_claim_each_id_exactly_once(store: Store, tenant: int) -> None:
    ids = make.released_batch(store, tenant, 400)
    make.route(store, ids)
    mine = {make.worker(store): [] for _ in range(2)}
    start = threading.Barrier(2)

    def claim_all(worker_id: int) -> None:
        start.wait()
        for i in range(0, 400, 20):  # the same parcels, overlapping by half
            mine[worker_id] += [c.id for c in make.claim(store, ids[i : i + 40], worker_id)]

    threads = [threading.Thread(target=claim_all, args=[w]) for w in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = mine.values()
    assert sorted(first + second) == ids
    assert set(make.column(store, "fence", ids)) == {1}


@pytest.mark.parametrize(
    ("reach", "counts", "after"),
    [("queued", (1, 0), "cancelled"), ("routed", (1, 0), "cancelled"), ("running", (0, 1), "running")],
)
def test_cancel_ends_what_waits_and_asks_what_runs(
    store: Store, tenant: int, reach: str, counts: tuple[int, int], after: str
) -> None:
    ids = make.save_jobs(store, tenant, 1, text=make.body(callback_url=make.HOOK), wants_callback=True)
    if reach != "queued":
        make.route(store, ids)
    if reach == "running":
        make.claim(store, ids, make.worker(store))
    assert jobs.cancel(store, ids, tenant_id=tenant + 1) == (0, 0)
    assert jobs.cancel(store, ids, tenant_id=tenant) == counts
    assert jobs.cancel(store, ids, tenant_id=tenant) == (0, 0)
    assert make.column(store, "state", ids) == [after]
    waiting = reach != "running"
    assert make.count(store, "result") == make.count(store, "outbox") == int(waiting)
    assert jobs.stops_requested(store, ids) == ({} if waiting else {ids[0]: "cancelled"})


def test_a_cancel_beside_a_claim_is_never_lost(store: Store, tenant: int) -> None:
    """The claim commits while the cancel waits for its row: the cancel must then ask the running job to stop."""
    ids = make.save_jobs(store, tenant)
    make.route(store, ids)
    worker = make.worker(store)
    with ThreadPoolExecutor(1) as pool:
        with store.transaction() as connection:
            assert jobs.claim(connection, ids, worker_id=worker, deployments=["one"])
            counts = pool.submit(jobs.cancel, store, ids, tenant_id=tenant)
            eventually(lambda: make.count(store, "pg_locks", "NOT granted") > 0, what="the cancel's wait")
        assert counts.result() == (0, 1)
    assert jobs.stops_requested(store, ids) == {ids[0]: "cancelled"}


def test_a_batchs_jobs_are_listed_in_order_a_page_at_a_time(store: Store, tenant: int) -> None:
    ids = make.released_batch(store, tenant, 5)
    wanted = reads.JobFilter(batch_id=ids[0] - 1)
    first = reads.list_jobs(store, tenant_id=tenant, wanted=wanted, after=None, limit=3)
    second = reads.list_jobs(store, tenant_id=tenant, wanted=wanted, after=first[-1].job.id, limit=3)
    assert [row.job.id for row in first + second] == ids
    newest = reads.list_jobs(store, tenant_id=tenant, wanted=reads.JobFilter(state="queued"), after=None, limit=2)
    assert [row.job.id for row in newest] == ids[:-3:-1]


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ("state = 'lost'", "job_state_known"),
        ("finished_at = now()", "job_final_is_finished"),
        *((f"state = '{state}'", "job_final_is_finished") for state in sorted(FINAL)),
        ("state = 'running', worker_id = NULL", "job_running_has_worker"),
    ],
)
def test_the_schema_refuses_a_state_that_cannot_be(store: Store, tenant: int, change: str, broken: str) -> None:
    make.save_jobs(store, tenant)
    with pytest.raises(psycopg.errors.CheckViolation, match=broken):
        store.fetch(f"UPDATE job SET {change} RETURNING id")


def test_the_ledger_refuses_a_negative_cost(store: Store) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="ledger_cost_not_negative"):
        store.fetch(
            "INSERT INTO ledger (job_id, fence, kind, tenant_id, prompt_tokens, completion_tokens, cost_usd, tier, "
            "deployment, catalog) VALUES (1, 1, 'inference', 1, 1, 1, -1, 'batch', 'one', 'x') RETURNING job_id"
        )


def test_a_parcel_costs_two_statements_to_classify_and_one_to_claim(
    store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = make.released_batch(store, tenant, 64)
    worker = make.worker(store)
    with store.transaction() as connection:
        at = jobs.save_snapshot(connection, b"{}")
    with store.transaction() as connection, make.statements(monkeypatch) as classifying:
        waiting = jobs.load_parcel(connection, ids)
        decisions = [Routed(w.id, w.fence, "one", "chat", "plain", make.features()) for w in waiting]
        assert len(jobs.save_decisions(connection, decisions, snapshot_id=at, patience_s=8)) == 64
    with store.transaction() as connection, make.statements(monkeypatch) as claiming:
        assert len(jobs.claim(connection, ids, worker_id=worker, deployments=["one"])) == 64
    assert [s.split()[0] for s in classifying] == ["SELECT", "WITH"]
    assert [s.split()[0] for s in claiming] == ["UPDATE"]


def test_classify_and_claim_are_hot_updates(store: Store, tenant: int) -> None:
    ids = make.released_batch(store, tenant, 1000)
    worker = make.worker(store)
    for i in range(0, 1000, 64):
        make.route(store, ids[i : i + 64], key=2**32 - 1)
        assert make.claim(store, ids[i : i + 64], worker)
    with store.transaction() as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
    # Each pooled session reports at its own commit: ask until all have.
    figures = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'job'"
    eventually(lambda: store.fetch(figures)[0][0] >= 2000, what="the statistics of 2,000 updates")
    [[updates, hot]] = store.fetch(figures)
    assert updates == 2000
    assert hot >= 0.95 * updates


def test_a_session_that_dies_is_a_store_error_and_hides_nothing(store: Store, database_url: str) -> None:
    def kill(connection: psycopg.Connection) -> None:
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])

    def use() -> None:
        with store.transaction() as connection:
            kill(connection)
            connection.execute("SELECT 1")

    def fail() -> None:
        with store.transaction() as connection:
            connection.execute("SELECT 1")
            kill(connection)
            raise KeyError("mine")

    with pytest.raises(StoreError, match="went away"):
        use()
    with pytest.raises(KeyError, match="mine"):
        fail()
    assert store.fetch("SELECT 1") == [(1,)]


def test_one_leads_at_a_time_and_plans_for_what_is_there(store: Store) -> None:
    with lead(store, "feeder") as first, lead(store, "feeder") as second, lead(store, "rescue") as other:
        assert first is not None
        assert other is not None
        assert second is None
        assert first.execute("SHOW plan_cache_mode").fetchone() == ("force_custom_plan",)
    with lead(store, "feeder") as later:
        assert later is not None
