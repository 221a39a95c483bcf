"""The official `openai` package against a running embedded fleet: llama.cpp answers, and nothing is stood in for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.acceptance.conftest import KEY, Running
from tests.conftest import eventually
from tieryard.supervisor import Fleet

ROOT = Path(__file__).parents[2]
CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")


@pytest.fixture
def fleet(local_fleet: Running) -> Fleet:
    return local_fleet.fleet


@pytest.fixture
def client(fleet: Fleet) -> Iterator[OpenAI]:
    with with_key(fleet, KEY) as client:
        yield client


def with_key(fleet: Fleet, key: str) -> OpenAI:
    return OpenAI(base_url=f"{fleet.url}/v1", api_key=key, max_retries=0, timeout=60)


def new_key(fleet: Fleet, *options: str) -> str:
    """As an operator makes one."""
    command = [sys.executable, "-m", "tieryard", "keys", "create", "test", "--data-dir", str(fleet.data_dir), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def line(custom_id: str, *, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"model": "auto", "messages": [{"role": "user", "content": f"Say {custom_id}."}], "max_tokens": 4}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {**asked, **body}}


def upload(client: OpenAI, *lines: Any) -> str:
    content = "".join(json.dumps(x) + "\n" if isinstance(x, dict) else f"{x}\n" for x in lines)
    return client.files.create(file=("lines.jsonl", content.encode()), purpose="batch").id


def until(client: OpenAI, batch_id: str, *statuses: str) -> Any:
    eventually(lambda: client.batches.retrieve(batch_id).status in statuses, within_s=90, what=f"{statuses}")
    return client.batches.retrieve(batch_id)


def read(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(x) for x in client.files.content(file_id).text.splitlines()]


# Files and batches


def test_files(client: OpenAI) -> None:
    content = b'{"custom_id": "a"}\r\n\n{"custom_id": "b"}'
    file = client.files.create(file=("some.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(content), "some.jsonl", "batch", "processed")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content
    assert file.id in [f.id for f in client.files.list(purpose="batch")]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_batch_to_its_end(client: OpenAI) -> None:
    names = [f"n{i}" for i in range(12)]
    file = upload(client, *map(line, names), "{not JSON", line("bad", model="gpt-9"))
    batch = client.batches.create(
        input_file_id=file, endpoint=CHAT, completion_window="24h", metadata={"run": "nightly"}
    )
    assert batch.status in ("validating", "in_progress")  # its lines may be read by the time it is answered
    assert (batch.metadata, batch.endpoint) == ({"run": "nightly"}, CHAT)
    done = until(client, batch.id, *OVER)
    assert done.status == "completed"
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (14, 12, 2)
    assert done.completed_at >= done.finalizing_at >= done.in_progress_at >= done.created_at
    found = read(client, done.output_file_id)
    assert [x["custom_id"] for x in found] == names
    bodies = [x["response"]["body"] for x in found]
    assert {b["object"] for b in bodies} == {"chat.completion"}
    assert all(0 < b["usage"]["completion_tokens"] <= 4 for b in bodies)
    errors = read(client, done.error_file_id)
    assert [(x["custom_id"], x["error"]["line"]) for x in errors] == [(None, 13), ("bad", 14)]


def test_a_batch_of_raw_prompts(client: OpenAI) -> None:
    prompt = {"model": "class:small", "prompt": "One, two, three,", "max_tokens": 4}
    file = upload(client, {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": prompt})
    batch = client.batches.create(input_file_id=file, endpoint="/v1/completions", completion_window="15m")  # type: ignore[arg-type]
    done = until(client, batch.id, *OVER)
    [found] = read(client, done.output_file_id)
    assert found["response"]["body"]["object"] == "text_completion"
    assert found["response"]["body"]["choices"][0]["text"]


def test_a_running_batch_is_cancelled(client: OpenAI) -> None:
    batch = client.batches.create(
        input_file_id=upload(client, *(line(str(i), max_tokens=64) for i in range(300))),
        endpoint=CHAT,
        completion_window="24h",
    )
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 2, within_s=60, what="some answers")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = until(client, batch.id, "cancelled")
    counts = done.request_counts
    assert 0 < counts.completed < 300
    assert counts.completed + counts.failed == 300
    assert len(read(client, done.output_file_id)) == counts.completed
    assert {x["error"]["code"] for x in read(client, done.error_file_id)} == {"batch_cancelled"}


def test_a_batch_that_is_over_is_not_cancelled(client: OpenAI) -> None:
    file = upload(client, line("a"))
    batch = client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
    until(client, batch.id, "completed")
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_a_batch_that_runs_out_of_time(client: OpenAI) -> None:
    file = upload(client, *(line(str(i), max_tokens=64) for i in range(400)))
    batch = client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="4s")  # type: ignore[arg-type]
    done = until(client, batch.id, *OVER)
    assert done.status == "expired"
    assert done.expired_at is not None
    assert done.request_counts.completed + done.request_counts.failed == 400
    assert {x["error"]["code"] for x in read(client, done.error_file_id)} == {"batch_expired"}
    if done.request_counts.completed:
        assert len(read(client, done.output_file_id)) == done.request_counts.completed


def test_finished_lines_are_reused(client: OpenAI) -> None:
    first = client.batches.create(
        input_file_id=upload(client, line("a", seed=7)), endpoint=CHAT, completion_window="1h"
    )  # type: ignore[arg-type]
    [answer] = read(client, until(client, first.id, "completed").output_file_id)
    again = upload(client, {**line("a", seed=7), "custom_id": "same"}, line("new", seed=7))
    wanted: dict[str, Any] = {"input_file_id": again, "endpoint": CHAT, "completion_window": "1h"}
    second = client.batches.create(**wanted, extra_body={"reuse": True})
    found = read(client, until(client, second.id, "completed").output_file_id)
    assert [x["custom_id"] for x in found] == ["same", "new"]
    assert found[0]["response"]["body"] == answer["response"]["body"]
    assert found[1]["response"]["body"]["id"] != answer["response"]["body"]["id"]


def test_lists_page_by_themselves(client: OpenAI) -> None:
    file = upload(client, line("a"))
    made = [client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h").id for _ in range(5)]
    listed = [batch.id for batch in client.batches.list(limit=2)]
    assert listed[:5] == made[::-1]
    assert len(listed) == len(set(listed))
    ids = [f.id for f in client.files.list(limit=2)]
    assert len(ids) == len(set(ids))
    assert file in ids


# Calls that wait


def test_a_call(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": "Say hi."}], max_tokens=8
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.model == raw.headers["x-selected-model"]
    assert answer.id.endswith(raw.headers["x-tieryard-job"])
    assert float(raw.headers["x-tieryard-routing-ms"]) >= 0


def test_a_stream(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "Count to five."}],
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert len({c.id for c in chunks}) == 1


def test_a_raw_completion(client: OpenAI) -> None:
    assert client.completions.create(model="auto", prompt="One, two,", max_tokens=4).choices[0].text
    pieces = client.completions.create(model="auto", prompt="One, two,", max_tokens=4, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces)


class Review(BaseModel):
    mood: Literal["positive", "negative"]
    stars: Literal[1, 2, 3, 4, 5]


@pytest.mark.parametrize("review", ["The soup was cold.", "Best dumplings in town!"])
def test_structured_output(client: OpenAI, review: str) -> None:
    parsed = client.chat.completions.parse(
        model="auto",
        messages=[{"role": "user", "content": review}],
        response_format=Review,
        max_tokens=64,
        temperature=0,
    )
    assert isinstance(parsed.choices[0].message.parsed, Review)


def test_models(client: OpenAI) -> None:
    ids = {model.id for model in client.models.list()}
    assert {"auto", "class:small", "smol-short", "smol-long"} <= ids
    assert client.models.retrieve("smol-long").id == "smol-long"
    pinned = client.chat.completions.create(
        model="smol-long", messages=[{"role": "user", "content": "Hi."}], max_tokens=2
    )
    assert pinned.model == "smol-long"


def test_one_key_makes_one_call(client: OpenAI) -> None:
    once = {"Idempotency-Key": "a call"}
    asked: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 4}
    first = client.chat.completions.create(**asked, extra_headers=once)
    assert client.chat.completions.create(**asked, extra_headers=once) == first


# Errors, as the package raises them


def ask(client: OpenAI, **fields: Any) -> Any:
    plain = {"model": "auto", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}
    return client.chat.completions.create(**{**plain, **fields})


def test_authentication_error(fleet: Fleet) -> None:
    for key in ("ty_nobody", "sk-proj-1234"):
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(with_key(fleet, key))
        assert caught.value.code == "invalid_api_key"


def test_permission_denied_error(fleet: Fleet) -> None:
    reader = with_key(fleet, new_key(fleet, "--scope", "read"))
    assert list(reader.batches.list())
    with pytest.raises(openai.PermissionDeniedError):
        ask(reader)
    with pytest.raises(openai.PermissionDeniedError):
        upload(reader, line("a"))


def test_rate_limit_error(fleet: Fleet) -> None:
    limited = with_key(fleet, new_key(fleet, "--requests-per-minute", "2", "--tokens-per-minute", "5000"))
    raw = limited.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": "Hi."}], max_tokens=2
    )
    assert (raw.headers["x-ratelimit-limit-requests"], raw.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert 4900 < int(raw.headers["x-ratelimit-remaining-tokens"]) < 5000
    ask(limited)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(limited)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": 100_000}, "messages"),
        ({"n": 3}, "n"),
        ({"tier": "none"}, None),
    ],
)
def test_bad_request_error(client: OpenAI, fields: dict[str, Any], param: str | None) -> None:
    own = {"extra_body": {"tier": fields["tier"]}} if "tier" in fields else fields
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **own)
    assert caught.value.param == (param or "tier")
    assert caught.value.type == "invalid_request_error"


def test_not_found_error(client: OpenAI) -> None:
    for missing in (
        lambda: client.files.content("file_999999"),
        lambda: client.batches.retrieve("batch_abc"),
        lambda: client.models.retrieve("gpt-9"),
        lambda: ask(client, model="gpt-9"),
        lambda: client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            missing()


# What the documentation shows


@pytest.mark.parametrize("name", ["openai_batch.py", "openai_chat.py", "httpx_jobs.py"])
def test_the_examples_run(fleet: Fleet, name: str) -> None:
    environment = {**os.environ, "TIERYARD_URL": fleet.url, "TIERYARD_API_KEY": KEY}
    command = [sys.executable, str(ROOT / "docs" / "examples" / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout
