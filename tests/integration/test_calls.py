"""Calls whose caller waits, over a real server, real stores and fake engines: what they answer, and what is kept."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import redis

import api.calling
from api.refusals import Refusal
from tests import factories as make
from tests.conftest import eventually
from tests.gateway import REPLICAS, Gateway, asked
from tieryard.errors import JobFailedError, LeaseLostError, StoreError
from tieryard.metrics import Metrics
from tieryard.store import Store, calls, rescue
from tieryard.store.calls import Choice, FailedStart, NewCall
from tieryard.store.jobs import Claimed
from tieryard.testing.fault_plan import Fault


def error_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["code"] == code
    return error


# Answers


def test_a_whole_answer_and_what_is_kept_of_it(gate: Gateway) -> None:
    answer = gate.chat(max_tokens=4)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    job = answer.headers["x-tieryard-job"]
    assert (body["object"], body["model"], body["id"]) == ("chat.completion", "cheap", f"chatcmpl-{job}")
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["usage"]["completion_tokens"] == 4
    assert answer.headers["x-selected-model"] == "cheap"
    assert float(answer.headers["x-tieryard-queue-ms"]) >= 0
    assert float(answer.headers["x-tieryard-routing-ms"]) > 0
    gate.until("succeeded")
    assert gate.job("tier, attended, fence, deployment") == ("interactive", True, 1, "cheap")
    assert gate.rows("timing", "outcome, completion_tokens, revision") == [("succeeded", 4, "test/cheap@1")]
    assert gate.rows("decision", "fence, deployment") == [(0, "cheap")]
    [(cost,)] = gate.rows("ledger", "cost_usd > 0")
    assert cost
    shown = gate.client.get(f"/v1/jobs/{job}").json()
    assert (shown["state"], shown["output"]) == ("succeeded", body["choices"][0]["message"]["content"])
    assert shown["timings"]["wait_ms"] > 0


def test_a_stream(gate: Gateway) -> None:
    events = gate.stream(max_tokens=4, stream_options={"include_usage": True})
    assert events.answer.headers["content-type"].startswith("text/event-stream")
    assert events.text.startswith(": ")
    assert events.data[-1] == "[DONE]"
    first, *_, last, usage = events.chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "length"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)
    assert {c["id"] for c in events.chunks} == {f"chatcmpl-{events.answer.headers['x-tieryard-job']}"}
    gate.until("succeeded")
    assert gate.rows("result", "output", "job_id") == [(events.said,)]


def test_plain_completions(gate: Gateway) -> None:
    answer = gate.client.post("/v1/completions", json={"model": "cheap", "prompt": "Once", "max_tokens": 3})
    assert (answer.json()["object"], answer.json()["usage"]["completion_tokens"]) == ("text_completion", 3)


@pytest.mark.parametrize("packed", [False, True])
def test_embeddings(gate: Gateway, packed: bool) -> None:
    form = "base64" if packed else "float"
    body = {"model": "auto", "input": ["a", "bc"], "encoding_format": form}
    answer = gate.client.post("/v1/embeddings", json=body)
    vectors = [item["embedding"] for item in answer.json()["data"]]
    if packed:
        vectors = [list(struct.unpack("<4f", base64.b64decode(v))) for v in vectors]
    assert [v[0] for v in vectors] == [1.0, 2.0]
    gate.until("succeeded")
    [(extra, output)] = gate.rows("result", "extra, output", "job_id")
    assert (len(extra["embeddings"]), output) == (2, None)


def test_openais_own_client(gate: Gateway) -> None:
    with openai.OpenAI(base_url=f"{gate.url}/v1", api_key="ty_test", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "Say hi."}]
        whole = client.chat.completions.create(model="auto", messages=messages, max_tokens=4)
        assert whole.choices[0].message.content
        pieces = list(client.chat.completions.create(model="auto", messages=messages, max_tokens=4, stream=True))
        assert "".join(p.choices[0].delta.content or "" for p in pieces) == whole.choices[0].message.content
        assert client.embeddings.create(model="vectors", input="abc").data[0].embedding[0] == 3.0
        assert client.models.retrieve("class:small").id == "class:small"
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="none", messages=messages)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="auto", messages=messages, max_tokens=3_000_000)
        broken: Any = [{"role": "user", "content": "[[fault:reset_midstream]]"}]
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="auto", messages=broken, stream=True))


# Refusals, of which nothing is saved


def test_what_cannot_be_served_is_refused(gate: Gateway) -> None:
    assert error_of(gate.chat(model="none"), 404, "model_not_found")["param"] == "model"
    assert error_of(gate.chat("x" * 100, max_tokens=2_000_000 - 1), 400, "invalid_request")["param"] == "max_tokens"
    assert error_of(gate.chat(tier="none"), 400, "invalid_request")["param"] == "tier"
    error_of(gate.client.post("/v1/chat/completions", content=b"{"), 400, "invalid_request")
    error_of(httpx.post(f"{gate.url}/v1/chat/completions", json=asked()), 401, "invalid_api_key")
    assert make.count(gate.store, "job") == 0


def test_nothing_serves_it_now(gate: Gateway) -> None:
    gate.engines.withdraw("vectors")
    gate.seen()
    answer = gate.client.post("/v1/embeddings", json={"model": "auto", "input": "a"})
    assert "no replica of it is serving" in error_of(answer, 503, "no_healthy_deployment")["message"]
    assert answer.headers["retry-after"] == "5"
    assert make.count(gate.store, "job") == 0


def test_a_deployment_without_a_live_replica_is_passed_over_and_the_story_says_why(gate: Gateway) -> None:
    gate.engines.withdraw("cheap")
    gate.seen()
    answer = gate.chat()
    assert answer.headers["x-selected-model"] == "dear"
    story = gate.client.get(f"/v1/jobs/{answer.headers['x-tieryard-job']}/story").json()
    [cheap] = [c for c in story["decisions"][0]["candidates"] if c["name"] == "cheap"]
    assert (cheap["qualifies"], cheap["why"]) == (False, "no replica of it is serving")


def test_the_last_snapshot_stands_while_redis_is_away(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(Metrics, "read", away)
    read_at = gate.app.state.tieryard.calls.snapshots._read_at
    eventually(lambda: gate.app.state.tieryard.calls.snapshots._read_at > read_at + 0.5, what="reads that failed")
    assert gate.chat().status_code == 200


def test_tokens_are_counted_against_the_key(gate: Gateway) -> None:
    gate.store.fetch("UPDATE api_key SET tokens_per_minute = 100 RETURNING id")
    assert gate.chat().headers["x-ratelimit-limit-tokens"] == "100"
    error_of(gate.chat("x" * 100), 429, "rate_limit_exceeded")
    assert make.count(gate.store, "job") == 1


# Engines that fail


def test_a_call_moves_on_before_its_first_token(gate: Gateway) -> None:
    gate.engines.plan("cheap", lambda *_: Fault("http_503"))
    answer = gate.chat()
    assert (answer.status_code, answer.json()["model"]) == (200, "dear")
    assert answer.headers["x-selected-model"] == "dear"
    gate.until("succeeded")
    assert gate.job("fence, deployment") == (2, "dear")
    assert gate.rows("timing", "fence, outcome, deployment") == [(1, "rerouted", "cheap"), (2, "succeeded", "dear")]
    assert gate.rows("ledger", "fence, deployment") == [(2, "dear")]
    story = gate.client.get(f"/v1/jobs/{answer.headers['x-tieryard-job']}/story").json()
    assert [d["deployment"] for d in story["decisions"]] == ["cheap", "dear"]
    [cheap] = [c for c in story["decisions"][1]["candidates"] if c["name"] == "cheap"]
    assert cheap["why"] == "failed this call: engine_busy"


def test_a_stream_that_moves_on_says_who_answers(gate: Gateway) -> None:
    gate.engines.plan("cheap", lambda *_: Fault("reset"))
    events = gate.stream()
    assert events.answer.headers["x-selected-model"] == "cheap"
    assert {c["model"] for c in events.chunks} == {"dear"}
    assert events.data[-1] == "[DONE]"


def test_another_replica_of_the_same_deployment_is_tried_first(gate: Gateway) -> None:
    gate.engines.publish("cheap", worker_id=9011, url="http://127.0.0.1:9")  # the roomiest, and dead
    gate.engines.publish("cheap", in_flight=60)
    gate.seen()
    assert gate.chat().json()["model"] == "cheap"
    gate.until("succeeded")
    assert gate.rows("timing", "outcome, deployment") == [("rerouted", "cheap"), ("succeeded", "cheap")]


@pytest.mark.parametrize("streamed", [False, True])
def test_nobody_is_left(gate: Gateway, streamed: bool) -> None:
    if streamed:
        events = gate.stream("[[fault:http_503:7]]")
        assert events.answer.status_code == 200
        assert events.data[-1]["error"]["code"] == "engine_busy"
    else:
        answer = gate.chat("[[fault:http_503:7]]")
        error_of(answer, 503, "engine_busy")
        assert answer.headers["retry-after"] == "7"
    gate.until("failed")
    assert gate.rows("timing", "outcome, deployment") == [("rerouted", "cheap"), ("failed", "dear")]
    assert gate.rows("result", "error_kind", "job_id") == [("engine_busy",)]
    assert make.count(gate.store, "ledger") == 0


def test_an_engines_refusal_is_the_callers(gate: Gateway) -> None:
    error_of(gate.chat("[[fault:http_400]]"), 400, "bad_request")
    gate.engines.plan("cheap", context_limit=20)
    error_of(gate.chat("word " * 30), 400, "context_length_exceeded")
    assert gate.stream("word " * 30).data[-1]["error"]["code"] == "context_length_exceeded"
    gate.until("failed")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_failure_after_the_first_token_ends_the_call(gate: Gateway, streamed: bool) -> None:
    if streamed:
        events = gate.stream("[[fault:reset_midstream]]")
        assert events.said
        assert events.data[-1]["error"]["code"] == "engine_down"
    else:
        error_of(gate.chat("[[fault:reset_midstream]]"), 503, "engine_down")
    gate.until("failed")
    assert gate.rows("timing", "outcome, deployment, completion_tokens") == [("failed", "cheap", 2)]
    assert gate.rows("ledger", "completion_tokens") == [(2,)]


def test_comments_until_the_first_token(gate: Gateway) -> None:
    gate.engines.plan("cheap", ttft_ms=600)
    events = gate.stream()
    assert len(events.comments) >= 4
    assert events.data[-1] == "[DONE]"
    before, _, after = events.text.partition("data: ")
    assert ": keep-alive" in before
    assert ": keep-alive" not in after


def test_a_fault_of_ours_fails_one_call(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("a prompt of somebody's")

    with monkeypatch.context() as patch:
        patch.setattr(api.calling, "Answer", broken)
        assert "somebody" not in error_of(gate.chat(), 500, "internal_error")["message"]
        gate.until("failed")
        assert gate.stream().data[-1]["error"]["code"] == "internal_error"
    assert gate.chat().status_code == 200
    assert gate.app.state.tieryard.calls.running == {}


# Callers that go away


@pytest.mark.parametrize("streamed", [False, True])
def test_a_caller_that_hangs_up_stops_its_engine_and_pays_for_what_it_used(gate: Gateway, streamed: bool) -> None:
    body = asked("[[fault:stall]]", stream=streamed)
    with contextlib.suppress(httpx.ReadTimeout), httpx.Client(timeout=httpx.Timeout(5, read=1)) as client:  # noqa: SIM117
        with client.stream(
            "POST", f"{gate.url}/v1/chat/completions", json=body, headers={"authorization": "Bearer ty_test"}
        ) as answer:
            for line in answer.iter_lines():
                if "content" in line:
                    break
    gate.until("cancelled")
    eventually(lambda: gate.engines.cheap.state.aborted == 1, what="the engine's request to be aborted")
    assert gate.rows("result", "error_kind, error", "job_id") == [("cancelled", "its caller went away")]
    assert gate.rows("ledger", "completion_tokens") == [(2,)]


def test_a_caller_that_stops_reading_counts_as_gone(gate: Gateway) -> None:
    gate.engines.plan("cheap", length=400_000, packing=64)
    body = httpx.Request("POST", gate.url, json=asked(stream=True, model="cheap", max_tokens=400_000)).content
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ty_test\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(gate.url.rpartition(":")[2])))
        slow.sendall(head.encode() + body)
        gate.until("cancelled")
        assert gate.rows("result", "error", "job_id") == [("its caller went away",)]
    eventually(lambda: gate.engines.cheap.state.running == 0, what="the engine to be free")


@pytest.mark.parametrize("reason", ["cancelled", "expired"])
def test_a_stop_that_was_asked_for(gate: Gateway, reason: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gate.chat, "[[fault:stall]]")
        gate.until("running")
        if reason == "cancelled":
            job = gate.job("id")
            assert gate.client.post(f"/v1/jobs/job_{job}/cancel").json()["state"] == "running"
        else:
            gate.store.fetch("UPDATE job SET deadline = now() RETURNING id")
            with gate.store.transaction() as connection:
                rescue.stop(connection)
        error_of(answer.result(10), 400 if reason == "cancelled" else 503, reason)
    gate.until(reason)
    assert gate.engines.cheap.state.running == 0


def test_calls_finish_when_the_server_stops_and_those_too_long_are_stopped(gate: Gateway) -> None:
    gate.engines.plan("cheap", ttft_ms=300)
    with ThreadPoolExecutor(2) as pool:
        short = pool.submit(gate.chat)
        long = pool.submit(gate.stream, "[[fault:stall]]")
        eventually(lambda: make.count(gate.store, "job", "state = 'running'") == 2, what="two calls")
        gate.stop()
        assert short.result(10).status_code == 200
        assert long.result(10).data[-1]["error"]["code"] == "worker_stopped"
    assert sorted(gate.rows("job", "state", "id")) == [("failed",), ("succeeded",)]
    assert gate.store.fetch("SELECT kind, stopped_at IS NOT NULL FROM worker") == [("api", True)]


# Room in the engines


def test_calls_wait_for_a_slot_in_order_and_not_for_ever(gate: Gateway) -> None:
    gate.engines.publish("cheap", capacity=1)
    gate.engines.withdraw("dear")
    gate.seen()
    gate.engines.plan("cheap", ttft_ms=500)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(gate.chat)
        gate.until("running")
        hasty = pool.submit(gate.chat, tier="hasty")
        patient = pool.submit(gate.chat)
        refused = hasty.result(10)
        error_of(refused, 503, "engine_busy")
        assert refused.headers["retry-after"]
        assert running.result(10).status_code == 200
        assert float(patient.result(10).headers["x-tieryard-queue-ms"]) > 50
    assert make.count(gate.store, "job") == 2
    assert gate.engines.cheap.state.max_running_seen == 1


def test_calls_show_in_the_gauges_while_they_run(gate: Gateway) -> None:
    [[api]] = gate.store.fetch("SELECT id FROM worker")
    metrics = Metrics(gate.engines.gauges)
    catalog = gate.app.state.tieryard.catalog

    def in_flight() -> tuple[int, int, dict[int, int]]:
        live = metrics.read(catalog)
        [replica] = live.replicas["cheap"]
        return live.gauges["cheap"].in_flight, replica.in_flight, replica.calls

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gate.chat, "[[fault:stall:2]]")
        eventually(lambda: in_flight() == (1, 1, {api: 1}), what="the call in the gauges")
        assert metrics.calls_at("cheap", REPLICAS["cheap"], gate.engines.cheap.url) == 1
        assert metrics.calls_at("cheap", 1, gate.engines.cheap.url) == 1, "by URL: it is the same server"
        assert metrics.calls_at("cheap", REPLICAS["cheap"], "http://elsewhere") == 0
        answer.result(10)
    eventually(lambda: in_flight() == (0, 0, {api: 0}), what="its end there")


def test_the_replica_with_the_most_room_is_taken(gate: Gateway) -> None:
    gate.engines.publish("cheap", in_flight=60)
    gate.engines.publish("cheap", worker_id=9011, url=gate.engines.dear.url)
    gate.seen()
    assert gate.chat().json()["model"] == "cheap"
    assert (gate.engines.cheap.state.requests, gate.engines.dear.state.requests) == (0, 1)


def test_a_caller_that_hangs_up_while_it_waits_for_a_slot_leaves_nothing(gate: Gateway) -> None:
    gate.engines.publish("cheap", capacity=1)
    gate.engines.withdraw("dear")
    gate.seen()
    slots = gate.app.state.tieryard.calls.slots
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gate.chat, "[[fault:stall:2]]")
        gate.until("running")
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.5, headers=gate.client.headers) as client:
            client.post(f"{gate.url}/v1/chat/completions", json=asked())
        eventually(lambda: not slots._waiting["cheap"], what="the place in the queue to be given up")
        assert running.result(10).status_code == 200
    assert make.count(gate.store, "job") == 1
    assert gate.chat().status_code == 200


# Once


def test_many_identical_calls_make_one_job(gate: Gateway) -> None:
    gate.engines.plan("cheap", ttft_ms=300)
    key = {"idempotency-key": "once"}

    async def all_at_once() -> list[httpx.Response]:
        headers = {**gate.client.headers, **key}
        async with httpx.AsyncClient(base_url=gate.url, headers=headers, timeout=30, trust_env=False) as client:
            calls = (client.post("/v1/chat/completions", json=asked()) for _ in range(200))
            return list(await asyncio.gather(*calls))

    answers = asyncio.run(all_at_once())
    assert {a.status_code for a in answers} == {200}
    assert len({a.content for a in answers}) == 1
    assert make.count(gate.store, "job") == 1
    assert gate.engines.cheap.state.requests == 1
    error_of(gate.chat("Say something else.", headers=key), 409, "conflict")


def test_a_repeat_may_be_streamed_and_is_given_as_one_piece(gate: Gateway) -> None:
    body = asked(stream=True, stream_options={"include_usage": True})
    for _ in range(2):
        answer = gate.client.post("/v1/chat/completions", json=body, headers={"idempotency-key": "streamed"})
        assert answer.text.endswith("data: [DONE]\n\n")
        gate.until("succeeded")
    [(output,)] = gate.rows("result", "output", "job_id")
    assert f'"content":"{output}"' in answer.text
    assert make.count(gate.store, "job") == 1


def test_a_key_whose_call_was_given_up_is_free_again(gate: Gateway) -> None:
    """A client that timed out asks again with the same key: it wants an answer, not to hear that it hung up."""
    key = {"idempotency-key": "impatient"}
    gate.engines.plan("cheap", ttft_ms=60_000)
    with pytest.raises(httpx.ReadTimeout):
        gate.client.post("/v1/chat/completions", json=asked(), headers=key, timeout=0.3)
    gate.until("cancelled")
    gate.engines.plan("cheap", ttft_ms=0)
    answer = gate.chat(headers=key)
    assert answer.status_code == 200, answer.text
    assert gate.chat(headers=key).json() == answer.json()
    assert [row[0] for row in gate.store.fetch("SELECT state FROM job ORDER BY id")] == ["cancelled", "succeeded"]


def test_a_failed_job_repeats_its_error(gate: Gateway) -> None:
    for _ in range(2):
        answer = gate.chat("[[fault:http_400]]", headers={"idempotency-key": "bad"})
        error_of(answer, 400, "bad_request")
        gate.until("failed")
    assert answer.headers["x-should-retry"] == "false"
    assert make.count(gate.store, "job") == 1


@pytest.mark.parametrize("fault", ["http_503", "reset", "reset_midstream"])
def test_a_key_whose_call_failed_for_a_moment_makes_a_new_job(gate: Gateway, fault: str) -> None:
    """The first answer says when to try again; what is tried then must not be the failure once more."""
    key = {"idempotency-key": "unlucky"}
    gate.engines.plan("cheap", lambda *_: Fault(fault))
    gate.engines.plan("dear", lambda *_: Fault(fault))
    first = gate.chat(headers=key)
    assert (first.status_code, "retry-after" in first.headers) == (503, True)
    gate.until("failed")
    gate.engines.plan("cheap")
    answer = gate.chat(headers=key)
    assert answer.status_code == 200, answer.text
    assert gate.chat(headers=key).json() == answer.json()
    assert make.count(gate.store, "job") == 2


def test_a_fault_of_ours_keeps_its_key(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError

    key = {"idempotency-key": "ours"}
    with monkeypatch.context() as patch:
        patch.setattr(api.calling, "Answer", broken)
        error_of(gate.chat(headers=key), 500, "internal_error")
        gate.until("failed")
    again = gate.chat(headers=key)
    error_of(again, 500, "internal_error")
    assert again.headers["x-should-retry"] == "false", "or OpenAI's clients would ask twice more"
    assert make.count(gate.store, "job") == 1


def test_transient_failures_are_those_answered_with_503() -> None:
    assert {Refusal.of(JobFailedError(kind, "")).status for kind in calls.TRANSIENT} == {503}


# What it stands on


def test_a_start_is_one_statement(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gate.chat()
    gate.until("succeeded")
    with make.statements(monkeypatch) as seen:
        gate.chat()
    others = ("lease_until", "stop_requested", "attended AND", "WITH held", "id_counter")
    # these are of the lease, stops, strays, its ending, and 64 ids
    mine = [s for s in seen if s != ";" and not any(word in s for word in others)]
    assert [s.split(maxsplit=1)[0] for s in mine] in (["WITH"], ["INSERT", "WITH"]), mine  # the snapshot, when new
    assert "INSERT INTO job" in mine[-1]


def new_call(store: Store, tenant: int, worker: int) -> NewCall:
    choice = Choice("one", "short", make.features(), b"{}")
    return NewCall(store.next_id(), tenant, "interactive", "{}", 60, 1.0, choice, worker)


def test_a_call_of_a_dead_process_is_failed_and_never_queued(store: Store, tenant: int) -> None:
    worker = make.worker(store, kind="api")
    calls.start(store, new_call(store, tenant, worker))
    store.fetch("UPDATE worker SET stopped_at = now() RETURNING id")
    with store.transaction() as connection:
        assert rescue.requeue_orphans(connection) == {"failed": 1}
    [(kind, message)] = store.fetch("SELECT error_kind, error FROM result")
    assert (kind, message) == ("worker_died", "its caller's connection ended with the API process")


def test_a_process_without_its_lease_starts_nothing_and_moves_nothing(store: Store, tenant: int) -> None:
    worker = make.worker(store, kind="api")
    call = new_call(store, tenant, worker)
    started = calls.start(store, call)
    store.fetch("UPDATE worker SET stopped_at = now() RETURNING id")
    with pytest.raises(LeaseLostError):
        calls.start(store, new_call(store, tenant, worker))
    job = Claimed(call.id, 1, None, "interactive", None, 0, 0, 1.0, started.claimed_at, "{}", tenant, "one")
    with pytest.raises(LeaseLostError):
        calls.restart(store, FailedStart(job, "one", 1.0, "no"), call.choice, worker_id=worker)
    assert make.column(store, "(state, fence)", [call.id]) == [("running", "1")]
    assert make.count(store, "line") == 1


def test_models(gate: Gateway) -> None:
    gate.engines.withdraw("dear")
    gate.seen()
    listed = {m["id"]: m for m in gate.client.get("/v1/models").json()["data"]}
    assert list(listed) == ["auto", "class:large", "class:small", "cheap", "dear", "vectors"]
    assert {name for name, m in listed.items() if m["live"]} == {"auto", "class:small", "cheap", "vectors"}
    assert listed["vectors"]["serves"] == ["embeddings"]
    assert gate.client.get("/v1/models/cheap").json() == listed["cheap"]
    error_of(gate.client.get("/v1/models/some/other"), 404, "model_not_found")


@pytest.mark.parametrize("name", ["start", "restart"])
def test_a_start_whose_commit_went_unanswered_is_ended(
    gate: Gateway, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = getattr(calls, name)

    def unanswered(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        raise StoreError("Postgres went away")

    monkeypatch.setattr(calls, name, unanswered)
    gate.engines.plan("cheap", lambda *_: Fault("http_503"))
    error_of(gate.chat(), 503, "store_away")
    gate.until("failed")
    assert gate.rows("result", "error_kind", "job_id") == [("store_away",)]
    assert gate.app.state.tieryard.calls.slots._held == {}


def test_live_profiles_come_from_calls_too(gate: Gateway) -> None:
    gate.chat()
    metrics, catalog = Metrics(gate.engines.gauges), gate.app.state.tieryard.catalog
    eventually(lambda: metrics.read(catalog).profiles["cheap"], what="a profile")
