"""The REST API over real Postgres and Valkey: what is accepted, what is refused and how, and who may see what."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
import redis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from pydantic import SecretStr

import api.state
from api.app import create_app
from tieryard.job import State
from tieryard.queues import tier_queue
from tieryard.settings import Settings
from tieryard.store import Store, jobs, keys, workers
from tieryard.store.finish import Ending, finish
from workers.classify import Classifier
from workers.yard import Yard

KEY = {"authorization": "Bearer ty_test"}
NDJSON = {"content-type": "application/x-ndjson"}
MOST_BYTES = 300_000


@contextmanager
def serving(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False, headers=KEY) as client:
        yield client


@pytest.fixture
def small(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_body_bytes": MOST_BYTES, "max_list_jobs": 20})


@pytest.fixture
def client(small: Settings, tenant: int) -> Iterator[TestClient]:
    with serving(small) as client:
        yield client


@pytest.fixture
def saved(store: Store) -> Callable[[], list[tuple[int, ...]]]:
    """Counts of every table that accepting a job writes."""
    return lambda: store.fetch(
        "SELECT (SELECT count(*) FROM job), (SELECT count(*) FROM line), (SELECT count(*) FROM batch), "
        "(SELECT count(*) FROM result), (SELECT count(*) FROM outbox)"
    )


def error_of(answer: Any, status: int) -> dict[str, Any]:
    """The error, when the answer has this status and OpenAI's shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) - {"line"} == {"message", "type", "code", "param"}
    assert error["message"]
    return error


def lines_of(*members: Any) -> str:
    return "".join(json.dumps(m) + "\n" for m in members)


# What is accepted


def test_one_job_is_saved_and_published(client: TestClient, store: Store, redis_url: str) -> None:
    sent = '{"prompt": "Say hi.", "tier": "interactive", "custom_id": "row-1", "metadata": {"a-b": "c"}}'
    answer = client.post("/v1/jobs", content=sent)
    assert answer.status_code == 201
    job = answer.json()
    assert (job["state"], job["tier"], job["custom_id"], job["metadata"]) == (
        "queued", "interactive", "row-1", {"a-b": "c"},
    )  # fmt: skip
    [[body]] = store.fetch("SELECT body FROM line")
    assert body == sent
    broker = redis.Redis.from_url(redis_url)
    assert broker.llen(tier_queue("interactive")) == 1
    broker.close()
    again = client.get(f"/v1/jobs/{job['id']}").json()
    assert again == job


def test_a_list_becomes_a_batch(client: TestClient, store: Store, redis_url: str) -> None:
    answer = client.post("/v1/jobs", json=[{"prompt": "a"}, {"prompt": "b"}], params={"tier": "bulk"})
    assert answer.status_code == 201
    batch = answer.json()
    assert (batch["object"], batch["status"], batch["tier"]) == ("batch", "validating", "bulk")
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 0}
    assert [row[0] for row in store.fetch("SELECT body FROM line ORDER BY line_no")] == [
        '{"prompt":"a"}',
        '{"prompt":"b"}',
    ]
    broker = redis.Redis.from_url(redis_url)
    assert broker.llen("expand") == 1
    broker.close()
    assert client.get(f"/v1/batches/{batch['id']}").json() == batch


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "BOM"])
def test_lines_become_a_batch_as_they_came(client: TestClient, store: Store, start: str) -> None:
    body = f'{start}{{"prompt":  "a"}}\r\n\n{{"prompt": "b"}}'.encode()
    answer = client.post("/v1/jobs", content=body, headers=NDJSON, params={"completion_window": "2h"})
    assert answer.status_code == 201, answer.text
    batch = answer.json()
    assert batch["request_counts"]["total"] == 2
    assert abs(batch["expires_at"] - batch["created_at"] - 7200) < 5
    assert [row[0] for row in store.fetch("SELECT body FROM line ORDER BY line_no")] == [
        '{"prompt":  "a"}',
        '{"prompt": "b"}',
    ]


# What is refused

LONG = "word " * 5000

ONE_BAD: list[tuple[str, str | bytes, str | None, str]] = [
    ("unknown tier", '{"prompt": "x", "tier": "gold"}', "tier", "'realtime'"),
    ("empty prompt", '{"prompt": ""}', "prompt", "empty"),
    ("whitespace prompt", '{"prompt": " \\n\\t"}', "prompt", "empty"),
    ("too long for all", json.dumps({"prompt": LONG}), "prompt", "4096"),
    ("no input", "{}", None, "exactly one"),
    ("two inputs", '{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}', None, "exactly one"),
    ("empty messages", '{"messages": [{"role": "user", "content": " "}]}', None, "empty"),
    ("wrong role", '{"messages": [{"role": "me", "content": "x"}]}', "messages.0.role", "'system'"),
    ("malformed", '{"prompt": "x"', None, "not valid JSON"),
    ("empty body", "", None, "not valid JSON"),
    ("bracket", "[", None, "not valid JSON"),
    ("deep list", "[" * 100_000, None, "not valid JSON"),
    ("deep object", '{"a":' * 20_000, None, "not valid JSON"),
    ("a number", "5", None, "object"),
    ("unknown field", '{"prompt": "x", "teir": "batch"}', "teir", "no such field"),
    ("unknown field with a dash", '{"prompt": "x", "foo-bar": 1}', "foo-bar", "no such field"),
    ("unknown category", '{"prompt": "x", "category": "poetry"}', "category", "'code'"),
    ("window", '{"prompt": "x", "completion_window": "soon"}', "completion_window", "'24h'"),
    ("window overflows", '{"prompt": "x", "completion_window": "99999999999999d"}', "completion_window", "365"),
    ("window past all dates", '{"prompt": "x", "completion_window": "9999999d"}', "completion_window", "365"),
    ("window of none", '{"prompt": "x", "completion_window": "0s"}', "completion_window", "greater"),
    ("callback", '{"prompt": "x", "callback_url": "ftp://a/b"}', "callback_url", "a URL that begins with 'http'"),
    ("not UTF-8", b'{"prompt": "\xff"}', None, "not valid JSON"),
    ("lone surrogate", '{"prompt": "\\ud800"}', None, "not valid JSON"),
    ("raw NUL", b'{"prompt": "a\0b"}', None, "not valid JSON"),
    ("escaped NUL", '{"prompt": "a\\u0000b", "callback_url": "https://a.example/"}', None, "NUL"),
    ("seed beyond 64 bits", '{"prompt": "x", "seed": 123456789012345678901234567890}', "seed", "less than"),
    ("NaN", '{"prompt": "x", "response_format": {"type": NaN}}', "response_format", "range"),
    ("Infinity", '{"prompt": "x", "response_format": {"type": "text", "a": [1e999]}}', "response_format", "range"),
    ("wide integer", '{"prompt": "x", "response_format": {"a": [99999999999999999999]}}', "response_format", "64"),
    ("big schema", json.dumps({"prompt": "x", "response_format": {"a": "x" * 70_000}}), "response_format", "at most"),
    ("long metadata", json.dumps({"prompt": "x", "metadata": {"a-b": "x" * 513}}), "metadata.a-b", "at most 512"),
    ("stop", '{"prompt": "x", "stop": 5}', "stop", "expected text, not 5"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "says"), [c[1:] for c in ONE_BAD], ids=[c[0] for c in ONE_BAD])
def test_one_bad_job_is_refused_and_leaves_nothing(
    client: TestClient, saved: Callable[[], object], body: str | bytes, param: str | None, says: str
) -> None:
    before = saved()
    error = error_of(client.post("/v1/jobs", content=body), 400)
    assert error.get("param") == param
    assert says in error["message"]
    assert "line" not in error
    assert saved() == before


GOOD = {"prompt": "x"}


@pytest.mark.parametrize("model", ["gpt", "class:medium"])
def test_a_model_that_is_not_served(client: TestClient, saved: Callable[[], object], model: str) -> None:
    before, wanted = saved(), {"prompt": "x", "model": model}
    one = error_of(client.post("/v1/jobs", json=wanted), 404)
    many = error_of(client.post("/v1/jobs", json=[GOOD, wanted]), 400)
    for error in (one, many):
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "'class:large', 'class:small', 'short'" in error["message"]
    assert many["line"] == 2
    assert saved() == before


LIST_BAD: list[tuple[str, str | bytes, dict[str, str], str | None, int | None, str]] = [
    ("line", lines_of(GOOD) + '{"prompt": \n' + lines_of(GOOD), {}, None, 2, "not valid JSON"),
    ("line after blanks", lines_of(GOOD) + "\n \n" + lines_of({"prompt": ""}), {}, "prompt", 4, "empty"),
    ("too long", lines_of(GOOD, GOOD, {"prompt": LONG}), {}, "prompt", 3, "4096"),
    ("field", lines_of(GOOD, {"prompt": "x", "a": 1}), {}, "a", 2, "no such field"),
    ("tier", lines_of(GOOD, {"prompt": "x", "tier": "gold"}), {}, "tier", 2, "'bulk'"),
    ("query tier", lines_of(GOOD), {"tier": "gold"}, "tier", None, "'bulk'"),
    ("mixed tiers", "\n" + lines_of(GOOD, {"prompt": "x", "tier": "bulk"}), {}, "tier", 3, "line 2 is 'batch'"),
    ("own window", lines_of({"prompt": "x", "completion_window": "1h"}), {}, "completion_window", 1, "query"),
    ("not UTF-8", b'{"prompt": "x"}\n{"prompt": "\xff"}\n', {}, None, 2, "not valid JSON"),
    ("nothing", "\n\n", {}, None, None, "at least one"),
    ("too many", lines_of(*[GOOD] * 21), {}, None, None, "21 jobs"),
    ("window", lines_of(GOOD), {"completion_window": "soon"}, "completion_window", None, "'24h'"),
    ("wide window", lines_of(GOOD), {"completion_window": "9" * 400 + "d"}, "completion_window", None, "365"),
    ("callback", lines_of(GOOD), {"callback_url": "nope"}, "callback_url", None, "URL"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "query", "param", "line", "says"), [c[1:] for c in LIST_BAD], ids=[c[0] for c in LIST_BAD]
)
def test_one_bad_line_refuses_all_lines(
    client: TestClient, saved: Callable[[], object],
    body: str | bytes, query: dict[str, str], param: str | None, line: int | None, says: str,
) -> None:  # fmt: skip
    before = saved()
    error = error_of(client.post("/v1/jobs", content=body, headers=NDJSON, params=query), 400)
    assert (error.get("param"), error.get("line")) == (param, line)
    assert says in error["message"]
    assert saved() == before


MEMBER_BAD: list[tuple[str, str, int | None, str]] = [
    ("empty", "[]", None, "at least one"),
    ("a number", '[{"prompt": "x"}, 5]', 2, "object"),
    ("null", "[null]", 1, "object"),
    ("a list", "[[]]", 1, "object"),
    ("field", '[{"prompt": "x"}, {"prompt": "x", "teir": 1}]', 2, "teir: no such field"),
    ("deep", '[{"prompt": "x"}, ' + '{"a":' * 400 + "1" + "}" * 400 + "]", 2, "deep"),
    ("malformed", '[{"prompt": "x"},]', None, "not valid JSON"),
    ("out of range", '[{"prompt": "x", "temperature": 1e999}]', None, "not valid JSON"),
]


@pytest.mark.parametrize(("body", "line", "says"), [c[1:] for c in MEMBER_BAD], ids=[c[0] for c in MEMBER_BAD])
def test_one_bad_member_refuses_the_list(
    client: TestClient, saved: Callable[[], object], body: str, line: int | None, says: str
) -> None:
    before = saved()
    error = error_of(client.post("/v1/jobs", content=body), 400)
    assert error.get("line") == line
    assert says in error["message"]
    assert saved() == before


def test_the_last_of_two_equal_fields_counts(client: TestClient) -> None:
    """As every JSON reader of the fleet has it, the stored text's too."""
    job = client.post("/v1/jobs", content='{"prompt": "a", "tier": "bulk", "tier": "realtime"}').json()
    assert job["tier"] == "realtime"


@pytest.mark.parametrize("name", ["completion_window", "callback_url"])
def test_options_of_lists_are_not_silently_dropped(client: TestClient, saved: Callable[[], object], name: str) -> None:
    value = {"completion_window": "1h", "callback_url": "https://a.example/"}[name]
    before = saved()
    error = error_of(client.post("/v1/jobs", json=GOOD, params={name: value}), 400)
    assert error["param"] == name
    assert saved() == before


def test_callbacks_need_a_secret_to_sign_with(settings: Settings, tenant: int, saved: Callable[[], object]) -> None:
    hook = "https://a.example/"
    with serving(settings.model_copy(update={"webhook_secret": None})) as client:
        before = saved()
        one = error_of(client.post("/v1/jobs", json={"prompt": "x", "callback_url": hook}), 400)
        many = error_of(client.post("/v1/jobs", json=[GOOD], params={"callback_url": hook}), 400)
        assert saved() == before
    assert one["param"] == many["param"] == "callback_url"


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("key", [KEY, {"authorization": "Bearer wrong"}], ids=["known", "unknown"])
def test_a_body_over_the_limit(
    client: TestClient, saved: Callable[[], object], chunked: bool, key: dict[str, str]
) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(5):
            yield b"[" * (MOST_BYTES // 4)

    before = saved()
    answer = client.post("/v1/jobs", content=parts() if chunked else b"".join(parts()), headers=key)
    if chunked and key is not KEY:
        error_of(answer, 401)  # a stranger's body is not read at all
    else:
        assert error_of(answer, 413)["code"] == "body_too_large"
    assert saved() == before


# Who may


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "Basic eHg6eHg=", "ty_test", "Bearer \xe9"])
def test_a_wrong_key(client: TestClient, saved: Callable[[], object], header: str | None) -> None:
    before = saved()
    del client.headers["authorization"]
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for method, path in [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/job_1"),
        ("GET", "/v1/batches/x"),
    ]:
        answer = client.request(method, path, headers=headers, content=b'{"prompt": "x"}')  # type: ignore[arg-type]
        assert error_of(answer, 401)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert saved() == before


def test_a_revoked_key(client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/v1/jobs").status_code == 200
    store.fetch("UPDATE api_key SET revoked_at = now() RETURNING id")
    monkeypatch.setattr(api.state, "_KEY_CACHE_S", 0)
    error_of(client.get("/v1/jobs"), 401)


def test_another_tenants_things_do_not_exist(client: TestClient, store: Store) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()["id"]
    batch = client.post("/v1/jobs", json=[GOOD]).json()["id"]
    keys.add_key(store, "ty_other", tenant="others", name="other")
    theirs = {"authorization": "Bearer ty_other"}
    paths = [f"/v1/jobs/{job}", f"/v1/jobs/{job}/story", f"/v1/batches/{batch}"]
    answers = [client.get(path, headers=theirs) for path in paths]
    answers.append(client.post(f"/v1/jobs/{job}/cancel", headers=theirs))
    answers.append(client.get("/v1/jobs", params={"batch": batch}, headers=theirs))
    for answer in answers:
        stranger, never = error_of(answer, 404), error_of(client.get("/v1/jobs/job_999999"), 404)
        assert stranger["type"] == never["type"]
    assert client.get("/v1/jobs", headers=theirs).json() == {"object": "list", "data": [], "next": None}
    assert client.get(f"/v1/jobs/{job}").json()["state"] == "queued"


@pytest.mark.parametrize(
    "number", ["x", "job_", "job_x", "batch_1", "job_-1", "job_" + "9" * 30, "job_\u0663", "job_1%00"]
)
def test_what_is_no_id_is_not_found(client: TestClient, number: str) -> None:
    error = error_of(client.get(f"/v1/jobs/{number}"), 404)
    assert error["param"] == "job"


# Pages


def test_pages_show_each_job_once(client: TestClient) -> None:
    made = [client.post("/v1/jobs", json=GOOD).json()["id"] for _ in range(7)]
    assert walk(client, limit=3) == made[::-1]
    batch = client.post("/v1/jobs", json=[GOOD] * 7).json()
    assert walk(client, limit=3, batch=batch["id"]) == []  # its lines are not jobs yet


def test_pages_of_a_batch_are_in_input_order(client: TestClient, store: Store) -> None:
    from tieryard.store.expansion import expand_chunk
    from workers.expand import judge

    lines = [{"prompt": "x", "custom_id": str(i)} for i in range(7)]
    batch = client.post("/v1/jobs", json=lines).json()["id"]
    admission = client.app.state.tieryard.admission  # type: ignore[attr-defined]
    while expand_chunk(store, lambda line, of, tier, _: judge(admission, line, signed=True, endpoint=of, tier=tier)):
        pass
    ids = walk(client, limit=2, batch=batch)
    assert [client.get(f"/v1/jobs/{i}").json()["custom_id"] for i in ids] == [str(i) for i in range(7)]
    assert walk(client, limit=2) == ids[::-1]
    assert client.get(f"/v1/batches/{batch}").json()["counts"]["queued"] == 7


def walk(client: TestClient, **params: Any) -> list[str]:
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = client.get("/v1/jobs", params={**params, **after}).json()
        assert len(page["data"]) <= params["limit"]
        seen += [job["id"] for job in page["data"]]
        if page["next"] is None:
            return seen
        after = {"after": page["next"]}


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ({"after": "zzz"}, 400, "after"),
        ({"limit": "0"}, 400, "limit"),
        ({"limit": "1001"}, 400, "limit"),
        ({"limit": "x"}, 400, "limit"),
        ({"state": "lost"}, 400, "state"),
        ({"batch": "job_1"}, 404, "batch"),
    ],
)
def test_bad_queries(client: TestClient, query: dict[str, str], status: int, param: str) -> None:
    assert error_of(client.get("/v1/jobs", params=query), status)["param"] == param


def test_filters(client: TestClient) -> None:
    first = client.post("/v1/jobs", json={"prompt": "x", "tier": "bulk"}).json()["id"]
    second = client.post("/v1/jobs", json=GOOD).json()["id"]
    client.post(f"/v1/jobs/{second}/cancel")
    assert walk(client, limit=9, tier="bulk") == [first]
    assert walk(client, limit=9, state="cancelled") == [second]
    assert walk(client, limit=9, state="queued", tier="batch") == []
    assert walk(client, limit=9, deployment="short") == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("limit=0", "limit: must be greater than or equal to 1, not '0'"),
        ("limit=many", "limit: expected a whole number, not 'many'"),
        (
            "state=done",
            "state: expected 'queued', 'routed', 'running', 'succeeded', 'failed', 'cancelled' or 'expired'",
        ),
    ],
)
def test_a_bad_query_is_refused_in_our_words(client: TestClient, query: str, says: str) -> None:
    error = error_of(client.get(f"/v1/jobs?{query}"), 400)
    assert error["message"].startswith(says)
    assert error["param"] == says.partition(":")[0]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ('{"score": 2}', "score", "score: must be less than or equal to 1, not 2"),
        ('{"score": "good"}', "score", "score: expected a number, not 'good'"),
        ("{}", "score", "score: is required"),
        ("5", "body", "body: expected an object, not 5"),
        ('{"score": ', None, "not valid JSON: "),
        ('{"score": 1, "why": 2}', "why", "why: no such field"),
    ],
)
def test_a_bad_score_is_refused_in_our_words(client: TestClient, body: str, param: str | None, says: str) -> None:
    as_json = {"content-type": "application/json"}
    error = error_of(client.post("/v1/jobs/job_1/outcome", content=body, headers=as_json), 400)
    assert (error["param"], error["message"].startswith(says)) == (param, True), error


# What happens to a job


def test_cancelling_is_final_and_idempotent(client: TestClient) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()["id"]
    first = client.post(f"/v1/jobs/{job}/cancel").json()
    assert first["state"] == "cancelled"
    assert first["error"]["kind"] == "cancelled"
    assert first["finished_at"]
    assert client.post(f"/v1/jobs/{job}/cancel").json() == first
    error_of(client.post("/v1/jobs/job_999999/cancel"), 404)


def run_to_the_end(settings: Settings, store: Store, number: int) -> None:
    """The job through the classifier, a claim and a finish, as its workers would."""
    yard = Yard("classify", settings, consume=[])
    try:
        assert Classifier(yard, yard.admission()).classify("batch", time.time(), [(number, 1)]) == 1
        [[deployment]] = store.fetch("SELECT deployment FROM job")
        worker = workers.register(store, "infer", deployment=deployment, lease_s=60)
        with store.transaction() as connection:
            [claimed] = jobs.claim(connection, [number], worker_id=worker, deployments=[deployment])
        ending = Ending(
            number, claimed.fence, State.SUCCEEDED, worker, deployment, yard.catalog_hash, claimed.claimed_at,
            wait_ms=3.0, ttft_ms=5.0, latency_ms=9.0, prompt_tokens=34, completion_tokens=2,
            cost_usd=Decimal("0.00000042"), output="Oslo", finish_reason="stop",
        )  # fmt: skip
        with store.transaction() as connection:
            assert finish(connection, [ending]).ended == {number}
    finally:
        yard.store.close()
        yard.redis.close()


def test_the_story_of_a_finished_job(client: TestClient, small: Settings, store: Store) -> None:
    job = client.post("/v1/jobs", json={"prompt": "Extract the city: 'I live in Oslo.'"}).json()["id"]
    run_to_the_end(small, store, int(job.removeprefix("job_")))
    shown = client.get(f"/v1/jobs/{job}").json()
    assert (shown["state"], shown["output"], shown["cost_usd"]) == ("succeeded", "Oslo", "0.00000042")
    assert shown["timings"] == {"wait_ms": 3.0, "ttft_ms": 5.0, "latency_ms": 9.0}
    story = client.get(f"/v1/jobs/{job}/story").json()
    assert story["job"] == shown
    [decision] = story["decisions"]
    assert decision["features"]["text"]["category"] == shown["category"] == "extraction"
    assert {c["name"] for c in decision["candidates"]} == {"short", "long"}
    [chosen] = [c for c in decision["candidates"] if c["chosen"]]
    assert chosen["name"] == decision["deployment"] == shown["deployment"]
    assert all(c["why"] for c in decision["candidates"] if not c["chosen"])
    assert all("E" not in c["expected_cost_usd"] for c in decision["candidates"])
    [start] = story["starts"]
    assert (start["fence"], start["outcome"], start["deployment"]) == (1, "succeeded", "short")
    [money] = story["money"]
    assert (money["kind"], money["cost_usd"]) == ("inference", "0.00000042")
    after = client.post(f"/v1/jobs/{job}/cancel").json()
    assert after == shown


def test_the_recomputed_choice_is_the_stored_one(client: TestClient, small: Settings, store: Store) -> None:
    from tieryard.routing import JobFeatures, Snapshot, decide
    from tieryard.store.reads import get_story

    number = int(client.post("/v1/jobs", json={"prompt": "Say hi."}).json()["id"].removeprefix("job_"))
    run_to_the_end(small, store, number)
    [[tenant_id]] = store.fetch("SELECT tenant_id FROM job")
    [(stored, snapshot)] = get_story(store, number, tenant_id=tenant_id).decisions
    again = decide(JobFeatures.from_dict(stored.features), Snapshot.from_json(snapshot))
    assert (again.deployment, again.reason) == (stored.deployment, stored.reason)


def test_a_body_of_older_rules_is_still_shown(client: TestClient, store: Store) -> None:
    job = client.post("/v1/jobs", json={"prompt": "x", "custom_id": "c"}).json()["id"]
    store.fetch("""UPDATE line SET body = '{"old_field": NaN, "custom_id": "c"}' RETURNING line_no""")
    assert client.get(f"/v1/jobs/{job}").json()["custom_id"] == "c"


# Health, faults and the document


def test_healthz_needs_no_key(client: TestClient) -> None:
    del client.headers["authorization"]
    assert client.get("/healthz").json() == {"status": "ok"}


def test_readyz_names_what_is_missing(client: TestClient, store: Store) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 503
    checks = answer.json()["checks"]
    assert checks["postgres"] == checks["redis"] == "ok"
    assert {checks[kind] for kind in ("expand", "classify", "callback", "beat")} == {"no live worker"}
    assert checks["deployment short"] == checks["deployment long"] == "no replica is serving; see tieryard deployments"
    workers.register(store, "classify", deployment=None, lease_s=60)
    assert client.get("/readyz").json()["checks"]["classify"] == "ok"


NOWHERE = SecretStr("redis://127.0.0.1:9/0")


def test_without_redis_a_job_is_accepted(settings: Settings, tenant: int, store: Store) -> None:
    with serving(settings.model_copy(update={"redis_url": NOWHERE})) as client:
        started = time.monotonic()
        assert client.post("/v1/jobs", json=GOOD).status_code == 201
        assert client.post("/v1/jobs", json=[GOOD, GOOD]).status_code == 201
        assert time.monotonic() - started < 5
        readiness = client.get("/readyz")
    assert readiness.status_code == 503
    assert readiness.json()["checks"]["redis"] != "ok"
    assert store.fetch("SELECT count(*) FROM line")[0][0] == 3
    assert store.fetch("SELECT count(*) FROM job")[0][0] == 1


def test_without_postgres_nothing_is_accepted(settings: Settings) -> None:
    away = SecretStr("postgresql://secret_user:secret_word@127.0.0.1:9/x")
    with serving(settings.model_copy(update={"database_url": away})) as client:
        answers = [client.post("/v1/jobs", json=GOOD), client.get("/v1/jobs")]
        readiness = client.get("/readyz")
    for answer in answers:
        assert error_of(answer, 503)["code"] == "store_away"
        assert int(answer.headers["retry-after"]) > 0
    assert readiness.status_code == 503
    assert "secret" not in readiness.text


def test_unknown_routes_and_methods(client: TestClient) -> None:
    assert error_of(client.get("/nope"), 404)["type"] == "invalid_request_error"
    wrong = client.put("/v1/jobs")
    error_of(wrong, 405)
    assert "POST" in wrong.headers["allow"] or "GET" in wrong.headers["allow"]


def test_a_fault_of_ours_says_nothing_of_the_inside(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fall_over(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("api.jobs.reads.get_job", fall_over)
    answer = client.get("/v1/jobs/job_1")
    assert error_of(answer, 500)["type"] == "server_error"
    assert "secret" not in answer.text


def refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        yield node["$ref"]
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from refs(value)


def test_the_openapi_document(client: TestClient) -> None:
    document = client.get("/openapi.json").json()

    for ref in refs(document):
        assert ref.startswith("#/components/schemas/")
        assert ref.rpartition("/")[2] in document["components"]["schemas"], ref
    checked = 0
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
        for example in schema.get("examples", []):
            jsonschema.validate(example, {**schema, "components": document["components"]})
            checked += 1
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    for example in body["examples"].values():
        jsonschema.validate(example["value"], {**body["schema"], "components": document["components"]})
        assert client.post("/v1/jobs", json=example["value"]).status_code == 201
        checked += 1
    assert checked >= 4
    operations = [o["operationId"] for path in document["paths"].values() for o in path.values()]
    assert len(set(operations)) == len(operations)


# Anything at all

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_fields = st.sampled_from(
    ["prompt", "messages", "tier", "model", "category", "max_tokens", "temperature", "top_p", "seed", "stop",
     "response_format", "custom_id", "metadata", "callback_url", "completion_window"]
)  # fmt: skip
_nearly = st.dictionaries(_fields, _json | st.sampled_from(["auto", "batch", "1h"]), max_size=5)
_likely = _nearly.map(lambda fields: {"prompt": "x", **fields})


@effort(max_examples=150, suppress_health_check=list(HealthCheck))
@given(body=_json | _nearly | _likely | st.lists(_likely, max_size=3))
def test_no_json_makes_the_api_fall_over(client: TestClient, body: Any) -> None:
    answer = client.post("/v1/jobs", content=json.dumps(body))
    if answer.status_code == 404:
        assert error_of(answer, 404)["code"] == "model_not_found"
    elif answer.status_code != 201:
        error_of(answer, 400)
    else:
        assert client.get("/v1/jobs", params={"limit": 1}).status_code == 200


@effort(max_examples=80, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=200), query=st.text(max_size=20), lines=st.booleans())
def test_no_bytes_make_the_api_fall_over(client: TestClient, body: bytes, query: str, lines: bool) -> None:
    params = {"tier": query, "completion_window": query} if lines else {}
    answer = client.post("/v1/jobs", content=body, headers=NDJSON if lines else {}, params=params)
    if answer.status_code != 201:
        error_of(answer, 400)
