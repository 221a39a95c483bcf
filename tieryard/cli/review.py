"""`tieryard golden review`, `agreement` and `compare`: people and a judge on the answers of quality runs. They work on
the database itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tieryard.bench.asking import PairwiseAsk, asked_runs
from tieryard.cli import bench_reports
from tieryard.cli.bench import in_force, watch
from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json
from tieryard.cli.tables import FittedTable, table
from tieryard.errors import UserError
from tieryard.golden import Item
from tieryard.golden.reviews import Agreement, Rated, Reviewed, as_csv, as_jsonl, draw, read_labels, token
from tieryard.golden.reviews import agreement as agreement_of
from tieryard.ids import internal
from tieryard.store import Store, benchmarks, labels
from tieryard.store.benchmarks import KIND, BenchmarkRun, RunKind, RunState
from tieryard.store.labels import Labelled

RunsArgument = Annotated[str, typer.Argument(metavar="RUN[,RUN]", help="Quality runs, such as benchmark_42.")]


def review(
    runs: Annotated[str | None, typer.Argument(metavar="[RUN[,RUN]]", help="Quality runs to draw from.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="How many answers.")] = 100,
    out: Annotated[Path | None, typer.Option(help="Where they go, one a line, their `score` to be filled in.")] = None,
    as_sheet: Annotated[bool, typer.Option("--csv", help="For a spreadsheet.")] = False,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    filled: Annotated[Path | None, typer.Option("--labels", help="A file that was filled in, to take.")] = None,
    reviewer: Annotated[str | None, typer.Option(help="Who filled it in.")] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Draws answers for people to score, blind to whose they are (RUN, --out); or takes their scores (--labels,
    --reviewer). A file with a bad line is refused whole."""
    if (runs is None) == (filled is None):
        raise UserError("name the runs to draw from, or the --labels to take")
    with database(data_dir) as store:
        if filled is not None:
            if not (reviewer or "").strip() or len(reviewer or "") > 64:
                raise UserError("name who filled it in, in 64 characters at most: --reviewer NAME")
            _take(store, filled, str(reviewer))
        else:
            if out is None:
                raise UserError("name a file to write: --out FILE")
            _draw(store, str(runs), out, sample=sample, seed=seed, as_sheet=as_sheet)


def agreement(runs: RunsArgument, as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """How far a judge agrees with people: who passes an answer (score at least 0.7), and Cohen's kappa."""
    with database(data_dir) as store:
        ids = [one.id for one in _quality_runs(store, runs)]
        found = labels.labelled(store, ids)
    whole = {who: agreement_of([Rated(one.score, one.people) for one in part]) for who, part in _by_judge(found)}
    if as_json:
        print_json(
            [{"judge": who, **asdict(one), "agreed": one.agreed, "says": one.says} for who, one in whole.items()]
        )
        return
    console = Console(highlight=False, soft_wrap=True)
    if not whole:
        console.print("no answer of these runs has a label: tieryard golden review draws a sample")
    for who, one in whole.items():
        console.print(_confusion(one, who))
        for said in one.says:
            console.print(said, markup=False)


def compare(
    a: Annotated[str, typer.Argument(help="A quality run, such as benchmark_42.")],
    b: Annotated[str, typer.Argument(help="Another, on the same golden set.")],
    wait: Annotated[bool, typer.Option(help="Wait for the end and print what was found.")] = True,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Has the judge compare two runs' answers, in both orders: who wins how often, and how far the judge held to its
    word when the answers changed places."""
    with database(data_dir) as store:
        ask = PairwiseAsk(kind="pairwise", a=a, b=b)
        [number] = benchmarks.create(store, asked_runs(ask, in_force(store), store))
        [found] = watch(store, [number]) if wait else [benchmarks.get(store, number)]
    if as_json:
        print_json({"id": found.public_id, "state": found.state, "why": found.why, "report": found.report})
    elif not wait:
        typer.echo(f"{found.public_id}: queued")
    else:
        _show(Console(highlight=False, soft_wrap=True), found)
    if found.state in (RunState.FAILED, RunState.CANCELLED):
        raise typer.Exit(1)


def _draw(store: Store, runs: str, out: Path, *, sample: int, seed: int, as_sheet: bool) -> None:
    ids = [one.id for one in _quality_runs(store, runs)]
    answers = [
        Reviewed(one.run_id, one.made_at, Item.model_validate_json(one.item), one.output)
        for one in labels.given_answers(store, ids)
    ]
    if not answers:
        raise UserError(f"{runs} has no answers to review")
    drawn = draw(answers, sample=sample, seed=seed)
    try:
        out.write_bytes(as_csv(drawn) if as_sheet else as_jsonl(drawn))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    typer.echo(f"{out}: {len(drawn)} of {len(answers)} answers. Fill in `score`, 0 (useless) to 1 (perfect), then:")
    typer.echo(f"tieryard golden review --labels {out} --reviewer NAME")


def _take(store: Store, file: Path, reviewer: str) -> None:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    known = {token(run_id, made_at, item): (run_id, item) for run_id, made_at, item in labels.items_of_runs(store)}
    found = read_labels(data, name=str(file), known=known)
    labels.save_labels(store, [(*known[label.token], label.score) for label in found], reviewer=reviewer)
    ids = ",".join(benchmarks.name_of(number) for number in sorted({known[label.token][0] for label in found}))
    typer.echo(f"{len(found)} labels taken. How far the judge agrees: tieryard golden agreement {ids}")


def _quality_runs(store: Store, text: str) -> list[BenchmarkRun]:
    """Each once. Raises UserError for others, or such as have not succeeded."""
    names = dict.fromkeys(name for part in text.split(",") if (name := part.strip()))
    found = [benchmarks.get(store, internal(KIND, name)) for name in names]
    for one in found:
        if one.kind != RunKind.QUALITY or one.state != RunState.SUCCEEDED:
            raise UserError(f"{one.public_id} is no quality run that has succeeded ({one.kind}, {one.state})")
    if not found:
        raise UserError("name quality runs, such as benchmark_42")
    return found


def _by_judge(found: list[Labelled]) -> list[tuple[str, list[Labelled]]]:
    """Those that a judge scored, by its name, and those of scorers under theirs."""
    names = sorted({one.judge or "" for one in found})
    return [(name or "scorers", [one for one in found if (one.judge or "") == name]) for name in names]


def _confusion(found: Agreement, who: str) -> FittedTable:
    rows = [
        (f"{who}: pass", str(found.both_pass), str(found.judge_only)),
        (f"{who}: fail", str(found.people_only), str(found.both_fail)),
    ]
    figures = ("people: pass", "people: fail")
    agreed = f"{found.agreed:.0%} agreed" if found.agreed is not None else "none"
    return table((f"{found.n} labelled, {agreed}", *figures), rows, right=figures)


def _show(console: Console, found: BenchmarkRun) -> None:
    report = found.report or {}
    about = f", {bench_reports.sides(report)}" if report else ""
    console.print(f"{found.public_id}: {found.state}{about}", markup=False)
    if found.why:
        console.print(found.why, markup=False)
    if report:
        Console().print(bench_reports.wins(report))
        for said in bench_reports.wins_say(report):
            console.print(said, markup=False)
