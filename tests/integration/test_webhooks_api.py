"""Webhook endpoints and their deliveries through the API: what is taken, refused, shown, and due again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from tests import factories as make
from tests.integration.webhook_log import Owe, owe_deliveries
from tieryard.events import LISTED
from tieryard.settings import Settings
from tieryard.store import Store, delivery_log, endpoints, keys
from tieryard.store.keys import Scope
from tieryard.webhooks.signing import read_secret

AUTH = {"authorization": "Bearer ty_test"}
HOOK = "https://hooks.example.com/tieryard"


@pytest.fixture
def client(settings: Settings, tenant: int) -> Iterator[TestClient]:
    """A fleet as it is in production: it delivers to public addresses only."""
    strict = settings.model_copy(update={"webhook_allow_private": False})
    with TestClient(create_app(strict), raise_server_exceptions=False, headers=AUTH) as client:
        yield client


@pytest.fixture
def owe(store: Store) -> Owe:
    return owe_deliveries(store)


def add(client: TestClient, url: str = HOOK, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/webhooks", json={"url": url, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def key(store: Store, name: str, *scopes: Scope, tenant: str = "tests") -> dict[str, str]:
    keys.add_key(store, name, tenant=tenant, name=name, scopes=scopes or None)
    return {"authorization": f"Bearer {name}"}


def number(public_id: str) -> int:
    return int(public_id.partition("_")[2])


# Registering


def test_an_endpoint_is_made_and_its_secret_is_shown_just_then(client: TestClient) -> None:
    made = add(client, events=["job.failed", "job.completed", "job.failed"], description="  ours ", include_result=True)
    secret = made.pop("secret")
    assert len(read_secret(secret) or b"") == 32
    assert made == {
        "id": made["id"], "object": "webhook", "url": HOOK, "events": ["job.completed", "job.failed"],
        "description": "ours", "include_result": True, "fleet": False, "state": "enabled",
        "created_at": made["created_at"], "failing_since": None, "disabled_at": None, "disabled_why": None,
        "previous_secret_until": None,
    }  # fmt: skip
    assert client.get(f"/v1/webhooks/{made['id']}").json() == made
    assert client.get("/v1/webhooks").json() == {"object": "list", "data": [made]}
    assert add(client)["secret"] != secret


def test_without_events_it_hears_of_all(client: TestClient) -> None:
    assert add(client)["events"] == []


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"url": "no url"}, "url", "no scheme"),
        ({"url": ""}, "url", "must not be empty"),
        ({"url": "ftp://example.com"}, "url", "use https, or http"),
        ({"url": "https://user:pass@example.com/"}, "url", "user name or password"),
        ({"url": "https://example.com/#there"}, "url", "fragment"),
        ({"url": "https://example.com:99999/"}, "url", ""),
        ({"url": f"https://example.com/{'x' * 2048}"}, "url", "2048"),
        ({"url": 5}, "url", "expected text"),
        ({"url": "https://example.com/\0"}, "url", "NUL"),
        ({"events": ["job.done"]}, "events", "'job.done' is no event; expected any of job.completed"),
        ({"events": ["webhook.test"]}, "events", "no event"),
        ({"events": "job.failed"}, "events", "expected a list"),
        ({"events": [1]}, "events.0", "expected text"),
        ({"description": "x" * 513}, "description", "512"),
        ({"description": "a\0b"}, "description", "NUL"),
        ({"include_result": "perhaps"}, "include_result", "true or false"),
        ({"secret": "whsec_mine"}, "secret", "no such field"),
    ],
)
def test_what_is_refused_by_its_field(client: TestClient, fields: dict[str, Any], param: str, says: str) -> None:
    error = error_of(client.post("/v1/webhooks", json={"url": HOOK, **fields}), 400)
    assert error["param"] == param
    assert says in error["message"]
    made = add(client)
    if "secret" not in fields:  # a change is refused by the same rules
        assert error_of(client.patch(f"/v1/webhooks/{made['id']}", json=fields), 400) == error


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://127.1/", "http://0x7f000001/", "http://2130706433/", "http://017700000001/",
        "http://localhost:8000/", "http://a.localhost/", "http://10.0.0.1/", "https://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data", "http://100.64.0.1/", "http://0.0.0.0/", "http://[::1]/",
        "http://[::ffff:10.0.0.1]/", "http://[64:ff9b::a00:1]/", "http://[fe80::1%25eth0]/", "http://[fd00::1]/",
        "http://[2002:a00:1::]/", "https://example.com:6379/",
    ],
)  # fmt: skip
def test_an_address_that_nothing_may_be_delivered_to_is_refused_at_once(client: TestClient, url: str) -> None:
    """With what is wrong, why, and what to do."""
    error = error_of(client.post("/v1/webhooks", json={"url": url}), 400)
    assert error["param"] == "url"
    assert (
        "TIERYARD_WEBHOOK_ALLOW_PRIVATE" in error["message"]
        or "zone" in error["message"]
        or ("unusual spelling" in error["message"])
    )
    assert client.get("/v1/webhooks").json()["data"] == []
    made = add(client)
    assert error_of(client.patch(f"/v1/webhooks/{made['id']}", json={"url": url}), 400)["param"] == "url"


def test_where_the_fleet_is_set_to_it_local_addresses_are_taken(settings: Settings, tenant: int) -> None:
    assert settings.webhook_allow_private
    with TestClient(create_app(settings), headers=AUTH) as client:
        assert add(client, "http://127.0.0.1:8080/hook")["url"] == "http://127.0.0.1:8080/hook"
        assert client.post("/v1/webhooks", json={"url": "http://a:b@127.0.0.1/"}).status_code == 400


def test_a_tenant_has_so_many_and_no_more(client: TestClient, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setattr(endpoints, "MOST", 3)
    made = [add(client)["id"] for _ in range(3)]
    assert "remove one" in error_of(client.post("/v1/webhooks", json={"url": HOOK}), 409)["message"]
    assert client.post("/v1/webhooks", json={"url": HOOK}, headers=key(store, "ty_b", tenant="b")).status_code == 201
    assert client.delete(f"/v1/webhooks/{made[0]}").status_code == 204
    add(client)


def test_so_many_and_no_more_when_they_are_made_at_once(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr(endpoints, "MOST", 3)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: client.post("/v1/webhooks", json={"url": HOOK}).status_code, range(12)))
    assert sorted(found) == [201] * 3 + [409] * 9
    assert make.count(store, "webhook_endpoint") == 3


def test_a_repeated_request_makes_one(client: TestClient) -> None:
    once = {"headers": {"idempotency-key": "once"}, "json": {"url": HOOK}}
    first, again = (client.post("/v1/webhooks", **once).json() for _ in range(2))
    assert first == again
    assert len(client.get("/v1/webhooks").json()["data"]) == 1
    error_of(client.post("/v1/webhooks", headers=once["headers"], json={"url": f"{HOOK}/2"}), 409)


def test_a_repeated_request_tells_a_lesser_key_no_secret(client: TestClient, store: Store) -> None:
    once = {"idempotency-key": "once"}
    made = client.post("/v1/webhooks", json={"url": HOOK}, headers=key(store, "ty_measures", *Scope) | once)
    assert (made.status_code, made.json()["fleet"], made.headers["cache-control"]) == (201, True, "no-store")
    error_of(client.post("/v1/webhooks", json={"url": HOOK}, headers=once), 403)


def test_what_is_no_tenants_is_told_to_keys_that_may_measure(client: TestClient, store: Store) -> None:
    measuring = key(store, "ty_measures", *Scope)
    for events, fleet in (([], True), (["benchmark.regressed"], True), (["job.failed"], False)):
        made = client.post("/v1/webhooks", json={"url": HOOK, "events": events}, headers=measuring).json()
        assert made["fleet"] is fleet, events
    wide = client.get("/v1/webhooks").json()["data"][0]["id"]
    mine = add(client, events=["job.failed"])["id"]
    refused = [
        client.post("/v1/webhooks", json={"url": HOOK, "events": ["benchmark.completed"]}),
        client.patch(f"/v1/webhooks/{mine}", json={"events": ["canary.ended"]}),
        client.patch(f"/v1/webhooks/{wide}", json={"url": "https://elsewhere.example.com/"}),
        client.post(f"/v1/webhooks/{wide}/rotate"),
    ]
    assert {error_of(answer, 403)["code"] for answer in refused} == {"insufficient_scope"}
    changed = client.patch(f"/v1/webhooks/{wide}", json={"events": ["job.failed"]}, headers=measuring)
    assert changed.json()["fleet"] is False
    assert client.post(f"/v1/webhooks/{wide}/rotate").status_code == 200


def test_who_may_only_read_changes_nothing(client: TestClient, store: Store) -> None:
    made = add(client)["id"]
    reader, writer = key(store, "ty_reads", Scope.READ), key(store, "ty_hooks", Scope.WEBHOOKS)
    writes = [
        ("POST", "/v1/webhooks"), ("PATCH", f"/v1/webhooks/{made}"), ("POST", f"/v1/webhooks/{made}/rotate"),
        ("POST", f"/v1/webhooks/{made}/test"), ("POST", f"/v1/webhooks/{made}/disable"),
        ("POST", f"/v1/webhooks/{made}/enable"), ("POST", "/v1/redeliveries"), ("DELETE", f"/v1/webhooks/{made}"),
    ]  # fmt: skip
    bodies = {"/v1/webhooks": {"url": HOOK}, "/v1/redeliveries": {"since": "1h"}, f"/v1/webhooks/{made}": {}}
    for method, path in writes:
        body = {"json": bodies[path]} if method != "DELETE" and path in bodies else {}
        assert error_of(client.request(method, path, headers=reader, **body), 403)["code"] == "insufficient_scope"
        assert client.request(method, path, headers=writer, **body).is_success, path
    for path in ("/v1/webhooks", "/v1/deliveries"):
        assert client.get(path, headers=reader).status_code == 200
        assert client.get(path, headers=writer).status_code == 403


# Changing


def test_what_is_given_is_changed_and_the_rest_stays(client: TestClient) -> None:
    made = add(client, events=["job.failed"], description="ours")
    del made["secret"]
    path = f"/v1/webhooks/{made['id']}"
    for change in (
        {"url": f"{HOOK}/2"}, {"events": []}, {"include_result": True}, {"description": None},
        {"events": ["job.expired"]},
    ):  # fmt: skip
        made |= change
        assert client.patch(path, json=change).json() == made == client.get(path).json()
    for nothing in ({}, {"url": None}, {"events": None}, {"include_result": None}):
        assert client.patch(path, json=nothing).json() == made


def test_a_rotated_secret_has_one_before_it_for_a_day(client: TestClient, store: Store) -> None:
    made = add(client)
    path = f"/v1/webhooks/{made['id']}/rotate"
    first = client.post(path).json()
    left = datetime.fromisoformat(first["previous_secret_until"]) - datetime.now(tz=UTC)
    assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)
    second = client.post(path).json()
    secrets = {made["secret"], first["secret"], second["secret"]}
    assert len(secrets) == 3
    kept = endpoints.find(store, number(made["id"]), tenant_id=keys.holder_of(store, "ty_test").tenant_id)
    assert (kept.secret, kept.previous_secret) == (second["secret"], first["secret"])
    assert not any(secret in repr(kept) for secret in secrets), "a secret must not reach a log"
    assert "secret" not in client.get(f"/v1/webhooks/{made['id']}").json()


def test_a_rotation_that_is_asked_for_again_ends_no_secret(client: TestClient, store: Store, tenant: int) -> None:
    """An answer that was lost on its way must not cost the secret that the receiver has."""
    made = add(client)
    path, once = f"/v1/webhooks/{made['id']}/rotate", {"idempotency-key": "once"}
    with ThreadPoolExecutor(4) as pool:
        found = [answer.json() for answer in pool.map(lambda _: client.post(path, headers=once), range(4))]
    assert [one["secret"] for one in found] == [found[0]["secret"]] * 4
    assert found[0]["secret"] != made["secret"]
    assert endpoints.find(store, number(made["id"]), tenant_id=tenant).previous_secret == made["secret"]
    other = client.post(f"/v1/webhooks/{add(client)['id']}/rotate", headers=once)
    assert error_of(other, 409)["param"] == "Idempotency-Key"


def test_a_disabled_one_gives_up_what_it_is_owed_and_tells_the_others(
    client: TestClient, store: Store, owe: Owe
) -> None:
    made = add(client)["id"]
    [waiting] = owe(made)
    off = client.post(f"/v1/webhooks/{made}/disable").json()
    assert (off["state"], off["disabled_why"]) == ("disabled", "by a key of its tenant")
    assert client.get(f"/v1/deliveries/{waiting}").json()["state"] == "failed"
    assert store.fetch("SELECT event, subject_id FROM outbox WHERE event = 'webhook.disabled'") == [
        ("webhook.disabled", number(made))
    ]
    assert client.post(f"/v1/webhooks/{made}/disable").json() == off  # and tells nobody twice
    assert make.count(store, "outbox", "event = 'webhook.disabled'") == 1
    for path, body in ((f"/v1/webhooks/{made}/test", {}), ("/v1/redeliveries", {"delivery": waiting})):
        assert "enable it first" in error_of(client.post(path, json=body), 409)["message"]
    error_of(client.post("/v1/redeliveries", json={"since": "1h", "webhook": made}), 409)
    store.fetch("UPDATE delivery_lane SET failures = 7, resting_until = now() + interval '1 day' RETURNING id")
    on = client.post(f"/v1/webhooks/{made}/enable").json()
    assert (on["state"], on["disabled_at"], on["failing_since"]) == ("enabled", None, None)
    assert store.fetch("SELECT failures, resting_until FROM delivery_lane") == [(0, None)]
    assert client.post("/v1/redeliveries", json={"delivery": waiting}).status_code == 200


def test_a_new_address_is_tried_at_once(client: TestClient, store: Store, owe: Owe) -> None:
    made = add(client)["id"]
    far, in_hand = owe(made, n=2)
    store.fetch("UPDATE webhook_endpoint SET failing_since = now() RETURNING id")
    postpone = (
        "UPDATE delivery SET failures = 5, next_at = now() + %(s)s * interval '1 s' WHERE id = %(id)s RETURNING id"
    )
    store.fetch(postpone, {"id": number(far), "s": 9000})
    store.fetch(postpone, {"id": number(in_hand), "s": 30})
    assert client.get(f"/v1/webhooks/{made}").json()["state"] == "failing"
    assert client.patch(f"/v1/webhooks/{made}", json={"url": HOOK}).json()["state"] == "failing"
    assert client.patch(f"/v1/webhooks/{made}", json={"url": f"{HOOK}/2"}).json()["state"] == "enabled"
    due = store.fetch("SELECT next_at <= now(), failures FROM delivery ORDER BY id")
    assert due == [(True, 0), (False, 5)], "one that a worker may be sending right now is left to it"


def test_a_removed_one_is_gone_and_its_log_stays(client: TestClient, store: Store, owe: Owe) -> None:
    made = add(client)["id"]
    [waiting] = owe(made)
    assert client.delete(f"/v1/webhooks/{made}").status_code == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate"), ("POST", "/enable"), ("POST", "/disable"),
                         ("POST", "/test")):  # fmt: skip
        error = error_of(client.request(method, f"/v1/webhooks/{made}{path}"), 404)
        assert error["message"] == f"no webhook '{made}'"
    assert client.get("/v1/webhooks").json()["data"] == []
    shown = client.get(f"/v1/deliveries/{waiting}").json()
    assert (shown["state"], shown["webhook"], shown["url"]) == ("failed", made, HOOK)
    assert store.fetch("SELECT secret, previous_secret FROM webhook_endpoint") == [("", None)]
    assert "removed" in error_of(client.post("/v1/redeliveries", json={"delivery": waiting}), 409)["message"]
    error_of(client.post("/v1/redeliveries", json={"since": "1h", "webhook": made}), 404)
    assert client.post("/v1/redeliveries", json={"since": "1h"}).json()["redelivered"] == 0


def test_a_test_is_owed_whatever_it_listens_to(client: TestClient, store: Store) -> None:
    made = add(client, events=["job.failed"])["id"]
    sent = client.post(f"/v1/webhooks/{made}/test").json()
    assert (sent["event"], sent["subject"], sent["webhook"], sent["state"]) == ("webhook.test", made, made, "pending")
    assert sent["attempts"] == 0
    assert sent["history"] == []
    again = client.post(f"/v1/webhooks/{made}/test").json()
    assert again["message"] != sent["message"]
    assert make.count(store, "delivery_lane") == 1
    assert make.count(store, "outbox", "fanned_at IS NULL") == 0, "nobody else is told"


# The log


def test_a_delivery_is_shown_with_its_attempts(client: TestClient, owe: Owe, store: Store) -> None:
    made = add(client)["id"]
    [one] = owe(made, attempts=[(500, "the receiver answered 500", "oh no"), (204, None, "")], outcome="delivered")
    shown = client.get(f"/v1/deliveries/{one}").json()
    assert (shown["state"], shown["attempts"], shown["last_status"]) == ("delivered", 2, 204)
    assert [(a["attempt"], a["status"], a["error"], a["answer"]) for a in shown["history"]] == [
        (1, 500, "the receiver answered 500", "oh no"), (2, 204, None, ""),
    ]  # fmt: skip
    assert shown["message"].startswith("msg_")
    assert shown["next_at"] is None
    listed = client.get("/v1/deliveries").json()["data"]
    assert listed == [{k: v for k, v in shown.items() if k not in ("data", "history")}]


def test_the_log_is_chosen_from_and_paged(client: TestClient, owe: Owe, store: Store) -> None:
    one, two = add(client)["id"], add(client)["id"]
    failed = owe(one, n=3, event="job.failed", outcome="failed", days_ago=3)
    delivered = owe(one, n=2, outcome="delivered", days_ago=1)
    pending = owe(two, n=2, event="batch.completed")
    callback = owe(None, n=1, outcome="failed", url="https://hooks.example.com/own")
    every = [*callback, *reversed(pending), *reversed(delivered), *reversed(failed)]

    def ids(**asked: Any) -> list[str]:
        return [found["id"] for found in client.get("/v1/deliveries", params=asked).json()["data"]]

    assert ids() == every
    assert ids(webhook=two) == pending[::-1]
    assert ids(event="job.failed") == failed[::-1]
    assert ids(state="failed") == [*callback, *failed[::-1]]
    assert ids(state="delivered", webhook=one) == delivered[::-1]
    assert ids(state="pending") == pending[::-1]
    yesterday = (datetime.now(tz=UTC) - timedelta(hours=36)).isoformat()
    assert ids(until=yesterday) == failed[::-1]
    assert ids(since="36h") == [*callback, *pending[::-1], *delivered[::-1]]
    assert ids(since=yesterday, until="12h") == delivered[::-1]
    pages, after = [], None
    while True:
        page = client.get("/v1/deliveries", params={"limit": 3, **({"after": after} if after else {})}).json()
        pages.append([found["id"] for found in page["data"]])
        if (after := page["next"]) is None:
            break
    assert [one for page in pages for one in page] == every
    assert [len(page) for page in pages] == [3, 3, 2]


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ({"webhook": "webhook_99"}, 404, "webhook"),
        ({"webhook": "\0"}, 404, "webhook"),
        ({"event": "job.done"}, 400, "event"),
        ({"state": "lost"}, 400, "state"),
        ({"since": "yesterday"}, 400, "since"),
        ({"until": "\0"}, 400, "until"),
        ({"after": "7"}, 400, "after"),
        ({"limit": 0}, 400, "limit"),
    ],
)
def test_a_question_that_is_no_question(client: TestClient, asked: dict[str, Any], status: int, param: str) -> None:
    assert error_of(client.get("/v1/deliveries", params=asked), status)["param"] == param


# Delivering again


def due(store: Store, *ids: str) -> list[tuple[bool, bool, int, int]]:
    """(due now, settled, failures, attempts) of each."""
    return store.fetch(
        "SELECT next_at <= now() AND first_due_at > now() - interval '1 minute', settled_at IS NOT NULL, failures, "
        "attempts FROM delivery WHERE id = ANY(%(ids)s) ORDER BY id",
        {"ids": [number(one) for one in ids]},
    )


@pytest.mark.parametrize("outcome", ["failed", "delivered"])
def test_one_is_due_again_with_its_history(client: TestClient, store: Store, owe: Owe, outcome: str) -> None:
    made = add(client)["id"]
    attempts = [(500, "the receiver answered 500", None)] * 3
    [one] = owe(made, outcome=outcome, attempts=attempts, days_ago=9)
    before = client.get(f"/v1/deliveries/{one}").json()
    assert client.post("/v1/redeliveries", json={"delivery": one}).json() == {
        "object": "redelivery", "redelivered": 1, "has_more": False, "next": None,
    }  # fmt: skip
    assert due(store, one) == [(True, False, 0, 3)]
    after = client.get(f"/v1/deliveries/{one}").json()
    assert (after["state"], after["message"], after["history"]) == ("pending", before["message"], before["history"])


def test_one_that_is_being_delivered_is_left_alone(client: TestClient, store: Store, owe: Owe) -> None:
    [one] = owe(add(client)["id"])
    assert "being delivered" in error_of(client.post("/v1/redeliveries", json={"delivery": one}), 409)["message"]
    store.fetch("UPDATE delivery SET next_at = now() + interval '6 hours', failures = 4 RETURNING id")
    assert client.post("/v1/redeliveries", json={"delivery": one}).status_code == 200  # it only waited for its turn
    assert due(store, one) == [(True, False, 0, 0)]


def test_those_of_a_time_are_due_again(client: TestClient, store: Store, owe: Owe, tenant: int) -> None:
    one, two = add(client)["id"], add(client)["id"]
    old = owe(one, n=2, outcome="failed", days_ago=5)
    failed, delivered = owe(one, n=2, outcome="failed"), owe(one, outcome="delivered")
    other, own = owe(two, outcome="failed"), owe(None, outcome="failed", url=HOOK)
    pending = owe(one, days_ago=2)
    [foreign] = owe(None, outcome="failed", url=HOOK, tenant="b")

    def again(**asked: Any) -> int:
        found = client.post("/v1/redeliveries", json=asked).json()
        assert found["has_more"] is False
        return int(found["redelivered"])

    assert again(since="1h", event="job.failed") == 0
    assert again(webhook=one, since="1h", event="job.completed") == 2
    assert due(store, *failed) == [(True, False, 0, 0)] * 2
    assert {settled for _, settled, *_ in due(store, *old, *delivered, *other, *own)} == {True}
    assert again(since="1h") == 2
    assert again(since="1h", state="delivered") == 1
    assert again(since="10d", until="4d", state="all") == 2
    assert again(since="10d", state="all") == 0
    assert due(store, foreign) == due(store, foreign) != due(store, *own)
    assert [settled for _, settled, *_ in due(store, foreign)] == [True]
    assert {settled for _, settled, *_ in due(store, *old, *failed, *delivered, *other, *own, *pending)} == {False}


def test_many_are_due_again_in_parts(client: TestClient, owe: Owe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_log, "MOST_AT_ONCE", 3)
    owe(add(client)["id"], n=5, outcome="failed")
    found = [client.post("/v1/redeliveries", json={"since": "1h"}).json() for _ in range(2)]
    assert [(one["redelivered"], one["has_more"]) for one in found] == [(3, True), (2, False)]


@pytest.mark.parametrize("state", ["all", "delivered"])
def test_the_next_part_is_another_though_the_first_was_delivered_meanwhile(
    client: TestClient, store: Store, owe: Owe, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(delivery_log, "MOST_AT_ONCE", 3)
    ids = owe(add(client)["id"], n=5, outcome="delivered")
    first = client.post("/v1/redeliveries", json={"since": "1h", "state": state}).json()
    assert (first["redelivered"], first["has_more"], first["next"]) == (3, True, ids[2])
    store.fetch("UPDATE delivery SET settled_at = now(), delivered_at = now() RETURNING 1")
    asked = {"since": "1h", "state": state, "after": first["next"]}
    assert client.post("/v1/redeliveries", json=asked).json() == {
        "object": "redelivery", "redelivered": 2, "has_more": False, "next": None,
    }  # fmt: skip
    assert [settled for _, settled, *_ in due(store, *ids)] == [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "since"),
        ({"delivery": "delivery_99"}, 404, "delivery"),
        ({"delivery": "x"}, 404, "delivery"),
        ({"delivery": "delivery_1", "since": "1h"}, 400, "delivery"),
        ({"since": "never"}, 400, "since"),
        ({"since": "1h", "until": "2h"}, 400, "since"),
        ({"since": "1h", "webhook": "webhook_99"}, 404, "webhook"),
        ({"since": "1h", "state": "pending"}, 400, "state"),
        ({"since": "1h", "event": "job.done"}, 400, "event"),
        ({"since": "1h", "events": []}, 400, "events"),
        ({"since": "1h", "after": "7"}, 400, "after"),
    ],
)
def test_what_cannot_be_delivered_again(client: TestClient, body: dict[str, Any], status: int, param: str) -> None:
    assert error_of(client.post("/v1/redeliveries", json=body), status)["param"] == param


# Another tenant's


def test_anothers_endpoints_and_deliveries_are_not_there(client: TestClient, store: Store, owe: Owe) -> None:
    theirs = key(store, "ty_b", tenant="b")
    made = add(client)["id"]
    [waiting, failed] = [*owe(made), *owe(made, outcome="failed")]
    before = state_of(store)
    asked: list[Callable[[str, str], httpx.Response]] = [
        lambda hook, _: client.get(f"/v1/webhooks/{hook}", headers=theirs),
        lambda hook, _: client.patch(f"/v1/webhooks/{hook}", json={"events": []}, headers=theirs),
        lambda hook, _: client.delete(f"/v1/webhooks/{hook}", headers=theirs),
        *(
            lambda hook, _, verb=verb: client.post(f"/v1/webhooks/{hook}/{verb}", headers=theirs)  # type: ignore[misc]
            for verb in ("rotate", "enable", "disable", "test")
        ),
        lambda hook, _: client.get("/v1/deliveries", params={"webhook": hook}, headers=theirs),
        lambda hook, _: client.post("/v1/redeliveries", json={"webhook": hook, "since": "1d"}, headers=theirs),
        lambda _, one: client.get(f"/v1/deliveries/{one}", headers=theirs),
        lambda _, one: client.post("/v1/redeliveries", json={"delivery": one}, headers=theirs),
    ]
    for ask in asked:
        for one in (waiting, failed):
            refused, never = ask(made, one), ask("webhook_999", "delivery_999")
            assert refused.status_code == never.status_code == 404
            told = refused.text.replace(made, "ID").replace(one, "ID")
            assert told == never.text.replace("webhook_999", "ID").replace("delivery_999", "ID")
    assert (
        client.post("/v1/redeliveries", json={"since": "1d", "state": "all"}, headers=theirs).json()["redelivered"] == 0
    )
    assert client.get("/v1/webhooks", headers=theirs).json()["data"] == []
    assert client.get("/v1/deliveries", headers=theirs).json()["data"] == []
    assert client.get("/v1/deliveries", params={"after": "delivery_999"}, headers=theirs).json()["data"] == []
    assert state_of(store) == before


def state_of(store: Store) -> list[Any]:
    tables = ("webhook_endpoint", "delivery_lane", "delivery", "outbox")
    return [store.fetch(f"SELECT row_to_json(t)::text FROM {table} t ORDER BY id") for table in tables]


def test_the_document_names_every_event(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    events = document["components"]["schemas"]["WebhookCreate"]["properties"]["events"]
    assert events["items"]["enum"] == list(LISTED)
