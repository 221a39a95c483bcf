"""`tieryard models`: which deployments are candidates, what the gate says of them, where they serve. Works on the
database itself; the fleet hears of it within seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tieryard.catalog import Catalog
from tieryard.cli.bench import in_force
from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json, shown_time
from tieryard.cli.tables import FittedTable, printable, table
from tieryard.errors import UserError
from tieryard.ids import public
from tieryard.routing.trials import Canary, Trials
from tieryard.store import Store, benchmarks, trials
from tieryard.store.benchmarks import KIND, RunKind

if TYPE_CHECKING:
    from tieryard.bench.gate import CategoryVerdict
    from tieryard.bench.stats import Interval
    from tieryard.promotions import Judgement

cli = typer.Typer(help="Promote candidates, and try them on a share of the traffic.", no_args_is_help=True)

CandidateArgument = Annotated[str, typer.Argument(help="A deployment with `candidate_of` in the catalog.")]
CategoriesOption = Annotated[list[str] | None, typer.Option("--category", help="Only this one; repeat it.")]
NoteOption = Annotated[str | None, typer.Option(help="Why; kept with it.")]
_FIGURES = ("items", "pass rate", "serving", "difference", "mean score", "items more")


@cli.command("list")
def list_models(as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """Lists deployments: what they are candidates of, where they are promoted, their canaries, their last benchmarks. A
    promotion or canary of another build than the catalog's is shown as holding no more."""
    with database(data_dir) as store:
        catalog = in_force(store)
        with store.transaction() as connection:
            promoted = {row.candidate: row for row in trials.promotions(connection)}
            running = {row.candidate: row for row in trials.canaries(connection)}
        ended = trials.ended_canaries(store)
        rows = [_model(store, catalog, name, promoted.get(name), running.get(name)) for name in catalog.deployments]
    if as_json:
        print_json({"models": rows, "ended_canaries": [_ended(*end) for end in ended]})
        return
    console = Console()
    headers = ("deployment", "candidate of", "promoted in", "canary", "last speed run", "last quality run")
    console.print(table(headers, [_cells(row) for row in rows], folds=headers))
    for end in ended:
        found = _ended(*end)
        how = "a breach" if found["breached"] else "ended"
        said = f"canary of {found['candidate']}, {shown_time(found['ended_at'])}: {how}: {printable(found['why'])}"
        console.print(said, markup=False, highlight=False)


@cli.command()
def promote(
    candidate: CandidateArgument,
    golden_set: Annotated[
        list[str] | None, typer.Option("--set", help="A golden set; repeat it. Default: all that it has answered.")
    ] = None,
    category: CategoriesOption = None,
    allowed_drop: Annotated[float | None, typer.Option(help="Instead of the catalog's, such as 0.05.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the verdict, and change nothing.")] = False,
    note: NoteOption = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Compares a candidate with what it is a candidate of, on the same golden items, and promotes it in just those
    categories in which it is shown to be hardly worse. Exit code 1, and nothing changes, where there is none."""
    from tieryard.promotions import judge  # brings SciPy, which no other command is to wait for

    with database(data_dir) as store:
        catalog = in_force(store)
        found = judge(
            store, catalog, candidate, sets=golden_set or (), categories=category or (), allowed_drop=allowed_drop
        )
        made = bool(found.accepted) and not dry_run
        if made:
            _promote(store, found, note)
        if as_json:
            print_json({"candidate": candidate, "serving": found.serving, "promoted": made, **found.stored()})
        else:
            _show(Console(), found, made=made, dry_run=dry_run)
    if not found.accepted:
        raise typer.Exit(1)


@cli.command()
def demote(
    candidate: CandidateArgument,
    category: CategoriesOption = None,
    note: NoteOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Takes a promotion back, in all categories or in some."""
    with database(data_dir) as store, store.transaction() as connection:
        lost = trials.demote(connection, candidate, note or "taken back", categories=category)
    if not lost:
        where = f" in {', '.join(category)}" if category else ""
        raise UserError(f"'{candidate}' is not promoted{where}; `tieryard models list` shows what is")
    typer.echo(f"{candidate} is no longer promoted in {', '.join(lost)}")


@cli.command()
def canary(
    candidate: CandidateArgument,
    share: Annotated[str | None, typer.Option(help="Of the serving deployment's jobs: 5% or 0.05.")] = None,
    category: CategoriesOption = None,
    stop: Annotated[bool, typer.Option("--stop", help="End it.")] = False,
    note: NoteOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Gives a candidate a share of the jobs of what it is a candidate of, in all categories or some, and watches how it
    does. It ends by itself where the candidate does worse than is allowed."""
    from tieryard.promotions import serving_of

    if (share is None) != stop:
        raise UserError("give --share, such as 5%, or --stop")
    with database(data_dir) as store:
        if stop:
            _stop(store, candidate, note or "stopped")
            return
        catalog = in_force(store)
        serving = serving_of(catalog, candidate)
        if unknown := [name for name in category or () if name not in catalog.categories]:
            raise UserError(f"'{unknown[0]}' is not a category of the catalog in force")
        categories = frozenset(category) if category else None
        wanted = Canary(candidate, serving, catalog.deployments[candidate].build, _share(share or ""), categories)
        with store.transaction() as connection:
            trials.start_canary(connection, wanted)
    where = f" in {', '.join(category)}" if category else ""
    typer.echo(f"{candidate} takes {wanted.share:.1%} of the jobs of {serving}{where}, within seconds")
    typer.echo("realtime jobs, and those that it cannot serve as they ask, stay where they are")


def _promote(store: Store, found: Judgement, note: str | None) -> None:
    with store.transaction() as connection:
        held = next((row.told for row in trials.promotions(connection) if row.candidate == found.candidate), None)
        trials.promote(connection, found.promotion(held), verdict=found.stored(), note=note)


def _stop(store: Store, candidate: str, why: str) -> None:
    with store.transaction() as connection:
        found = next((row for row in trials.canaries(connection) if row.candidate == candidate), None)
        if found is None:
            raise UserError(f"'{candidate}' has no canary; `tieryard models list` shows what has")
        trials.end_canary(connection, found, why)
    typer.echo(f"the canary of {candidate} has ended")


def _share(text: str) -> float:
    """`5%` or `0.05`. Raises UserError."""
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"--share: '{text}' is no share, such as 5% or 0.05")
    return share


# --- what is shown --------------------------------------------------------------------------------------------


def _model(
    store: Store,
    catalog: Catalog,
    name: str,
    promoted: trials.Promoted | None,
    running: trials.OnTrial | None,
) -> dict[str, Any]:
    told = Trials((promoted.told,) if promoted else (), (running.told,) if running else ())
    holding = told.holding(catalog)
    runs = {kind: benchmarks.last(store, name, kind) for kind in (RunKind.SPEED, RunKind.QUALITY)}
    return {
        "deployment": name,
        "build": catalog.deployments[name].build,
        "candidate_of": catalog.deployments[name].candidate_of,
        "promoted": sorted(promoted.categories) if promoted else [],
        "promotion_holds": bool(holding.promotions),
        "canary_share": running.told.share if running else None,
        "canary_categories": running.categories if running else None,
        "canary_holds": bool(holding.canaries),
        "canary_report": running.report if running else None,
        **{f"last_{kind}": _last(found) for kind, found in runs.items()},
    }


def _last(run: benchmarks.BenchmarkRun | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {"id": run.public_id, "finished_at": run.finished_at, "pinned": run.pinned, "regressed": run.regressed}


def _ended(candidate: str, ended_at: Any, breached: bool, why: str) -> dict[str, Any]:
    return {"candidate": candidate, "ended_at": ended_at, "breached": breached, "why": why}


def _cells(row: dict[str, Any]) -> list[str]:
    lost = "; holds no more: another build"
    promoted = ", ".join(row["promoted"])
    share = row["canary_share"]
    canary_said = "" if share is None else f"{share:.1%} of {', '.join(row['canary_categories'] or ['all'])}"
    return [
        row["deployment"],
        row["candidate_of"] or "",
        promoted + (lost if promoted and not row["promotion_holds"] else ""),
        canary_said + (lost if canary_said and not row["canary_holds"] else ""),
        *(_when(row[f"last_{kind}"], row["build"]) for kind in (RunKind.SPEED, RunKind.QUALITY)),
    ]


def _when(run: dict[str, Any] | None, build: str) -> str:
    if run is None:
        return ""
    notes = [*(["another build"] if run["pinned"] != build else []), *(["regressed"] if run["regressed"] else [])]
    return f"{shown_time(run['finished_at'], '%Y-%m-%d %H:%M UTC')} {', '.join(notes)}".strip()


def _show(console: Console, found: Judgement, *, made: bool, dry_run: bool) -> None:
    for runs in found.runs:
        both = f"{public(KIND, runs.candidate)} against {public(KIND, runs.serving)}"
        console.print(f"{found.candidate} beside {found.serving} on {runs.golden_set}: {both}", highlight=False)
    console.print(_verdicts(found))
    for one in found.verdict.categories:
        console.print(f"– {printable(one.sentence)}", markup=False, highlight=False)
    if found.unscored:
        console.print(f"– {found.unscored} items have no score on one side", highlight=False)
    console.print(printable(found.verdict.sentence), markup=False, highlight=False)
    where = ", ".join(sorted(found.accepted))
    if made:
        console.print(f"{found.candidate} is promoted in {where}, within seconds", markup=False, highlight=False)
    elif not found.accepted:
        console.print("nothing has changed", highlight=False)
    elif dry_run:
        console.print(f"it would be promoted in {where}; nothing has changed", markup=False, highlight=False)


def _verdicts(found: Judgement) -> FittedTable:
    headers = ("category", "verdict", *_FIGURES)
    rows = [_verdict(one) for one in found.verdict.categories]
    return table(headers, rows, right=_FIGURES, folds=("category", *_FIGURES))


def _verdict(one: CategoryVerdict) -> list[str]:
    """`items more`: what an equal candidate would need to be accepted."""
    from tieryard.bench.gate import Outcome

    more = f"{one.more_needed:,}" if one.outcome is Outcome.UNPROVEN and one.more_needed is not None else ""
    return [
        one.category,
        str(one.outcome),
        f"{one.n:,}",
        f"{one.candidate_rate.value:.1%} ({100 * one.candidate_rate.low:.1f} – {100 * one.candidate_rate.high:.1f})",
        f"{one.serving_rate.value:.1%}",
        *(_difference(span) for span in (one.rate_difference, one.score_difference)),
        more,
    ]


def _difference(span: Interval) -> str:
    """In points, with minus signs, at which nothing folds."""
    said = f"{100 * span.value:+.1f} ({100 * span.low:+.1f} – {100 * span.high:+.1f})"
    return said.replace("-", "−")
