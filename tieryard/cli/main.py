"""The commands, one file each; errors end them with one line and a code."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from tieryard import __version__
from tieryard.cli import (
    bench,
    budgets,
    classify,
    config,
    costs,
    deployments,
    doctor,
    golden,
    jobs,
    keys,
    models,
    money,
    plan,
    quote,
    route,
    router,
    submit,
    tenants,
    up,
    webhooks,
)
from tieryard.errors import TieryardError, UserError

cli = typer.Typer(
    help="A marshalling yard for LLM work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli.command()(up.up)
cli.command()(submit.submit)
cli.command()(deployments.deployments)
cli.command()(doctor.doctor)
cli.command()(plan.plan)
cli.command()(money.estimate)
cli.command()(money.breakeven)
cli.command()(money.tco)
cli.command()(costs.invoice)
cli.command()(up.migrate)
cli.add_typer(quote.cli, name="quote")
cli.add_typer(classify.cli, name="classify")
cli.add_typer(jobs.cli, name="jobs")
cli.add_typer(route.cli, name="route")
cli.add_typer(router.cli, name="router")
cli.add_typer(config.cli, name="config")
cli.add_typer(bench.cli, name="bench")
cli.add_typer(golden.cli, name="golden")
cli.add_typer(models.cli, name="models")
cli.add_typer(money.cli, name="prices")
cli.add_typer(costs.cli, name="costs")
cli.add_typer(budgets.cli, name="budgets")
cli.add_typer(webhooks.cli, name="webhooks")
cli.add_typer(keys.cli, name="keys")
cli.add_typer(tenants.cli, name="tenants")


@cli.command()
def version() -> None:
    """Prints the version."""
    typer.echo(__version__)


def main() -> None:
    """Exit codes: 0 done, 1 failed, 2 the caller can mend it."""
    try:
        cli()
    except TieryardError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"tieryard: {error}", style="red", markup=False)
        sys.exit(2 if isinstance(error, UserError) else 1)
