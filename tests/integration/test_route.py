"""Asking where a job would go, and what a tenant's policy lets it use: over the real API, Postgres and Valkey."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tests import factories as make
from tests.integration.test_api import KEY, error_of, serving
from tests.integration.test_cli import Run, run, url  # noqa: F401  # fixtures
from tests.integration.test_leaks import publish_engines
from tieryard.catalog import Catalog
from tieryard.settings import Settings
from tieryard.store import Store, keys
from workers.classify import Classifier
from workers.expand import expand_all
from workers.yard import Yard

CATALOG = """
version: 1
tiers:
  interactive: {slo: {max_latency_ms: 60000}, window: 5m}
  batch: {window: 24h}
categories: [extraction, classification, summarization, reasoning, code, chat]
deployments:
  short: &short
    model: test/short
    revision: "1"
    size_class: small
    engine: {kind: instant}
    context_limit: 600
    max_in_flight: 64
    tokenizer: utf8
    capabilities: [json_schema]
    quality: 0.5
    region: eu
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}
  long:
    <<: *short
    model: test/long
    size_class: large
    context_limit: 5000
    quality: 0.9
    region: us
    price: {input_usd_per_1m: 1.00, output_usd_per_1m: 4.00}
routing:
  classifier: rules
  policies:
    short-only: {models: [short]}
    europe: {regions: [eu]}
    thrifty: {max_cost_usd: "0.0001"}
    nobody-yet: {models: [long]}
"""
OTHERS = {name: {"authorization": f"Bearer ty_{name}"} for name in ("short-only", "europe", "thrifty")}
LONG = "word " * 300


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CATALOG)
    return path


@pytest.fixture
def live(redis_url: str, catalog: Catalog, store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both deployments serve; and three tenants have policies."""
    publish_engines(redis_url, catalog, monkeypatch)
    for name in OTHERS:
        keys.add_key(store, f"ty_{name}", tenant=name, name="test")


@pytest.fixture
def client(settings: Settings, live: None) -> Iterator[TestClient]:
    with serving(settings) as client:
        yield client


def ask(client: TestClient, who: dict[str, str] = KEY, **job: Any) -> dict[str, Any]:
    answer = client.post("/v1/route", json={"prompt": "Say hi.", **job}, headers=who)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def why(found: dict[str, Any], name: str) -> str:
    [candidate] = [c for c in found["candidates"] if c["name"] == name]
    return str(candidate["why"])


# POST /v1/route


def test_the_whole_decision_and_nothing_is_saved(client: TestClient, store: Store) -> None:
    tables = ("job", "line", "decision", "routing_snapshot", "ledger", "idempotency")
    before = {table: make.count(store, table) for table in tables}
    answer = client.post("/v1/route", json={"prompt": "Say hi.", "max_tokens": 10, "tier": "interactive"})
    assert answer.status_code == 200
    assert float(answer.headers["x-tieryard-routing-ms"]) > 0
    found = answer.json()
    assert found["deployment"] == "short"
    assert (found["fallback"], found["explored"], found["defer_s"]) == (False, False, 0)
    assert (found["classifier"], found["step_back"]) == ("rules", "")
    assert found["features"]["tier"] == "interactive"
    assert found["features"]["due_in_s"] == pytest.approx(300, abs=1)
    [short, long] = found["candidates"]
    assert (short["chosen"], short["why"], short["fits"], short["qualifies"]) == (True, "", True, True)
    assert (long["chosen"], long["fits"], long["qualifies"]) == (False, True, True)
    assert long["why"].startswith("expected cost $")
    assert short["expected_cost_usd"] == "0.0000063"  # 23 tokens with the template, and 10 of the answer
    assert (long["prompt_tokens"], long["output_tokens"]) == (23, 10)
    assert (short["quality"], long["quality"]) == (0.5, 0.9)
    assert (short["ttft_ms"], long["ttft_ms"]) == (300, 3000)  # as assumed, which the notes say
    assert short["latency_ms"] > short["ttft_ms"]
    assert short["score"] == pytest.approx(0.5)  # worst in quality (0.5), best in cost and latency (0.3 + 0.2)
    assert "short has no profile: taken for a usual small one" in found["notes"]
    assert {table: make.count(store, table) for table in tables} == before


def test_a_job_that_nothing_can_take_is_answered_with_what_keeps_it(client: TestClient) -> None:
    found = ask(client, prompt="x" * 10_000)
    assert found["deployment"] is None
    assert "exceed its context of 600" in why(found, "short")
    assert "exceed its context of 5000" in why(found, "long")
    assert [c["score"] for c in found["candidates"]] == [None, None]


def test_it_is_what_the_classifier_then_does(client: TestClient, yard: Yard, store: Store) -> None:
    classifier = Classifier(yard, yard.admission())
    for job in ({}, {"slo": {"min_quality": 0.8}}, {"slo": {"min_quality": {"share": 0.9, "of": "long"}}}):
        found = ask(client, **job)
        made = client.post("/v1/jobs", json={"prompt": "Say hi.", **job}).json()["id"]
        assert classifier.classify("batch", 0.0, [(int(made.removeprefix("job_")), 1)]) == 1
        [told] = client.get(f"/v1/jobs/{made}/story").json()["decisions"]
        assert told["deployment"] == found["deployment"] == ("long" if job else "short")
        same = (
            "reason",
            "fallback",
            "explored",
            "defer_s",
            "notes",
            "classifier",
            "step_back",
            "catalog",
            "candidates",
        )
        assert {n: told[n] for n in same} == {n: found[n] for n in same}


@pytest.mark.parametrize(
    ("job", "status", "param"),
    [
        ({"prompt": " "}, 400, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, None),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"tier": "none"}, 400, "tier"),
        ({"category": "none"}, 400, "category"),
        ({"model": "none"}, 404, "model"),
        ({"slo": {"max_ttft_ms": -1}}, 400, "slo.max_ttft_ms"),
        ({"slo": {"soon": True}}, 400, "slo.soon"),
        ({"slo": {"min_quality": {"share": 0.9, "of": "none"}}}, 400, "slo.min_quality.of"),
        ({"slo": {"deadline": "2020-01-01T00:00:00Z"}}, 400, "slo.deadline"),
        ({"max_cost_usd": -1}, 400, "max_cost_usd"),
        ({"unknown": 1}, 400, "unknown"),
    ],
)
def test_bad_input_is_refused_by_its_field(client: TestClient, job: dict[str, Any], status: int, param: str) -> None:
    answer = client.post("/v1/route", json={"prompt": "Say hi.", **job})
    assert error_of(answer, status)["param"] == param


def test_it_counts_against_the_keys_requests(client: TestClient, store: Store) -> None:
    keys.add_key(store, "ty_slow", tenant="tests", name="slow", requests_per_minute=2)
    slow = {"authorization": "Bearer ty_slow"}
    statuses = [client.post("/v1/route", json={"prompt": "x"}, headers=slow).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


# Policies


def test_the_decision_keeps_to_the_tenants_policy(client: TestClient) -> None:
    assert ask(client, prompt=LONG)["deployment"] == "long"
    found = ask(client, OTHERS["short-only"], prompt=LONG)
    assert found["deployment"] is None
    assert why(found, "long") == "is not among the models of 'short-only'"
    assert "which 'europe' does not use" in why(ask(client, OTHERS["europe"]), "long")
    assert "could cost" in why(ask(client, OTHERS["thrifty"], prompt=LONG), "long")


REFUSED = [
    ("short-only", {"model": "long"}, "model"),
    ("short-only", {"model": "class:large"}, "model"),
    ("short-only", {"prompt": LONG}, "prompt"),
    ("europe", {"model": "long"}, "model"),
    ("thrifty", {"prompt": LONG}, "max_tokens"),
    ("thrifty", {"prompt": "x", "max_tokens": 400, "max_cost_usd": 1}, "max_tokens"),
    ("thrifty", {"prompt": "x", "max_cost_usd": "0.00001"}, "max_cost_usd"),
    ("tests", {"prompt": "x", "max_cost_usd": "0.000001"}, "max_cost_usd"),
    ("tests", {"slo": {"min_quality": {"share": 0.9, "of": "none"}}}, "slo.min_quality.of"),
]


@pytest.mark.parametrize(("tenant_name", "job", "param"), REFUSED)
def test_what_a_policy_or_a_cap_does_not_allow_is_refused(
    client: TestClient, store: Store, tenant_name: str, job: dict[str, Any], param: str
) -> None:
    who = OTHERS.get(tenant_name, KEY)
    job = {"prompt": "Say hi.", **job}
    for sent in (job, [{"prompt": "fine", "max_tokens": 10}, job]):
        error = error_of(client.post("/v1/jobs", json=sent, headers=who), 400)
        assert error["param"] == param
        assert error.get("line") == (2 if isinstance(sent, list) else None)
    call = {"model": "auto", **job, "messages": [{"role": "user", "content": job["prompt"]}]}
    call["max_tokens"] = job.get("max_tokens", 256)
    del call["prompt"]
    error = error_of(client.post("/v1/chat/completions", json=call, headers=who), 400)
    assert error["param"] == {"prompt": "messages"}.get(param, param)
    assert make.count(store, "job") == 0


def test_a_batchs_lines_are_held_to_its_tenants_policy(client: TestClient, store: Store, yard: Yard) -> None:
    """Also where the policy came after the list was taken, or lines come as a file."""
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    bodies = [{"model": model, "messages": [{"role": "user", "content": "x"}]} for model in ("auto", "long")]
    text = "\n".join(json.dumps({**line, "custom_id": f"row-{n}", "body": body}) for n, body in enumerate(bodies))
    for who in (KEY, OTHERS["short-only"]):
        upload = client.post("/v1/files", files={"file": ("a.jsonl", text)}, data={"purpose": "batch"}, headers=who)
        asked = {"input_file_id": upload.json()["id"], "endpoint": line["url"], "completion_window": "24h"}
        assert client.post("/v1/batches", json={**asked, "tier": "batch"}, headers=who).status_code == 200
    expand_all(yard, yard.admission())
    rows = store.fetch(
        "SELECT tenant.name, job.line_no, job.state, result.error FROM job JOIN tenant ON tenant.id = job.tenant_id "
        "LEFT JOIN result ON result.job_id = job.id ORDER BY job.id"
    )
    assert [row[:3] for row in rows] == [
        ("tests", 1, "queued"),
        ("tests", 2, "queued"),
        ("short-only", 1, "queued"),
        ("short-only", 2, "failed"),
    ]
    assert "is not among the models of 'short-only'" in rows[3][3]


def test_models_are_those_that_the_tenant_may_use(client: TestClient) -> None:
    def names(who: dict[str, str]) -> list[str]:
        return [model["id"] for model in client.get("/v1/models", headers=who).json()["data"]]

    assert names(KEY) == ["auto", "class:large", "class:small", "short", "long"]
    assert names(OTHERS["short-only"]) == names(OTHERS["europe"]) == ["auto", "class:small", "short"]
    assert client.get("/v1/models/long").status_code == 200
    assert client.get("/v1/models/long", headers=OTHERS["europe"]).status_code == 404


# What is kept


def test_fallbacks_are_kept_with_their_decision(client: TestClient, yard: Yard, store: Store) -> None:
    classifier = Classifier(yard, yard.admission())
    for slo in ({}, {"max_latency_ms": 1}):
        made = client.post("/v1/jobs", json={"prompt": "Say hi.", "slo": slo}).json()["id"]
        classifier.classify("batch", 0.0, [(int(made.removeprefix("job_")), 1)])
    assert store.fetch("SELECT fallback, explored, deferred FROM decision ORDER BY job_id") == [
        (False, False, False),
        (True, False, False),
    ]
    [told] = client.get(f"/v1/jobs/{made}/story").json()["decisions"]
    assert told["fallback"]
    call = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    for slo in ({}, {"max_latency_ms": 1}):
        assert client.post("/v1/chat/completions", json={**call, "slo": slo}).status_code == 200
    calls = store.fetch("SELECT fallback FROM decision WHERE fence = 0 ORDER BY job_id DESC LIMIT 2")
    assert calls == [(True,), (False,)]


# tieryard route


def test_ask_on_the_command_line(run: Run, live: None, url: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("COLUMNS", "100")
    ran = run("route", "Say hi.", "--max-tokens", "10", "--slo", "min_quality=0.8", "--url", url)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("would go to long\nbecause ")
    assert "below 0.80 (min_quality)" in " ".join(ran.out.split())
    assert "– long has no profile: taken for a usual large one" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100
    same = run("route", "ask", "Say hi.", "--slo", '{"min_quality": 0.8}', "--json", "--url", url)
    assert json.loads(same.out)["deployment"] == "long"
    by_option_first = run("route", "--model", "short", "Say hi.", "--url", url)
    assert by_option_first.out.startswith("would go to short\nbecause pinned to short")


def test_what_is_wrong_is_said_in_a_line(run: Run, live: None, url: str) -> None:  # noqa: F811
    ran = run("route", "Say hi.", "--slo", "min_quality.of=none", "--slo", "min_quality.share=1", "--url", url)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("tieryard: slo.min_quality.of: 'none' is not a deployment")
    assert run("route", "Say hi.", "--slo", "soon", "--url", url).code == 2
    assert run("route", "Say hi.", "--max-cost-usd", "much", "--url", url).code == 2


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_a_jobs_story_shows_every_candidates_figures(
    run: Run,  # noqa: F811
    url: str,  # noqa: F811
    live: None,
    yard: Yard,
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    asked = {"prompt": "Say hi.", "slo": {"max_latency_ms": 1}}
    made = httpx.post(f"{url}/v1/jobs", json=asked, headers=KEY).json()["id"]
    Classifier(yard, yard.admission()).classify("batch", 0.0, [(int(made.removeprefix("job_")), 1)])
    ran = run("jobs", "show", made, "--url", url)
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= columns
    words = ran.out.split()
    assert {"TTFT", "latency", "quality", "score", "chosen", "0.50", "0.90", "23+256"} <= set(words)
    assert "an SLO fallback: none qualifies" in ran.out
    assert ("long: takes" in ran.out) == (columns < 130)
    assert "short has no profile" in ran.out
