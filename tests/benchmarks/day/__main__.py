"""Plays the simulated day, prints what came of it, and adds it to build/router-eval.json under `day`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.day import figures, picture, prompts

OUT, PICTURE = Path("build/router-eval.json"), Path("build/simulated-day.svg")


def main() -> None:
    if not prompts.DATA.exists():
        print(f"the simulated day is left out: {prompts.DATA} is not there", file=sys.stderr)
        return
    began = time.perf_counter()
    day = figures.play(prompts.read())
    found = figures.figures(day)
    merge(OUT, "day", found)
    PICTURE.write_text(picture.svg(day.outcomes))
    show(found, Console(width=150))
    print(f"{OUT} and {PICTURE}, in {time.perf_counter() - began:.0f} s", file=sys.stderr)


def merge(out: Path, key: str, found: dict[str, Any]) -> None:
    """Sets one key of the file and leaves the others."""
    out.parent.mkdir(exist_ok=True)
    whole = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps({**whole, key: found}, indent=2) + "\n")


def show(found: dict[str, Any], console: Console) -> None:
    money = _table(
        f"A simulated day of {found['jobs']:,} jobs",
        ("policy", "tokens, USD", "of large", "rent, USD", "quality", "of large", "small/medium/large %",
         "req/s within SLO", "of large", "rent of 1M requests"),
    )  # fmt: skip
    slo = _table(
        "Jobs that somebody waits for",
        ("policy", "missed %", "at noon %", "expired", "fallbacks", "realtime TTFT p99 ms", "realtime p99 ms",
         "interactive p99 ms"),
    )  # fmt: skip
    for name, row in found["policies"].items():
        sustained, tiers = found["sustained"][name], row["tiers"]
        shares = "/".join(f"{100 * row['shares'].get(size, 0):.0f}" for size in ("small", "medium", "large"))
        money.add_row(
            name, row["cost_usd"][:-2], f"{row['cost_of_large']:.3f}", row["rent_usd"], f"{row['quality']:.3f}",
            f"{row['quality_of_large']:.3f}", shares, f"{sustained['requests_per_s']}", f"{sustained['of_large']}",
            sustained["rent_usd_per_1m_requests"],
        )  # fmt: skip
        slo.add_row(
            name, f"{100 * row['missed_when_waited_for']:.2f}", f"{100 * row['missed_at_noon']:.2f}",
            f"{row['expired']:,}", f"{row['fallbacks']:,}", f"{tiers['realtime']['ttft_ms']['p99']:,.0f}",
            f"{tiers['realtime']['latency_ms']['p99']:,.0f}", f"{tiers['interactive']['latency_ms']['p99']:,.0f}",
        )  # fmt: skip
    console.print(money, slo)
    for row in found["claims"]:
        console.print(f"{row['claim']}: claimed {row['claimed']}, here {row['measured']}")


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == "policy" else "right")
    return table


if __name__ == "__main__":
    main()
