"""An operator measures the embedded fleet, llama.cpp and all: figures are printed, profiles appear, and the next
decision rests on them and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson

from tests.acceptance.conftest import KEY, Running
from tests.conftest import eventually


def tieryard(data_dir: Path, *arguments: str) -> str:
    """What the command prints; it must succeed."""
    command = [sys.executable, "-m", "tieryard", *arguments, "--data-dir", str(data_dir)]
    environment = {**os.environ, "TIERYARD_API_KEY": KEY, "COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_fleet_measures_itself(local_fleet: Running) -> None:
    home, api = local_fleet.fleet.data_dir, local_fleet.api
    load = ("--deployment", "smol-short", "--category", "chat", "--requests", "8")
    [run] = orjson.loads(tieryard(home, "bench", "run", *load, "--json"))
    assert run["state"] == "succeeded", run
    figures = run["profiles"]["chat"]
    assert (figures["n"], figures["succeeded"], figures["token_source"]) == (8, 8, "server")
    assert 0 < figures["ttft_ms"]["p50"] <= figures["latency_ms"]["p50"]
    assert figures["error_rate"] == 0
    assert float(run["cost_usd"]) > 0
    assert run["id"] in tieryard(home, "bench", "list")
    assert "smol-short" in tieryard(home, "bench", "show", run["id"])

    measured = f"smol-short's profile for chat was measured by {run['id']}"
    asked = {"prompt": "Hello there, how are you today?", "category": "chat", "model": "smol-short"}

    def is_told() -> bool:  # of those that fit alone: a replica whose gauge is late does not for a moment
        return any(note.startswith(measured) for note in api.post("/v1/route", json=asked).json()["notes"])

    eventually(is_told, what="the profile in a decision")
    job = api.post("/v1/jobs", json={**asked, "tier": "interactive", "max_tokens": 8}).json()
    eventually(lambda: api.get(f"/v1/jobs/{job['id']}").json()["state"] == "succeeded", what="the job's end")
    [decision] = api.get(f"/v1/jobs/{job['id']}/story").json()["decisions"]
    assert any(note.startswith(measured) for note in decision["notes"])
    [[kinds]] = local_fleet.rows("SELECT array_agg(DISTINCT kind ORDER BY kind) FROM ledger")
    assert kinds == ["benchmark", "inference"]
