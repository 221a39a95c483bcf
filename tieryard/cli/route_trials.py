"""`tieryard route shadow` and `status`: how a deployment on trial does, and whether outcomes bear the learned model
out. They work on the database itself, and only read."""

from __future__ import annotations

import dataclasses
import json

import typer
from rich.console import Console

from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.route_reports import JsonOption, SinceOption, duration
from tieryard.cli.tables import table
from tieryard.routing.outcomes import LEAST_OUTCOMES, Verdict
from tieryard.store import outcomes, routes, shadows
from tieryard.store.outcomes import SteppedBack
from tieryard.store.shadows import Comparison

_SHADOW = ("copies", "pairs", "failed", "agree", "p50 ms", "copy's", "p95 ms", "copy's ", "USD", "copy's  ")


def shadow(since: SinceOption = "24h", as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """Jobs beside their copies at deployments on trial: how often both said the same, how long they took, what they
    cost. Pairs are those that succeeded on both sides."""
    with database(data_dir) as store:
        found = shadows.compare(store, since=routes.window(store, duration(since))[0])
    if as_json:
        rows = [dataclasses.asdict(row) | {"agreement": row.agreement} for row in found]
        _print_json(rows)
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
        last, verdict = outcomes.standing(connection)
    if as_json:
        _print_json(
            {
                "stepped_back": last is not None and last.until is None,
                "last": dataclasses.asdict(last) if last is not None else None,
                "verdict": dataclasses.asdict(verdict),
            }
        )
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in said(last, verdict):
        console.print(line, markup=False)


def said(last: SteppedBack | None, verdict: Verdict) -> list[str]:
    """The status, in sentences."""
    lines = []
    if last is not None and last.until is None:
        lines.append(f"stepped back to the rules since {last.since:%Y-%m-%d %H:%M:%S} UTC: {last.why}")
    else:
        lines.append("not stepped back: the learned model decides where the catalog asks for it")
        if last is not None:
            times = f"from {last.since:%Y-%m-%d %H:%M:%S} to {last.until:%Y-%m-%d %H:%M:%S} UTC"
            lines.append(f"stepped back {times}: {last.why}")
    when = "so far" if last is None else "since then"
    if verdict.n < LEAST_OUTCOMES:
        lines.append(f"{when} {verdict.n} outcomes; a verdict needs {LEAST_OUTCOMES}")
    else:
        lines.append(f"{when}, {verdict}")
    return lines


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _figures(row: Comparison) -> tuple[str, ...]:
    times, copy_times = row.latency_ms or (None, None), row.copy_latency_ms or (None, None)
    shown = ["–" if ms is None else f"{ms:,.0f}" for pair in zip(times, copy_times, strict=True) for ms in pair]
    agree = "–" if row.agreement is None else f"{row.agreement:.0%}"
    usd, copy_usd = f"{row.cost_usd:.6f}", f"{row.copy_cost_usd:.6f}"
    return f"{row.copies:,}", f"{row.answered:,}", f"{row.copies_failed:,}", agree, *shown, usd, copy_usd
