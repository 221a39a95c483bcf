"""`tieryard config`: the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tieryard.catalog import load_catalog

cli = typer.Typer(help="Check the catalog.", no_args_is_help=True)


@cli.command()
def check(file: Annotated[Path, typer.Argument(help="A tieryard.yaml.")] = Path("tieryard.yaml")) -> None:
    """Reads a catalog and says what is wrong with it: line, field, what was expected."""
    catalog = load_catalog(file)
    tiers, deployments = len(catalog.tiers), len(catalog.deployments)
    typer.echo(f"{file}: valid ({tiers} tiers, {deployments} deployments), version {catalog.hash()}")
