"""The worker of classification runs and the API are killed again and again while a run's rows come in and are asked: no
text is asked twice of a model, no row is lost, and the rows add up to what the ledger says."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import KEY, Running, running
from tests.conftest import eventually, open_directory
from tieryard.embedded import free_port
from tieryard.supervisor import Fleet

CATALOG = """
version: 1
tiers:
  realtime: {slo: {max_latency_ms: 1000}, window: 60s}
  batch: {slo: {max_latency_ms: 60000}, slo_from: claimed, window: 24h}
  bulk: {window: 24h}
categories: [extraction, classification, summarization, reasoning, code, chat]
deployments:
  cheap: &cheap
    model: test/cheap
    revision: "1"
    size_class: small
    engine: {kind: instant, delay_ms: 40}
    context_limit: 4096
    max_in_flight: 16
    tokenizer: utf8
    capabilities: [json_schema, logprobs]
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}
  dear:
    <<: *cheap
    model: test/dear
    size_class: large
    price: {input_usd_per_1m: 1.00, output_usd_per_1m: 4.00}
"""
ROWS, TEXTS, SENT = 4000, 3000, 400
BELOW = 0.65
KILLS = 4  # of each, in the time that the run takes
PATH = "/v1/classifications"


@pytest.fixture
def fleet(quick: None) -> Iterator[Running]:
    with open_directory() as home:
        catalog = home / "instant.yaml"
        catalog.write_text(CATALOG)
        with running(Fleet(home / "data", port=free_port(), catalog=catalog)) as found:
            yield found


@dataclass
class Killer:
    """Sends SIGKILL to these processes of a fleet, `after_s` after each has registered, until it is left."""

    running: Running
    names: tuple[str, ...]
    after_s: float
    kills: dict[str, int] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Killer:
        self.thread = threading.Thread(target=self._kill)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _kill(self) -> None:
        at_work: dict[int, float] = {}
        while not self.over.wait(0.1):
            registered = {row[0] for row in self.running.rows("SELECT pid FROM worker WHERE stopped_at IS NULL")}
            for name in self.names:
                process = self.running.fleet.children[name].process
                if process is None:  # about to be started again
                    continue
                pid = process.pid
                since = at_work.setdefault(pid, time.monotonic()) if pid in registered else time.monotonic()
                if time.monotonic() - since >= self.after_s and pid in at_work:
                    del at_work[pid]
                    os.kill(pid, signal.SIGKILL)
                    self.kills[name] = self.kills.get(name, 0) + 1
                    self.running.rows(f"UPDATE worker SET stopped_at = now() WHERE pid = {pid} RETURNING id")


def patiently(api: httpx.Client, method: str, path: str, **asked: Any) -> httpx.Response:
    """As a client asks that does not know whether its last request was heard."""
    deadline = time.monotonic() + 60
    while True:
        try:
            answer = api.request(method, path, **asked)
            if answer.status_code < 500:
                return answer
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, f"{method} {path} was never answered"
        time.sleep(0.05)


def text_of(row: int) -> str:
    return f"ticket {row % TEXTS}"


def send(api: httpx.Client, run: str) -> None:
    for first in range(1, ROWS + 1, SENT):
        body = b"".join(json.dumps({"text": text_of(row)}).encode() + b"\n" for row in range(first, first + SENT))
        answer = patiently(api, "POST", f"{PATH}/{run}/rows", params={"first": first}, content=body)
        assert answer.json() == {"received": first + SENT - 1}
        time.sleep(0.3)  # there must be a middle
    assert patiently(api, "POST", f"{PATH}/{run}/complete", json={"rows": ROWS}).status_code == 200


def results(api: httpx.Client, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < ROWS:
        answer = patiently(api, "GET", f"{PATH}/{run}/results", params={"after": len(found), "limit": 1000})
        page = [json.loads(line) for line in answer.content.splitlines()]
        assert page, f"only {len(found)} rows"
        found += page
    return found


def test_nothing_is_asked_twice_and_nothing_is_lost(fleet: Running, capsys: pytest.CaptureFixture[str]) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    labels = [{"name": name} for name in ("billing", "bug", "feature", "praise")]
    with httpx.Client(base_url=fleet.fleet.url, headers=headers, timeout=20, trust_env=False) as api:
        asked = {"labels": labels, "model": "cheap", "escalate": {"model": "dear", "below": BELOW}}
        run = patiently(api, "POST", PATH, json=asked, headers={"idempotency-key": "one"}).json()["id"]
        with Killer(fleet, ("classifying", "api"), after_s=0.7) as killer:
            send(api, run)
            eventually(lambda: sum(killer.kills.values()) >= 2 * KILLS, within_s=60, what="the kills")
        eventually(
            lambda: patiently(api, "GET", f"{PATH}/{run}").json()["finished_at"], within_s=120, what="the run's end"
        )
        done = patiently(api, "GET", f"{PATH}/{run}").json()
        rows = results(api, run)
    with capsys.disabled():
        print(f"\nkills {killer.kills}, counts {done['counts']}, {done['cost_usd']} USD")
    counts = done["counts"]
    assert (done["state"], counts["rows"], counts["unique"], counts["failed"]) == ("completed", ROWS, TEXTS, 0)
    assert min(killer.kills.values()) >= 2, "too few to prove anything"
    # Asked twice: 0. Each question has its job, its line and its charge; no two are the same text of the same model.
    assert 0 < counts["escalated"] < TEXTS
    [(jobs, final)] = fleet.rows("SELECT count(*), count(finished_at) FROM job")
    assert jobs == final == counts["asked"] == TEXTS + counts["escalated"]
    assert fleet.rows("SELECT count(*), count(DISTINCT body) FROM line") == [(jobs, jobs)]
    assert fleet.rows("SELECT count(*), count(DISTINCT job_id) FROM classification_answer") == [(jobs, jobs)]
    # Lost: 0. Every row is there, in order, with the answer of its text; and they add up.
    assert [row["row"] for row in rows] == list(range(1, ROWS + 1))
    assert all(row["label"] for row in rows)
    assert [row["label"] for row in rows[TEXTS:]] == [row["label"] for row in rows[: ROWS - TEXTS]]
    [(charged,)] = fleet.rows("SELECT sum(cost_usd) FROM ledger WHERE kind = 'inference'")
    assert sum(Decimal(row["cost_usd"]) for row in rows) == charged == Decimal(done["cost_usd"])
