"""`tieryard keys`: who may call the API, for what, and how often. Works on the database itself."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console

from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json, shown_time
from tieryard.cli.tables import table
from tieryard.ids import public
from tieryard.store import keys
from tieryard.store.keys import KeyRow, Scope

cli = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

_MOST = 2**31 - 1  # the column's
_DAY = "%Y-%m-%d"


def _not_blank(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("must not be empty")
    return text


@cli.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for.", callback=_not_blank)],
    tenant: Annotated[str, typer.Option(help="Whose it is; made if new.", callback=_not_blank)] = "default",
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may do; repeat it. Default: all.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, max=_MOST, help="Default: no limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, max=_MOST, help="Default: no limit.")] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Makes a key and shows it, this once."""
    key = keys.new_key()
    with database(data_dir) as store:
        keys.add_key(
            store,
            key,
            tenant=tenant,
            name=name,
            scopes=scope,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
    typer.echo(key)


@cli.command("list")
def list_keys(as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """Lists all keys, oldest first; of each key itself, only how it starts."""
    with database(data_dir) as store:
        found = keys.list_keys(store)
    if as_json:
        print_json([asdict(k) | {"id": public("key", k.id)} for k in found])
        return
    headers = ["id", "key", "tenant", "name", "scopes", "a minute", "made (UTC)"]
    rows = [
        [
            public("key", k.id),
            f"{k.prefix}…",
            k.tenant,
            k.name,
            "all" if set(k.scopes) >= set(Scope) else " ".join(k.scopes),
            _limits(k),
            _day(k.created_at),
        ]
        for k in found
    ]
    if any(k.revoked_at for k in found):  # a terminal of 80 columns has no room for an empty one
        headers.append("revoked (UTC)")
        rows = [[*row, _day(k.revoked_at)] for row, k in zip(rows, found, strict=True)]
    Console().print(table(headers, rows, folds=("tenant", "name", "scopes")))


@cli.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, such as key_7, or its start, as the list shows it.")],
    data_dir: DataDirOption = None,
) -> None:
    """Revokes a key, for good. The API may know it for some seconds more."""
    with database(data_dir) as store:
        typer.echo(f"{keys.revoke(store, key)}: revoked")


def _day(when: datetime | None) -> str:
    return "–" if when is None else shown_time(when, _DAY)


def _limits(key: KeyRow) -> str:
    limits = (("req", key.requests_per_minute), ("tok", key.tokens_per_minute))
    return "\n".join(f"{most:,} {name}" for name, most in limits if most is not None) or "–"
