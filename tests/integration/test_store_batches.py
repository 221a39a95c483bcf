"""Batches: expanded in restartable chunks, released by windows, finished when their last job is."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from tests import factories as make
from tieryard.errors import RequestError
from tieryard.requests import parse_job
from tieryard.store import Store, batches, expansion, reads, rescue
from tieryard.store.expansion import Verdict
from tieryard.store.finish import finish


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(expansion, "_CHUNK", 10)
    return 10


def progress(store: Store, batch_id: int) -> tuple[int, int, bool]:
    statement = "SELECT expanded_to, released_to, finished_at IS NOT NULL FROM batch WHERE id = %(id)s"
    return store.fetch(statement, {"id": batch_id})[0]


def complete(store: Store, *batch_ids: int) -> list[int]:
    with store.transaction() as connection:
        return [batch_id for batch_id, _ in batches.complete(connection, list(batch_ids))]


def look(store: Store, floors: dict[int, int] | None = None, **wishes: float) -> list[batches.OpenBatch]:
    with store.transaction() as connection:
        return batches.open_batches(connection, floors or {}, wishes)


def test_a_batch_and_its_jobs_are_one_block_of_ids(store: Store, tenant: int, chunk: int) -> None:
    batch_id = make.save_batch(store, tenant, 25)
    assert make.expand(store) == [10, 10, 5]
    rows = store.fetch("SELECT id, batch_id, line_no, state FROM job ORDER BY id")
    assert rows == [(batch_id + n, batch_id, n, "queued") for n in range(1, 26)]
    assert progress(store, batch_id) == (25, 0, False)


def test_a_crash_in_mid_chunk_leaves_nothing_half(store: Store, tenant: int, chunk: int) -> None:
    batch_id = make.save_batch(store, tenant, 25)
    judged = 0

    def crash(line: str, *_: object) -> Verdict:
        nonlocal judged
        judged += 1
        if judged == 17:
            raise KeyboardInterrupt
        return Verdict()

    assert expansion.expand_chunk(store, crash) == (batch_id, 10)
    with pytest.raises(KeyboardInterrupt):
        expansion.expand_chunk(store, crash)
    assert (progress(store, batch_id), make.count(store, "job")) == ((10, 0, False), 10)
    assert make.expand(store) == [10, 5]
    assert make.count(store, "job") == 25


def test_two_expanders_take_each_line_once(store: Store, tenant: int, chunk: int) -> None:
    ids = [make.save_batch(store, tenant, 45) for _ in range(3)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: make.expand(store), range(4)))
    make.expand(store)
    assert make.count(store, "job") == 135
    assert [progress(store, i)[0] for i in ids] == [45] * 3


def test_a_batch_can_be_released_while_its_next_lines_are_validated(store: Store, tenant: int, chunk: int) -> None:
    """The feeder serves every tenant: it must not wait for one batch's validation."""
    batch_id = make.save_batch(store, tenant, 20)
    expansion.expand_chunk(store, lambda *_: Verdict())
    validating, go_on = threading.Event(), threading.Event()

    def slow(line: str, *_: object) -> Verdict:
        validating.set()
        assert go_on.wait(20)
        return Verdict()

    with ThreadPoolExecutor(1) as pool:
        expanding = pool.submit(expansion.expand_chunk, store, slow)
        assert validating.wait(20)
        try:
            with store.transaction() as connection:
                connection.execute("SET LOCAL lock_timeout = '2s'")
                batches.release(connection, [(batch_id, 0, 10)])
        finally:
            go_on.set()
        assert expanding.result() == (batch_id, 10)
    assert progress(store, batch_id) == (20, 10, False)


def test_an_expander_passes_over_a_batch_in_work(store: Store, tenant: int) -> None:
    first, second = make.save_batch(store, tenant), make.save_batch(store, tenant)
    taken: list[object] = []

    def judge(line: str, *_: object) -> Verdict:
        if not taken:
            taken.append(None)
            with ThreadPoolExecutor(1) as pool:
                taken[0] = pool.submit(expansion.expand_chunk, store, lambda *_: Verdict()).result()
        return Verdict()

    assert expansion.expand_chunk(store, judge) == (first, 3)
    assert taken == [(second, 3)]


def test_a_bad_line_becomes_a_failed_job_with_its_error(store: Store, tenant: int) -> None:
    batch_id = make.save_batch(store, tenant, lines=[make.body("good"), "{bad", make.body("good")])
    make.expand(store, refuse="{bad")
    assert make.column(store, "state", [batch_id + n for n in (1, 2, 3)]) == ["queued", "failed", "queued"]
    row = reads.get_job(store, batch_id + 2, tenant_id=tenant)
    assert row.result is not None
    assert (row.result.error_kind, row.result.error) == ("invalid_request", "refused")


def test_an_error_that_quotes_a_nul_does_not_stop_the_expander(store: Store, tenant: int) -> None:
    r"""An unknown field's name is part of the error, and a caller may name it `a\u0000`."""

    def judge(line: str, *_: object) -> Verdict:
        try:
            parse_job(line)
        except RequestError as error:
            return Verdict(error=str(error))
        return Verdict()

    batch_id = make.save_batch(store, tenant, lines=[r'{"prompt": "x", "a\u0000": 1}', make.body()])
    assert expansion.expand_chunk(store, judge) == (batch_id, 2)
    assert make.column(store, "state", [batch_id + 1, batch_id + 2]) == ["failed", "queued"]
    assert "a\ufffd" in store.fetch("SELECT error FROM result")[0][0]


def test_release_moves_only_from_where_it_looked(store: Store, tenant: int) -> None:
    batch_id = make.save_batch(store, tenant, 10)
    make.expand(store)
    with store.transaction() as connection:
        batches.release(connection, [(batch_id, 0, 4)])
        batches.release(connection, [(batch_id, 0, 9)])
    assert progress(store, batch_id)[1] == 4


def test_open_batches_count_what_is_released_and_not_final(store: Store, tenant: int) -> None:
    late = make.save_batch(store, tenant, 3, window_s=7200)
    early = make.save_batch(store, tenant, 10)
    make.expand(store)
    make.release(store, early, 6)
    make.route(store, [early + 1, early + 2], deployment=None)
    found = look(store)
    assert [b.id for b in found] == [early, late]
    assert (found[0].outstanding, found[0].lowest, found[0].releasable) == (4, early + 3, 4)
    assert (found[1].outstanding, found[1].lowest, found[1].releasable) == (0, None, 3)
    assert look(store, {early: early + 3})[0].outstanding == 4


def test_what_its_tier_wants_sooner_than_its_window_ends_is_due_sooner(store: Store, tenant: int) -> None:
    """The order in which batches are released, and the rate that the router is told, go by it."""
    first = make.save_batch(store, tenant, 1, window_s=7200)
    second = make.save_batch(store, tenant, 1, window_s=3600)
    make.expand(store)
    [tier] = {batch.tier for batch in look(store)}
    assert [b.id for b in look(store)] == [second, first]
    wished = look(store, **{tier: 600.0})
    assert [b.id for b in wished] == [first, second], "accepted first"
    assert all((b.deadline - datetime.now(tz=UTC)).total_seconds() <= 600 for b in wished)
    assert not any(b.stopping for b in look(store, **{tier: 0.0})), "it is late, and its window is not over"
    assert [b.id for b in look(store, other=1.0)] == [second, first]


def test_a_batch_is_complete_when_released_and_all_final_and_only_once(store: Store, tenant: int) -> None:
    batch_id = make.save_batch(store, tenant, 3, callback_url=make.HOOK)
    ids = [batch_id + n for n in (1, 2, 3)]
    assert complete(store, batch_id) == []
    make.expand(store)
    make.release(store, batch_id, 3)
    make.route(store, ids)
    claimed = make.claim(store, ids, make.worker(store))
    with store.transaction() as connection:
        finish(connection, [make.ending(c) for c in claimed[:2]])
    assert complete(store, batch_id) == []
    with store.transaction() as connection:
        finish(connection, [make.ending(claimed[2])])
    assert look(store)[0].done
    assert complete(store, batch_id) == [batch_id]
    assert complete(store, batch_id) == []
    assert store.fetch("SELECT event, subject_id, url FROM outbox") == [("batch.completed", batch_id, make.HOOK)]
    row = reads.get_batch(store, batch_id, tenant_id=tenant)
    assert (row.states["succeeded"], row.cost_usd) == (3, sum(m.cost_usd for m in _ledger(store, ids, tenant)))


def _ledger(store: Store, ids: list[int], tenant: int) -> list[reads.Ledger]:
    return [m for i in ids for m in reads.get_story(store, i, tenant_id=tenant).money]


def test_a_batch_of_bad_lines_only_comes_to_its_end(store: Store, tenant: int) -> None:
    batch_id = make.save_batch(store, tenant, lines=["{bad"] * 3)
    make.expand(store, refuse="{bad")
    [seen] = look(store)
    assert (seen.releasable, seen.outstanding, seen.done) == (3, 0, False)
    make.release(store, batch_id, 3)
    assert look(store)[0].done
    assert complete(store, batch_id) == [batch_id]


def test_an_expired_batch_comes_to_its_end(store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the part of it that was never released; and not before that part is final."""
    batch_id = make.save_batch(store, tenant, 20)
    make.expand(store)
    make.release(store, batch_id, 5)
    make.past_window(store, batch_id)
    monkeypatch.setattr(rescue, "_MOST_STOPS", 8)
    released = []
    for _ in range(3):
        with store.transaction() as connection:
            rescue.stop(connection)
        released.append(progress(store, batch_id)[1])
    assert released == [5, 5, 20]
    assert set(make.column(store, "state", list(range(batch_id + 1, batch_id + 21)))) == {"expired"}
    assert complete(store, batch_id) == [batch_id]


def test_a_save_that_fails_leaves_no_batch(store: Store, tenant: int) -> None:
    with pytest.raises(Exception, match="NUL"):
        make.save_batch(store, tenant, lines=[make.body(), "a\x00b"])
    assert make.count(store, "batch") == make.count(store, "line") == 0
    assert make.expand(store) == []
