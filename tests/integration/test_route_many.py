"""Asking where many jobs would go, a line each: the same decisions as one by one, and nothing is saved."""

# ruff: noqa: F811  # fixtures that are imported

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.route import MOST_LINES
from tests import factories as make
from tests.integration.test_api import error_of
from tests.integration.test_route import LONG, OTHERS, ask, catalog_path, client, live, why  # noqa: F401  # fixtures
from tieryard.store import Store

NDJSON = {"content-type": "application/x-ndjson"}


def ask_all(client: TestClient, *lines: Any, who: dict[str, str] | None = None) -> list[dict[str, Any]]:
    body = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    answer = client.post("/v1/route", content=body, headers=NDJSON | (who or {}))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert float(answer.headers["x-tieryard-routing-ms"]) > 0
    return [json.loads(line) for line in answer.text.splitlines()]


def test_many_are_decided_as_one_by_one_and_nothing_is_saved(client: TestClient, store: Store) -> None:
    tables = ("job", "line", "decision", "routing_snapshot", "ledger", "idempotency")
    before = {table: make.count(store, table) for table in tables}
    jobs = [{"prompt": "Say hi.", "max_tokens": 10}, {"prompt": LONG}, {"prompt": "Say hi.", "model": "long"}]
    found = ask_all(client, *jobs)
    assert [one["deployment"] for one in found] == ["short", "long", "long"]
    for line, job, one in zip((1, 2, 3), jobs, found, strict=True):
        alone = ask(client, **job)
        [chosen] = [c for c in alone["candidates"] if c["chosen"]]
        same = ("prompt_tokens", "output_tokens", "expected_cost_usd", "ttft_ms", "latency_ms", "quality")
        assert {name: one[name] for name in same} == {name: chosen[name] for name in same}
        assert (one["line"], one["error"], one["fallback"]) == (line, None, alone["fallback"])
        assert one["reason"] == alone["reason"]
    assert found[0]["expected_cost_usd"] == "0.0000063"
    assert {table: make.count(store, table) for table in tables} == before


def test_a_line_that_is_no_job_is_told_in_its_place(client: TestClient) -> None:
    good = {"prompt": "Say hi."}
    found = ask_all(client, good, "{", "", {"prompt": "x", "model": "none"}, {"max_tokens": 3}, "\ufeff", good)
    assert [one["line"] for one in found] == [1, 2, 4, 5, 6, 7]
    assert [one["deployment"] for one in found] == ["short", None, None, None, None, "short"]
    assert [one["error"]["param"] if one["error"] else None for one in found] == [None, None, "model", None, None, None]
    assert "'none' is not served" in found[2]["error"]["message"]
    assert all(one["error"] for one in found[1:5])


def test_what_nothing_can_take_is_answered(client: TestClient) -> None:
    [one] = ask_all(client, {"prompt": "word " * 3000})
    assert (one["deployment"], one["error"], one["expected_cost_usd"]) == (None, None, None)
    assert "context" in one["reason"] or "tokens" in one["reason"]


def test_lines_of_openais_batches_are_jobs_too(client: TestClient) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": 'Say "url".'}], "max_tokens": 4}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    found = ask_all(client, line, {**line, "url": "/v1/none"}, {"url": "/v1/chat/completions"}, {"prompt": 'Say "url"'})
    assert [one["deployment"] for one in found] == ["short", None, None, "short"]
    assert [one["error"] is None for one in found] == [True, False, False, True]


def test_a_tenants_policy_holds(client: TestClient) -> None:
    [one] = ask_all(client, {"prompt": LONG}, who=OTHERS["short-only"])
    assert one["deployment"] is None


@pytest.mark.parametrize(
    ("body", "said"),
    [(b" \n\n", "expected at least one job"), (b'{"prompt": "x"}\n' * (MOST_LINES + 1), "at most 1000")],
)
def test_none_and_too_many_are_refused(client: TestClient, body: bytes, said: str) -> None:
    answer = client.post("/v1/route", content=body, headers=NDJSON)
    assert said in error_of(answer, 400)["message"]


def test_one_job_is_answered_whole_as_before(client: TestClient) -> None:
    assert why(ask(client), "short") == ""
