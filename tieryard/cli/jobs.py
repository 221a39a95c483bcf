"""`tieryard jobs`: what happened to a job, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tieryard.cli.candidates import show_decision
from tieryard.cli.client import DEFAULT_URL, Client, UrlOption
from tieryard.cli.printing import JsonOption, print_json, shown_time
from tieryard.cli.tables import FittedTable, printable, table
from tieryard.errors import UserError

_UNCHARGED = {
    "retry": "not charged: this start did not end the job",
    "adjustment": "not charged: it balances what came after its window was closed",
}
"""Kinds of a job's rows that its tenant does not pay."""

cli = typer.Typer(help="Look at jobs; cancel one, score its answer.", no_args_is_help=True)


@cli.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    tier: Annotated[str | None, typer.Option(help="Only jobs of this tier.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only jobs of this batch, in input order.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Lists jobs, newest first."""
    page = Client(url).get("/v1/jobs", state=state, tier=tier, batch=batch, limit=limit)
    if as_json:
        print_json(page)
        return
    if not page["data"]:
        typer.echo("no jobs")
        return
    Console().print(_listed(page["data"]))
    if page["next"]:
        which = "newest" if batch is None else "first"
        Console(stderr=True).print(f"the {which} {limit} only; --limit shows more", highlight=False)


@cli.command()
def show(
    job: Annotated[str, typer.Argument(help="A job's id, such as job_42.")],
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """A job's whole story: features, every candidate and why it lost, each start, timings, money, scores."""
    _refuse_batch(job, f"tieryard jobs list --batch {job}")
    story = Client(url).get(f"/v1/jobs/{job}/story")
    if as_json:
        print_json(story)
        return
    console = Console()
    _show_job(console, story["job"])
    for decision in story["decisions"]:
        _show_decision(console, decision)
    if story["starts"]:
        _show_starts(console, story["starts"])
    if story["money"]:
        _show_money(console, story["money"], story["job"]["cost_usd"])
    if story.get("outcomes"):  # an API of the version before does not tell
        _show_outcomes(console, story["outcomes"])


@cli.command()
def cancel(
    job: Annotated[str, typer.Argument(help="A job's id, such as job_42.")], url: UrlOption = DEFAULT_URL
) -> None:
    """Cancels a job: at once while it waits; a running one within a second."""
    _refuse_batch(job, f"POST /v1/batches/{job}/cancel")
    state = Client(url).post(f"/v1/jobs/{job}/cancel")["state"]
    typer.echo(f"{job}: {'asked to stop' if state == 'running' else state}")


@cli.command()
def score(
    job: Annotated[str, typer.Argument(help="A job's id, such as job_42.")],
    score: Annotated[float, typer.Argument(min=0, max=1, help="How good its answer was: 0 is useless, 1 is perfect.")],
    source: Annotated[str, typer.Option(help="Who says so; each has one word on a job.")] = "caller",
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Tells how good a job's answer was. The router learns from it."""
    _refuse_batch(job, f"tieryard jobs list --batch {job}")
    kept = Client(url).post(f"/v1/jobs/{job}/outcome", json={"score": score, "source": source})
    expected = "" if kept["predicted"] is None else f"; {kept['predicted']:.2f} was expected"
    typer.echo(f"{job}: {kept['score']:g} for {kept['deployment'] or 'an answer used again'}{expected}")


def _refuse_batch(job: str, instead: str) -> None:
    """Raises UserError for a batch's id: `submit` prints no other, so it is what is at hand."""
    if job.startswith("batch_"):
        raise UserError(f"'{job}' is a batch, not a job; use: {instead}")


def _listed(jobs: list[dict[str, Any]]) -> FittedTable:
    headers = ["job", "state", "tier", "deployment", "cost USD", "created (UTC)"]
    names = ("id", "state", "tier", "deployment", "cost_usd")
    rows = [[*(job[n] or "–" for n in names), shown_time(job["created_at"], "%m-%d %H:%M:%S")] for job in jobs]
    if any(job["custom_id"] for job in jobs):  # a terminal of 80 columns has no room for an empty one
        headers.append("custom id")
        rows = [[*row, job["custom_id"] or "–"] for row, job in zip(rows, jobs, strict=True)]
    return table(headers, rows, right=("cost USD",), folds=("deployment", "custom id"))


def _show_job(console: Console, job: dict[str, Any]) -> None:
    facts = [("job", job["id"] + (f" of {job['batch']}" if job["batch"] else ""))]
    facts.append(("state", job["state"] + (f" ({job['finish_reason']})" if job["finish_reason"] else "")))
    facts += [(n.replace("_", " "), job[n]) for n in ("custom_id", "tier", "category", "deployment") if job[n]]
    facts += [("accepted", shown_time(job["created_at"])), ("deadline", shown_time(job["deadline"]))]
    if job["finished_at"]:
        facts.append(("finished", shown_time(job["finished_at"])))
    if job["error"]:
        facts.append(("error", f"{job['error']['kind']}: {job['error']['message']}"))
    shown = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts:
        shown.add_row(name, Text(printable(value), style="bold" if name == "job" else ""))
    console.print(shown)
    if job["output"]:
        console.rule("output", align="left")
        console.print(printable(job["output"]), markup=False, highlight=False, soft_wrap=True)


def _show_decision(console: Console, decision: dict[str, Any]) -> None:
    console.rule(f"routed {shown_time(decision['decided_at'])}: {decision['deployment'] or 'nowhere'}", align="left")
    show_decision(console, decision)


def _show_starts(console: Console, starts: list[dict[str, Any]]) -> None:
    console.rule("starts", align="left")
    figures = ("fence", "wait ms", "TTFT ms", "latency ms", "tokens")
    headers = ("fence", "deployment", "claimed (UTC)", "wait ms", "TTFT ms", "latency ms", "tokens", "outcome")
    rows: list[list[str]] = []
    for s in starts:
        tokens = f"{s['prompt_tokens']}+{s['completion_tokens']}"
        times = ["–" if s[k] is None else f"{s[k]:,.0f}" for k in ("wait_ms", "ttft_ms", "latency_ms")]
        claimed = shown_time(s["claimed_at"], "%H:%M:%S")
        rows.append([str(s["fence"]), s["deployment"], claimed, *times, tokens, s["outcome"]])
    console.print(table(headers, rows, right=figures, folds=("deployment",)))
    for s in starts:
        worker = f"worker {s['worker_id']}" if s["worker_id"] else "a worker that is gone"
        why = f": {printable(s['error'])}" if s["error"] else ""
        console.print(f"fence {s['fence']}: {worker}{why}", markup=False, highlight=False, soft_wrap=True)


def _show_money(console: Console, money: list[dict[str, Any]], total: str | None) -> None:
    console.rule("money", align="left")
    for m in money:
        cached = f" ({m['cached_tokens']} cached)" if m.get("cached_tokens") else ""
        tokens = f"{m['prompt_tokens']} in{cached}, {m['completion_tokens']} out on {m['deployment']}"
        window = f", window {m['window_id']}" if m.get("window_id") else ""
        about = f" {_UNCHARGED[m['kind']]}" if m["kind"] in _UNCHARGED else ""
        kind = f"{m['kind']} of fence {m['fence']}" if len(money) > 1 else m["kind"]
        said = f"{kind}: ${m['cost_usd']} ({tokens}, catalog {m['catalog']}{window}){about}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    console.print(f"charged: ${total or 0}")


def _show_outcomes(console: Console, outcomes: list[dict[str, Any]]) -> None:
    console.rule("scores", align="left")
    figures = ("score", "predicted")
    rows = [
        (o["source"], *(_share(o[n]) for n in figures), o["deployment"] or "–", shown_time(o["scored_at"]))
        for o in outcomes
    ]
    headers = ("source", *figures, "deployment", "scored")
    console.print(table(headers, rows, right=figures, folds=("source", "deployment")))


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"
