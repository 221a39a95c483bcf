"""Many lines and many bytes: a long file holds nobody back, and a large one goes through the API in little memory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import KEY, Running, StartFleet
from tests.conftest import eventually
from tieryard.store import Store, keys
from tieryard.testing.fake_vllm import FakePlan

CHAT = "/v1/chat/completions"
GROWTH = 100 * 2**20
LINES = 50_000
BYTES = 200 * 2**20


def lines(n: int, text: str = "") -> Iterator[bytes]:
    for i in range(n):
        body = {"model": "auto", "messages": [{"role": "user", "content": f"Write about {i}. {text}"}], "max_tokens": 8}
        yield json.dumps({"custom_id": str(i), "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


def create(api: httpx.Client, content: bytes) -> str:
    file = api.post("/v1/files", files={"file": ("lines.jsonl", content)}, data={"purpose": "batch"}).json()["id"]
    wanted = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    answer = api.post("/v1/batches", json=wanted)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def test_a_long_file_does_not_hold_back_a_short_one(start_fleet: StartFleet) -> None:
    """Another tenant's ten lines are done while most of 50,000 are still to come."""
    with start_fleet(FakePlan(ttft_ms=20, tokens_per_s=400, capacity=32)) as running:
        store = Store(running.fleet.database_url)
        keys.add_key(store, "ty_small", tenant="small", name="test")
        store.close()
        long = create(running.api, b"".join(lines(LINES)))
        eventually(lambda: counts(running, long)["succeeded"] > 500, within_s=60, what="the long file under way")
        headers = {"authorization": "Bearer ty_small"}
        with httpx.Client(base_url=running.fleet.url, headers=headers, timeout=60, trust_env=False) as small:
            started = time.monotonic()
            short = create(small, b"".join(lines(10)))
            done = "completed"
            eventually(lambda: small.get(f"/v1/batches/{short}").json()["status"] == done, what="the short file's end")
            took_s = time.monotonic() - started
        left = LINES - counts(running, long)["succeeded"]
        assert left > LINES * 3 / 4, f"{left} lines left after {took_s:.1f} s"
        running.api.post(f"/v1/batches/{long}/cancel")


def counts(running: Running, batch: str) -> dict[str, int]:
    return running.api.get(f"/v1/batches/{batch}").json()["counts"]


def status(pid: int, name: str) -> int:
    """A figure of /proc/PID/status, in bytes."""
    [found] = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith(f"{name}:")]
    return int(found.split()[1]) * 1024


class Growth:
    """How far a process's memory has risen above where it stood."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.before = status(pid, "VmRSS")
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak starts anew

    def __call__(self) -> int:
        return status(self.pid, "VmHWM") - self.before


@pytest.mark.timeout(300)
def test_200_mb_go_in_and_out_in_little_memory(start_fleet: StartFleet, tmp_path: Path) -> None:
    with start_fleet(FakePlan(capacity=32)) as running:
        create(running.api, b"".join(lines(10)))  # what the first request of each kind loads is not what is asked here
        text = "x" * (BYTES // LINES - 190)
        path = tmp_path / "large.jsonl"
        sent = hashlib.sha256()
        with path.open("wb") as out:
            for line in lines(LINES, text):
                out.write(line)
                sent.update(line)
        size = path.stat().st_size
        assert 0.95 * BYTES < size < BYTES

        growth = Growth(running.pid("api"))
        with path.open("rb") as content:
            form = {"files": {"file": ("large.jsonl", content)}, "data": {"purpose": "batch"}}
            file = running.api.post("/v1/files", **form, timeout=120).json()
        assert file["bytes"] == size
        assert growth() < GROWTH, f"the upload took {growth() / 2**20:.0f} MiB"

        assert download(running, f"/v1/files/{file['id']}/content") == (size, sent.hexdigest())
        assert growth() < GROWTH, f"reading it back took {growth() / 2**20:.0f} MiB"

        # These prompts are longer than the fake's context: their jobs exist, and answers of 4 kB each are put in place.
        wanted = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        batch = running.api.post("/v1/batches", json=wanted).json()["id"]
        ended = "completed"
        eventually(
            lambda: running.api.get(f"/v1/batches/{batch}").json()["status"] == ended, within_s=120, what="expansion"
        )
        number = int(batch.removeprefix("batch_"))
        running.rows(f"UPDATE job SET state = 'succeeded' WHERE batch_id = {number} RETURNING 1")
        running.rows(
            "UPDATE result SET error_kind = NULL, error = NULL, finish_reason = 'stop', output = repeat('y', 4000) "
            f"FROM job WHERE job.batch_id = {number} AND result.job_id = job.id RETURNING 1"
        )
        length, _ = download(running, f"/v1/batches/{batch}/output")
        assert length > BYTES
        assert growth() < GROWTH, f"the output took {growth() / 2**20:.0f} MiB"
        print(f"{size / 2**20:.0f} MiB in, {(size + length) / 2**20:.0f} MiB out: +{growth() / 2**20:.0f} MiB")


def download(running: Running, path: str) -> tuple[int, str]:
    """(bytes, SHA-256) of what is streamed."""
    length, digest = 0, hashlib.sha256()
    with running.api.stream("GET", path, headers={"authorization": f"Bearer {KEY}"}, timeout=120) as answer:
        assert answer.status_code == 200
        for piece in answer.iter_bytes(2**20):
            length += len(piece)
            digest.update(piece)
    return length, digest.hexdigest()
