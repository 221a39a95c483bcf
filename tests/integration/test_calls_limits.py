"""Calls at the edges of what there is: full and hung engines, limits of keys, bodies and lines, and what is said of
it all."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import structlog

from api import replies
from api.slots import Slots
from tests import factories as make
from tests.conftest import eventually
from tests.gateway import KEY, Engines, Gateway, asked, gateway
from tieryard import rates
from tieryard.engines import openai_http, sse
from tieryard.errors import EngineDownError
from tieryard.settings import Settings
from tieryard.store import Store
from tieryard.testing.fault_plan import Fault


@pytest.fixture
def reticent(quick: Settings, fakes: Engines, store: Store, tenant: int) -> Iterator[Gateway]:
    """Engines that say only in the end what they used."""
    quick.catalog.write_text(quick.catalog.read_text().replace("server: vllm", "server: openai"))
    with gateway(quick, fakes, store) as found:
        yield found


def error_of(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    message: str = error["message"]
    return message


def one_slot(gate: Gateway) -> None:
    gate.engines.publish("cheap", capacity=1)
    gate.engines.withdraw("dear")
    gate.seen()


# Room


def test_a_full_deployment_is_passed_over_while_another_has_room(gate: Gateway) -> None:
    gate.engines.publish("cheap", capacity=1)
    gate.seen()
    gate.engines.plan("cheap", ttft_ms=1500)
    with ThreadPoolExecutor(3) as pool:
        answers = [a.result(20) for a in [pool.submit(gate.chat) for _ in range(3)]]
    assert sorted(a.json()["model"] for a in answers) == ["cheap", "dear", "dear"]
    for answer in answers:
        assert answer.headers["x-selected-model"] == answer.json()["model"]
        assert float(answer.headers["x-tieryard-queue-ms"]) < 1000
    job = next(a.headers["x-tieryard-job"] for a in answers if a.json()["model"] == "dear")
    story = gate.client.get(f"/v1/jobs/{job}/story").json()
    [cheap] = [c for c in story["decisions"][0]["candidates"] if c["name"] == "cheap"]
    assert (cheap["qualifies"], cheap["why"]) == (False, "every slot of it is taken")


def test_a_call_that_moves_on_passes_over_what_is_full(gate: Gateway) -> None:
    """With nobody else free it waits where there is a place, and says in the end why it got no answer."""
    gate.engines.publish("dear", capacity=1)
    gate.seen()
    gate.engines.plan("cheap", lambda _, prompt: Fault("reset") if "Say" in prompt else None)
    gate.engines.plan("dear", ttft_ms=3000)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gate.chat, model="dear")
        gate.until("running")
        assert "cheap stopped answering" in error_of(gate.chat(tier="hasty"), 503, "engine_down")
        assert running.result(20).status_code == 200


def test_the_most_urgent_tier_is_next(gate: Gateway) -> None:
    one_slot(gate)
    gate.engines.plan("cheap", ttft_ms=400)
    waiting = gate.app.state.tieryard.calls.slots._waiting
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(gate.chat)
        gate.until("running")
        others = [pool.submit(gate.chat) for _ in range(4)]
        eventually(lambda: len(waiting["cheap"]) == 4, what="four to wait")
        urgent = gate.chat(tier="realtime")
        assert urgent.status_code == 200, urgent.text
        assert {a.result(20).status_code for a in (first, *others)} == {200}
    assert [tier for (tier,) in gate.rows("job", "tier", "claimed_at")][:2] == ["interactive", "realtime"]


def test_one_who_can_use_nothing_that_is_free_holds_nobody_up(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose engine failed waits for another replica; those that come later may have the one it left."""
    gate.engines.publish("cheap", worker_id=9011, url=gate.engines.dear.url, capacity=1)
    gate.engines.publish("cheap", capacity=1, in_flight=1)  # the less roomy one
    gate.engines.withdraw("dear")
    gate.seen()
    gate.engines.plan("cheap", ttft_ms=2000)
    gate.engines.plan("dear", lambda _, prompt: Fault("reset") if "odd" in prompt else None)
    waiting = gate.app.state.tieryard.calls.slots._waiting
    with ThreadPoolExecutor(3) as pool:
        kept = pool.submit(gate.chat, "[[fault:stall:1]]")  # on 9011
        gate.until("running")
        slow = pool.submit(gate.chat)
        kept.result(10)
        monkeypatch.setattr(Slots, "refresh", unchanged)  # nobody is let in by a new snapshot
        failing = pool.submit(gate.chat, "odd")
        eventually(lambda: waiting["cheap"], what="it to wait for the other replica")
        assert gate.chat("even").status_code == 200
        assert not failing.done()
        assert waiting["cheap"]
        assert slow.result(10).status_code == failing.result(10).status_code == 200


async def unchanged(_: Slots) -> None:
    pass


# Engines that hang


@pytest.mark.parametrize("streamed", [False, True])
def test_an_engine_that_hangs_is_left_in_the_tiers_time(gate: Gateway, streamed: bool) -> None:
    gate.engines.plan("cheap", ttft_ms=60_000)
    started = time.monotonic()
    if streamed:
        assert gate.stream(tier="hasty").said
    else:
        assert gate.chat(tier="hasty").json()["model"] == "dear"
    assert 0.6 < time.monotonic() - started < 3
    gate.until("succeeded")
    assert gate.rows("timing", "outcome, deployment") == [("rerouted", "cheap"), ("succeeded", "dear")]
    eventually(lambda: gate.engines.cheap.state.aborted == 1, what="the engine's request to be aborted")


def test_a_late_answer_is_better_than_none(gate: Gateway) -> None:
    gate.engines.withdraw("dear")
    gate.seen()
    gate.engines.plan("cheap", ttft_ms=1500)
    assert gate.chat(tier="hasty").status_code == 200
    gate.until("succeeded")
    assert make.count(gate.store, "timing") == 1


def test_only_the_first_event_is_awaited_so(gate: Gateway) -> None:
    assert gate.chat("[[fault:stall:1]]", tier="hasty").json()["model"] == "cheap"


# What is said of engines


def test_no_engines_address_reaches_a_caller(gate: Gateway) -> None:
    gate.engines.withdraw("dear")
    gate.engines.publish("cheap", url="http://127.0.0.1:9")
    gate.seen()
    answer = gate.chat()
    assert error_of(answer, 503, "engine_down") == "cheap stopped answering; try again"
    assert gate.stream().data[-1]["error"]["message"] == "cheap stopped answering; try again"
    gate.until("failed")
    assert set(gate.rows("result", "error", "job_id")) == {("cheap stopped answering; try again",)}
    job = gate.client.get("/v1/jobs").json()["data"][0]["id"]
    assert "127.0.0.1" not in gate.client.get(f"/v1/jobs/{job}/story").text


def test_an_engine_that_is_full_is_not_quoted_and_one_that_refuses_is(gate: Gateway) -> None:
    answer = gate.chat("[[fault:http_503:7]]")
    assert error_of(answer, 503, "engine_busy") == "dear is full; try again"
    assert answer.headers["retry-after"] == "7"
    assert error_of(gate.chat("[[fault:http_400]]"), 400, "bad_request") == "fault: HTTP 400"


# Limits


def test_tokens_beyond_the_reservation_are_charged_when_it_ends(gate: Gateway) -> None:
    gate.store.fetch("UPDATE api_key SET tokens_per_minute = 1000 RETURNING id")
    gate.engines.plan("cheap", length=5000, packing=64)
    body = {"model": "auto", "messages": [{"role": "user", "content": "On and on."}]}
    answer = gate.client.post("/v1/chat/completions", json=body)
    assert answer.json()["usage"]["completion_tokens"] == 5000
    said = gate.app.state.tieryard.rates._storage

    def used() -> int:
        [[key]] = gate.store.fetch("SELECT id FROM api_key")
        return rates._Window(*said.get_sliding_window(f"{key}:tokens", 60)).used

    usage = answer.json()["usage"]
    eventually(lambda: used() == usage["prompt_tokens"] + 5000, what="the charge")
    error_of(gate.chat(), 429, "rate_limit_exceeded")


def test_more_than_was_used_is_not_given_back(gate: Gateway) -> None:
    gate.store.fetch("UPDATE api_key SET tokens_per_minute = 1000 RETURNING id")
    before = int(gate.chat(max_tokens=8).headers["x-ratelimit-remaining-tokens"])
    assert int(gate.chat(max_tokens=8).headers["x-ratelimit-remaining-tokens"]) < before


def test_a_call_has_a_smaller_body_than_a_list(gate: Gateway) -> None:
    large = asked("x" * (8 * 2**20))
    for path in ("chat/completions", "completions", "embeddings"):
        error_of(gate.client.post(f"/v1/{path}", json=large), 413, "body_too_large")
    assert gate.client.post("/v1/jobs", json={"prompt": "x" * (9 * 2**20)}).json()["error"]["code"] != "body_too_large"


def test_so_many_messages_are_too_many(gate: Gateway) -> None:
    message = {"role": "user", "content": "."}
    assert gate.chat(messages=[message] * 2048).status_code == 200
    assert "2048" in error_of(gate.chat(messages=[message] * 2049), 400, "invalid_request")


@pytest.mark.parametrize("path", ["chat/completions", "jobs"])
def test_who_leaves_while_sending_a_body_is_no_fault_of_ours(gate: Gateway, path: str) -> None:
    head = f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 1000\r\n\r\n"
    with structlog.testing.capture_logs() as logs:
        with socket.create_connection(("127.0.0.1", int(gate.url.rpartition(":")[2]))) as leaving:
            leaving.sendall(head.encode() + b'{"model"')
            time.sleep(0.2)
        time.sleep(0.2)
        assert gate.chat().status_code == 200
    assert [line for line in logs if line["log_level"] == "error"] == []


# What is billed


def test_who_leaves_an_engine_that_has_not_said_what_it_used_pays_for_the_prompt(reticent: Gateway) -> None:
    body = asked("[[fault:stall]]" + "x" * 100, stream=True)
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{reticent.url}/v1/chat/completions", json=body, headers=headers) as answer:
        pieces = (line for line in answer.iter_lines() if '"content":"' in line and '"content":""' not in line)
        next(pieces), next(pieces)  # it stalls after two
    reticent.until("cancelled")
    [[features]] = reticent.rows("decision", "features")
    [[prompt, completion]] = reticent.rows("ledger", "prompt_tokens, completion_tokens")
    assert (prompt, completion) == (features["prompt_tokens"]["utf8"], 2)
    assert prompt > 100


def test_who_leaves_before_the_first_token_does_not(reticent: Gateway) -> None:
    reticent.engines.plan("cheap", ttft_ms=60_000)
    with pytest.raises(httpx.ReadTimeout):
        reticent.client.post("/v1/chat/completions", json=asked(), timeout=0.3)
    reticent.until("cancelled")
    assert make.count(reticent.store, "ledger") == 0


# Sizes


def test_large_embeddings_are_read_and_written_vector_by_vector(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """orjson holds the interpreter's lock: what it does at once stops all other calls, also from a thread."""
    read: list[int] = []
    loads = openai_http.orjson.loads

    def noted(data: Any) -> Any:
        read.append(len(data))
        return loads(data)

    monkeypatch.setattr(openai_http.orjson, "loads", noted)
    found = openai_http._read_vectors(
        b'{"data": [' + b",".join(b'{"index": %d, "embedding": [%d, -2.5e-1]}' % (i, i) for i in range(1000)) + b"]}"
    )
    assert [row["embedding"] for row in found["data"]] == [[i, -0.25] for i in range(1000)]
    assert max(read[1:]) < 20
    assert (
        openai_http._read_vectors(b'{"data": [{"index": 0, "embedding": [0.1, oops]}]}')["data"][0]["embedding"] is None
    )
    assert openai_http._read_vectors(b"nothing of the kind") == {}
    monkeypatch.setattr(replies, "_LARGE_NUMBERS", 1)
    for form in ("float", "base64"):
        body = {"model": "auto", "input": ["a", "bc"], "encoding_format": form}
        vectors = [item["embedding"] for item in gate.client.post("/v1/embeddings", json=body).json()["data"]]
        assert vectors[0][0] == 1.0 if form == "float" else vectors[0].startswith("AACAPw")


async def parts(*given: bytes) -> AsyncIterator[bytes]:
    for part in given:
        yield part


async def test_a_line_in_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_LONGEST_LINE", 8)

    async def lines(*given: bytes) -> list[bytes]:
        return [line async for line in sse._lines(httpx.Response(200, content=parts(*given)))]

    assert await lines(b"a", b"b\nc", b"\n", b"\n\nd", b"e") == [b"ab", b"c", b"", b"", b"de"]
    assert await lines(b"12345678\n12345678\n", b"12345678") == [b"12345678"] * 3
    with pytest.raises(EngineDownError, match="more than 8 bytes"):
        await lines(b"a\n", *[b"1"] * 9)


# Names


def test_every_answer_has_an_id(gate: Gateway) -> None:
    answer = gate.chat()
    assert answer.headers["x-request-id"] == answer.headers["x-tieryard-job"]
    events = gate.stream()
    assert events.answer.headers["x-request-id"] == events.answer.headers["x-tieryard-job"]
    others = [gate.client.get("/healthz"), gate.client.get("/v1/none"), httpx.get(f"{gate.url}/v1/models")]
    ids = {a.headers["x-request-id"] for a in others}
    assert len(ids) == 3
    with openai.OpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0) as client:
        whole = client.embeddings.create(model="vectors", input="abc")
        assert whole._request_id.startswith("job_")
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("none")
        assert missing.value.request_id
