"""A job's end: written once, by the holder of its fence, or not at all."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests import factories as make
from tests.integration.receivers import fan_out, take
from tieryard.job import State
from tieryard.store import Store, jobs, reads
from tieryard.store.finish import Ending, Finished, HandBack, attempts_left, finish
from tieryard.store.jobs import Claimed

WRITTEN = ("result", "timing", "ledger", "outbox")


def write(store: Store, *endings: Ending) -> Finished:
    with store.transaction() as connection:
        return finish(connection, list(endings))


def rows(store: Store) -> list[int]:
    return [make.count(store, table) for table in WRITTEN]


def hooked(store: Store, tenant: int, n: int = 1, **fields: object) -> list[Claimed]:
    return make.running(store, tenant, n, text=make.body(callback_url=make.HOOK, **fields), wants_callback=True)


def test_a_finish_writes_one_row_of_each_kind(store: Store, tenant: int) -> None:
    [job] = hooked(store, tenant)
    assert write(store, make.ending(job)) == Finished({job.id}, set(), 1)
    assert rows(store) == [1, 1, 1, 1]
    story = reads.get_story(store, job.id, tenant_id=tenant)
    assert (story.row.job.state, story.row.result and story.row.result.output) == ("succeeded", "hi")
    assert story.row.job.finished_at is not None
    assert [m.cost_usd for m in story.money] == [Decimal("0.000003")]
    assert [(t.fence, t.outcome, t.ttft_ms) for t in story.starts] == [(1, "succeeded", 12.5)]


def test_a_redelivered_finish_changes_nothing(store: Store, tenant: int) -> None:
    [job] = hooked(store, tenant)
    write(store, make.ending(job))
    again = write(store, make.ending(job, output="other", cost_usd=Decimal(9)))
    assert again == Finished(set(), set(), 0)
    both = write(store, make.ending(job), make.hand_back(job))
    assert both == Finished(set(), set(), 0)
    assert rows(store) == [1, 1, 1, 1]
    assert store.fetch("SELECT output FROM result") == [("hi",)]


def test_a_finish_that_stands_twice_in_one_flush_is_written_once(store: Store, tenant: int) -> None:
    [job] = hooked(store, tenant)
    assert write(store, make.ending(job), make.ending(job)) == Finished({job.id}, set(), 1)
    assert rows(store) == [1, 1, 1, 1]


@pytest.mark.parametrize("stale", ["ending", "hand_back"])
def test_a_stale_fence_cannot_finish_bill_time_or_call_back(store: Store, tenant: int, stale: str) -> None:
    [first] = hooked(store, tenant)
    write(store, make.hand_back(first))
    make.route(store, [first.id])
    [second] = make.claim(store, [first.id], make.worker(store))
    assert second.fence == first.fence + 1
    before = rows(store)
    assert write(store, getattr(make, stale)(first)) == Finished(set(), set(), 0)
    assert rows(store) == before
    assert make.column(store, "state", [first.id]) == ["running"]
    assert write(store, make.ending(second)).ended == {first.id}
    assert rows(store) == [1, 2, 1, 1]


def test_an_ending_without_usage_is_not_billed(store: Store, tenant: int) -> None:
    [job] = make.running(store, tenant)
    write(store, make.ending(job, state=State.FAILED, cost_usd=None, error_kind="bad_request", error="no"))
    assert rows(store) == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("why", "attempts", "deaths"),
    [(HandBack.FAULT, 1, 0), (HandBack.OUTAGE, 0, 0), (HandBack.CRASH, 0, 1), (HandBack.DRAIN, 0, 0)],
)
def test_a_hand_back_counts_what_it_should(
    store: Store, tenant: int, why: HandBack, attempts: int, deaths: int
) -> None:
    [job] = make.running(store, tenant)
    assert write(store, make.hand_back(job, why)) == Finished(set(), {job.id}, 0)
    columns = "(state, attempts, worker_deaths, worker_id, deployment, not_before)"
    assert make.column(store, columns, [job.id]) == [("queued", str(attempts), str(deaths), None, None, None)]
    assert store.fetch("SELECT outcome, fence FROM timing") == [(str(why), 1)]
    assert rows(store) == [0, 1, 0, 0]


def test_a_hand_back_with_backoff_starts_no_earlier(store: Store, tenant: int) -> None:
    [job] = make.running(store, tenant)
    write(store, make.hand_back(job, HandBack.FAULT, retry_in_s=60.0))
    assert make.column(store, "not_before > now() + interval '50 s' AND nudge_at >= not_before", [job.id]) == [True]
    assert make.route(store, [job.id]) == set()


@pytest.mark.parametrize("why", list(HandBack))
def test_a_start_handed_back_after_a_stop_was_asked_ends_there(store: Store, tenant: int, why: HandBack) -> None:
    """Otherwise the cancelled job would be routed, claimed and run again."""
    [job] = hooked(store, tenant)
    assert jobs.cancel(store, [job.id], tenant_id=tenant) == (0, 1)
    assert write(store, make.hand_back(job, why)) == Finished({job.id}, set(), 1)
    assert make.column(store, "state", [job.id]) == ["cancelled"]
    assert rows(store) == [1, 1, 0, 1]
    assert store.fetch("SELECT error_kind FROM result") == [("cancelled",)]


@pytest.mark.parametrize(
    "odd",
    [
        r'{"prompt": "a\u0000b", "callback_url": "https://hooks.example.com/done"}',
        '{"prompt": "a", "callback_url": "https://hooks.example.com/done", "response_format": {"x": NaN}}',
        '{"prompt": "a", "callback_url": "https://hooks.example.com/done", "response_format": {"x": 1e999999}}',
    ],
)
def test_a_request_that_postgres_would_not_parse_still_calls_back(store: Store, tenant: int, odd: str) -> None:
    """`body::jsonb` refuses these; in a statement that ends jobs it would spoil every flush and every sweep."""
    [job] = make.running(store, tenant, text=odd, wants_callback=True)
    assert write(store, make.ending(job)) == Finished({job.id}, set(), 1)
    assert fan_out(store) == 1
    [owed] = take(store)
    assert (owed.url, owed.subject_id, owed.event) == (make.HOOK, job.id, "job.completed")


def test_one_flush_ends_many_and_hands_back_others(store: Store, tenant: int) -> None:
    claimed = make.running(store, tenant, 40)
    endings = [make.ending(c) if c.id % 2 else make.hand_back(c) for c in reversed(claimed)]
    done = write(store, *endings)
    assert done.ended | done.handed_back == {c.id for c in claimed}
    assert rows(store) == [20, 40, 20, 0]


def test_an_ending_is_final_or_hands_back_for_a_reason(store: Store, tenant: int) -> None:
    [job] = make.running(store, tenant)
    with pytest.raises(ValueError, match="for a reason"):
        make.ending(job, state=State.QUEUED)
    with pytest.raises(ValueError, match="for a reason"):
        make.ending(job, hand_back=HandBack.DRAIN)


def test_three_attempts_and_no_more() -> None:
    assert [attempts_left(n) for n in range(4)] == [True, True, False, False]
