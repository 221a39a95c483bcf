"""`tieryard router`: train the learned quality model on measured outcomes, hold it to them, score prompts with it."""

from __future__ import annotations

import csv
import math
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console

from tieryard.cli.tables import printable, table
from tieryard.errors import UserError
from tieryard.learning import Table, read_prompts, read_table
from tieryard.learning.saving import load_model, save_model

if TYPE_CHECKING:
    from tieryard.learning.evaluation import Evaluation

cli = typer.Typer(help="The learned quality model: train, evaluate, score.", no_args_is_help=True)

Data = Annotated[Path, typer.Option(help="CSV: a column `prompt`, and for each model a column of scores, 0 to 1.")]
Weak = Annotated[str | None, typer.Option(metavar="COL", help="The cheap model's column; COL=NAME names the model.")]
Strong = Annotated[str | None, typer.Option(metavar="COL", help="The dear model's column.")]
Models = Annotated[
    list[str] | None,
    typer.Option(metavar="A,B,C", help="Instead of --weak and --strong: columns from cheap to dear; may be repeated."),
]
Category = Annotated[str | None, typer.Option(metavar="COL", help="A column that says what each prompt is about.")]
Prompt = Annotated[str, typer.Option(metavar="COL", help="The column of prompts.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")]


@cli.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The model's file.")],
    weak: Weak = None,
    strong: Strong = None,
    models: Models = None,
    category: Category = None,
    prompt: Prompt = "prompt",
    join: Annotated[Path | None, typer.Option(help="A model whose parts go into the new file too.")] = None,
    seed: Seed = 0,
) -> None:
    """Trains a quality model on a table of measured outcomes."""
    columns = _columns(weak, strong, models)
    before = load_model(join) if join is not None else None
    outcomes = read_table(data, columns, prompt=prompt, category=category)
    training = _needs("training", "train")
    names = list(columns.values())
    part = training.train(training.Outcomes.of(outcomes), weak=names[0], strong=names[-1], seed=seed, jobs=_cores())
    model = save_model(out, part, {"source": outcomes.source, "rows": len(outcomes)}, before)
    Console().print(
        printable(f"{out}: {len(model.models)} models, {len(outcomes):,} rows, {out.stat().st_size:,} bytes,"),
        f"version {model.hash}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@cli.command("eval")
def evaluate(
    data: Data,
    json: Annotated[Path, typer.Option(help="Where the figures and the curves go.")],
    weak: Weak = None,
    strong: Strong = None,
    models: Models = None,
    prices: Annotated[
        str | None, typer.Option(metavar="1,3,10", help="A price for each of --models, in any unit.")
    ] = None,
    category: Category = None,
    prompt: Prompt = "prompt",
    folds: Annotated[int, typer.Option(min=2, help="Cross-validation folds.")] = 5,
    unseen: Annotated[
        str | None, typer.Option(metavar="COL", help="Hold out whole groups: rows that agree in this column.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="The quality–cost curve, .svg or .png.")] = None,
    seed: Seed = 0,
) -> None:
    """Cross-validates on a table: the quality–cost curve beside random, length, keyword rules and oracle."""
    columns = _columns(weak, strong, models)
    priced = _prices(prices, len(columns))
    drawing = _needs("pictures", "pictures") if picture is not None else None
    if drawing is not None:
        drawing.check_ending(picture)
    outcomes = read_table(data, columns, prompt=prompt, category=category, group=unseen)
    names = list(columns.values())
    console = Console()
    with console.status("training on every fold"):
        made = _needs("evaluation", "train").evaluate(
            outcomes, weak=names[0], strong=names[-1], many_folds=folds, prices=priced, seed=seed, jobs=_cores()
        )
    _write(json, orjson.dumps(made.as_dict(), option=orjson.OPT_INDENT_2) + b"\n")
    if drawing is not None:
        drawing.draw(made, picture)
    _show(console, made)


@cli.command()
def score(
    data: Data,
    model: Annotated[Path, typer.Option(help="What `tieryard router train` wrote.")],
    out: Annotated[Path, typer.Option(help="CSV with one column, `score`, a row for each prompt, in their order.")],
    category: Category = None,
    prompt: Prompt = "prompt",
) -> None:
    """Writes how much each prompt needs the strong model: by how much it is expected to score better, −1 to 1."""
    quality = load_model(model)
    asked = read_prompts(data, prompt=prompt, category=category)
    try:
        with out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["score"])
            writer.writerows([_need(quality, asked, row)] for row in range(len(asked)))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}", param="--out") from None


def _need(quality: Any, asked: Table, row: int) -> str:
    return f"{quality.predict(asked.prompts[row], asked.category(row)).need:.6f}"


def _columns(weak: str | None, strong: str | None, models: list[str] | None) -> dict[str, str]:
    """Column: model's name, from cheap to dear."""
    if models:
        if weak is not None or strong is not None:
            raise UserError("give either --models, or --weak and --strong", param="--models")
        asked = [part.strip() for given in models for part in given.split(",")]
    elif weak is not None and strong is not None:
        asked = [weak, strong]
    else:
        raise UserError("give --weak and --strong, or --models", param="--weak")
    columns: dict[str, str] = {}
    for one in asked:
        column, _, name = one.partition("=")
        columns[column] = name or column
    if "" in columns or len(columns) < 2 or len(set(columns.values())) < len(asked):
        raise UserError("two models at least, each with a column and a name of its own", param="--models")
    return columns


def _prices(text: str | None, many: int) -> list[float] | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"'{text}' are no numbers; write 1,3,10", param="--prices") from None
    if len(values) != many or not all(0 < v < math.inf for v in values):
        raise UserError(f"{many} models take {many} prices above 0", param="--prices")
    return values


def _needs(module: str, extra: str) -> Any:
    """A module of `tieryard.learning` that stands on an extra."""
    try:
        return import_module(f"tieryard.learning.{module}")
    except ImportError as error:
        raise UserError(f"this needs {error.name}: pip install 'tieryard[{extra}]'") from None


def _cores() -> int:
    return min(os.cpu_count() or 1, 8)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _show(console: Console, made: Evaluation) -> None:
    headers = ("router", "APGR", "95 % interval", "CPT50", "CPT80")
    rows = [
        (
            name,
            f"{c.apgr.value:.3f}",
            f"{c.apgr.low:.3f}–{c.apgr.high:.3f}",
            f"{c.cpt50.value:.0%}",
            f"{c.cpt80.value:.0%}",
        )
        for name, c in made.curves.items()
    ]
    console.print(table(headers, rows, right=headers[1:]))
    ends = f"always {made.weak} {made.weak_quality:.3f}, always {made.strong} {made.strong_quality:.3f}"
    said = [
        f"{made.rows:,} prompts, {made.folds} folds; {ends}",
        "APGR: share of the strong model's advantage that is kept; random keeps 0.5",
        "CPT50, CPT80: share of calls to the strong model that keeps 50 %, 80 % of it",
    ]
    if made.trade is not None:
        best = made.trade.best
        for part, cost in (("95 %", made.trade.cost_at_95), ("100 %", made.trade.cost_at_100)):
            reached = "not reached" if cost is None else f"{cost:.0%} of its cost"
            said.append(f"{part} of {best}'s quality: {reached}")
    for line in said:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
