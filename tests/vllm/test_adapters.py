"""A LoRA adapter beside its base model in one real vLLM: routed, answered, billed and told of as a model of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engine import NAME, PYTHON, WEIGHTS
from tests.vllm.fleet import CHAT, Running, run_fleet

TUNED = "tuned"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    adapter = tmp_path_factory.mktemp("adapter")
    adapter.chmod(0o755)
    maker = Path(__file__).with_name("adapter.py")
    subprocess.run([PYTHON, str(maker), WEIGHTS, str(adapter)], check=True, capture_output=True)
    with run_fleet(adapters={TUNED: str(adapter)}, in_flight=8) as started:
        yield started


def asked(model: str) -> dict[str, Any]:
    question = {"role": "user", "content": "What is the capital of France?"}
    return {"model": model, "messages": [question], "max_tokens": 12, "temperature": 0}


def test_calls_and_jobs_reach_the_model_that_they_name(running: Running) -> None:
    calls = {name: running.client.chat.completions.create(**asked(name)) for name in (NAME, TUNED)}
    said = {name: call.choices[0].message.content for name, call in calls.items()}
    assert said[NAME].split()[0] != said[TUNED].split()[0], "the adapter changed nothing, so this proves nothing"
    assert {name: call.model for name, call in calls.items()} == {NAME: NAME, TUNED: TUNED}

    lines = [{"custom_id": name, "method": "POST", "url": CHAT, "body": asked(name)} for name in (NAME, TUNED)]
    batch = running.until_over(running.submit_lines(lines))
    answers = {answer["custom_id"]: answer["response"]["body"] for answer in running.answers(batch.output_file_id)}
    again = {name: body["choices"][0]["message"]["content"] for name, body in answers.items()}
    # In 16 bits a request's later tokens depend on what else is in its batch; its first word says whose it is.
    assert {name: text.split()[0] for name, text in again.items()} == {name: said[name].split()[0] for name in said}

    rows = running.rows("SELECT deployment, count(*), count(DISTINCT worker_id) FROM timing GROUP BY 1 ORDER BY 1")
    assert [(name, n) for name, n, _ in rows] == [(NAME, 2), (TUNED, 2)]
    assert running.rows("SELECT deployment, count(*) FROM ledger GROUP BY 1 ORDER BY 1") == [(NAME, 2), (TUNED, 2)]
    assert {model.id for model in running.client.models.list()} >= {NAME, TUNED}
