"""Quotes over the real API, Postgres and Valkey: what they say of a batch, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis

from tests import factories as make
from tests.integration.test_api import KEY, error_of, serving
from tests.integration.test_batches_api import CHAT, House, line
from tests.integration.test_cli import Run, run, url  # noqa: F401  # fixtures
from tests.integration.test_leaks import publish_engines
from tieryard import quoting
from tieryard.catalog import Catalog
from tieryard.costs.quotes import SAMPLE
from tieryard.metrics import Gauge, Metrics
from tieryard.profiles import Observed
from tieryard.settings import Settings
from tieryard.store import Store, keys
from tieryard.store.budgets import Wanted, set_budget
from tieryard.store.keys import Scope
from workers.yard import Yard

CATALOG = """
version: 1
tiers:
  interactive: {slo: {max_latency_ms: 1000}, window: 5m}
  batch: {window: 1h, waits: false}
  bulk: {window: 24h, waits: false}
categories: [extraction, classification, summarization, reasoning, code, chat]
deployments:
  short: &short
    model: test/instant
    revision: "1"
    size_class: small
    engine: {kind: instant}
    context_limit: 600
    max_in_flight: 64
    tokenizer: utf8
    quality: 0.8
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}
  long:
    <<: *short
    size_class: large
    context_limit: 5000
    quality: 0.9
    price: {input_usd_per_1m: 1.00, output_usd_per_1m: 4.00}
routing: {classifier: rules}
"""
NDJSON = {"content-type": "application/x-ndjson"}
MEASURED = Observed(n=100, ttft_ms=50.0, tpot_ms=10.0, throughput_tps=1000.0, output_tokens=8.0)


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CATALOG)
    return path


@pytest.fixture
def live(redis_url: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both deployments serve, and how they do is measured."""
    publish_engines(redis_url, catalog, monkeypatch)
    with redis.Redis.from_url(redis_url) as client:
        for name in catalog.deployments:
            Metrics(client).observe(name, "chat", MEASURED)


@pytest.fixture
def house(settings: Settings, tenant: int, store: Store, live: None) -> Iterator[House]:
    yard = Yard("expand", settings, consume=[])
    with serving(settings) as client:
        yield House(client, store, yard, tenant)
    yard.leave()


def quote(house: House, *lines: Any, status: int = 201, **params: Any) -> dict[str, Any]:
    """Of a list of native jobs."""
    body = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    answer = house.client.post("/v1/quotes", content=body, headers=NDJSON, params=params)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def offers(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["tier"]: one for one in found["offers"]}


def job(prompt: str = "Say hi.", **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 16, **fields}


# What it says


def test_a_list_is_priced_under_each_tier(house: House) -> None:
    found = quote(house, *[job() for _ in range(10)])
    assert (found["requests"], found["lines"]["good"], found["lines"]["bad"], found["lines"]["read"]) == (10, 10, 0, 10)
    # 7 bytes and 16 for the turn; answers are half of, and the usual, 8 tokens, and 16 at most
    assert (found["prompt_tokens"], found["prompt_tokens_error"]) == (230, 0)
    bulk = offers(found)["bulk"]
    assert bulk["cost_usd"] == {"low": "0.000039", "expected": "0.000055", "worst": "0.000087"}
    assert bulk["output_tokens"] == {"low": 40, "expected": 80, "worst": 160}
    assert [(s["deployment"], s["requests"], s["cost_usd"]) for s in bulk["deployments"]] == [("short", 10, "0.000055")]
    assert bulk["finish"]["low_s"] < bulk["finish"]["expected_s"] < bulk["finish"]["worst_s"]
    assert {tier: one["meets"] for tier, one in offers(found).items()} == dict.fromkeys(
        ("interactive", "batch", "bulk"), "surely"
    )
    assert found["cheapest"] == "bulk"
    assert (found["batch_id"], found["actual"], found["budget"]) == (None, None, None)
    assert house.client.get(f"/v1/quotes/{found['id']}").json() == found


def test_lines_go_where_the_decision_would_send_them(house: House) -> None:
    found = quote(house, job(), job("word " * 200), tier="bulk")
    [bulk] = found["offers"]
    assert {s["deployment"]: s["requests"] for s in bulk["deployments"]} == {"short": 1, "long": 1}


def test_an_uploaded_file_is_priced_and_bad_lines_are_told(house: House) -> None:
    file = house.upload(line("a"), "{", line("a"), line("b", max_tokens=0), line("c"))
    answer = house.client.post("/v1/quotes", json={"input_file_id": file})
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert (found["input_file_id"], found["requests"]) == (file, 5)
    assert (found["lines"]["good"], found["lines"]["bad"]) == (2, 3)
    assert [(f["line"], f["param"]) for f in found["lines"]["faults"]] == [
        (2, None), (3, "custom_id"), (4, "body.max_tokens"),
    ]  # fmt: skip
    assert offers(found)["bulk"]["output_tokens"]["worst"] == 32


def test_an_answer_without_a_limit_may_fill_the_context(house: House) -> None:
    file = house.upload({"custom_id": "a", "method": "POST", "url": CHAT,
                         "body": {"model": "short", "messages": [{"role": "user", "content": "Hi."}]}})  # fmt: skip
    found = house.client.post("/v1/quotes", json={"input_file_id": file, "tier": "bulk"}).json()
    assert found["offers"][0]["output_tokens"] == {"low": 4, "expected": 8, "worst": 600 - 19}


def test_a_long_file_is_sampled_and_its_error_said(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quoting, "SAMPLE", 20)
    file = house.upload(*[line(str(i)) for i in range(100)])
    found = house.client.post("/v1/quotes", json={"input_file_id": file}).json()
    assert (found["requests"], found["lines"]["read"], found["lines"]["good"]) == (100, 20, 100)
    exact = sum(len(f"Say {i}.") + 16 for i in range(100))
    assert found["prompt_tokens_error"] > 0
    assert abs(found["prompt_tokens"] - exact) <= 4 * found["prompt_tokens_error"]
    bulk = offers(found)["bulk"]
    assert bulk["output_tokens"]["expected"] == 800
    assert Decimal(bulk["cost_error_usd"]) > 0
    again = house.client.post("/v1/quotes", json={"input_file_id": file}).json()
    assert again["prompt_tokens"] == found["prompt_tokens"]


def test_a_sample_has_a_line_of_each_piece() -> None:
    numbers = quoting.draw_lines(1_000_000, 7)
    assert numbers is not None
    assert [(n - 1) // (1_000_000 // SAMPLE) for n in numbers] == list(range(SAMPLE))
    assert quoting.draw_lines(SAMPLE, 7) is None


def test_the_deadline_decides_which_tier_is_in_time(house: House) -> None:
    jobs = [job() for _ in range(20)]
    hours = quote(house, *jobs, deadline="6h")
    assert hours["cheapest"] == "bulk"
    assert offers(hours)["bulk"]["meets"] == "surely"
    instant = quote(house, *jobs, deadline="500ms")
    assert {one["meets"] for one in instant["offers"]} == {"no"}
    assert instant["cheapest"] is None
    at = (datetime.now(tz=UTC) + timedelta(hours=2)).isoformat()
    assert datetime.fromisoformat(quote(house, *jobs, deadline=at)["deadline"]) == datetime.fromisoformat(at)


def test_what_is_open_already_comes_before_it(house: House) -> None:
    jobs = [job() for _ in range(2000)]
    before = offers(quote(house, *jobs))["bulk"]["finish"]
    make.save_batch(house.store, house.tenant, 2000, window_s=60)
    after = offers(quote(house, *jobs))["bulk"]["finish"]
    assert after["low_s"] == before["low_s"]
    assert after["expected_s"] - before["expected_s"] == pytest.approx(before["expected_s"] - 1, rel=0.05)


def test_what_is_not_measured_and_who_does_not_serve_is_said(house: House, redis_url: str, catalog: Catalog) -> None:
    code = {"category": "code"}
    assert any("no profile for code" in note for note in quote(house, job(**code))["offers"][0]["notes"])
    with redis.Redis.from_url(redis_url) as client:
        for number, name in enumerate(catalog.deployments, start=9001):
            Metrics(client).publish_gauge(name, number, Gauge(capacity=0, in_flight=0, backlog=0))
    found = unserved(house)
    assert found["finish"] is None
    assert found["meets"] == "unknown"
    assert "short: no replica of it is serving" in found["notes"]


def unserved(house: House) -> dict[str, Any]:
    """The first offer as soon as the API has heard of it."""
    for _ in range(1000):
        found: dict[str, Any] = quote(house, job())["offers"][0]
        if found["finish"] is None:
            return found
    pytest.fail("the API never heard that nobody serves")


def test_requests_that_nothing_would_take_are_bad_lines(house: House) -> None:
    found = quote(house, job(), job("x" * 6000))
    assert found["lines"]["bad"] == 1
    [fault] = found["lines"]["faults"]
    assert (fault["line"], fault["param"]) == (2, "prompt")


# What it refuses


@pytest.mark.parametrize(
    ("lines", "params", "param", "number"),
    [
        (["{"], {}, None, 1),
        ([job(max_tokens=0), job(temperature=3)], {}, "max_tokens", 1),
        ([job()], {"tier": "none"}, "tier", None),
        ([job()], {"deadline": "yesterday"}, "deadline", None),
        ([job()], {"deadline": "2020-01-01T00:00:00Z"}, "deadline", None),
        ([job(tier="bulk")], {"tier": "batch"}, "tier", None),
        ([], {}, None, None),
    ],
)
def test_refusals_name_line_and_field(
    house: House, lines: list[Any], params: dict[str, str], param: str | None, number: int | None
) -> None:
    body = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    error = error_of(house.client.post("/v1/quotes", content=body, headers=NDJSON, params=params), 400)
    assert (error["param"], error.get("line")) == (param, number)


def test_a_file_that_is_no_batch_of_requests(house: House) -> None:
    error = error_of(house.client.post("/v1/quotes", json={"input_file_id": house.upload("{", "[]")}), 400)
    assert (error["param"], error["line"]) == ("input_file_id", 1)
    unknown = {"input_file_id": house.upload(line("a")), "deadlin": "6h"}
    assert error_of(house.client.post("/v1/quotes", json=unknown), 400)["param"] == "deadlin"


def test_lines_of_two_tiers_are_no_batch(house: House) -> None:
    found = quote(house, job(tier="bulk"), job(), job(tier="batch"))
    assert [(f["line"], f["param"]) for f in found["lines"]["faults"]] == [(3, "tier")]
    assert list(offers(found)) == ["bulk"]


def test_another_tenants_file_and_quote_are_not_found(house: House) -> None:
    file, mine = house.upload(line("a")), quote(house, job())["id"]
    keys.add_key(house.store, "ty_other", tenant="others", name="test")
    other = {"authorization": "Bearer ty_other"}
    error = error_of(house.client.post("/v1/quotes", json={"input_file_id": file}, headers=other), 404)
    assert error["param"] == "input_file_id"
    error_of(house.client.get(f"/v1/quotes/{mine}", headers=other), 404)
    assert house.client.get("/v1/quotes", headers=other).json() == {"data": [], "next": None}
    error_of(house.client.post("/v1/jobs", json=[job()], params={"quote_id": mine}, headers=other), 404)


def test_a_quote_needs_the_scope_of_batches(house: House) -> None:
    keys.add_key(house.store, "ty_reader", tenant="tests", name="reader", scopes=[Scope.READ])
    reader = {"authorization": "Bearer ty_reader"}
    error_of(house.client.post("/v1/quotes", json=[job()], headers=reader), 403)
    assert house.client.get("/v1/quotes", headers=reader).status_code == 200


def test_the_same_key_makes_one_quote(house: House) -> None:
    headers = {**KEY, "idempotency-key": "once"}
    ids = [house.client.post("/v1/quotes", json=[job()], headers=headers).json()["id"] for _ in range(2)]
    assert ids[0] == ids[1]
    assert make.count(house.store, "quote") == 1
    error_of(house.client.post("/v1/quotes", json=[job("Say bye.")], headers=headers), 409)


def test_quotes_are_listed_newest_first(house: House) -> None:
    ids = [quote(house, job())["id"] for _ in range(3)][::-1]
    first = house.client.get("/v1/quotes", params={"limit": 2}).json()
    assert [one["id"] for one in first["data"]] == ids[:2]
    rest = house.client.get("/v1/quotes", params={"after": first["next"]}).json()
    assert ([one["id"] for one in rest["data"]], rest["next"]) == (ids[2:], None)


def test_a_budget_is_held_against_what_it_would_reserve(house: House) -> None:
    jobs = [job() for _ in range(10)]
    set_budget(house.store, Wanted("tests", Decimal("1"), "day"))
    found = quote(house, *jobs)["budget"]
    # at the dearest that may take them: 23 prompt tokens and 16 of answer
    assert found == {"left_usd": "1", "reserves_usd": "0.00087", "covers": True}
    set_budget(house.store, Wanted("tests", Decimal("0.0008"), "month"))
    assert quote(house, *jobs)["budget"]["covers"] is False
    assert make.count(house.store, "reservation") == 0
