"""The fake keeps to its plan: what it says, when, and how much at once."""

import math
import re
import signal
import subprocess
import sys

import httpx
import orjson
import pytest

from tieryard.engines import Recording, record
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan, Fault

CHAT = {"messages": [{"role": "user", "content": "two words"}]}


@pytest.fixture(scope="module")
def client():
    plan = FakePlan(model="m", context_limit=100, length=7)
    with FakeVllm.in_thread(plan) as fake, httpx.Client(base_url=fake.url) as client:
        yield client


def gauge(text, name):
    return float(re.search(rf"^vllm:{re.escape(name)}.* (\S+)$", text, re.MULTILINE)[1])


def test_a_whole_answer(client):
    body = client.post("/v1/chat/completions", json=CHAT).json()
    assert body["choices"][0]["message"]["content"] == "tok0 tok1 tok2 tok3 tok4 tok5 tok6"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 6, "completion_tokens": 7, "total_tokens": 13}


def test_it_says_what_it_is_told_to():
    plan = FakePlan(says=lambda prompt: "just so" if "two" in prompt else None, length=1)
    with FakeVllm.in_thread(plan) as fake, httpx.Client(base_url=fake.url) as client:
        told = client.post("/v1/chat/completions", json=CHAT).json()
        own = client.post("/v1/completions", json={"prompt": "one"}).json()
    assert (told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"]) == ("just so", 2)
    assert own["choices"][0]["text"] == "tok0"


def test_a_text_completion(client):
    body = client.post("/v1/completions", json={"prompt": "one two three", "max_tokens": 2}).json()
    assert body["object"] == "text_completion"
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("tok0 tok1", "length")
    assert body["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("options", "in_chunks", "at_end"),
    [
        ({}, False, False),
        ({"include_usage": True}, False, True),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
    ],
)
def test_streamed_usage_comes_as_asked(client, options, in_chunks, at_end):
    text = client.post("/v1/chat/completions", json={**CHAT, "stream": True, "stream_options": options}).text
    *events, end = [line.removeprefix("data: ") for line in text.splitlines() if line]
    *chunks, last = [orjson.loads(event) for event in events]
    assert end == "[DONE]"
    assert (last["choices"] == []) == at_end
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(("usage" in chunk) == in_chunks for chunk in chunks)
    if in_chunks:
        assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 4, 5, 6, 7, 7]


def test_prompt_and_max_tokens_must_fit_together(client):
    answer = client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 95})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, 400, "BadRequestError")
    assert "maximum context length is 100 tokens" in error["message"]
    assert client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 94}).is_success


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"model": "other"}, 404),
        ({"messages": []}, 400),
        ({"max_tokens": 0}, 400),
        ({"n": 2}, 400),
        ({"temperature": -1}, 400),
    ],
)
def test_what_vllm_refuses(client, wrong, status):
    answer = client.post("/v1/chat/completions", json={**CHAT, **wrong})
    assert answer.status_code == answer.json()["error"]["code"] == status


def test_models_health_and_tokenize(client):
    assert client.get("/health").status_code == 200
    card = client.get("/v1/models").json()["data"][0]
    assert (card["id"], card["max_model_len"]) == ("m", 100)
    assert client.post("/tokenize", json={"prompt": "a b c"}).json()["count"] == 3
    assert client.post("/tokenize", json=CHAT).json()["count"] == 6


def test_metrics_agree_with_what_was_served(client):
    before = client.get("/metrics").text
    client.post("/v1/chat/completions", json=CHAT)
    after = client.get("/metrics").text
    for name, grown in (
        ("prompt_tokens_total", 6),
        ("generation_tokens_total", 7),
        ("time_to_first_token_seconds_count", 1),
        ('request_success_total{engine="0",model_name="m",finished_reason="stop"}', 1),
    ):
        assert gauge(after, name) - gauge(before, name) == grown
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"):
        assert gauge(after, name) == 0
    assert client.get("/fake/state").json()["running"] == 0


async def test_pace_is_held_to_the_end():
    """Deadlines are absolute, so lateness of single events does not add up."""
    async with FakeVllm(FakePlan(ttft_ms=50, tokens_per_s=200, length=60)) as fake:
        engine = OpenAIHttpEngine(fake.url, model="fake")
        await record(engine, {**CHAT, "max_tokens": 1}, Recording())  # opens the connection
        recording = Recording()
        await record(engine, CHAT, recording)
        await engine.close()
    assert 50 <= recording.ttft_ms < 100
    assert 50 + 59 * 5 <= recording.latency_ms < 50 + 59 * 5 + 50


def test_the_process_says_ready_and_stops_on_sigterm():
    command = [sys.executable, "-m", "tieryard.testing.fake_vllm", "--ttft-ms", "1", "--capacity", "3", "--model", "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        word, url = child.stdout.readline().split()
        assert word == "ready"
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "x"
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0


def test_a_fault_is_known_or_refused():
    plan = FakePlan(faults=lambda number, prompt: Fault("reset") if number % 2 else None)
    assert [plan.fault_for(n, "") for n in (1, 2)] == [Fault("reset"), None]
    assert plan.fault_for(2, "so [[fault:stall:0.5]] there") == Fault("stall", 0.5)
    with pytest.raises(ValueError, match="no fault 'nonsense'"):
        Fault("nonsense")
    assert math.isinf(FakePlan().tokens_per_s)
