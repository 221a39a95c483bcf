"""`tieryard tenants`: who owns jobs, and how much each may have waiting. Works on the database itself."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json, shown_time
from tieryard.cli.tables import table
from tieryard.errors import UserError
from tieryard.store import keys

cli = typer.Typer(help="List and cap tenants.", no_args_is_help=True)


@cli.command("list")
def list_tenants(as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """Lists all tenants, oldest first, with the number of their keys that work."""
    with database(data_dir) as store:
        found = keys.list_tenants(store)
    if as_json:
        print_json(found)
        return
    figures = ("keys", "max enqueued tokens")
    rows = [
        (
            t.name,
            f"{t.keys:,}",
            "–" if t.max_enqueued_tokens is None else f"{t.max_enqueued_tokens:,}",
            shown_time(t.created_at, "%Y-%m-%d"),
        )
        for t in found
    ]
    Console().print(table(("tenant", *figures, "created (UTC)"), rows, right=figures, folds=("tenant",)))


@cli.command()
def cap(
    name: Annotated[str, typer.Argument(help="A tenant, as the list names it.")],
    max_enqueued_tokens: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Tokens of all its batches that are not final.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Lift the cap.")] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Caps the tokens that a tenant's batches may have enqueued, or lifts the cap."""
    if (max_enqueued_tokens is None) != none:
        raise UserError("give either --max-enqueued-tokens N or --none")
    with database(data_dir) as store:
        keys.cap_tenant(store, name, max_enqueued_tokens)
    typer.echo(f"{name}: {'no cap' if none else f'at most {max_enqueued_tokens:,} tokens enqueued'}")
