"""A team registers an endpoint on a whole fleet, and the receiver of the documentation hears of its jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Running
from tests.conftest import eventually
from tieryard.cli.listening import Receiver

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "webhook_receiver.py"
SHORT = {"prompt": "Say hi.", "max_tokens": 4, "tier": "interactive"}


@pytest.fixture
def endpoint(local_fleet: Running) -> Iterator[dict[str, Any]]:
    """An endpoint for what becomes of jobs; nothing listens there yet."""
    wanted = {"url": "http://127.0.0.1:1/", "events": ["job.completed", "batch.completed"], "include_result": True}
    answer = local_fleet.api.post("/v1/webhooks", json=wanted)
    assert answer.status_code == 201, answer.text
    yield answer.json()
    local_fleet.api.delete(f"/v1/webhooks/{answer.json()['id']}")


@pytest.fixture
def example(local_fleet: Running, endpoint: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """The documentation's receiver, which knows the endpoint's secret and the fleet's, at the endpoint's address."""
    ours = (local_fleet.fleet.data_dir / "webhook_secret").read_text()
    environment = {**os.environ, "WEBHOOK_SECRET": f"{endpoint['secret']} {ours}"}
    command = [sys.executable, str(EXAMPLE), "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        changed = local_fleet.api.patch(f"/v1/webhooks/{endpoint['id']}", json={"url": address})
        assert changed.json()["url"] == address
        yield process
        process.kill()


def delivered(fleet: Running, **asked: Any) -> list[dict[str, Any]]:
    """Deliveries that a 2xx took, newest first."""
    found: list[dict[str, Any]] = fleet.api.get("/v1/deliveries", params={"state": "delivered", **asked}).json()["data"]
    return found


def test_the_example_hears_of_jobs_and_batches(
    local_fleet: Running, endpoint: dict[str, Any], example: subprocess.Popen[str]
) -> None:
    """A 204 is its word that the signature holds: it answers 401 otherwise."""
    api, name = local_fleet.api, endpoint["id"]
    assert example.stdout is not None
    job = api.post("/v1/jobs", json=SHORT).json()["id"]
    message, event, subject = example.stdout.readline().split()
    assert (event, subject) == ("job.completed", job)
    eventually(lambda: delivered(local_fleet, webhook=name), what="the word in the log")
    [logged] = delivered(local_fleet, webhook=name)
    assert (logged["message"], logged["subject"], logged["last_status"]) == (message, job, 204)

    batch = api.post("/v1/jobs", json=[{**SHORT, "tier": "batch"}] * 2)
    told = {tuple(example.stdout.readline().split()[1:]) for _ in range(3)}
    assert ("batch.completed", batch.json()["id"]) in told
    assert [event for event, _ in sorted(told)] == ["batch.completed", "job.completed", "job.completed"]


def test_a_callback_url_is_signed_by_the_fleet(
    local_fleet: Running, endpoint: dict[str, Any], example: subprocess.Popen[str]
) -> None:
    api = local_fleet.api
    address = api.get(f"/v1/webhooks/{endpoint['id']}").json()["url"]
    assert api.post(f"/v1/webhooks/{endpoint['id']}/disable").status_code == 200
    job = api.post("/v1/jobs", json={**SHORT, "callback_url": f"{address}own"}).json()["id"]
    assert example.stdout is not None
    assert example.stdout.readline().split()[1:] == ["job.completed", job]
    [own] = [one for one in wait_for(local_fleet, job) if one["webhook"] is None]
    assert (own["url"], own["last_status"]) == (f"{address}own", 204)


def wait_for(fleet: Running, subject: str) -> list[dict[str, Any]]:
    def found() -> list[dict[str, Any]]:
        return [one for one in delivered(fleet) if one["subject"] == subject]

    eventually(found, what=f"a delivery of {subject}")
    return found()


def test_what_is_delivered_again_has_the_same_id_and_a_new_timestamp(
    local_fleet: Running, endpoint: dict[str, Any]
) -> None:
    api, name = local_fleet.api, endpoint["id"]
    with Receiver() as receiver:
        receiver.secrets = [endpoint["secret"]]
        api.patch(f"/v1/webhooks/{name}", json={"url": receiver.url})
        job = api.post("/v1/jobs", json=SHORT).json()["id"]
        coming = receiver.deliveries()
        first = next(coming)
        assert (first.type, first.fault, first.payload["data"]["id"]) == ("job.completed", None, job)
        assert first.payload["data"]["result"]["output"] == api.get(f"/v1/jobs/{job}").json()["output"]
        [logged] = wait_for(local_fleet, job)
        assert first.signed_at is not None
        eventually(lambda: time.time() >= first.signed_at + 1, what="another second")
        assert api.post("/v1/redeliveries", json={"delivery": logged["id"]}).json()["redelivered"] == 1
        again = next(coming)
        assert (again.id, again.fault, again.payload, again.attempt) == (first.id, None, first.payload, 2)
        assert again.signed_at is not None
        assert again.signed_at > first.signed_at

        api.post(f"/v1/webhooks/{name}/rotate")  # and the receiver goes on with the old secret for a day
        all_of_it = {"webhook": name, "since": "1h", "state": "all"}
        assert api.post("/v1/redeliveries", json=all_of_it).json()["redelivered"] == 1
        third = next(coming)
        assert (third.id, third.fault, third.attempt) == (first.id, None, 3)
        eventually(lambda: len(history(local_fleet, logged["id"])) == 3, what="three attempts in the log")
        assert {one["status"] for one in history(local_fleet, logged["id"])} == {204}


def history(fleet: Running, delivery: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fleet.api.get(f"/v1/deliveries/{delivery}").json()["history"]
    return found
