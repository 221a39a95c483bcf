"""`tieryard keys`: who may call the API. Works on the database itself, so it needs TIERYARD_DATABASE_URL."""

from __future__ import annotations

from typing import Annotated

import typer

from tieryard.settings import load_settings
from tieryard.store import Store, keys

cli = typer.Typer(help="Make API keys.", no_args_is_help=True)


@cli.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    tenant: Annotated[str, typer.Option(help="Whose it is; made if new.")] = "default",
) -> None:
    """Makes a key and shows it, this once."""
    store = Store(load_settings().database_url.get_secret_value())
    try:
        key = keys.new_key()
        keys.add_key(store, key, tenant=tenant, name=name)
        typer.echo(key)
    finally:
        store.close()
