"""`make demo`: a real batch through the embedded fleet, from start to results. Leaves build/demo/."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "demo"
TIERYARD = [sys.executable, "-m", "tieryard"]


def main() -> int:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "TIERYARD_API_KEY": "ty_" + secrets.token_urlsafe(24)}
    started = time.monotonic()
    fleet = subprocess.Popen(
        [*TIERYARD, "up", "--port", str(port), "--data-dir", str(OUT / "data")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = wait_until_ready(fleet)
        ready_s = round(time.monotonic() - started, 1)
        print(f"the fleet is ready after {ready_s} s: {url}", flush=True)
        submit = subprocess.run(
            [*TIERYARD, "submit", str(ROOT / "docs/examples/prompts.jsonl"), "--tier", "batch", "--wait",
             "--out", str(OUT / "results.jsonl"), "--summary", str(OUT / "summary.json")],
            env={**environment, "TIERYARD_URL": url},
            check=False,
        )  # fmt: skip
        if submit.returncode:
            return submit.returncode
        summary = json.loads((OUT / "summary.json").read_text())
        (OUT / "summary.json").write_text(json.dumps({**summary, "ready_s": ready_s}, indent=2) + "\n")
        print(f"results: {OUT.relative_to(ROOT)}/results.jsonl, figures: {OUT.relative_to(ROOT)}/summary.json")
        if summary["cost_usd"] != summary["sum_of_job_costs_usd"]:
            print(f"the jobs' costs do not add up to the batch's: {summary}")
            return 1
        fleet.send_signal(signal.SIGTERM)
        return fleet.wait(timeout=60)
    finally:
        fleet.terminate()
        fleet.wait(timeout=60)


def wait_until_ready(fleet: subprocess.Popen[str]) -> str:
    """The URL of the fleet's `ready` line; everything it says before is passed on."""
    assert fleet.stdout is not None
    for line in fleet.stdout:
        if line.startswith("ready "):
            return line.split()[1]
        print(line, end="", flush=True)
    raise SystemExit(f"the fleet stopped with code {fleet.wait()}; see {OUT}/data/logs")


if __name__ == "__main__":
    sys.exit(main())
