"""`tieryard jobs`: what happened to a job, and why."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tieryard.cli.client import DEFAULT_URL, Client, UrlOption

cli = typer.Typer(help="Look at jobs.", no_args_is_help=True)


@cli.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    tier: Annotated[str | None, typer.Option(help="Only jobs of this tier.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only jobs of this batch, in input order.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Lists jobs, newest first."""
    page = Client(url).get("/v1/jobs", state=state, tier=tier, batch=batch, limit=limit)
    table = Table()
    for column in ("job", "state", "tier", "category", "deployment", "custom id", "cost USD", "created"):
        table.add_column(column)
    for job in page["data"]:
        cells = [job["id"], job["state"], job["tier"], job["category"], job["deployment"], job["custom_id"]]
        table.add_row(*[c or "–" for c in cells], job["cost_usd"] or "–", _time(job["created_at"]))
    Console().print(table)


@cli.command()
def show(job: Annotated[str, typer.Argument(help="A job's id, such as job_42.")], url: UrlOption = DEFAULT_URL) -> None:
    """A job's whole story: features, every candidate and why it lost, each start, timings, money."""
    story = Client(url).get(f"/v1/jobs/{job}/story")
    console = Console()
    _show_job(console, story["job"])
    for decision in story["decisions"]:
        _show_decision(console, decision)
    if story["starts"]:
        _show_starts(console, story["starts"])
    if story["money"]:
        _show_money(console, story["money"], story["job"]["cost_usd"])


@cli.command()
def cancel(
    job: Annotated[str, typer.Argument(help="A job's id, such as job_42.")], url: UrlOption = DEFAULT_URL
) -> None:
    """Cancels a job: at once while it waits; a running one within a second."""
    typer.echo(f"{job}: {Client(url).post(f'/v1/jobs/{job}/cancel')['state']}")


def _show_job(console: Console, job: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("job", f"[bold]{job['id']}[/bold]" + (f" of {job['batch']}" if job["batch"] else ""))
    table.add_row("state", job["state"] + (f" ({job['finish_reason']})" if job["finish_reason"] else ""))
    for name in ("custom_id", "tier", "category", "deployment"):
        if job[name]:
            table.add_row(name.replace("_", " "), job[name])
    table.add_row("accepted", _time(job["created_at"]))
    table.add_row("deadline", _time(job["deadline"]))
    if job["finished_at"]:
        table.add_row("finished", _time(job["finished_at"]))
    if job["error"]:
        table.add_row("error", f"{job['error']['kind']}: {job['error']['message']}")
    console.print(table)
    if job["output"]:
        console.rule("output", align="left")
        console.print(job["output"], markup=False, highlight=False)


def _show_decision(console: Console, decision: dict[str, Any]) -> None:
    console.rule(f"routed {_time(decision['decided_at'])}: {decision['deployment'] or 'nowhere'}", align="left")
    console.print(f"because {decision['reason']}", markup=False)
    features = decision["features"]
    if features:
        text = features["text"]
        shown = f"category {text['category']}, wants {text['wanted']} ({text['cue']}), {text['words']} words"
        needs = f", needs {', '.join(features['needs'])}" if features["needs"] else ""
        console.print(f"features: {shown}, max_tokens {features['max_tokens']}{needs}", markup=False)
    table = Table()
    for column, justify in (("candidate", "left"), ("prompt tokens", "right"), ("expected USD", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("verdict")
    for c in decision["candidates"]:
        verdict = "chosen" if c["chosen"] else c["why"]
        style = "bold" if c["chosen"] else None if c["qualifies"] else "dim"
        table.add_row(c["name"], str(c["prompt_tokens"]), f"{float(c['expected_cost_usd']):.8f}", verdict, style=style)
    console.print(table)


def _show_starts(console: Console, starts: list[dict[str, Any]]) -> None:
    console.rule("starts", align="left")
    table = Table()
    for column in ("fence", "deployment", "worker", "claimed", "wait ms", "TTFT ms", "latency ms", "tokens", "outcome"):
        table.add_column(column)
    for s in starts:
        tokens = f"{s['prompt_tokens']}+{s['completion_tokens']}"
        outcome = s["outcome"] + (f": {s['error']}" if s["error"] else "")
        times = ["–" if s[k] is None else f"{s[k]:,.0f}" for k in ("wait_ms", "ttft_ms", "latency_ms")]
        table.add_row(
            str(s["fence"]), s["deployment"], str(s["worker_id"]), _time(s["claimed_at"]), *times, tokens, outcome
        )
    console.print(table)


def _show_money(console: Console, money: list[dict[str, Any]], total: str | None) -> None:
    console.rule("money", align="left")
    for m in money:
        tokens = f"{m['prompt_tokens']} in, {m['completion_tokens']} out"
        console.print(f"{m['kind']}: ${m['cost_usd']} ({tokens} on {m['deployment']}, catalog {m['catalog']})")
    console.print(f"total: ${total}")


def _time(iso: str) -> str:
    return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M:%S")
