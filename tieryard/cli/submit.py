"""`tieryard submit FILE.jsonl`: a batch from a file, watched to its end, with a table of how it went."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tieryard.bench.percentiles import percentile
from tieryard.cli.client import DEFAULT_URL, Client, UrlOption
from tieryard.cli.tables import FittedTable, printable, table
from tieryard.errors import TieryardError, UserError

_PATIENCE_S = 60.0  # so long may the API be away while a batch is watched: the batch goes on without it
_FINAL = ("succeeded", "failed", "cancelled", "expired")


def submit(
    file: Annotated[Path, typer.Argument(help="One job a line, as JSON.")],
    tier: Annotated[str, typer.Option(help="Tier of jobs that name none.")] = "batch",
    wait: Annotated[bool, typer.Option("--wait", help="Watch it to its end and print a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="With --wait: write each job's result here, a line each.")] = None,
    summary: Annotated[Path | None, typer.Option(help="With --wait: write the table's figures here, as JSON.")] = None,
    quote: Annotated[str | None, typer.Option(help="The quote that it is to be held against.")] = None,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Submits a file of jobs as one batch."""
    if not wait and (out or summary):
        raise UserError("--out and --summary need --wait")
    try:
        body = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    client = Client(url)
    headers = {"content-type": "application/x-ndjson"}
    params = {"tier": tier} | ({"quote_id": quote} if quote is not None else {})
    batch = client.post("/v1/jobs", content=body, headers=headers, params=params)
    if not wait:
        typer.echo(batch["id"])
        return
    console = Console(stderr=True)
    console.print(f"{batch['id']}: {batch['request_counts']['total']} jobs", highlight=False)
    try:
        batch = _watch(client, batch, console)
    except KeyboardInterrupt:
        console.print(f"{batch['id']} goes on; see it with: tieryard jobs list --batch {batch['id']}", highlight=False)
        raise
    jobs = client.jobs(batch["id"])
    figures = summarize(batch, jobs)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(job, ensure_ascii=False) + "\n" for job in jobs), encoding="utf-8")
    if summary is not None:
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    Console().print(_table(figures))
    if figures["failed"]:
        _explain_failures(jobs, console)
        raise typer.Exit(1)


def _watch(client: Client, batch: dict[str, Any], console: Console) -> dict[str, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(batch["id"], total=batch["request_counts"]["total"])
        heard_at = time.monotonic()
        while batch["finished_at"] is None:
            time.sleep(0.5)
            try:
                batch = client.get(f"/v1/batches/{batch['id']}")
            except UserError:
                raise
            except TieryardError:
                if time.monotonic() - heard_at > _PATIENCE_S:
                    raise
                continue
            heard_at = time.monotonic()
            progress.update(bar, completed=sum(batch["counts"].get(state, 0) for state in _FINAL))
    return batch


def summarize(batch: dict[str, Any], jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """The batch's figures: counts, money (exact, as strings), and percentiles per deployment in milliseconds."""
    by_deployment: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for job in jobs:
        if job["timings"] is not None:
            by_deployment[job["deployment"]].append(job)
    return {
        "batch": batch["id"],
        "jobs": len(jobs),
        "succeeded": sum(job["state"] == "succeeded" for job in jobs),
        "failed": sum(job["state"] != "succeeded" for job in jobs),
        "cost_usd": _plain(Decimal(batch["cost_usd"])),
        "sum_of_job_costs_usd": _plain(_total(jobs)),
        "deployments": {name: _figures(members) for name, members in sorted(by_deployment.items())},
    }


def _figures(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "jobs": len(jobs),
        "tokens": sum(j["usage"]["prompt_tokens"] + j["usage"]["completion_tokens"] for j in jobs),
        "ttft_ms": _percentiles([j["timings"]["ttft_ms"] for j in jobs]),
        "latency_ms": _percentiles([j["timings"]["latency_ms"] for j in jobs]),
        "cost_usd": _plain(_total(jobs)),
    }


def _total(jobs: list[dict[str, Any]]) -> Decimal:
    return sum((Decimal(job["cost_usd"]) for job in jobs if job["cost_usd"] is not None), Decimal(0))


def _plain(money: Decimal) -> str:
    """Without exponent or trailing zeros, so that equal amounts are equal strings."""
    return f"{money.normalize():f}"


def _percentiles(values: list[float | None]) -> dict[str, float | None]:
    """p50 and p95; None when nothing was measured."""
    known = [v for v in values if v is not None]
    found = {"p50": percentile(known, 0.50), "p95": percentile(known, 0.95)}
    return {name: None if value is None else round(value, 1) for name, value in found.items()}


def _table(figures: dict[str, Any]) -> FittedTable:
    columns = ("jobs", "tokens", "TTFT p50 ms", "p95", "latency p50 ms", "p95", "cost USD")
    rows: list[list[str]] = []
    for name, d in figures["deployments"].items():
        times = [d[kind][p] for kind in ("ttft_ms", "latency_ms") for p in ("p50", "p95")]
        cells = ["–" if t is None else f"{t:,.0f}" for t in times]
        rows.append([name, f"{d['jobs']:,}", f"{d['tokens']:,}", *cells, d["cost_usd"]])
    rows.append(["all", f"{figures['jobs']:,}", "", "", "", "", "", figures["cost_usd"]])
    title = f"{figures['batch']}: {figures['succeeded']} of {figures['jobs']} succeeded"
    headers = ("deployment", *columns)
    return table(headers, rows, right=columns, folds=("deployment",), title=title, sections=(len(rows) - 2,))


def _explain_failures(jobs: list[dict[str, Any]], console: Console) -> None:
    failed = [job for job in jobs if job["state"] != "succeeded"]
    for job in failed[:10]:
        why = job["error"]["message"] if job["error"] else job["state"]
        console.print(
            f"{job['id']} ({job['custom_id'] or 'no custom_id'}): {job['state']}: {printable(why)}",
            markup=False,
            soft_wrap=True,
        )
    if len(failed) > 10:
        console.print(f"… and {len(failed) - 10} more")
