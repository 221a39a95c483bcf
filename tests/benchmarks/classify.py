"""`tieryard classify` over a file of many rows, on a fleet whose engine is instant: rows a second, and the most memory
that the command ever takes, beside the same for a thousand rows.

`python -m tests.benchmarks.classify --rows 1000000` writes build/bench-classify.json, and fails where the command takes
400 MB or more, a row is missing, or a text was asked twice.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg
import pyarrow.parquet as pq

from tests.benchmarks.report import machine
from tieryard.embedded import free_port
from tieryard.supervisor import Fleet

CATALOG = Path(__file__).parents[1] / "catalogs" / "bench.yaml"
OUT = Path("build/bench-classify.json")
KEY = "ty_bench"
LABELS = "billing,bug,feature"
MOST_MB = 400.0
FEW = 1000
_DUPLICATES = 10
"""Every tenth row repeats the one before it."""


@dataclass(frozen=True)
class Seen:
    """One run of the command."""

    rows: int
    texts: int
    end: str
    seconds: float
    rows_per_s: float
    peak_mb: float
    cost_usd: str


def rows_of(path: Path, rows: int, name: str) -> int:
    """Writes tickets as long as people write them; how many of them differ."""
    texts, text = 0, ""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "received", "text"])
        for number in range(rows):
            if number % _DUPLICATES != _DUPLICATES - 1:
                text = f"{name} {number}: since the update of last Monday the page, opened twice, shows me nothing."
                texts += 1
            writer.writerow([f"{number:09}", "2026-11-23", text])
    return texts


def measured(url: str, source: Path, end: str, texts: int, rows: int) -> Seen:
    """The command as a process of its own. `VmHWM` is the most that it has had in memory; what the kernel tells of a
    child that has ended would count its parent's, from the fork."""
    out = source.with_name(f"{source.stem}-out.{end}")
    command = [
        sys.executable, "-m", "tieryard", "classify", str(source), "--column", "text", "--labels", LABELS,
        "--out", str(out), "--url", url, "--json",
    ]  # fmt: skip
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak_kb = 0
        while process.poll() is None:
            peak_kb = max(peak_kb, _peak_kb(process.pid))
            time.sleep(0.02)
        said, _ = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}: {said}")
    found = json.loads(said)
    written = _rows_in(out)
    if (found["answered"], written, found["run"]["counts"]["asked"]) != (rows, rows, texts):
        raise SystemExit(f"{found['answered']} of {rows} rows answered, {written} written, {found['run']['counts']}")
    if found["sum_of_row_costs_usd"] != found["run"]["cost_usd"]:
        raise SystemExit(f"rows cost {found['sum_of_row_costs_usd']}, the run {found['run']['cost_usd']}")
    out.unlink()
    return Seen(
        rows, texts, end, round(seconds, 1), round(rows / seconds), round(peak_kb / 1000, 1), found["run"]["cost_usd"]
    )


def _peak_kb(pid: int) -> int:
    try:
        told = re.search(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(told[1]) if told else 0


def _rows_in(out: Path) -> int:
    if out.suffix == ".parquet":
        return int(pq.read_metadata(out).num_rows)
    with out.open(newline="") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", default="csv", choices=("csv", "parquet", "jsonl"))
    wanted = parser.parse_args()
    os.environ["TIERYARD_API_KEY"] = KEY
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        work = Path(home)
        work.chmod(0o755)  # embedded Postgres runs as another user when we are root
        found = [_on_a_fleet(work, rows, wanted.out) for rows in (FEW, wanted.rows)]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"machine": machine(), "runs": [asdict(one) for one in found]}, indent=2) + "\n")
    for one in found:
        print(
            f"{one.rows:,} rows ({one.texts:,} texts) to {one.end}: {one.seconds:,} s, {one.rows_per_s:,} rows/s, "
            f"at most {one.peak_mb:.0f} MB in memory, {one.cost_usd} USD"
        )
    if found[-1].peak_mb >= MOST_MB:
        raise SystemExit(f"{found[-1].peak_mb:.0f} MB; the limit is {MOST_MB:.0f}")


def _on_a_fleet(work: Path, rows: int, end: str) -> Seen:
    source = work / f"{rows}.csv"
    texts = rows_of(source, rows, f"Ticket of {rows}")
    with Fleet(work / f"fleet-{rows}", port=free_port(), catalog=CATALOG) as fleet:
        fleet.wait_until_ready()
        tending = threading.Thread(target=fleet.run, daemon=True)
        tending.start()
        try:
            found = measured(fleet.url, source, end, texts, rows)
            with psycopg.connect(fleet.database_url) as connection:
                [[jobs]] = connection.execute("SELECT count(*) FROM job").fetchall()
        finally:
            fleet.stopping.set()
            tending.join()
    if jobs != texts:
        raise SystemExit(f"{jobs} jobs for {texts} texts")
    return found


if __name__ == "__main__":
    main()
