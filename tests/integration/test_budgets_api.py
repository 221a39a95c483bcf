"""Budgets through the API: what is refused before it is dispatched, what is charged after, and who may set them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import orjson
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from tests import factories as make
from tests.gateway import KEY, Gateway
from tests.integration.receivers import fan_out, take
from tieryard.requests import parse_job
from tieryard.settings import Settings
from tieryard.store import Store, budgeted, budgets, keys
from tieryard.store.budgets import BudgetRow, Wanted
from tieryard.store.keys import Scope
from tieryard.webhooks.payloads import payload
from workers.expand import expand_all
from workers.rescue import sweep
from workers.yard import Yard

JOB = {"prompt": "Extract the city: 'I live in Oslo.'", "tier": "interactive", "max_tokens": 100}
AUTH = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def operator(store: Store, tenant: int) -> dict[str, str]:
    keys.add_key(store, "ty_operator", tenant="operators", name="op", scopes=[Scope.OPERATE])
    return {"authorization": "Bearer ty_operator"}


@pytest.fixture
def client(settings: Settings, tenant: int) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False, headers=AUTH) as client:
        yield client


def put(store: Store, usd: str | Decimal, period: str = "day", **fields: Any) -> BudgetRow:
    return budgets.set_budget(store, Wanted("tests", Decimal(usd), period, **fields))


def now_of(store: Store) -> tuple[Decimal, Decimal]:
    [row] = budgets.list_budgets(store)
    return row.spent_usd, row.reserved_usd


def settle(store: Store) -> None:
    with store.transaction() as connection:
        budgets.settle(connection)


def worst_of(client: TestClient, store: Store, body: dict[str, Any]) -> Decimal:
    """What one such job reserves."""
    put(store, 1000)
    made = client.post("/v1/jobs", json=body)
    assert made.status_code == 201, made.text
    return now_of(store)[1]


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("insufficient_quota", "budget_exceeded", None)
    message: str = error["message"]
    return message


# Refused before dispatch


def test_two_hundred_submits_at_once_never_overrun_by_a_cent(
    settings: Settings, store: Store, tenant: int, client: TestClient
) -> None:
    """Against two API processes' worth of connections, with many threads each."""
    worst = worst_of(client, store, JOB)
    put(store, 51 * worst + worst / 2)
    with ExitStack() as stack:
        other = TestClient(create_app(settings), raise_server_exceptions=False, headers=AUTH)
        clients = itertools.cycle([client, stack.enter_context(other)])
        pool = stack.enter_context(ThreadPoolExecutor(24))
        asked = [pool.submit(next(clients).post, "/v1/jobs", json=JOB) for _ in range(200)]
        answers = [one.result() for one in asked]
    accepted = [a for a in answers if a.status_code == 201]
    assert (len(accepted), len([refused(a) for a in answers if a.status_code != 201])) == (50, 150)
    assert make.count(store, "job") == make.count(store, "reservation") == 51
    assert now_of(store) == (0, 51 * worst)


def test_the_worst_case_is_the_dearest_deployment_that_may_take_it(client: TestClient, store: Store) -> None:
    """`short` costs 0.10 and 0.40 a million and holds 512 tokens, `long` ten times that and 4,096."""
    put(store, 1000)
    [prompt] = client.app.state.tieryard.admission.prompt_tokens([parse_job(json.dumps(JOB))])  # type: ignore[attr-defined]
    for model, usd in (("auto", prompt * 1 + 400), ("long", prompt * 1 + 400), ("short", (prompt + 400) / Decimal(10))):
        before = now_of(store)[1]
        assert client.post("/v1/jobs", json={**JOB, "model": model}).status_code == 201
        assert now_of(store)[1] - before == Decimal(usd) / 1_000_000


def test_a_list_is_refused_whole(client: TestClient, store: Store) -> None:
    worst = worst_of(client, store, JOB)
    put(store, 3 * worst)
    assert "could cost" in refused(client.post("/v1/jobs", json=[JOB] * 3))
    assert (make.count(store, "batch"), make.count(store, "line")) == (0, 1)
    assert client.post("/v1/jobs", json=[JOB] * 2).json()["object"] == "batch"
    assert now_of(store) == (0, 3 * worst)


def batch_line(n: int, **fields: Any) -> str:
    body = {"model": "auto", "messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 50, **fields}
    return json.dumps({"custom_id": f"c{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def upload(client: TestClient, *lines: str) -> str:
    made = client.post("/v1/files", files={"file": ("in.jsonl", "\n".join(lines))}, data={"purpose": "batch"})
    file_id: str = made.json()["id"]
    return file_id


def create(client: TestClient, file_id: str, **fields: Any) -> httpx.Response:
    wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **fields}
    return client.post("/v1/batches", json=wanted)


def test_a_files_batch_is_covered_before_it_is_made(client: TestClient, store: Store, open_yard: Any) -> None:
    file_id = upload(client, batch_line(1), "", "not a request", batch_line(2))
    put(store, 1000)
    assert create(client, file_id).status_code == 200
    worst = now_of(store)[1]
    assert worst > 0
    put(store, 2 * worst - Decimal("1e-12"))
    refused(create(client, file_id))
    put(store, 2 * worst)
    assert create(client, file_id).status_code == 200
    settle(store)  # no line is a job yet
    assert now_of(store) == (0, 2 * worst)
    yard = open_yard("expand")
    expand_all(yard, yard.admission())
    [key_id] = {row[0] for row in store.fetch("SELECT api_key_id FROM job UNION ALL SELECT api_key_id FROM batch")}
    assert key_id == keys.holder_of(store, KEY).key_id
    store.fetch("UPDATE job SET state = 'cancelled', finished_at = now() WHERE finished_at IS NULL RETURNING id")
    settle(store)
    assert now_of(store) == (0, 0)


def test_a_batch_that_nobody_can_read_reserves_nothing(client: TestClient, store: Store) -> None:
    put(store, 0)
    answer = create(client, upload(client, "no", "none"))
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert make.count(store, "reservation") == 0


def test_a_repeat_is_not_reserved_twice(client: TestClient, store: Store) -> None:
    worst = worst_of(client, store, JOB)
    put(store, 2 * worst)
    key = {"idempotency-key": "once"}
    first, again = (client.post("/v1/jobs", json=JOB, headers=key).json()["id"] for _ in range(2))
    assert (first, now_of(store)) == (again, (0, 2 * worst))


# Calls that wait


def test_a_call_is_charged_what_it_used(gate: Gateway, store: Store) -> None:
    put(store, 1)
    assert gate.chat().status_code == 200
    gate.until("succeeded")
    settle(store)
    [(cost,)] = store.fetch("SELECT sum(cost_usd) FROM ledger")
    assert cost > 0
    assert now_of(store) == (cost, 0)
    assert gate.job("api_key_id") == keys.holder_of(store, KEY).key_id
    assert store.fetch("SELECT DISTINCT api_key_id FROM ledger") == [(keys.holder_of(store, KEY).key_id,)]


def test_a_call_that_is_not_covered_never_reaches_an_engine(gate: Gateway, store: Store) -> None:
    put(store, "0.000001")
    answer = gate.chat()
    assert "try again" not in refused(answer)
    assert answer.headers["x-should-retry"] == "false"
    assert (gate.job(), make.count(store, "decision")) == (None, 0)
    with gate.client.stream("POST", "/v1/chat/completions", json={
        "model": "auto", "stream": True, "messages": [{"role": "user", "content": "Hi"}],
    }) as streamed:  # fmt: skip
        streamed.read()
        refused(streamed)
    put(store, 1)
    assert gate.chat().status_code == 200  # no slot was lost with them


def test_an_answer_without_a_limit_may_fill_the_context(gate: Gateway, store: Store) -> None:
    """2,000,000 tokens at $4 a million: whoever sets no `max_tokens` reserves all of it."""
    put(store, 8)
    body = {"model": "dear", "messages": [{"role": "user", "content": "Hi"}]}
    assert gate.client.post("/v1/chat/completions", json=body).status_code == 200
    put(store, "7.9")
    settle(store)
    refused(gate.client.post("/v1/chat/completions", json=body))


def test_openais_client_knows_the_refusal(gate: Gateway, store: Store) -> None:
    put(store, 0)
    with (
        openai.OpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=2) as client,
        pytest.raises(openai.RateLimitError) as error,
    ):
        client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "Hi"}], max_tokens=8)
    assert (error.value.code, error.value.type) == ("budget_exceeded", "insufficient_quota")


# What it costs those who have none


def test_without_a_budget_there_is_one_look_a_second(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    reserved: list[Any] = []
    clock = itertools.chain([0.0] * 20, itertools.repeat(1.5))
    monkeypatch.setattr(budgeted, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    known = client.app.state.tieryard.budgeted  # type: ignore[attr-defined]

    class Counting:
        def fetch(self, statement: str, wanted: Any = None) -> Any:
            looked.append(statement)
            return store.fetch(statement, wanted)

    monkeypatch.setattr(known, "_store", Counting())
    monkeypatch.setattr(budgets, "reserve", lambda *a, **k: reserved.append(a))
    for _ in range(20):
        assert client.post("/v1/jobs", json=JOB).status_code == 201
    assert (len(looked), reserved) == (1, [])
    assert client.post("/v1/jobs", json=JOB).status_code == 201
    assert (len(looked), reserved) == (2, [])


# Setting and showing


def test_an_operator_sets_and_a_tenant_sees(client: TestClient, operator: dict[str, str], store: Store) -> None:
    key = f"key_{keys.holder_of(store, KEY).key_id}"
    wanted = {"tenant": "tests", "key": key, "period": "month", "limit_usd": "12.5", "alert_url": "https://a.example/x"}
    made = client.put("/v1/budgets", json=wanted, headers=operator)
    assert made.status_code == 200, made.text
    shown = made.json()
    assert shown == {
        "id": shown["id"], "object": "budget", "tenant": "tests", "key": key, "period": "month", "limit_usd": "12.5",
        "hard": True, "alert_url": "https://a.example/x", "spent_usd": "0", "reserved_usd": "0", "left_usd": "12.5",
        "resets_at": shown["resets_at"],
    }  # fmt: skip
    assert client.get("/v1/budgets").json() == {"object": "list", "data": [shown]}
    assert client.get("/v1/budgets", headers=operator).json()["data"] == []
    assert client.get("/v1/budgets?tenant=tests", headers=operator).json()["data"] == [shown]
    assert client.delete(f"/v1/budgets/{shown['id']}", headers=operator).status_code == 204
    assert client.delete(f"/v1/budgets/{shown['id']}", headers=operator).status_code == 404
    assert client.get("/v1/budgets").json()["data"] == []


def test_a_tenant_sets_nothing_and_sees_nobody_elses(client: TestClient, operator: dict[str, str]) -> None:
    wanted = {"tenant": "tests", "period": "day", "limit_usd": "1000"}
    for answer in (
        client.put("/v1/budgets", json=wanted),
        client.delete("/v1/budgets/budget_1"),
        client.get("/v1/budgets?tenant=operators"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"limit_usd": "-0.01"}, 400, "limit_usd"),
        ({"limit_usd": "NaN"}, 400, "limit_usd"),
        ({"limit_usd": "1e400"}, 400, "limit_usd"),
        ({"limit_usd": "much"}, 400, "limit_usd"),
        ({"period": "year"}, 400, "period"),
        ({"tenant": "nobody"}, 404, "tenant"),
        ({"tenant": "\0"}, 400, "tenant"),
        ({"key": "key_9"}, 404, "key"),
        ({"alert_url": "no address"}, 400, "alert_url"),
        ({"limits": 1}, 400, "limits"),
    ],
)
def test_what_is_refused_by_its_field(
    client: TestClient, operator: dict[str, str], fields: dict[str, Any], status: int, param: str
) -> None:
    wanted = {"tenant": "tests", "period": "day", "limit_usd": "1", **fields}
    answer = client.put("/v1/budgets", json=wanted, headers=operator)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


# From rescue to the owner's ear


def test_rescue_settles_and_the_owner_is_told(client: TestClient, store: Store, open_yard: Any) -> None:
    worst = worst_of(client, store, JOB)
    row = put(store, 2 * worst, alert_url="https://hooks.example.com/money")
    store.fetch(
        "INSERT INTO ledger (job_id, fence, kind, tenant_id, prompt_tokens, completion_tokens, cost_usd, catalog) "
        "SELECT id, 1, 'inference', tenant_id, 1, 1, %(usd)s, 'c' FROM job RETURNING job_id",
        {"usd": worst},
    )
    store.fetch("UPDATE job SET state = 'cancelled', finished_at = now() RETURNING id")
    yard: Yard = open_yard("rescue")
    sweep(yard)
    assert now_of(store) == (worst, 0)
    assert fan_out(store) == 1
    [due] = take(store)
    assert (due.url, due.event) == ("https://hooks.example.com/money", "budget.threshold")
    told = orjson.loads(payload(due.event, due.subject_id, at=due.created_at, data=due.data))["data"]
    assert (told["id"], told["tenant"], told["mark"]) == (f"budget_{row.id}", "tests", 50)
    assert Decimal(told["spent_usd"]) == worst
