"""How quality runs stand side by side: a ranked table for each category, who is below the bar and why, and pictures."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from tieryard.cli.bench_reports import plain_number
from tieryard.cli.printing import print_json
from tieryard.cli.tables import FittedTable, printable, table
from tieryard.errors import UserError
from tieryard.store import Store, golden
from tieryard.store.benchmarks import BenchmarkRun, RunState
from tieryard.store.golden import ItemScore

if TYPE_CHECKING:
    from tieryard.bench.ranking import Ranking, Standing

_HEADERS = ("rank", "model", "n", "score", "pass rate", "95 %", "ms", "USD/1k", "score/USD")


def show_ranking(store: Store, runs: Sequence[BenchmarkRun], bar: float, out: Path, *, as_json: bool) -> None:
    """Prints the rankings of runs that have ended and draws each to `out`. Exits with 1 where a run did not succeed.
    Raises UserError for two runs of one deployment on one set."""
    from tieryard.golden.report import rankings  # brings SciPy, which no other command is to wait for

    scores, left_out = _comparable(store, runs)
    found = rankings(scores, bar=bar)
    drawn, undrawn = _draw(found, out)
    if as_json:
        print_json(
            {
                "runs": [_run(one) for one in runs],
                "rankings": [_ranking(one) for one in found],
                "not_ranked": left_out,
                "pictures": drawn,
            }
        )
    else:
        _print(runs, found, left_out, [*drawn, *undrawn])
    if left_out:
        raise typer.Exit(1)


def _comparable(store: Store, runs: Iterable[BenchmarkRun]) -> tuple[dict[str, list[ItemScore]], dict[str, str]]:
    """Scores by deployment, of those that were asked all sets and answered; and why the others are left out."""
    by_model: dict[str, dict[int | None, BenchmarkRun]] = defaultdict(dict)
    for run in runs:
        if run.golden_set_id in by_model[run.deployment]:
            raise UserError(f"{run.public_id} is a second run of {run.deployment} on the same set; name one of them")
        by_model[run.deployment][run.golden_set_id] = run
    every = {set_id for of in by_model.values() for set_id in of}
    scores: dict[str, list[ItemScore]] = {}
    left_out: dict[str, str] = {}
    for model, of in by_model.items():
        failed = next((run for run in of.values() if run.state != RunState.SUCCEEDED), None)
        if failed is not None:
            left_out[model] = f"{failed.public_id} {failed.state}" + (f": {failed.why}" if failed.why else "")
        elif of.keys() != every:
            left_out[model] = "it was not asked all of the sets that others were"
        else:
            scores[model] = [one for run in of.values() for one in golden.scores(store, run.id)]
    return scores, left_out


def _draw(found: Iterable[Ranking], out: Path) -> tuple[list[str], list[str]]:
    """Files that were drawn, or why not."""
    from tieryard.bench.ranking import ENDINGS, picture

    drawn: list[str] = []
    try:
        for ranking in found:
            for ending in ENDINGS:
                out.mkdir(parents=True, exist_ok=True)
                path = out / f"{ranking.category}{ending}"
                picture(ranking, path)
                drawn.append(str(path))
    except UserError as error:  # without matplotlib
        return drawn, [f"no picture: {error}"]
    except OSError as error:
        return drawn, [f"no picture in {out}: {error.strerror}"]
    return drawn, []


def _print(runs: Iterable[BenchmarkRun], found: Iterable[Ranking], left_out: dict[str, str], files: list[str]) -> None:
    console = Console(highlight=False)
    for ranking in found:
        console.print(_table(ranking))
        for below in ranking.below:
            console.print(f"  {printable(below.standing.model)}: {below.why}", markup=False, soft_wrap=True)
        console.print(ranking.sentence, markup=False, soft_wrap=True)
        console.print()
    for model, why in left_out.items():
        console.print(f"{model}: not ranked: {printable(why)}", markup=False, soft_wrap=True)
    for line in [*_remarks(runs), *files]:
        console.print(printable(line), markup=False, soft_wrap=True)


def _table(ranking: Ranking) -> FittedTable:
    rows = [(str(place.rank), *_cells(place.standing)) for place in ranking.places]
    rows += [("–", *_cells(below.standing)) for below in ranking.below]
    right = [name for name in _HEADERS if name not in ("model", "95 %")]
    return table(_HEADERS, rows, right=right, folds=("model",), title=ranking.category)


def _cells(one: Standing) -> tuple[str, ...]:
    worth, usd = one.quality_per_usd, float(1000 * one.cost_usd)
    return (
        one.model,
        f"{one.n:,}",
        f"{one.mean_score:.3f}",
        f"{one.pass_rate.value:.1%}",
        f"{one.pass_rate.low:.1%}–{one.pass_rate.high:.1%}",
        f"{one.latency_ms:,.0f}",
        plain_number(usd),
        "free" if worth is None else f"{worth:,.0f}",
    )


def _remarks(runs: Iterable[BenchmarkRun]) -> list[str]:
    """What the tables do not say, each once: items without a score, what has regressed, sets too small for claims."""
    said: dict[str, None] = {}
    for run in runs:
        report = run.report or {}
        whole = report.get("whole") or {}
        if run.state == RunState.SUCCEEDED and (without := whole["n"] - whole["scored"]):
            reasons = "; ".join(f"{why} ({n})" for why, n in whole["unscored"].items())
            said[f"{run.deployment}: {without} of {whole['n']} items without a score: {reasons}"] = None
        if run.regressed is not None:
            said[f"{run.public_id}: {run.deployment} has regressed: {run.regressed}"] = None
        said |= dict.fromkeys(report.get("advice") or [])
    return list(said)


def _run(run: BenchmarkRun) -> dict[str, Any]:
    shown = ("deployment", "state", "why", "regressed", "report")
    return {"id": run.public_id} | {name: getattr(run, name) for name in shown}


def _ranking(ranking: Ranking) -> dict[str, Any]:
    return {
        "category": ranking.category,
        "bar": ranking.bar,
        "sentence": ranking.sentence,
        "ranked": [{"rank": place.rank} | _standing(place.standing) for place in ranking.places],
        "below": [{"why": below.why} | _standing(below.standing) for below in ranking.below],
    }


def _standing(one: Standing) -> dict[str, Any]:
    return dataclasses.asdict(one) | {"quality_per_usd": one.quality_per_usd}
