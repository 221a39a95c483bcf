"""`tieryard budgets`: what tenants and keys may spend, and what they have. Works on the database itself."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer
from pydantic import AnyHttpUrl, TypeAdapter, ValidationError
from rich.console import Console

from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.money_reports import usd
from tieryard.cli.printing import JsonOption, print_json, shown_time
from tieryard.cli.tables import table
from tieryard.complaints import complaint
from tieryard.errors import UserError
from tieryard.ids import public
from tieryard.store import budgets
from tieryard.store.budgets import BudgetRow, Wanted

cli = typer.Typer(help="Set, list and remove budgets.", no_args_is_help=True)

_url: TypeAdapter[AnyHttpUrl] = TypeAdapter(AnyHttpUrl)


@cli.command("set", context_settings={"ignore_unknown_options": True})  # so that -1 is an amount, and refused as one
def set_budget(
    tenant: Annotated[str, typer.Argument(help="A tenant, as `tieryard tenants list` names it.")],
    limit_usd: Annotated[str, typer.Argument(help="USD, 0 or more.", metavar="USD")],
    period: Annotated[str, typer.Option(help="`day` or `month`, UTC.")] = "month",
    key: Annotated[str | None, typer.Option(help="One of its keys, such as key_7. Default: all together.")] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Refuse nothing, only tell.")] = False,
    alert_url: Annotated[str | None, typer.Option(help="Told at 50, 80 and 100 %.")] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Sets a budget, or changes the one that there is. Binds within a second."""
    wanted = Wanted(
        tenant, read_usd(limit_usd, param="limit_usd"), period, key=key, hard=not soft, alert_url=_address(alert_url)
    )
    with database(data_dir) as store:
        row = budgets.set_budget(store, wanted)
    kind = "hard" if row.hard else "soft"
    told = f", tells {row.alert_url}" if row.alert_url is not None else ""
    typer.echo(f"{public(budgets.KIND, row.id)}: {_whose(row)}, {usd(row.limit_usd)} a {row.period}, {kind}{told}")


@cli.command("list")
def list_budgets(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Lists budgets with what is spent and reserved of them in their period of today."""
    with database(data_dir) as store:
        found = budgets.list_budgets(store) if tenant is None else budgets.tenant_budgets(store, tenant)
    if as_json:
        print_json([_plain(row) for row in found])
        return
    figures = ("limit", "spent", "reserved", "left")
    rows = [
        (
            public(budgets.KIND, row.id),
            _whose(row),
            row.period if row.hard else f"{row.period}, soft",
            *map(usd, (row.limit_usd, row.spent_usd, row.reserved_usd, row.left_usd)),
            shown_time(row.resets_at, "%Y-%m-%d"),
        )
        for row in found
    ]
    headers = ("id", "whose", "period", *figures, "resets (UTC)")
    Console().print(table(headers, rows, right=figures, folds=("whose",)))


@cli.command()
def remove(
    budget: Annotated[str, typer.Argument(help="Its id, such as budget_7, as the list shows it.")],
    data_dir: DataDirOption = None,
) -> None:
    """Removes a budget."""
    with database(data_dir) as store:
        typer.echo(f"{budgets.remove(store, budget)}: removed")


def read_usd(text: str, *, param: str) -> Decimal:
    """An amount, whatever it is. Raises UserError for what is no number."""
    try:
        return Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        raise UserError(f"'{text}' is no amount: give USD, such as 25 or 0.50", param=param) from None


def _address(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(_url.validate_python(text))
    except ValidationError as error:
        raise UserError(complaint(error.errors()[0]), param="alert_url") from None


def _whose(row: BudgetRow) -> str:
    return row.tenant if row.api_key_id is None else f"{row.tenant}, {public('key', row.api_key_id)}"


def _plain(row: BudgetRow) -> dict[str, object]:
    ids = {"id": public(budgets.KIND, row.id), "key": public("key", row.api_key_id) if row.api_key_id else None}
    told = {"left_usd": row.left_usd, "resets_at": row.resets_at}
    return {name: value for name, value in (asdict(row) | ids | told).items() if name != "api_key_id"}
