"""What a run of benchmarks leaves: a file of figures, and the same as a table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.figures import Figure

COLUMNS = ("figure", "value", "unit", "spread", "peer", "peer value", "ratio", "n")


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1), "system": platform.platform()}


def report(out: Path, figures: list[Figure], packages: Iterable[str], others: dict[str, str]) -> None:
    """Writes `out` and prints it. `others` are versions of what is not installed here."""
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    found = {"machine": machine(), "versions": versions | others, "figures": [asdict(f) for f in figures]}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n")
    table = Table(title=str(out))
    for column in COLUMNS:
        table.add_column(column)
    for f in figures:
        spread = "–" if f.spread is None else f"{f.spread:.0%}"
        table.add_row(f.figure, f"{f.value:,}", f.unit, spread, f.peer, f"{f.peer_value:,}", str(f.ratio), str(f.n))
    Console(width=140).print(table)
