"""Keys over a real Postgres and the real API: what each may do and how often, and what is told of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import SecretStr
from starlette.responses import StreamingResponse

import api.state
from api.app import create_app
from api.rate_headers import note_headers
from api.state import BatchDep, InferDep, StateDep
from tieryard.errors import (
    AuthError,
    ConflictError,
    LimitError,
    ModelNotFoundError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from tieryard.settings import Settings
from tieryard.store import Store, keys
from tieryard.store.keys import Scope

KEY = {"authorization": "Bearer ty_test"}
JOB = {"prompt": "x"}


@contextmanager
def serving(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False, headers=KEY) as client:
        yield client


Give = Callable[..., None]


@pytest.fixture
def give(store: Store) -> Give:
    """Makes `ty_test` a key with these scopes and limits."""

    def give(scopes: tuple[Scope, ...] | None = None, requests: int | None = None, tokens: int | None = None) -> None:
        keys.add_key(
            store, "ty_test", tenant="tests", name="test", scopes=scopes,
            requests_per_minute=requests, tokens_per_minute=tokens,
        )  # fmt: skip

    return give


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with serving(create_app(settings)) as client:
        yield client


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) - {"line"} == {"message", "type", "param", "code"}
    return error


# The store


def test_a_key_has_all_scopes_and_no_limits_unless_told(store: Store) -> None:
    assert keys.add_key(store, "ty_a", tenant="t", name="a")
    assert not keys.add_key(store, "ty_a", tenant="t", name="again")
    holder = keys.holder_of(store, "ty_a")
    assert holder.scopes == {"infer", "batch", "read", "webhooks"}
    assert (holder.requests_per_minute, holder.tokens_per_minute) == (None, None)
    keys.add_key(
        store, "ty_b", tenant="t", name="b", scopes=[Scope.READ, Scope.READ], requests_per_minute=5, tokens_per_minute=9
    )
    narrow = keys.holder_of(store, "ty_b")
    assert (narrow.scopes, narrow.requests_per_minute, narrow.tokens_per_minute) == ({"read"}, 5, 9)
    assert narrow.tenant_id == holder.tenant_id
    assert narrow.key_id != holder.key_id


def test_no_more_of_a_key_is_kept_than_tells_it_apart(store: Store) -> None:
    key = keys.new_key()
    assert len(key) >= 35
    for name, given in [("made", key), ("short", "ty_test")]:
        keys.add_key(store, given, tenant="t", name=name)
    made, short = keys.list_keys(store)
    assert made.prefix == key[:7]
    assert short.prefix == "t"
    rows = store.fetch("SELECT api_key::text FROM api_key")
    assert not any(key[7:] in row[0] or "ty_test" in row[0] for row in rows)


def test_revoking(store: Store) -> None:
    made = [keys.new_key() for _ in range(3)]
    for key in made:
        keys.add_key(store, key, tenant="t", name="k")
    first, second, third = keys.list_keys(store)
    assert keys.revoke(store, f"key_{first.id}") == f"key_{first.id}"
    assert keys.revoke(store, f"{second.prefix}…") == f"key_{second.id}"
    assert keys.revoke(store, made[2]) == f"key_{third.id}"
    for key in made:
        with pytest.raises(AuthError):
            keys.holder_of(store, key)
    assert all(row.revoked_at for row in keys.list_keys(store))
    assert not keys.any_key(store)
    for again in (f"key_{first.id}", second.prefix, made[2]):
        with pytest.raises(ConflictError, match="revoked already"):
            keys.revoke(store, again)


@pytest.mark.parametrize("unknown", ["key_99", "key_x", "key_", "", "ty_", "ty_none", "ty_" + "x" * 32])
def test_revoking_what_is_no_key(store: Store, unknown: str) -> None:
    keys.add_key(store, keys.new_key(), tenant="t", name="k")
    with pytest.raises(NotFoundError, match="tieryard keys list") as caught:
        keys.revoke(store, unknown)
    assert not unknown.startswith("ty_") or unknown not in str(caught.value)
    assert keys.any_key(store)


def test_revoking_an_ambiguous_prefix(store: Store) -> None:
    for key in ("ty_same" + "a" * 28, "ty_same" + "b" * 28):
        keys.add_key(store, key, tenant="t", name="k")
    first, second = keys.list_keys(store)
    with pytest.raises(ConflictError, match=f"key_{first.id}, key_{second.id}"):
        keys.revoke(store, "ty_same")
    keys.revoke(store, f"key_{first.id}")
    assert keys.revoke(store, "ty_same") == f"key_{second.id}"  # one is left that it can mean


def test_tenants_and_their_caps(store: Store) -> None:
    keys.add_key(store, "ty_a", tenant="one", name="a")
    keys.add_key(store, "ty_b", tenant="two", name="b")
    keys.revoke(store, "ty_b")
    keys.cap_tenant(store, "two", 10**12)
    found = [(t.name, t.keys, t.max_enqueued_tokens) for t in keys.list_tenants(store)]
    assert found == [("one", 1, None), ("two", 0, 10**12)]
    keys.cap_tenant(store, "two", None)
    assert keys.list_tenants(store)[1].max_enqueued_tokens is None
    with pytest.raises(NotFoundError, match="no tenant 'three'"):
        keys.cap_tenant(store, "three", 1)


# Scopes

ROUTES = [
    ("POST", "/v1/jobs", Scope.INFER),
    ("POST", "/v1/jobs/job_1/cancel", Scope.INFER),
    ("GET", "/v1/jobs", Scope.READ),
    ("GET", "/v1/jobs/job_1", Scope.READ),
    ("GET", "/v1/jobs/job_1/story", Scope.READ),
    ("GET", "/v1/batches/batch_1", Scope.READ),
]


@pytest.mark.parametrize(("method", "path", "needed"), ROUTES, ids=[f"{r[0]} {r[1]}" for r in ROUTES])
def test_a_route_needs_its_scope_and_no_other(
    client: TestClient, store: Store, give: Give, method: str, path: str, needed: Scope
) -> None:
    give(scopes=tuple(s for s in Scope if s is not needed))
    keys.add_key(store, "ty_narrow", tenant="tests", name="narrow", scopes=[needed])
    error = error_of(client.request(method, path, json=JOB), 403)
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "insufficient_scope", None)
    assert f"scope '{needed}'" in error["message"]
    assert store.fetch("SELECT count(*) FROM job") == [(0,)]
    allowed = client.request(method, path, json=JOB, headers={"authorization": "Bearer ty_narrow"})
    assert allowed.status_code in (200, 201, 404)


def test_a_revoked_key_works_for_seconds_more(
    client: TestClient, store: Store, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    give()
    assert client.get("/v1/jobs").status_code == 200
    keys.revoke(store, "ty_test")
    assert client.get("/v1/jobs").status_code == 200  # as it is remembered
    monkeypatch.setattr(api.state, "_KEY_CACHE_S", 0)
    answer = client.get("/v1/jobs")
    assert error_of(answer, 401)["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


# Limits

NAMES = {f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")}
SPAN = re.compile(r"(\d+m)?\d+(\.\d+)?s|\d+ms")


def test_requests_a_minute(client: TestClient, give: Give) -> None:
    give(requests=2)
    first, second = client.post("/v1/jobs", json=JOB), client.post("/v1/jobs", json=JOB)
    assert (first.status_code, second.status_code) == (201, 201)
    assert [a.headers["x-ratelimit-remaining-requests"] for a in (first, second)] == ["1", "0"]
    third = client.post("/v1/jobs", json=JOB)
    error = error_of(third, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "2 requests a minute" in error["message"]
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert 60 <= int(third.headers["retry-after"]) <= 91
    assert SPAN.fullmatch(third.headers["x-ratelimit-reset-requests"])
    assert "x-ratelimit-limit-tokens" not in third.headers


def test_reads_are_not_counted(client: TestClient, give: Give) -> None:
    give(requests=1)
    assert all(client.get("/v1/jobs").status_code == 200 for _ in range(3))
    assert client.post("/v1/jobs", json=JOB).status_code == 201
    answer = client.get("/v1/jobs")
    assert answer.status_code == 200
    assert not NAMES & set(answer.headers)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/v1/jobs", {"prompt": ""}, 400), ("/v1/jobs/job_1/cancel", None, 404), ("/v1/jobs", [], 400)],
)
def test_errors_carry_the_headers_too(client: TestClient, give: Give, path: str, body: Any, status: int) -> None:
    give(requests=5)
    answer = client.post(path, json=body)
    error_of(answer, status)
    assert set(answer.headers) >= NAMES


def test_without_redis_work_is_accepted(settings: Settings, store: Store, give: Give) -> None:
    give(requests=1, tokens=1)
    with serving(create_app(settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:9/0")}))) as client:
        answers = [client.post("/v1/jobs", json=JOB) for _ in range(3)]
    assert [a.status_code for a in answers] == [201, 201, 201]
    assert store.fetch("SELECT count(*) FROM job") == [(3,)]


def test_a_key_without_limits_leaves_no_trace(client: TestClient, give: Give, redis_url: str) -> None:
    give()
    answer = client.post("/v1/jobs", json=JOB)
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)
    broker = redis.Redis.from_url(redis_url)
    assert broker.keys("rates*") == []
    broker.close()


# Whatever a route answers with

extra = APIRouter(prefix="/v1/extra")
RAISED: dict[str, tuple[Exception, int, str]] = {
    "conflict": (ConflictError("x"), 409, "invalid_request_error"),
    "request": (RequestError("x", param="p"), 400, "invalid_request_error"),
    "model": (ModelNotFoundError("x", param="model"), 404, "invalid_request_error"),
    "model-of-a-line": (ModelNotFoundError("x", param="model", line=3), 400, "invalid_request_error"),
    "limit": (LimitError("x", code="batch_limit", retry_after_s=0.01), 429, "rate_limit_error"),
    "never": (LimitError("x", code="y", retry_after_s=float("inf"), headers={"x-a": "b"}), 429, "rate_limit_error"),
    "unavailable": (UnavailableError("x", retry_after_s=2.1), 503, "server_error"),
    "fault": (RuntimeError("secret"), 500, "server_error"),
}


@extra.post("/stream")
def stream(holder: InferDep, state: StateDep) -> StreamingResponse:
    return StreamingResponse(iter(["a", "b"]))


@extra.post("/tokens/{n}")
def count_tokens(request: Request, holder: BatchDep, state: StateDep, n: int) -> dict[str, int]:
    note_headers(request, state.rates.admit(holder, requests=0, tokens=n))
    return {"n": n}


@extra.post("/raise/{what}")
def fall_over(holder: BatchDep, what: str) -> None:
    raise RAISED[what][0]


@pytest.fixture
def extended(settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings)
    app.include_router(extra)
    with serving(app) as client:
        yield client


@pytest.mark.parametrize("what", RAISED)
def test_every_error_has_its_status_and_the_headers(extended: TestClient, give: Give, what: str) -> None:
    give(requests=5)
    error, status, kind = RAISED[what]
    answer = extended.post(f"/v1/extra/raise/{what}")
    body = error_of(answer, status)
    assert body["type"] == kind
    assert body.get("line") == getattr(error, "line", None)
    assert body["param"] == getattr(error, "param", None)
    assert set(answer.headers) >= NAMES
    assert "secret" not in answer.text


def test_when_to_try_again(extended: TestClient, give: Give) -> None:
    give()
    limit, never, away = (extended.post(f"/v1/extra/raise/{w}") for w in ("limit", "never", "unavailable"))
    assert (limit.headers["retry-after"], away.headers["retry-after"]) == ("1", "3")
    assert "retry-after" not in never.headers
    assert (never.headers["x-should-retry"], never.headers["x-a"]) == ("false", "b")


def test_tokens_a_minute(extended: TestClient, give: Give) -> None:
    give(requests=9, tokens=100)
    streamed = extended.post("/v1/extra/stream")
    assert (streamed.text, streamed.headers["x-ratelimit-remaining-requests"]) == ("ab", "8")
    taken = extended.post("/v1/extra/tokens/70")
    assert taken.headers["x-ratelimit-remaining-tokens"] == "30"
    over = extended.post("/v1/extra/tokens/31")
    assert "70 are used and 31 asked for" in error_of(over, 429)["message"]
    assert over.headers["x-ratelimit-remaining-tokens"] == "30"
    assert int(over.headers["retry-after"]) > 1
    never = extended.post("/v1/extra/tokens/101")
    assert "can never pass" in error_of(never, 429)["message"]
    assert error_of(extended.post("/v1/extra/tokens/x"), 400)["param"] == "n"
    assert extended.post("/v1/extra/tokens/30").status_code == 200


def test_an_infer_key_is_no_batch_key(extended: TestClient, give: Give) -> None:
    give(scopes=(Scope.INFER,))
    assert extended.post("/v1/extra/stream").status_code == 200
    assert "scope 'batch'" in error_of(extended.post("/v1/extra/tokens/1"), 403)["message"]
