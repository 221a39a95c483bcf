"""`tieryard route shadow` and `status`: how a deployment on trial does, and whether outcomes bear the learned model
out. They work on the database itself, and only read."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json, shown_time
from tieryard.cli.route_reports import SinceOption, duration
from tieryard.cli.tables import table
from tieryard.routing.outcomes import LEAST_OUTCOMES
from tieryard.store import outcomes, routes, shadows
from tieryard.store.outcomes import Standing
from tieryard.store.shadows import Comparison

_SHADOW = ("copies", "pairs", "failed", "agree", "p50 ms", "copy's", "p95 ms", "copy's ", "USD", "copy's  ")


def shadow(since: SinceOption = "24h", as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """Jobs beside their copies at deployments on trial: how often both said the same, how long they took, what they
    cost. Pairs are those that succeeded on both sides."""
    with database(data_dir) as store:
        found = shadows.compare(store, since=routes.window(store, duration(since))[0])
    if as_json:
        print_json([dataclasses.asdict(row) | {"agreement": row.agreement} for row in found])
        return
    console = Console()
    if not found:
        console.print(f"no job was copied in the last {since}; `routing.shadows` in the catalog says which are")
        return
    cells = [(f"{row.original or '–'} → {row.copy}", *_figures(row)) for row in found]
    console.print(table(("deployments", *_SHADOW), cells, right=_SHADOW, folds=("deployments",)))


def status(as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """Whether measured outcomes bear the learned model out, or the router has stepped back to its rules."""
    with database(data_dir) as store, store.transaction() as connection:
        found = outcomes.standing(connection)
    if as_json:
        print_json(
            {
                "quality_model": found.quality_model or None,
                "stepped_back": found.last is not None and not found.last.over,
                "last": dataclasses.asdict(found.last) if found.last is not None else None,
                "verdict": dataclasses.asdict(found.verdict),
            }
        )
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in said(found):
        console.print(line, markup=False)


def said(found: Standing) -> list[str]:
    """The status, in sentences."""
    last, verdict = found.last, found.verdict
    if not found.quality_model:
        return ["not stepped back: what was routed last had no learned model, or nothing was"]
    lines = []
    if last is not None and not last.over:
        lines.append(f"stepped back to the rules since {shown_time(last.since)}: {last.why}")
    else:
        model = f"the learned model (quality model {found.quality_model})"
        lines.append(f"not stepped back: {model} decides where the catalog asks for it")
        if last is not None and last.until is not None:
            times = f"from {shown_time(last.since)} to {shown_time(last.until)}"
            lines.append(f"stepped back {times}: {last.why}")
    when = "so far" if last is None else "since then"
    if verdict.n < LEAST_OUTCOMES:
        lines.append(f"{when} {verdict.n} outcomes; a verdict needs {LEAST_OUTCOMES}")
    else:
        lines.append(f"{when}, {verdict}")
    return lines


def _figures(row: Comparison) -> tuple[str, ...]:
    times, copy_times = row.latency_ms or (None, None), row.copy_latency_ms or (None, None)
    shown = ["–" if ms is None else f"{ms:,.0f}" for pair in zip(times, copy_times, strict=True) for ms in pair]
    agree = "–" if row.agreement is None else f"{row.agreement:.0%}"
    usd, copy_usd = f"{row.cost_usd:.6f}", f"{row.copy_cost_usd:.6f}"
    return f"{row.copies:,}", f"{row.answered:,}", f"{row.copies_failed:,}", agree, *shown, usd, copy_usd
