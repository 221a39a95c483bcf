"""`tieryard up`: the embedded fleet. `tieryard migrate`: the schema of a real one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from tieryard.settings import load_settings
from tieryard.store.migrate import migrate as run_migrations


def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the API on 127.0.0.1.")] = 8000,
    data_dir: Annotated[Path, typer.Option(help="Where data, logs and the catalog are kept.")] = Path("tieryard-data"),
    catalog: Annotated[Path | None, typer.Option(help="A tieryard.yaml. Default: the data directory's own.")] = None,
    local_callbacks: Annotated[
        bool,
        typer.Option("--local-callbacks", help="Callbacks may go to this machine and its network: to try them out."),
    ] = False,
) -> None:
    """Runs the whole fleet on this machine until Ctrl-C: Postgres, Valkey, llama.cpp, API and workers."""
    from tieryard.supervisor import Fleet  # imports what only the `local` extra installs

    fleet = Fleet(data_dir, port=port, catalog=catalog, local_callbacks=local_callbacks, say=typer.echo)

    def stop(number: int, _: Any) -> None:
        if fleet.stopping.is_set():
            os._exit(128 + number)
        typer.echo("stopping: finishing what is in flight (once more to leave it)")
        fleet.stopping.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with fleet:
        fleet.wait_until_ready()
        if not fleet.stopping.is_set():
            typer.echo(f"ready {fleet.url}")
            fleet.run()


def migrate() -> None:
    """Brings the database of TIERYARD_DATABASE_URL to this version's schema."""
    run_migrations(load_settings().database_url.get_secret_value())
