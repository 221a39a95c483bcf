"""`tieryard config`: checks the catalog, compares it with the one in force, applies it, and goes back to earlier ones.
Works on the database itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tieryard.catalog import Catalog, load_catalog, parse_catalog
from tieryard.catalog.advice import advice
from tieryard.catalog.changes import Change, changes, needs
from tieryard.catalog.reading import line_of, read_text
from tieryard.catalog.schema import json_schema
from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json, shown_time
from tieryard.cli.tables import printable, table
from tieryard.errors import CatalogError
from tieryard.store import Store, catalogs, workers
from tieryard.store.catalogs import Version

cli = typer.Typer(help="Check, compare and apply the catalog; go back to an earlier one.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="A tieryard.yaml.")]
_DEFAULT = Path("tieryard.yaml")


@cli.command()
def check(file: FileArgument = _DEFAULT) -> None:
    """Reads a catalog and says what is wrong with it: line, field, what was expected. What is only unlike what its size
    classes usually cost and need is said too, and refuses nothing."""
    text = read_text(file)
    catalog = parse_catalog(text, name=str(file))
    _refuse_lapsed(file, text, catalog)
    tiers, deployments = len(catalog.tiers), len(catalog.deployments)
    typer.echo(f"{file}: valid ({tiers} tiers, {deployments} deployments), hash {catalog.hash()}")
    rows = [(line_of(text, found.at), found.field, found.message) for found in advice(catalog)]
    for line, field, message in sorted(rows):
        typer.echo(f"{file}:{line}: {field}: {message}")
    for told in (*_of_money(catalog), *_of_model(catalog)):
        typer.echo(f"- {told}")


@cli.command()
def diff(
    file: FileArgument = _DEFAULT,
    version: Annotated[int | None, typer.Option(help="Compare with this version. Default: the one in force.")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Shows what a catalog would change, field by field, and what that needs."""
    wanted = load_catalog(file)
    with database(data_dir) as store:
        base = catalogs.newest(store) if version is None else catalogs.version(store, version)
        if as_json:
            print_json(_as_json(base, wanted, list(_warnings(store, wanted))))
            return
        if base is None:
            typer.echo(f"no catalog is in force yet; {file} would be version 1")
        else:
            _show(base, _parsed(base), wanted, file.name)
        _warn(store, wanted)


@cli.command()
def apply(
    file: FileArgument = _DEFAULT,
    note: Annotated[str | None, typer.Option(help="Why, for the list of versions.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Puts a catalog in force: running processes take it over within seconds, without a restart."""
    text = read_text(file)
    wanted = parse_catalog(text, name=str(file))
    _refuse_lapsed(file, text, wanted)
    with database(data_dir) as store:
        base = catalogs.newest(store)
        if base is not None:
            _show_readable(base, wanted, file.name)
        _warn(store, wanted)
        if not dry_run:
            _apply(store, text, wanted, note=note)


@cli.command()
def versions(
    limit: Annotated[int, typer.Option(min=1, help="Newest first, so many at most.")] = 20,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Lists the catalogs that were applied, newest first: the first one is in force."""
    with database(data_dir) as store:
        found = catalogs.versions(store, limit=limit)
    if as_json:
        shown = ("number", "hash", "applied_at", "rolled_back_to", "note")
        print_json([{name: getattr(v, name) for name in shown} for v in found])
        return
    rows = [
        [
            str(v.number),
            v.hash,
            shown_time(v.applied_at, "%Y-%m-%d %H:%M:%S"),
            str(v.rolled_back_to) if v.rolled_back_to is not None else "",
            v.note or "",
        ]
        for v in found
    ]
    headers = ("version", "hash", "applied (UTC)", "restores", "note")
    Console().print(table(headers, rows, right=("version", "restores"), folds=("note",)))


@cli.command()
def rollback(
    version: Annotated[int, typer.Argument(help="The version to apply again, as `versions` shows it.")],
    note: Annotated[str | None, typer.Option(help="Why, for the list of versions.")] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Applies an earlier version again, as a new one."""
    with database(data_dir) as store:
        earlier, base = catalogs.version(store, version), catalogs.newest(store)
        wanted = _parsed(earlier)
        if base is not None:
            _show_readable(base, wanted, f"version {version}")
        _warn(store, wanted)
        _apply(store, earlier.body, wanted, note=note, rolled_back_to=version)


@cli.command()
def schema() -> None:
    """Prints the catalog's JSON Schema, for editors that check and complete YAML."""
    print_json(json_schema())


def _apply(
    store: Store, text: str, wanted: Catalog, *, note: str | None = None, rolled_back_to: int | None = None
) -> None:
    applied = catalogs.apply(
        store, text, name=wanted.hash(), tiers=wanted.tiers, note=note, rolled_back_to=rolled_back_to, catalog=wanted
    )
    number = applied.version.number
    if not applied.new:
        typer.echo(f"version {number} is this already: nothing to do")
        return
    typer.echo(f"version {number} is in force")
    if running := len(workers.followers(store).processes):
        typer.echo(f"- {running} processes take it over within seconds; `tieryard deployments` says if one cannot")


def _parsed(version: Version) -> Catalog:
    """Raises CatalogError where this software no longer reads it."""
    return parse_catalog(version.body, name=f"version {version.number}")


def _show_readable(base: Version, wanted: Catalog, name: str) -> None:
    """What is in force may be of another software's format: that must not keep a good catalog out."""
    try:
        old = _parsed(base)
    except CatalogError:
        typer.echo(f"version {base.number}, in force, is not readable by this software: no differences are shown")
    else:
        _show(base, old, wanted, name)


def _show(base: Version, old: Catalog, wanted: Catalog, name: str) -> None:
    found = changes(old, wanted)
    if not found:
        typer.echo(f"{name} says what version {base.number} says")
        return
    show_changes(Console(), found, f"version {base.number}", name)
    for need in needs(old, wanted):
        typer.echo(f"- {need}")


def show_changes(console: Console, found: list[Change], before: str, after: str) -> None:
    """Side by side; where that is too wide, values stand below their field."""
    headers = ("field", before, after)
    rows = [(change.field, _cell(change.before), _cell(change.after)) for change in found]
    if sum(max(map(len, column)) + 1 for column in zip(headers, *rows, strict=True)) <= console.width:
        console.print(table(headers, rows, folds=headers[1:]))
        return
    console.print(f"{before} → {after}", markup=False, highlight=False)
    for field, was, will in rows:
        console.print(f"{printable(field)}\n  {printable(was)} → {printable(will)}", markup=False, soft_wrap=True)


def _as_json(base: Version | None, wanted: Catalog, warnings: list[str]) -> dict[str, Any]:
    old = _parsed(base) if base is not None else None
    return {
        "version": base.number if base is not None else None,
        "changes": changes(old, wanted) if old is not None else [],
        "needs": needs(old, wanted) if old is not None else [],
        "warnings": warnings,
    }


def _warn(store: Store, wanted: Catalog) -> None:
    for warning in _warnings(store, wanted):
        typer.echo(f"- {printable(warning)}")


def _warnings(store: Store, wanted: Catalog) -> Iterator[str]:
    """A policy whose tenant is misspelt would bind nobody, and nobody would notice."""
    for name in catalogs.without_tenant(store, wanted.routing.policies):
        yield f"policy {name}: there is no tenant of this name; it will hold once there is"
    for at, why in wanted.lapsed_on(_today()):
        yield f"{'.'.join(map(str, at))}: {why}; what runs there is paid as it last was"
    yield from _of_model(wanted)


def _of_model(wanted: Catalog) -> Iterator[str]:
    path = wanted.routing.quality_model
    if path is not None and not Path(path).is_file():
        yield f"routing.quality_model: there is no file {path} here; a process that cannot read it goes by the rules"


def _of_money(wanted: Catalog) -> Iterator[str]:
    """What savings are counted against: a default must not be a surprise."""
    baseline = wanted.baseline_on(_today())
    if baseline is None:
        yield "savings are counted against no baseline: there is no large deployment, and `baseline` names none"
    elif wanted.baseline is None:
        yield f"savings are counted against {baseline}, the large deployment with the dearest output (`baseline`)"


def _refuse_lapsed(file: Path, text: str, wanted: Catalog) -> None:
    """Raises CatalogError. Only of what is given now: a version that was applied stays readable."""
    found = sorted((line_of(text, at), ".".join(map(str, at)), why) for at, why in wanted.lapsed_on(_today()))
    if found:
        line, field, _ = found[0]
        said = "\n".join(f"{file}:{line}: {field}: {why}" for line, field, why in found)
        raise CatalogError(said, param=field, line=line)


def _today() -> date:
    return datetime.now(tz=UTC).date()


def _cell(value: str | None) -> str:
    return "–" if value is None else value
