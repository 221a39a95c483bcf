"""What the API answers to requests in OpenAI's shapes that fit nowhere: OpenAI's code, and the parameter at fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.integration.test_api import error_of, serving
from tieryard.admission import Admission
from tieryard.catalog import Catalog
from tieryard.errors import RequestError
from tieryard.requests import CHAT, COMPLETIONS, EMBEDDINGS
from tieryard.settings import Settings
from tieryard.store import Store, keys

LONG = "word " * 5000
SAID = [{"role": "user", "content": "Hi."}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.fixture
def client(settings: Settings, tenant: int) -> Iterator[TestClient]:
    with serving(settings) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        (CHAT, {"messages": SAID, "max_tokens": 10_000}, "messages"),
        (COMPLETIONS, {"prompt": LONG}, "prompt"),
        ("/v1/jobs", {"prompt": LONG}, "prompt"),
        ("/v1/jobs", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
    ],
)
def test_too_long_for_all_is_openais_code(client: TestClient, path: str, asked: dict[str, Any], param: str) -> None:
    error = error_of(client.post(path, json={"model": "auto", **asked}), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)


def test_too_long_for_the_only_one_that_could_take_it(client: TestClient) -> None:
    """`long` would hold it, but has no JSON; pinned to `short`, nothing else is spoken of."""
    asked = {"messages": SAID, "max_tokens": 1000}
    structured = {**asked, "model": "auto", "response_format": {"type": "json_object"}}
    assert error_of(client.post(CHAT, json=structured), 400)["code"] == "context_length_exceeded"
    for model in ("short", "class:small"):
        error = error_of(client.post(CHAT, json={**asked, "model": model}), 400)
        assert error["code"] == "context_length_exceeded"
        assert f"'{model}'" in error["message"]
        assert "'long'" not in error["message"]
        assert "4096" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": TOOLS}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"model": "long", "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "tools"),
    ],
)
def test_what_no_deployment_can_do_is_named(client: TestClient, fields: dict[str, Any], param: str) -> None:
    error = error_of(client.post(CHAT, json={"model": "auto", "messages": SAID, **fields}), 400)
    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert "lacks" in error["message"]


@pytest.mark.parametrize("model", ["auto", "long", "class:small"])
def test_an_endpoint_that_is_not_served(client: TestClient, model: str) -> None:
    error = error_of(client.post(EMBEDDINGS, json={"model": model, "input": "Hi."}), 400)
    assert (error["code"], error["param"]) == ("invalid_request", "model")
    assert EMBEDDINGS in error["message"]


def test_a_batch_for_such_an_endpoint_can_be_refused_at_once(catalog: Catalog, cache_dir: Path) -> None:
    admission = Admission(catalog, cache_dir=cache_dir)
    admission.check_endpoint(CHAT)
    admission.check_endpoint(COMPLETIONS)
    with pytest.raises(RequestError, match="no deployment serves") as caught:
        admission.check_endpoint(EMBEDDINGS)
    assert caught.value.param == "endpoint"
    assert f"'{CHAT}', '{COMPLETIONS}'" in caught.value.message


def test_what_a_tenants_cap_will_never_hold(client: TestClient, store: Store) -> None:
    keys.cap_tenant(store, "tests", 1000)
    asked = [{"prompt": f"{n} " + "word " * 200} for n in range(2)]
    never = client.post("/v1/jobs", json=asked * 3)
    error = error_of(never, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "token_limit_exceeded")
    assert (
        "may have 1,000 enqueued and has 0: split it, or raise the cap with `tieryard tenants cap`" in error["message"]
    )
    assert (never.headers["x-should-retry"], "retry-after" in never.headers) == ("false", False)
    assert client.post("/v1/jobs", json=asked).status_code == 201
    later = client.post("/v1/jobs", json=asked * 2)
    assert "try again when some are done" in error_of(later, 429)["message"]
    assert (later.headers["retry-after"], "x-should-retry" in later.headers) == ("60", False)
