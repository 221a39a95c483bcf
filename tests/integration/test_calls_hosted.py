"""Calls to hosted APIs: within their limits, after their refusals, with their keys; what breakers learn of calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.gateway import Engines, Gateway, catalog_of, gateway
from tieryard.catalog import load_catalog
from tieryard.metrics import Metrics
from tieryard.settings import Settings
from tieryard.store import Store
from tieryard.testing.fault_plan import Fault

KEY = "sk-of-the-vendor"


def hosted(settings: Settings, fakes: Engines, tmp_path: Path, fields: str) -> Settings:
    """`cheap` is an API with these limits, and a key of its own."""
    path = catalog_of(fakes, tmp_path)
    before = f'url: "{fakes.cheap.url}", server: vllm'
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, f'url: "{fakes.cheap.url}", server: openai, key_env: VENDOR_KEY{fields}'))
    fakes.plan("cheap", key=KEY)
    return settings.model_copy(update={"catalog": path, "keepalive_s": 0.1, "drain_s": 2.0})


@pytest.fixture
def limits() -> str:
    return ", limits: {requests_per_minute: 3}"


@pytest.fixture
def gate(
    settings: Settings, fakes: Engines, store: Store, tenant: int, tmp_path: Path, limits: str, key: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Gateway]:  # fmt: skip
    if key is None:
        monkeypatch.delenv("VENDOR_KEY", raising=False)
    else:
        monkeypatch.setenv("VENDOR_KEY", key)
    with gateway(hosted(settings, fakes, tmp_path, limits), fakes, store) as found:
        yield found


@pytest.fixture
def key() -> str | None:
    return KEY


def test_calls_beyond_the_limit_go_elsewhere(gate: Gateway) -> None:
    answers = [gate.chat(f"Say {n}.") for n in range(5)]
    assert [a.status_code for a in answers] == [200] * 5
    assert [a.headers["x-selected-model"] for a in answers] == ["cheap"] * 3 + ["dear"] * 2
    assert (gate.engines.cheap.state.requests, gate.engines.cheap.state.limited) == (3, 0)


def test_a_call_that_names_the_api_is_told_when_to_come_back(gate: Gateway) -> None:
    assert [gate.chat(model="cheap").status_code for _ in range(3)] == [200] * 3
    refused = gate.chat(model="cheap")
    assert refused.status_code == 503
    assert 50 <= int(refused.headers["retry-after"]) <= 62
    assert gate.engines.cheap.state.requests == 3
    assert gate.rows("job", "count(*)", "1") == [(3,)], "nothing is saved of a call that never started"


@pytest.mark.parametrize("limits", [""])
def test_a_refusal_moves_the_call_and_keeps_the_next_ones_away(gate: Gateway) -> None:
    gate.engines.plan("cheap", {1: Fault("http_429", 40)}, key=KEY)
    moved = gate.chat()
    assert (moved.status_code, moved.headers["x-selected-model"]) == (200, "dear")
    board = gate.app.state.tieryard.calls
    quota = board.providers.quota("cheap")
    eventually(lambda: not quota.owes, what="the refusal to be told")
    refused = gate.chat(model="cheap")
    assert refused.status_code == 503
    assert 30 <= int(refused.headers["retry-after"]) <= 40
    assert gate.engines.cheap.state.requests == 1
    assert gate.chat().headers["x-selected-model"] == "dear"


@pytest.mark.parametrize("key", [None])
def test_without_its_key_an_api_is_passed_over(gate: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate.chat().headers["x-selected-model"] == "dear"
    refused = gate.chat(model="cheap")
    assert (refused.status_code, gate.engines.cheap.state.requests) == (503, 0)
    assert "the API has no key for it" in refused.json()["error"]["message"]
    assert "VENDOR_KEY" not in refused.text


@pytest.mark.parametrize("limits", [""])
def test_failed_calls_open_the_breaker(gate: Gateway, settings: Settings, tmp_path: Path) -> None:
    gate.engines.plan("cheap", lambda *_: Fault("http_500"), key=KEY)
    metrics, catalog = Metrics(gate.engines.gauges), load_catalog(tmp_path / "tieryard.yaml")
    for _ in range(5):
        assert gate.chat(tier="interactive").headers["x-selected-model"] == "dear"
    eventually(
        lambda: (
            metrics.read(catalog).gauges["cheap"].broken == "its circuit breaker is open: 5 of 5 starts failed in 30 s"
        ),
        what="it to open",
    )
    asked = gate.engines.cheap.state.requests
    gate.seen()
    assert gate.chat().headers["x-selected-model"] == "dear"
    assert gate.engines.cheap.state.requests == asked
