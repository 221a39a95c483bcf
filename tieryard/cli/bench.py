"""`tieryard bench`: measures how fast deployments are. Works on the database itself; the benchmark worker does the
rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tieryard.bench.asking import Ask, CapacityAsk, SpeedAsk, asked_runs
from tieryard.catalog import Catalog
from tieryard.cli import bench_reports
from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json, shown_time
from tieryard.cli.tables import FittedTable, printable, table
from tieryard.errors import UserError
from tieryard.ids import internal
from tieryard.in_force import parse
from tieryard.requests.fields import refusal
from tieryard.store import Store, benchmarks, catalogs
from tieryard.store.benchmarks import KIND, BenchmarkRun, RunKind, RunState

cli = typer.Typer(help="Measure how fast deployments are.", no_args_is_help=True)

DeploymentOption = Annotated[str | None, typer.Option(help="Whom to measure. Default: every deployment of text.")]
RunArgument = Annotated[str, typer.Argument(help="A run's id, such as benchmark_42.")]
WaitOption = Annotated[bool, typer.Option(help="Wait for the end and print what was found.")]
_EVERY_S = 1.0


@cli.command()
def run(
    deployment: DeploymentOption = None,
    category: Annotated[str | None, typer.Option(help="Only requests of this one.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at any time. Default: all it takes.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second, at random times, instead.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="How many are measured. Default: by the load.")] = None,
    capacity: Annotated[bool, typer.Option("--capacity", help="Search the highest rate that holds the SLOs.")] = False,
    low: Annotated[float | None, typer.Option(help="With --capacity: the rate to begin with.")] = None,
    high: Annotated[float | None, typer.Option(help="With --capacity: the highest rate to try.")] = None,
    wait: WaitOption = True,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Sends deployments a load and measures TTFT, TPOT, throughput, errors and cost, by category. Users' jobs go first:
    a run waits until there is room beside them, and gives way to them."""
    shape: dict[str, Any] = {"concurrency": concurrency, "rate_per_s": rate, "requests": requests}
    search: dict[str, Any] = {"low": low, "high": high}
    wrong, given = (shape, search) if capacity else (search, shape)
    if not_meant := [name for name, value in wrong.items() if value is not None]:
        raise UserError(f"--{not_meant[0].partition('_')[0]} is {'not ' if capacity else ''}for --capacity")
    told = {"kind": "capacity" if capacity else "speed", "deployment": deployment, "category": category, **given}
    with database(data_dir) as store:
        ask = _read(CapacityAsk if capacity else SpeedAsk, told)
        ids = benchmarks.create(store, asked_runs(ask, in_force(store), store))
        found = watch(store, ids) if wait else [benchmarks.get(store, number) for number in ids]
        if as_json:
            print_json([_whole(store, one) for one in found])
            return
        console = Console()
        for one in found:
            _show(console, store, one, brief=not wait)
    if any(one.state not in (RunState.QUEUED, RunState.RUNNING, RunState.SUCCEEDED) for one in found):
        raise typer.Exit(1)


@cli.command("list")
def list_runs(
    deployment: DeploymentOption = None,
    kind: Annotated[RunKind | None, typer.Option(help="Only those of this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Lists runs, newest first."""
    with database(data_dir) as store:
        found = benchmarks.listing(store, deployment=deployment, kind=kind, limit=limit)
    if as_json:
        print_json(found)
        return
    headers = ("run", "kind", "deployment", "state", "asked (UTC)", "why")
    rows = [
        (one.public_id, one.kind, one.deployment, one.state, shown_time(one.created_at, "%m-%d %H:%M"), _why(one))
        for one in found
    ]
    Console().print(table(headers, rows, folds=("deployment", "why")) if rows else "no run yet: tieryard bench run")


@cli.command()
def show(run: RunArgument, as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """A run, with all that it has found."""
    with database(data_dir) as store:
        found = benchmarks.get(store, internal(KIND, run))
        if as_json:
            print_json(_whole(store, found))
        else:
            _show(Console(), store, found, whole=True)


@cli.command()
def cancel(run: RunArgument, data_dir: DataDirOption = None) -> None:
    """Cancels a run: at once while it waits, within seconds while it runs."""
    with database(data_dir) as store:
        found = benchmarks.cancel(store, internal(KIND, run))
    if not found.cancelling:
        raise UserError(f"cannot cancel {run}: it is {found.state}")
    typer.echo(f"{run}: {found.state if found.state == RunState.CANCELLED else 'asked to stop'}")


def in_force(store: Store) -> Catalog:
    """The catalog that the fleet goes by. Raises UserError where there is none yet."""
    version = catalogs.newest(store)
    if version is None:
        raise UserError("no catalog is in force yet: start the fleet, or `tieryard config apply`")
    return parse(version)


def watch(store: Store, ids: Iterable[int]) -> list[BenchmarkRun]:
    """These runs at their end. Meanwhile says what each waits for."""
    wanted = list(ids)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars = {number: progress.add_task(benchmarks.name_of(number), total=None) for number in wanted}
        while True:
            found = [benchmarks.get(store, number) for number in wanted]
            for one in found:
                about = f"{one.public_id} on {one.deployment}: {one.state}" + (f" ({one.why})" if one.why else "")
                progress.update(bars[one.id], description=about)
            if all(one.finished_at is not None for one in found):
                return found
            time.sleep(_EVERY_S)


def _read(kind: Callable[..., Ask], told: dict[str, Any]) -> Ask:
    try:
        return kind(**{name: value for name, value in told.items() if value is not None})
    except ValidationError as error:
        raise refusal(error) from None


def _why(one: BenchmarkRun) -> str:
    return one.regressed or one.why or ""


def _whole(store: Store, one: BenchmarkRun) -> dict[str, Any]:
    shown = {name: getattr(one, name) for name in BenchmarkRun.__slots__ if name != "id"}
    cost = benchmarks.cost_of(store, one)
    return {"id": one.public_id, **shown, "profiles": benchmarks.profiles_of(store, one.id), "cost_usd": cost}


def _show(console: Console, store: Store, one: BenchmarkRun, *, brief: bool = False, whole: bool = False) -> None:
    """`brief`: who it is; `whole`: percentiles and origins, too."""
    report = one.report or {}
    cost = f", cost ${benchmarks.cost_of(store, one):f}" if one.finished_at is not None else ""
    head = f"{one.public_id}: {one.kind} on {one.deployment}, {one.state}{cost}"
    console.print(printable(head), highlight=False, markup=False)
    if brief:
        return
    profiles = benchmarks.profiles_of(store, one.id) if one.kind == RunKind.SPEED else {}
    for said in (one.why, one.regressed, *_said(one, report), *bench_reports.failures(profiles)):
        if said:
            console.print(f"  {printable(said)}", highlight=False, markup=False, soft_wrap=True)
    for found in _tables(one, report, profiles, whole=whole):
        console.print(found)


def _said(one: BenchmarkRun, report: dict[str, Any]) -> list[str]:
    if not report:
        return []
    if one.kind == RunKind.QUALITY:
        return bench_reports.scored_says(report)
    if one.kind == RunKind.PAIRWISE:
        return [bench_reports.sides(report), *bench_reports.wins_say(report)]
    says = [report["capacity"]["says"]] if "capacity" in report else []
    return [*says, *(f"not valid: {why}" for why in report.get("why", [])), *report.get("notes", [])]


def _tables(
    one: BenchmarkRun, report: dict[str, Any], profiles: dict[str, dict[str, Any]], *, whole: bool
) -> list[FittedTable]:
    if profiles:
        rest = [bench_reports.throughputs(profiles, report["sample"]), bench_reports.percentiles(profiles)]
        return [bench_reports.speeds(profiles), *(rest if whole else [])]
    if not report:
        return []
    if one.kind == RunKind.CAPACITY:
        return [bench_reports.probes(report["capacity"]["probes"])]
    return [bench_reports.scores(report) if one.kind == RunKind.QUALITY else bench_reports.wins(report)]
