"""A fleet on real vLLM: OpenAI's package, what the plan says, and parts of vLLM that die in the middle of a batch.

The tests share one fleet and run in the order in which they stand: what one has killed is back for the next.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.conftest import eventually
from tests.vllm import processes
from tests.vllm.engine import NAME, WEIGHTS
from tests.vllm.fleet import Running, run_fleet
from tieryard.planning import GIB, find_model, kv_cache_tokens
from tieryard.store import Store, keys

JOBS = 60
LONG = {"max_tokens": 64, "ignore_eos": True}
"""Of a batch that takes ten seconds, so that there is a middle of it."""


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with run_fleet() as started:
        yield started


def submit(running: Running, **body: Any) -> str:
    return running.submit((f"Write about {i}." for i in range(JOBS)), **body)


def until_under_way(running: Running, batch: str) -> None:
    eventually(lambda: running.succeeded(batch) >= 8, within_s=120, what=f"some of {batch}")


def test_a_batch_of_files(running: Running) -> None:
    batch = running.until_over(submit(running, max_tokens=8))
    assert batch.status == "completed"
    answers = running.answers(batch.output_file_id)
    assert {answer["custom_id"] for answer in answers} == {str(i) for i in range(JOBS)}
    for answer in answers:
        assert answer["response"]["body"]["choices"][0]["message"]["content"]
        assert 0 < answer["response"]["body"]["usage"]["completion_tokens"] <= 8


def test_a_call_and_a_stream(running: Running) -> None:
    asked: dict[str, Any] = {
        "model": "auto",
        "messages": [{"role": "user", "content": "Count to five."}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = running.client.chat.completions.create(**asked)
    with running.client.chat.completions.create(**asked, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 2
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 12


class Review(BaseModel):
    """What the model must answer in."""

    mood: Literal["positive", "negative"]
    stars: Literal[1, 2, 3, 4, 5]


def test_structured_output(running: Running) -> None:
    parsed = running.client.chat.completions.parse(
        model="auto",
        messages=[{"role": "user", "content": "Review: best dumplings in town!"}],
        response_format=Review,
        max_tokens=64,
        temperature=0,
    )
    assert isinstance(parsed.choices[0].message.parsed, Review)


def test_the_plan_says_what_vllm_says(running: Running) -> None:
    """Of the tokens that a GiB of KV cache holds: blocks of 128 tokens on a CPU."""
    planned = kv_cache_tokens(find_model(WEIGHTS).shape, GIB, block_size=128)
    assert running.load().kv_tokens == pytest.approx(planned, rel=0.05)
    [said] = re.findall(r"KV cache size: ([\d,]+) tokens", running.fleet.log(f"infer-{NAME}").read_text())
    assert int(said.replace(",", "")) == pytest.approx(planned, rel=0.05)


def test_what_begins_alike_is_read_once_and_only_for_its_own_tenant(running: Running) -> None:
    """Eight long beginnings, in turns: of each, one request at the least must read it. A block is 128 tokens here."""
    beginnings = [" ".join(f"rule{i * 100 + word}" for word in range(80)) for i in range(8)]
    asked = [f"{beginnings[i % 8]} Question {i}." for i in range(48)]
    [(latest,)] = running.rows("SELECT coalesce(max(job_id), 0) FROM timing")
    batch = running.until_over(running.submit(asked, max_tokens=4))
    assert batch.status == "completed"
    totals = "SELECT sum(prompt_tokens), sum(cached_tokens), count(*) FROM timing WHERE job_id > %d"
    [(prompt, cached, jobs)] = running.rows(totals % latest)
    blocks = prompt // jobs // 128 * 128  # of each prompt, as much as can be found again
    assert blocks >= 256, "too short to prove anything"
    assert cached >= 0.6 * blocks * (48 - 8), (prompt, cached)

    with contextlib.closing(Store(running.fleet.database_url)) as store:
        keys.add_key(store, "ty_other", tenant="other", name="other")
    other = running.client.with_options(api_key="ty_other")
    again: dict[str, Any] = {
        "model": NAME, "messages": [{"role": "user", "content": asked[0]}], "max_tokens": 4, "temperature": 0,
    }  # fmt: skip
    found = [
        client.chat.completions.create(**again).usage.prompt_tokens_details.cached_tokens  # type: ignore[union-attr]
        for client in (running.client, other, other)
    ]
    assert found[0] > 0, "its own tenant finds it"
    assert found[1] == 0, "another tenant does not"
    assert found[2] > 0, "but what it has read itself"


_OTHER_POSTINGS = """
SELECT ledger.* FROM ledger LEFT JOIN timing USING (job_id, fence, prompt_tokens, completion_tokens)
WHERE kind <> 'inference' AND (kind <> 'retry' OR coalesce(timing.outcome NOT IN ('crash', 'outage'), true))
"""


def assert_each_once(running: Running, batch: str) -> None:
    """Every job of the batch succeeded, with one result, one success and one charge.

    What a start had used that died with its server is a `retry` of that start, where it is known: nobody pays it.
    """
    done = running.until_over(batch)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", JOBS, 0)
    assert len({answer["custom_id"] for answer in running.answers(done.output_file_id)}) == JOBS
    [(jobs,)] = running.rows("SELECT count(*) FROM job WHERE state = 'succeeded'")
    assert running.rows("SELECT count(*) FROM job") == [(jobs,)]
    for counted in ("result", "ledger WHERE kind = 'inference'", "timing WHERE outcome = 'succeeded'"):
        assert running.rows(f"SELECT count(*), count(DISTINCT job_id) FROM {counted}") == [(jobs, jobs)], counted
    assert running.rows(_OTHER_POSTINGS) == [], "neither a charge nor of a start that was handed back"


def starts(running: Running, outcome: str) -> int:
    """How many starts of jobs ended so."""
    [(n,)] = running.rows(f"SELECT count(*) FROM timing WHERE outcome = '{outcome}'")
    return int(n)


@pytest.mark.parametrize("part", [processes.API_SERVER, processes.ENGINE_CORE], ids=["API server", "EngineCore"])
def test_a_part_of_vllm_killed_in_mid_batch(running: Running, part: str) -> None:
    """Its jobs are done again, its worker starts another server by itself, and nothing of the old one stays."""
    worker, old = running.worker, [p for p in processes.beneath(running.worker) if p.of_vllm]
    killed, crashed = processes.part(worker, part), starts(running, "crash")
    batch = submit(running, **LONG)
    until_under_way(running, batch)
    os.kill(killed.pid, signal.SIGKILL)
    assert_each_once(running, batch)
    assert running.worker == worker, "the worker is the same"
    assert processes.part(worker, part).pid != killed.pid
    assert processes.still_there(old) == []
    assert starts(running, "crash") > crashed, "the kill met no job in flight, so this proved nothing"


def test_the_inference_worker_killed_in_mid_batch_takes_its_vllm_with_it(running: Running) -> None:
    old = [p for p in processes.beneath(running.worker) if p.of_vllm]
    assert {processes.ENGINE_CORE, processes.WORKER} <= {p.command for p in old}
    batch = submit(running, **LONG)
    until_under_way(running, batch)
    os.kill(running.worker, signal.SIGKILL)
    eventually(lambda: not processes.still_there(old), within_s=30, what="the end of vLLM's processes")
    assert_each_once(running, batch)
