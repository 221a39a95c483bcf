"""`tieryard golden`: sets of prompts whose good answers are known, and how deployments do on them. Works on the
database itself; the benchmark worker asks and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args

import orjson
import typer
from rich.console import Console

from tieryard.bench.asking import QualityAsk, asked_runs
from tieryard.cli import review
from tieryard.cli.bench import in_force, watch
from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.golden_ranking import show_ranking
from tieryard.cli.printing import JsonOption, print_json, shown_time
from tieryard.cli.tables import table
from tieryard.errors import UserError
from tieryard.golden import GoldenSet, Kind, advice, import_set, parse_golden
from tieryard.golden.importers import sampled
from tieryard.golden.saving import load, save
from tieryard.ids import internal
from tieryard.store import benchmarks, golden
from tieryard.store.benchmarks import KIND, RunKind
from tieryard.store.golden import SetRow

cli = typer.Typer(help="Import golden sets and measure answers on them.", no_args_is_help=True)
cli.command()(review.review)
cli.command()(review.agreement)
cli.command()(review.compare)


class KindOption(StrEnum):
    """What a file is."""

    auto = "auto"
    jsonl = "jsonl"
    banking77 = "banking77"
    gsm8k = "gsm8k"
    humaneval = "humaneval"
    scitldr = "scitldr"
    wnut17 = "wnut17"


BarOption = Annotated[float, typer.Option(min=0, max=1, help="Pass rate to be shown to be ranked.")]
OutOption = Annotated[Path, typer.Option(help="Where the pictures of quality and cost go.")]
_OUT = Path("build/golden")
_BAR = 0.8


@cli.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="JSON lines, or the folder of a public data set.")],
    name: Annotated[str | None, typer.Option(help="Default: the file's, or the kind's and split's.")] = None,
    kind: Annotated[KindOption, typer.Option(help="`auto` goes by the folder's name.")] = KindOption.auto,
    split: Annotated[str, typer.Option(help="Of a public data set.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="A sample of so many items, by strata.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    data_dir: DataDirOption = None,
) -> None:
    """Reads a golden set and keeps it; a bad file is refused by line. The same name with other content is what the name
    means from then on."""
    with database(data_dir) as store:
        known = in_force(store).categories
        found = _read(file, kind, split, limit, seed, categories=known)
        found = replace(found, name=name) if name is not None else found
        row, made = save(store, found)
    counts = ", ".join(f"{category} {n:,}" for category, n in row.counts.items())
    state = "imported" if made else "known already, and what the name means"
    typer.echo(f"{row.name}: {_items(row)} ({counts}), hash {row.hash[:12]}: {state}")
    for said in advice(found):
        typer.echo(f"- {said}")


@cli.command("list")
def list_(as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """Lists golden sets by name, as each was imported last."""
    with database(data_dir) as store:
        found = golden.list_sets(store)
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo("no golden set yet: tieryard golden import FILE")
        return
    rows = [
        (
            row.name,
            f"{row.items:,}",
            ", ".join(f"{category} {n:,}" for category, n in row.counts.items()),
            row.hash[:12],
            shown_time(row.imported_at, "%Y-%m-%d %H:%M"),
        )
        for row in found
    ]
    headers = ("set", "items", "categories", "hash", "imported (UTC)")
    Console().print(table(headers, rows, right=("items",), folds=("set", "categories")))


@cli.command()
def show(
    name: Annotated[str, typer.Argument(help="A set, as the list names it.")],
    items: Annotated[bool, typer.Option("--items", help="With its items, one JSON line each.")] = False,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """A golden set, and what its size allows to be said."""
    with database(data_dir) as store:
        row = golden.find_set(store, name)
        found = load(store, row)
    if as_json:
        whole = {field: getattr(row, field) for field in ("name", "hash", "counts", "imported_at")}
        bodies = {"items": [item.canonical() for item in found.items]} if items else {}
        print_json(whole | {"advice": advice(found)} | bodies)
        return
    if items:
        for item in found.items:
            typer.echo(orjson.dumps(item.canonical()))
        return
    typer.echo(f"{row.name}: {_items(row)}, hash {row.hash}, imported {shown_time(row.imported_at)}")
    for category, n in row.counts.items():
        typer.echo(f"- {category}: {n:,}")
    for said in advice(found):
        typer.echo(f"- {said}")


@cli.command()
def run(
    sets: Annotated[str, typer.Argument(metavar="SET[,SET]", help="Golden sets.")],
    models: Annotated[str, typer.Option(help="Deployments, A,B,C.")],
    bar: BarOption = _BAR,
    wait: Annotated[bool, typer.Option(help="Wait for the end and rank the models.")] = True,
    out: OutOption = _OUT,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Asks deployments a golden set's questions, scores the answers, and ranks the models above the quality bar by
    quality for money. Users' jobs go first."""
    with database(data_dir) as store:
        catalog = in_force(store)
        asks = [
            QualityAsk(kind="quality", golden=one, deployment=model) for one in _names(sets) for model in _names(models)
        ]
        ids = benchmarks.create(store, [new for ask in asks for new in asked_runs(ask, catalog, store)])
        if wait:
            show_ranking(store, watch(store, ids), bar, out, as_json=as_json)
        elif as_json:
            print_json([benchmarks.get(store, number) for number in ids])
        else:
            for number in ids:
                typer.echo(f"{benchmarks.name_of(number)}: queued")
            typer.echo(f"later: tieryard golden rank {','.join(benchmarks.name_of(number) for number in ids)}")


@cli.command("rank")
def rank_(
    runs: Annotated[str, typer.Argument(metavar="RUN[,RUN]", help="Quality runs, such as benchmark_42.")],
    bar: BarOption = _BAR,
    out: OutOption = _OUT,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Ranks the models of quality runs that have ended, as `run` does."""
    with database(data_dir) as store:
        found = [benchmarks.get(store, internal(KIND, name)) for name in _names(runs)]
        for one in found:
            if one.kind != RunKind.QUALITY or one.finished_at is None:
                raise UserError(f"{one.public_id} is no quality run that has ended ({one.kind}, {one.state})")
        show_ranking(store, found, bar, out, as_json=as_json)


def _read(
    file: Path, kind: KindOption, split: str, limit: int | None, seed: int, *, categories: Sequence[str]
) -> GoldenSet:
    folder = file if file.is_dir() else file.parent
    named = folder.name if kind == KindOption.auto else kind.value
    if kind != KindOption.jsonl and named in get_args(Kind):
        found = import_set(named, folder, split=split, limit=limit, seed=seed)  # type: ignore[arg-type]  # it is one
        if strange := sorted(found.counts.keys() - set(categories)):
            raise UserError(f"the catalog has no category {', '.join(strange)}, which {named} is of", param="kind")
        return found
    if file.is_dir():
        raise UserError(f"{file} is a folder, and of no kind that its name tells: name the --kind, or a file")
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    whole = parse_golden(lines, name=file.stem, categories=categories)
    stay = sampled([item.category for item in whole.items], limit, seed)
    return GoldenSet(whole.name, tuple(whole.items[at] for at in stay))


def _items(row: SetRow) -> str:
    return f"{row.items:,} {'item' if row.items == 1 else 'items'}"


def _names(text: str) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
