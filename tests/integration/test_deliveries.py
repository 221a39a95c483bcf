"""Deliveries end to end: made once, kept apart, tried until they are taken, lost by nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from standardwebhooks import Webhook

from tests import factories as make
from tests.conftest import eventually
from tests.integration.conftest import OpenYard
from tests.integration.receivers import (
    SECRET,
    Receiver,
    delivering,
    endpoint,
    fan_out,
    happen,
    receiver,
    rows,
    take,
    until_settled,
)
from tieryard.settings import Settings
from tieryard.store import Store, deliveries, endpoints, finish, lanes, outbox
from tieryard.store.connection import Connection
from tieryard.store.deliveries import Due, Tried
from workers.yard import Yard

NEW_SECRET = "whsec_" + "bmV3c2Vj" * 4


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@pytest.fixture
def other() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@pytest.fixture
def hasty(open_yard: OpenYard, settings: Settings) -> Yard:
    """Tries again at once, and waits for nobody."""
    return open_yard(settings=settings.model_copy(update={"webhook_retry_first_s": 0.1, "webhook_timeout_s": 1.0}))


def record(store: Store, *tried: Tried) -> None:
    with store.transaction() as connection:
        deliveries.record(connection, tried)


def failed(due: Due, *, retry_in_s: float | None = 0.0, **fields: object) -> Tried:
    return Tried(due, datetime.now(tz=UTC), status=500, error="500", retry_in_s=retry_in_s, **fields)


def delivered(due: Due) -> Tried:
    return Tried(due, datetime.now(tz=UTC), latency_ms=3.0, status=204, answer="", steady=True)


def test_deliveries_are_made_once_for_whom_it_concerns(store: Store, tenant: int) -> None:
    all_, some = endpoint(store, tenant), endpoint(store, tenant, make.HOOK, "batch.completed", "job.failed")
    endpoint(store, tenant, make.HOOK, "batch.failed")
    endpoint(store, 999)
    gone, off = endpoint(store, tenant), endpoint(store, tenant)
    endpoints.remove(store, gone.id, tenant_id=tenant)
    with store.transaction() as connection:
        endpoints.disable(connection, off.id, "tested")
    store.fetch("UPDATE outbox SET fanned_at = now() RETURNING 1")  # the word of that
    [happened] = happen(store, tenant, url="https://own.example.com:444/x")
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: fan_out(store), range(4))) == 3
    found = rows(store, "outbox_id, tenant_id, endpoint_id, url", order="endpoint_id NULLS LAST")
    assert found == [
        (happened, tenant, all_.id, None),
        (happened, tenant, some.id, None),
        (happened, tenant, None, "https://own.example.com:444/x"),
    ]
    assert rows(store, "origin", "delivery_lane", "origin")[0] == ("https://own.example.com:444",)
    store.fetch("UPDATE outbox SET fanned_at = NULL RETURNING 1")  # as if its commit had been lost
    assert fan_out(store) == 1, "only the word that an endpoint was disabled"


def test_what_is_no_tenants_is_told_to_those_who_may_know(store: Store, tenant: int) -> None:
    fleet = endpoint(store, tenant, fleet=True)
    endpoint(store, tenant)
    happen(store, 12345, event="benchmark.regressed")
    fan_out(store)
    assert rows(store, "endpoint_id, tenant_id") == [(fleet.id, tenant)]


def test_a_test_goes_to_the_endpoint_that_is_tested(store: Store, tenant: int) -> None:
    tested = endpoint(store, tenant, make.HOOK, "job.failed")
    endpoint(store, tenant)
    store.fetch(
        "INSERT INTO outbox (tenant_id, event, subject_id) VALUES (%(t)s, 'webhook.test', %(e)s) RETURNING 1",
        {"t": tenant, "e": tested.id},
    )
    fan_out(store)
    assert rows(store, "endpoint_id") == [(tested.id,)]


def test_a_jobs_end_is_told_to_an_endpoint_that_listens_and_of_calls_to_nobody(store: Store, tenant: int) -> None:
    endpoint(store, tenant, make.HOOK, "job.completed")
    job, call = make.running(store, tenant, 2)
    store.fetch("UPDATE job SET attended = true WHERE id = %(id)s RETURNING 1", {"id": call.id})

    with store.transaction() as connection:
        assert finish.finish(connection, [make.ending(job), make.ending(call)]).callbacks == 1
    assert rows(store, "event, subject_id", "outbox") == [("job.completed", job.id)]


def test_what_a_worker_held_when_it_was_killed_is_due_again(store: Store, tenant: int) -> None:
    happen(store, tenant, 2, url=make.HOOK)
    fan_out(store)
    first = take(store, hold_s=0.2)
    assert [due.attempt for due in first] == [1, 1]
    assert take(store) == []
    eventually(lambda: [due.attempt for due in take(store)] == [2, 2], what="both to be due again")


def test_many_takers_take_each_once(store: Store, tenant: int) -> None:
    endpoint(store, tenant)
    happen(store, tenant, 60, url=make.HOOK)
    fan_out(store)

    def take_all(_: int) -> list[int]:
        taken: list[int] = []
        while found := take(store, 3):
            taken += [due.id for due in found]
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [i for part in pool.map(take_all, range(6)) for i in part]
    assert len(taken) == len(set(taken))
    taken += [due.id for due in take(store, 200)]
    assert sorted(taken) == [row[0] for row in rows(store, "id")]


def test_a_stale_failure_changes_nothing_and_a_late_success_settles(store: Store, tenant: int) -> None:
    happen(store, tenant, url=make.HOOK)
    fan_out(store)
    [stale], [mine] = take(store, hold_s=0), take(store)
    record(store, failed(stale, retry_in_s=None))
    assert rows(store, "settled_at, attempts, failures") == [(None, 2, 0)]
    record(store, delivered(stale))
    record(store, failed(mine))
    assert rows(store, "delivered_at IS NOT NULL, settled_at IS NOT NULL, last_status") == [(True, True, 204)]
    assert len(rows(store, "attempt", "delivery_attempt", "attempt")) == 2


def test_a_lane_counts_its_failures_in_a_row(store: Store, tenant: int) -> None:
    found = endpoint(store, tenant)
    happen(store, tenant, 4)
    fan_out(store)
    one, two, three, four = take(store)

    def lane() -> tuple[int, bool, bool]:
        return store.fetch("SELECT failures, steady, resting_until IS NOT NULL FROM delivery_lane")[0]

    record(store, delivered(one))
    assert lane() == (0, True, False)
    record(store, failed(two), failed(three, rest_s=9.0))
    assert lane() == (2, False, True)
    assert take(store) == [], "it rests"
    [since] = rows(store, "failing_since", "webhook_endpoint")[0]
    assert since is not None
    record(store, delivered(four))
    assert lane() == (0, True, True)
    assert rows(store, "failing_since", "webhook_endpoint") == [(None,)]
    assert found.failing_since is None


def test_a_rest_that_was_asked_for_outlasts_what_was_in_flight_beside_it(store: Store, tenant: int) -> None:
    """Of four at once a receiver that limits its callers takes some, and refuses the rest."""
    endpoint(store, tenant)
    happen(store, tenant, 5)
    fan_out(store)
    one, two, three, four, five = take(store)

    def rests() -> bool:
        return store.fetch("SELECT coalesce(resting_until > now() + interval '90 s', false) FROM delivery_lane")[0][0]

    record(store, failed(one, rest_s=100.0), delivered(two))
    assert rests()
    record(store, failed(three))
    assert rests()
    record(store, failed(four, rest_s=5.0))
    record(store, delivered(five))
    assert rests()


def test_a_delivery_is_signed_by_its_endpoint_and_thin(yard: Yard, tenant: int, hook: Receiver) -> None:
    store = yard.store
    endpoint(store, tenant, hook.url)
    [happened] = happen(store, tenant)
    with delivering(yard):
        until_settled(store)
    [got] = hook.got
    assert got.id == f"msg_{happened}"
    assert Webhook(SECRET).verify(got.body.decode(), got.headers) == got.message
    assert got.message["type"] == "batch.completed"
    assert got.message["data"] == {"id": "batch_1", "url": "/v1/batches/batch_1"}
    [(attempt, status, error, answer, address)] = rows(
        store, "attempt, status, error, answer, address", "delivery_attempt", "delivery_id"
    )
    assert (attempt, status, error, answer, address) == (1, 204, None, "", "127.0.0.1")


def test_both_secrets_sign_while_they_are_changed(yard: Yard, tenant: int, hook: Receiver) -> None:
    found = endpoint(yard.store, tenant, hook.url)
    endpoints.rotate(yard.store, found.id, NEW_SECRET, tenant_id=tenant)
    happen(yard.store, tenant)
    with delivering(yard):
        until_settled(yard.store)
        yard.store.fetch("UPDATE webhook_endpoint SET previous_secret_until = now() RETURNING 1")
        happen(yard.store, tenant)
        eventually(lambda: len(hook.got) == 2)
    during, after = hook.got
    for secret in (SECRET, NEW_SECRET):
        assert Webhook(secret).verify(during.body.decode(), during.headers)
    assert during.headers["webhook-signature"].startswith(after.headers["webhook-signature"][:3])
    assert Webhook(NEW_SECRET).verify(after.body.decode(), after.headers)
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(SECRET).verify(after.body.decode(), after.headers)


def test_a_result_is_told_where_it_was_asked_for_and_fits(yard: Yard, tenant: int, hook: Receiver) -> None:
    store = yard.store
    endpoint(store, tenant, hook.url, include_result=True)
    short, long_ = make.running(store, tenant, 2)

    with store.transaction() as connection:
        finish.finish(connection, [make.ending(short, output="Oslo"), make.ending(long_, output="ä" * 15_000)])
    with delivering(yard):
        until_settled(store)
    told = {got.message["data"]["id"]: got.message["data"] for got in hook.got}
    assert told[f"job_{short.id}"]["result"]["output"] == "Oslo"
    assert "result" not in told[f"job_{long_.id}"]
    assert told[f"job_{long_.id}"]["result_omitted"] == "too long; read it at url"
    assert all(len(got.body) < 20_000 for got in hook.got)


def test_one_that_fails_is_tried_until_it_is_taken_with_one_id(hasty: Yard, tenant: int, hook: Receiver) -> None:
    endpoint(hasty.store, tenant, hook.url)
    hook.answers = lambda _: (204 if len(hook.got) > 2 else 500, {}, b"x" * 3000)
    happen(hasty.store, tenant)
    with delivering(hasty):
        until_settled(hasty.store)
    assert len({got.id for got in hook.got}) == 1
    assert [row[0] for row in rows(hasty.store, "status", "delivery_attempt", "attempt")] == [500, 500, 204]
    assert rows(hasty.store, "length(answer)", "delivery_attempt", "attempt")[0] == (1024,)


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 500])
def test_no_2xx_is_no_delivery_and_a_redirect_is_not_followed(
    yard: Yard, tenant: int, hook: Receiver, other: Receiver, status: int
) -> None:
    hook.says(status, {"location": other.url, "set-cookie": "a=b"})
    happen(yard.store, tenant, url=hook.url)
    with delivering(yard):
        eventually(lambda: rows(yard.store, "last_status") == [(status,)], what="its failure to be written down")
    assert rows(yard.store, "settled_at, failures, next_at > now() + interval '3 s'") == [(None, 1, True)]
    assert other.got == []


@pytest.mark.parametrize("dated", [False, True])
@pytest.mark.parametrize("status", [429, 503])
def test_who_asks_for_time_is_given_it_with_all_that_waits_for_it(
    hasty: Yard, tenant: int, hook: Receiver, status: int, dated: bool
) -> None:
    at = format_datetime(datetime.now(tz=UTC) + timedelta(seconds=101), usegmt=True)
    hook.says(status, {"retry-after": at if dated else "100"})
    endpoint(hasty.store, tenant, hook.url)
    happen(hasty.store, tenant, 5)
    with delivering(hasty):
        eventually(lambda: make.count(hasty.store, "delivery_attempt") == 1)
        happen(hasty.store, tenant)
        eventually(lambda: make.count(hasty.store, "delivery") == 6)
    assert len(hook.got) == 1
    rest = hasty.store.fetch("SELECT extract(epoch FROM resting_until - now())::float8 FROM delivery_lane")[0][0]
    assert 90 < rest <= 101
    assert make.count(hasty.store, "delivery", "next_at > now() + interval '90 s'") == 1


def test_410_disables_an_endpoint_and_tells_the_others(
    hasty: Yard, tenant: int, hook: Receiver, other: Receiver
) -> None:
    store = hasty.store
    gone = endpoint(store, tenant, hook.url)
    endpoint(store, tenant, other.url, "webhook.disabled")
    hook.says(410)
    happen(store, tenant, 3)
    with delivering(hasty):
        until_settled(store)
    assert len(hook.got) == 1
    [(why, settled)] = store.fetch(
        "SELECT disabled_why, (SELECT count(*) FROM delivery WHERE endpoint_id = e.id AND settled_at IS NOT NULL) "
        "FROM webhook_endpoint e WHERE id = %(id)s",
        {"id": gone.id},
    )
    assert (why, settled) == ("it answered 410 (gone)", 3)
    assert [(got.message["type"], got.message["data"]["id"]) for got in other.got] == [
        ("webhook.disabled", f"webhook_{gone.id}")
    ]


def test_410_of_a_callback_address_ends_that_delivery(yard: Yard, tenant: int, hook: Receiver) -> None:
    hook.says(410)
    happen(yard.store, tenant, url=hook.url)
    with delivering(yard):
        until_settled(yard.store)
    assert rows(yard.store, "delivered_at, last_status") == [(None, 410)]


def test_an_endpoint_that_failed_for_five_days_is_disabled_by_its_next_failure(
    hasty: Yard, tenant: int, hook: Receiver, other: Receiver
) -> None:
    """Not by one at what has only just happened, where nothing else had for a month."""
    store = hasty.store
    dead, tired = endpoint(store, tenant, hook.url), endpoint(store, tenant, other.url)
    seldom = endpoint(store, tenant, other.url)
    hook.says(500)
    other.says(500)
    since = (
        "UPDATE webhook_endpoint SET failing_since = now() - %(days)s * interval '1 day' WHERE id = %(id)s RETURNING 1"
    )
    store.fetch(since, {"days": 5.01, "id": dead.id})
    store.fetch(since, {"days": 4.9, "id": tired.id})
    store.fetch(since, {"days": 30, "id": seldom.id})
    happen(store, tenant)
    fan_out(store)
    earlier = "UPDATE delivery SET first_due_at = now() - interval '13 hours' WHERE endpoint_id <> %(id)s RETURNING 1"
    store.fetch(earlier, {"id": seldom.id})
    with delivering(hasty):
        eventually(lambda: make.count(store, "webhook_endpoint", "disabled_at IS NOT NULL") == 1)
        eventually(lambda: make.count(store, "delivery", "failures > 1") == 2)
    assert rows(store, "disabled_why", "webhook_endpoint") == [("it failed for 5 days",), (None,), (None,)]


def test_after_three_days_it_is_given_up(hasty: Yard, tenant: int, hook: Receiver) -> None:
    hook.says(500)
    happen(hasty.store, tenant, url=hook.url)
    fan_out(hasty.store)
    hasty.store.fetch("UPDATE delivery SET first_due_at = now() - interval '73 hours' RETURNING 1")
    with delivering(hasty):
        until_settled(hasty.store)
    assert rows(hasty.store, "delivered_at, last_error") == [(None, "the receiver answered 500")]


def test_what_never_had_its_turn_is_given_up_too_where_its_receiver_fails(store: Store, tenant: int) -> None:
    """Or who is told more than one every 15 seconds, and is dead, would be owed more and more for ever."""
    happen(store, tenant, 3, url=make.HOOK)
    happen(store, tenant, url="https://well.example.com/")
    fan_out(store)
    failing = "UPDATE delivery_lane SET failures = 3 WHERE origin NOT LIKE '%well%' RETURNING 1"
    store.fetch(failing)
    store.fetch("UPDATE delivery SET first_due_at = now() - interval '73 hours' WHERE id <> 2 RETURNING 1")
    store.fetch("UPDATE delivery SET next_at = now() + interval '20 s' WHERE id = 3 RETURNING 1")  # in somebody's hands

    def give_up(after_h: float) -> bool:
        with store.transaction() as connection:
            return deliveries.give_up_late(connection, after_s=3600 * after_h, most=1)

    assert (give_up(74), give_up(72), give_up(72)) == (False, True, False)
    assert rows(store, "settled_at IS NULL, delivered_at IS NULL") == [(False, True)] + [(True, True)] * 3
    assert rows(store, "last_error")[0] == ("given up: its receiver has failed ever since",)


def test_a_million_events_at_once_do_not_keep_what_is_due_from_going(
    yard: Yard, tenant: int, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint(yard.store, tenant, hook.url)
    happen(yard.store, tenant, 12)
    parts: list[int] = []

    def part_by_part(connection: Connection, origin_of: Callable[[str], str]) -> tuple[int, bool]:
        parts.append(len(hook.got))
        return real(connection, origin_of, most=1)

    real = outbox.fan_out
    monkeypatch.setattr(outbox, "fan_out", part_by_part)
    with delivering(yard):
        eventually(lambda: len(hook.got) == 12)
    assert parts[11] > 0, "the first were delivered before the last were fanned out"


def test_what_is_owed_to_a_removed_endpoint_is_not_sent(yard: Yard, tenant: int, hook: Receiver) -> None:
    found = endpoint(yard.store, tenant, hook.url)
    happen(yard.store, tenant)
    fan_out(yard.store)
    yard.store.fetch(
        "UPDATE webhook_endpoint SET deleted_at = now(), secret = '' WHERE id = %(i)s RETURNING 1", {"i": found.id}
    )
    with delivering(yard):
        until_settled(yard.store)
    assert hook.got == []
    assert rows(yard.store, "last_error") == [("the endpoint was removed",)]


def test_black_holes_delay_nobody_else(hasty: Yard, tenant: int, hook: Receiver, other: Receiver) -> None:
    """Each of them waits for much, and answers nothing in time."""
    other.delay_s = 3.0
    for _ in range(20):
        endpoint(hasty.store, tenant, other.url, "batch.completed")
    happen(hasty.store, tenant, 20)
    with delivering(hasty):
        eventually(lambda: make.count(hasty.store, "delivery", "attempts > 0") >= 20)
        endpoint(hasty.store, tenant, hook.url, "batch.failed")
        happen(hasty.store, tenant, 40, event="batch.failed")
        eventually(lambda: len(hook.got) == 40, within_s=10)
        eventually(lambda: make.count(hasty.store, "delivery", "delivered_at IS NOT NULL") == 40)
    assert make.count(hasty.store, "delivery_attempt", "status IS NULL AND error LIKE '%took longer%'") >= 20
    late = "first_due_at + interval '2 s' < (SELECT min(at) FROM delivery_attempt WHERE delivery_id = id)"
    assert make.count(hasty.store, "delivery", f"delivered_at IS NOT NULL AND {late}") == 0


def test_what_is_owed_is_told_to_operators(yard: Yard, tenant: int, hook: Receiver) -> None:
    hook.says(500)
    happen(yard.store, tenant, url=hook.url)
    off = endpoint(yard.store, tenant)
    with yard.store.transaction() as connection:
        endpoints.disable(connection, off.id, "tested")
    with delivering(yard):
        eventually(lambda: yard.metrics.read(yard.catalog).owing is not None)
    with yard.store.transaction() as connection:
        found = lanes.owing(connection)
    assert (found.owed, found.failing_lanes, found.disabled_endpoints) == (1, 1, 1)
    assert 0 <= found.oldest_s < 60


def test_old_events_are_forgotten_with_all_that_came_of_them(store: Store, tenant: int) -> None:

    happen(store, tenant, 3, url=make.HOOK)
    fan_out(store)
    one, two, _ = take(store)
    record(store, delivered(one), delivered(two))
    store.fetch(
        "UPDATE outbox SET created_at = now() - interval '40 days' WHERE id <> %(i)s RETURNING 1", {"i": two.outbox_id}
    )
    with store.transaction() as connection:
        assert outbox.forget(connection, kept_days=30, most=2000) == 1
    assert make.count(store, "outbox") == make.count(store, "delivery") == 2
    assert make.count(store, "delivery_attempt") == 1


def test_as_many_as_come_are_forgotten(yard: Yard, tenant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.callback._FORGOTTEN_AT_ONCE", 2)
    happen(yard.store, tenant, 7)
    yard.store.fetch("UPDATE outbox SET created_at = now() - interval '40 days', fanned_at = now() RETURNING 1")
    with delivering(yard):
        eventually(lambda: make.count(yard.store, "outbox") == 0, what="all that is old to be let go")
