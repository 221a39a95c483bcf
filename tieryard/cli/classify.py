"""`tieryard classify FILE`: the same file with a label for each row, however many there are; and how good they are."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from tieryard.classification.saving import Saving
from tieryard.classification.survey import Reading, Survey, survey
from tieryard.classification.tables import Table, open_table
from tieryard.cli import classify_quote, classify_reports, classify_routes, classify_state
from tieryard.cli.classify_progress import Progress
from tieryard.cli.classify_routes import RoutesAsked
from tieryard.cli.classify_run import PATH, Outcome, Upload, Watch, Work, added_columns, collect, wrong_columns
from tieryard.cli.classify_spec import Asked, spec_of
from tieryard.cli.client import DEFAULT_URL, Client, UrlOption
from tieryard.cli.patience import PatientClient, StoppedError
from tieryard.cli.printing import JsonOption, print_json
from tieryard.errors import NotFoundError, TieryardError, UserError
from tieryard.ids import internal, public
from tieryard.requests.classification import ClassificationSpec

_FILE = "file"
_KIND = "classification"
_INTERRUPTED = 130


class _FileFirst(TyperGroup):
    """What names none of the commands is a file to classify, or an option of that."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_FILE, *args]
        return super().parse_args(ctx, args)


cli = typer.Typer(
    cls=_FileFirst,
    no_args_is_help=True,
    help="Give each row of a file a label. `tieryard classify FILE --column NAME --labels a,b,c --out OUT` does it; "
    "`tieryard classify file --help` has its options.",
)


@dataclass(frozen=True, slots=True)
class _Files:
    """What is written."""

    out: Path
    errors: Path | None
    picture: Path | None
    prefix: str


@cli.command(_FILE)
def classify_file(
    file: Annotated[Path | None, typer.Argument(help="CSV, JSON lines or Parquet, by its name's ending.")] = None,
    column: Annotated[str | None, typer.Option(help="The column to read.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="`a,b,c`; or a JSON, YAML or CSV file of names and descriptions.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to: .csv, .tsv, .jsonl or .parquet.")] = None,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="A row may have several labels, or none.")] = False,
    template: Annotated[
        Path | None, typer.Option(help="A file with the question: `{text}`, and `{labels}`, `{examples}`.")
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="A file of texts with their labels, shown before each question.")
    ] = None,
    per_label: Annotated[int, typer.Option(min=1, help="With --examples: how many of each label.")] = 2,
    model: Annotated[str | None, typer.Option(help="`auto`, a class, or a deployment. Default: auto.")] = None,
    tier: Annotated[str | None, typer.Option(help="Of the catalog. Default: bulk.")] = None,
    escalate_to: Annotated[
        str | None, typer.Option(help="The larger model, for rows that the first is unsure of.")
    ] = None,
    below: Annotated[float | None, typer.Option(min=0, max=1, help="… whose confidence is less than this.")] = None,
    calibrate: Annotated[
        int | None, typer.Option(min=1, help="… or find that by so many texts that both answer.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="With --calibrate: most accuracy to lose. Default: 0.02.")
    ] = None,
    gate: Annotated[
        int | None, typer.Option(min=1, help="By so many texts decide if the first model may do the rest.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="With --gate: the model that judges, or `truth`.")] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="With --gate: share that must agree. Default: 0.9.")
    ] = None,
    otherwise: Annotated[str | None, typer.Option(help="With --gate: `escalate` the rest, or `stop`.")] = None,
    truth: Annotated[
        str | None, typer.Option(help="The column with the right labels: says how good the run was.")
    ] = None,
    errors: Annotated[
        Path | None, typer.Option(help="Write wrong rows, and those without an answer, here too.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="With --truth: the confusion matrix, .svg or .png.")] = None,
    max_cost: Annotated[str | None, typer.Option(help="Stop before it costs more, in USD.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and ask nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that makes this out file.")] = False,
    prefix: Annotated[str, typer.Option(help="Of the names of added columns.")] = "",
    routes: Annotated[
        Path | None, typer.Option(help="Instead: say where each job of this file would go, and its cost.")
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Classifies the rows of a file: the same rows come out with label, confidence, model, cost and error. Ctrl-C
    leaves the run going; the same command with --resume takes up its results."""
    if routes is not None:
        if file is not None or labels is not None:
            raise UserError("--routes: takes the place of FILE and --labels")
        given = RoutesAsked(file=routes, column=column, model=model, tier=tier, out=out, prefix=prefix)
        classify_routes.run(given, url, as_json=as_json)
        return
    if file is None or column is None or labels is None:
        missing = "FILE" if file is None else "--column" if column is None else "--labels"
        raise UserError(f"{missing} is missing: tieryard classify FILE --column NAME --labels a,b,c --out OUT")
    asked = Asked(
        labels=labels, column=column, multi_label=multi_label, template=template, examples=examples,
        per_label=per_label, model=model or "auto", tier=tier or "bulk", escalate_to=escalate_to, below=below,
        calibrate=calibrate, max_drop=max_drop, gate=gate, judge=judge, min_agreement=min_agreement,
        otherwise=otherwise, truth=truth, max_cost=_usd(max_cost),
    )  # fmt: skip
    spec = spec_of(asked)
    table, reading = open_table(file), Reading(column, truth, several=multi_label)
    found = survey(table, reading, [label.name for label in spec.labels])
    if dry_run:
        _estimate(Client(url), spec, found, as_json=as_json)
        return
    if out is None:
        raise UserError("--out is missing: the file to write, such as out.parquet")
    files = _Files(out, errors, picture, prefix)
    _run(url, spec, _work(table, reading, found, spec, files), files, resume=resume, as_json=as_json)


@cli.command("list")
def list_all(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Runs, newest first."""
    found = Client(url).get(PATH, limit=limit)
    if as_json:
        print_json(found)
    else:
        Console().print(classify_reports.runs(found["data"]) if found["data"] else "no run yet")


@cli.command("show")
def show_one(
    run: Annotated[str, typer.Argument(help="Its id, such as `classification_7`.")],
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """A run as it is now."""
    found = Client(url).get(f"{PATH}/{_checked(run)}")
    if as_json:
        print_json(found)
    else:
        classify_reports.one_run(Console(), found)


@cli.command()
def cancel(
    run: Annotated[str, typer.Argument(help="Its id, such as `classification_7`.")], url: UrlOption = DEFAULT_URL
) -> None:
    """Cancels a run: nothing more of it is asked."""
    found = Client(url).post(f"{PATH}/{_checked(run)}/cancel")
    typer.echo(f"{found['id']}: {found['state'] if found['state'] == 'cancelled' else 'asked to stop'}")


def _checked(run: str) -> str:
    return public(_KIND, internal(_KIND, run))


def _usd(given: str | None) -> Decimal | None:
    if given is None:
        return None
    with contextlib.suppress(InvalidOperation):
        amount = Decimal(given.removeprefix("$"))
        if amount.is_finite() and amount >= 0:
            return amount
    raise UserError(f"--max-cost {given}: expected dollars, such as 2.50")


def _work(table: Table, reading: Reading, found: Survey, spec: ClassificationSpec, files: _Files) -> Work:
    """Raises UserError for whatever could not be written in the end."""
    if files.picture is not None:
        from tieryard.classification import picture as pictures  # brings SciPy, which no other command is to wait for

        pictures.check_ending(files.picture)
        if reading.truth is None or reading.several:
            raise UserError("--picture: needs --truth, of a run with one label a row")
    named = [path.absolute() for path in (files.out, files.errors, files.picture) if path is not None]
    if len(set(named)) < len(named):
        raise UserError("--out, --errors and --picture: give each another name")
    added = added_columns(several=reading.several, prefix=files.prefix)
    saving = Saving(table, found.columns, files.out, added)
    wrong = None
    if files.errors is not None:
        wrong = Saving(table, found.columns, files.errors, wrong_columns(added, prefix=files.prefix))
    labels = tuple(label.name for label in spec.labels)
    shown = frozenset(example.text for example in spec.examples)
    return Work(table, reading, found, labels, saving, wrong, files.prefix, shown)


def _estimate(client: Client, spec: ClassificationSpec, found: Survey, *, as_json: bool) -> None:
    estimate = classify_quote.estimate(client, spec, found)
    if as_json:
        print_json(estimate)
    else:
        classify_quote.show(Console(), estimate)


def _run(url: str, spec: ClassificationSpec, work: Work, files: _Files, *, resume: bool, as_json: bool) -> None:
    now = classify_state.Kept.new(work.table.path, spec, work.reading)
    kept = classify_state.begun(files.out, now, resume=resume)
    started, stopping = time.monotonic(), threading.Event()
    with Progress(Console(stderr=True), work.survey.asked) as progress, contextlib.ExitStack() as stack:
        client = PatientClient(url, stopping=stopping, told=progress.say)
        stack.callback(client.close)
        stack.callback(stopping.set)
        run = _begin(client, spec, kept, files.out)
        if resume and spec.max_cost_usd is not None and Decimal(run["max_cost_usd"] or "Infinity") != spec.max_cost_usd:
            progress.say(
                f"--max-cost: the cap stays {run['max_cost_usd'] or 'none'}; it can change when the run has stopped"
            )
        try:
            outcome, run = _collect(client, PatientClient(url, stopping=stopping), work, run, progress)
        except (KeyboardInterrupt, StoppedError):
            progress.say(_how_to_go_on(run["id"]))
            raise typer.Exit(_INTERRUPTED) from None
        except UserError:
            raise
        except TieryardError as error:
            raise TieryardError(f"{error}. {_how_to_go_on(run['id'])}") from error
    _end(run, outcome, files, seconds=None if resume else time.monotonic() - started, as_json=as_json)


def _begin(client: PatientClient, spec: ClassificationSpec, kept: classify_state.Kept, out: Path) -> dict[str, Any]:
    """The run, made or found again; one that has stopped goes on, under the cap that is given now."""
    if kept.run is None:
        classify_state.save(out, kept)
        headers = {"idempotency-key": kept.key}
        try:
            run = client.ask("POST", PATH, json=spec.model_dump(mode="json"), headers=headers)
        except UserError:
            classify_state.forget(out)  # it was refused: there is nothing to go on with
            raise
        classify_state.save(out, kept.named(run["id"]))
        return run
    try:
        run = client.ask("GET", f"{PATH}/{kept.run}")
    except NotFoundError:
        raise UserError(
            f"{classify_state.place(out)}: the fleet has no {kept.run}; remove that file, and begin anew"
        ) from None
    if run["state"] == "cancelled":
        raise UserError(f"{kept.run} was cancelled; remove {classify_state.place(out)} to begin anew")
    if run["state"] in ("stopped", "failed"):
        cap = {} if spec.max_cost_usd is None else {"max_cost_usd": f"{spec.max_cost_usd:f}"}
        run = client.ask("POST", f"{PATH}/{kept.run}/resume", json=cap)
    return run


def _collect(
    client: PatientClient, sender: PatientClient, work: Work, run: dict[str, Any], progress: Progress
) -> tuple[Outcome, dict[str, Any]]:
    received = run["received"]
    upload = None
    if received < work.survey.asked or run["state"] == "receiving":
        upload = Upload(sender, work, run["id"], received + 1)
    watch = Watch(client, run["id"], upload, progress)
    outcome = collect(work, watch)
    return outcome, watch.until_over()


def _how_to_go_on(run: str) -> str:
    return f"{run} goes on with the rows it has; the same command with --resume sends the others and takes the results"


def _end(run: dict[str, Any], outcome: Outcome, files: _Files, *, seconds: float | None, as_json: bool) -> None:
    made = outcome.evaluation
    if files.picture is not None and made is not None:
        from tieryard.classification import picture as pictures

        pictures.draw(made, files.picture)
    can_go_on = run["state"] in ("stopped", "failed") and not _gate_stopped(run)
    if not can_go_on:
        classify_state.forget(files.out)
    if as_json:
        written = {"out": files.out, "errors": files.errors, "picture": files.picture}
        named = {name: str(path) if path is not None else None for name, path in written.items()}
        print_json(classify_reports.as_json(run, outcome, made, named))
    else:
        classify_reports.show(Console(), run, outcome, made, seconds)
    if run["state"] != "completed":
        if can_go_on:
            typer.echo(f"{files.out} has what was answered; go on by the same command with --resume", err=True)
        raise typer.Exit(1)


def _gate_stopped(run: dict[str, Any]) -> bool:
    gate = run.get("gate")
    return gate is not None and gate["outcome"] != "passed" and run["spec"]["gate"]["otherwise"] == "stop"
