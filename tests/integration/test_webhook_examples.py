"""The receivers in the documentation take what the fleet signs, once each, and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tieryard.webhooks.payloads import payload
from tieryard.webhooks.signing import new_secret, signed_headers

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
OLD, NEW, STRANGE = new_secret(), new_secret(), new_secret()
NODE = shutil.which("node")


class Running(NamedTuple):
    process: subprocess.Popen[str]
    url: str

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        return httpx.post(self.url, content=body, headers=headers, trust_env=False).status_code

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def receiver(command: list[str], name: str, secrets: str) -> Iterator[Running]:
    """An example as somebody would start it, on any port."""
    environment = {**os.environ, "WEBHOOK_SECRET": secrets}
    asked = [*command, str(EXAMPLES / name), "0"]
    with subprocess.Popen(asked, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Running(process, process.stdout.readline().split()[-1])
        finally:
            process.kill()


@pytest.fixture(
    params=[
        pytest.param(([sys.executable], "webhook_receiver.py"), id="python"),
        pytest.param(
            ([NODE or "node"], "webhook_receiver.mjs"),
            id="node",
            marks=pytest.mark.skipif(NODE is None, reason="no Node here"),
        ),
    ]
)
def example(request: pytest.FixtureRequest) -> Iterator[Running]:
    command, name = request.param
    with receiver(command, name, f"{NEW} {OLD}") as found:
        yield found


def told(event: str, number: int) -> bytes:
    return payload(event, number, at=datetime.now(tz=UTC), data={"ünï": "cödé"})


def test_what_is_signed_is_taken_once(example: Running) -> None:
    now = datetime.now(tz=UTC)
    for number, secrets in enumerate(([NEW], [OLD], [NEW, OLD], [STRANGE, OLD])):
        body = told("job.completed", number)
        headers = signed_headers(f"msg_{number}", now, body, secrets)
        for _ in range(3):  # delivered again under the same id
            assert example.post(body, headers) == 204
        assert example.line() == f"msg_{number} job.completed job_{number}"


def test_anything_else_is_refused(example: Running) -> None:
    now, body = datetime.now(tz=UTC), told("job.completed", 1)
    good = signed_headers("msg_1", now, body, [NEW])
    late, early = now - timedelta(minutes=6), now + timedelta(minutes=6)
    refused = [
        (body, {}),
        (body, signed_headers("msg_1", now, body, [STRANGE])),
        (body + b" ", good),
        (body, {**good, "webhook-id": "msg_2"}),
        (body, {**good, "webhook-timestamp": str(int(now.timestamp()) + 1)}),
        (body, {**good, "webhook-timestamp": "now"}),
        (body, {**good, "webhook-signature": "v1"}),
        (body, {**good, "webhook-signature": good["webhook-signature"].replace("v1,", "v2,")}),
        (body, {**good, "webhook-signature": "v1,????"}),
        (body, signed_headers("msg_1", late, body, [NEW])),
        (body, signed_headers("msg_1", early, body, [NEW])),
        (b"\xff\xfe", good),
    ]
    assert [example.post(*one) for one in refused] == [401] * len(refused)
    assert example.post(body, good) == 204
    assert example.line() == "msg_1 job.completed job_1"
    with contextlib.suppress(httpx.HTTPError):  # it may hang up while it is still being sent to
        assert example.post(b"x" * 1_000_000, good) == 413
    body = told("batch.completed", 2)
    assert example.post(body, signed_headers("msg_2", now, body, [NEW])) == 204, "it still serves"
