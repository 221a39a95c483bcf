"""Engines of hosted APIs: whose key they send, which figures they ask for, and what they make of a provider's words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tieryard.catalog import Catalog, parse_catalog
from tieryard.engines import Done, Recording, record
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.engines.opening import missing_key, open_engine, open_replica
from tieryard.engines.vllm_server import VllmServerEngine
from tieryard.errors import EngineBusyError, EngineDownError
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan

CATALOG = """
version: 1
tiers: {batch: {}}
categories: [chat]
deployments:
  vendor:
    model: vendor/model
    revision: "1"
    size_class: small
    engine: {kind: openai_http, url: "http://127.0.0.1:9", server: openai, key_env: VENDOR_KEY}
    context_limit: 512
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 1, output_usd_per_1m: 2}
  plain:
    model: vendor/other
    revision: "1"
    size_class: small
    engine: {kind: openai_http, url: "http://127.0.0.1:10", server: openai}
    context_limit: 512
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 1, output_usd_per_1m: 2}
  own:
    model: org/model
    revision: abc
    size_class: small
    engine: {kind: vllm_server}
    context_limit: 512
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 1, output_usd_per_1m: 2}
"""
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture
def catalog() -> Catalog:
    return parse_catalog(CATALOG)


def authorization(engine: Any) -> str | None:
    found: str | None = engine._headers.get("authorization")
    return found


def test_each_deployment_has_the_key_that_its_catalog_names(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VENDOR_KEY", "sk-vendor\n")
    opened = {name: open_engine(catalog, name, key="sk-fleet", cache_dir=tmp_path) for name in ("vendor", "plain")}
    assert authorization(opened["vendor"]) == "Bearer sk-vendor"
    assert authorization(opened["plain"]) == "Bearer sk-fleet"
    assert authorization(open_replica(catalog, "vendor", "http://127.0.0.1:9", key="sk-fleet")) == "Bearer sk-vendor"
    assert authorization(open_replica(catalog, "vendor", "http://127.0.0.1:66", key="sk-fleet")) is None
    assert missing_key(catalog, "vendor") == missing_key(catalog, "plain") == missing_key(catalog, "own") == ""


@pytest.mark.parametrize(("value", "said"), [(None, "set the environment variable VENDOR_KEY"), ("a b", "VENDOR_KEY")])
async def test_without_its_key_an_engine_neither_starts_nor_asks(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None, said: str
) -> None:
    monkeypatch.delenv("VENDOR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("VENDOR_KEY", value)
    engine = open_engine(catalog, "vendor", key="sk-fleet", cache_dir=tmp_path)
    assert authorization(engine) is None, "another key is not sent in its place"
    for ask in (engine.start(), record(engine, ASKED, Recording())):
        with pytest.raises(EngineDownError, match="the key of 'vendor'") as raised:
            await ask
        assert said in raised.value.message
        assert not raised.value.sent
        assert "a b" not in raised.value.message
    assert "'vendor'" in missing_key(catalog, "vendor")


def test_a_vllm_of_ours_sees_no_key_of_another_engine(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VENDOR_KEY", "sk-vendor")
    monkeypatch.setenv("HF_TOKEN", "kept")
    engine = open_engine(catalog, "own", cache_dir=tmp_path)
    assert isinstance(engine, VllmServerEngine)
    assert "VENDOR_KEY" not in engine._environment
    assert engine._environment["HF_TOKEN"] == "kept"


def answering(engine: OpenAIHttpEngine, handler: Any) -> OpenAIHttpEngine:
    engine._client = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return engine


@pytest.mark.parametrize(
    ("url", "server", "limit", "options"),
    [
        ("https://api.openai.com", "openai", "max_completion_tokens", True),
        ("https://ours.openai.azure.com/openai", "openai", "max_completion_tokens", True),
        ("https://api.example.com", "openai", "max_tokens", True),
        ("https://api.mistral.ai", "mistral", "max_tokens", False),
    ],
)
async def test_a_provider_is_asked_in_its_own_words(url: str, server: str, limit: str, options: bool) -> None:
    seen: list[dict[str, Any]] = []
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    chunk = {"model": "dated", "usage": usage, "choices": [{"delta": {"content": "ok"}, "finish_reason": "stop"}]}

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(orjson.loads(request.content))
        return httpx.Response(200, content=b"data: " + orjson.dumps(chunk) + b"\n\ndata: [DONE]\n\n")

    engine = answering(OpenAIHttpEngine(url, model="m", server=server), handler)
    recording = Recording()
    await record(engine, {**ASKED, "cache_salt": "00"}, recording)
    [body] = seen
    assert body[limit] == 4
    assert len(body.keys() & {"max_tokens", "max_completion_tokens"}) == 1
    assert ("stream_options" in body) == options
    assert "cache_salt" not in body
    assert isinstance(recording.done, Done)
    assert recording.done.model == "dated"
    await engine.close()


@pytest.mark.parametrize(
    ("models", "completions", "well"),
    [(200, 500, True), (404, 500, True), (429, 500, True), (401, 400, True), (401, 401, False), (500, 200, False)],
)
async def test_an_api_is_well_unless_it_fails_or_refuses_the_key(models: int, completions: int, well: bool) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(models if request.url.path == "/v1/models" else completions, json={})

    engine = answering(OpenAIHttpEngine("https://api.example.com", model="m", server="openai", key="k"), handler)
    assert await engine.healthy() == well
    await engine.close()


async def test_an_account_without_money_is_no_rate_limit() -> None:
    error = {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
    engine = answering(
        OpenAIHttpEngine("https://api.example.com", model="m", server="openai"),
        lambda _: httpx.Response(429, json={"error": error}),
    )
    with pytest.raises(EngineDownError) as raised:
        await record(engine, ASKED, Recording())
    assert not raised.value.sent
    await engine.close()


@pytest.mark.parametrize(("value", "expected"), [("1250", 1.25), ("soon", 2.0)])
async def test_the_exact_wait_is_taken_where_it_is_given(value: str, expected: float) -> None:
    headers = {"retry-after": "2", "retry-after-ms": value}
    engine = answering(
        OpenAIHttpEngine("https://api.example.com", model="m", server="openai"),
        lambda _: httpx.Response(429, headers=headers),
    )
    with pytest.raises(EngineBusyError) as raised:
        await record(engine, ASKED, Recording())
    assert raised.value.retry_after_s == expected
    await engine.close()


async def test_the_fake_keeps_to_its_limits_as_a_provider_does() -> None:
    async with FakeVllm(FakePlan(requests_per_minute=3, tokens_per_minute=30, length=4)) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake", server="openai")
        for _ in range(3):  # 5 of the prompt, 4 of the answer
            await record(engine, ASKED, Recording())
        with pytest.raises(EngineBusyError) as raised:
            await record(engine, ASKED, Recording())
        assert 58 <= (raised.value.retry_after_s or 0) <= 60
        assert (fake.state.finished, fake.state.limited) == (3, 1)
        await engine.close()
    async with FakeVllm(FakePlan(tokens_per_minute=20, window_s=0.05, length=4, says_when=False)) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake", server="openai")
        recordings = [Recording() for _ in range(3)]
        done = await asyncio.gather(*(record(engine, ASKED, r) for r in recordings), return_exceptions=True)
        [refused] = [error for error in done if error is not None]
        assert isinstance(refused, EngineBusyError)
        assert refused.retry_after_s is None
        await engine.close()
