"""`tieryard costs` and `tieryard invoice`: what was spent, by whom and on what, and whether it adds up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from tieryard.cli import cost_tables as tables
from tieryard.cli import reconciling
from tieryard.cli.bench import in_force
from tieryard.cli.budgets import read_usd
from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json
from tieryard.costs import export, picture, reporting
from tieryard.costs.reporting import Dimension, Span
from tieryard.costs.savings import Savings, pooled
from tieryard.errors import UserError
from tieryard.ids import public
from tieryard.store import Store, adjustments, catalogs, profiles
from tieryard.store import costs as ledger
from tieryard.store.adjustments import Adjustment
from tieryard.store.invoices import invoice_of
from tieryard.store.keys import tenant_id_of

_SHOW = "show"
_QUALITY_WITHIN = timedelta(days=365)


class _ShowFirst(TyperGroup):
    """What names none of the commands is options of the report."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [_SHOW, *args]
        return super().parse_args(ctx, args)


cli = typer.Typer(cls=_ShowFirst, help="What was spent, and on what. `tieryard costs` shows it by day and deployment.")

SinceOption = Annotated[str, typer.Option(help="7d (today and six days before), 24h, a UTC day, or a time.")]
UntilOption = Annotated[str | None, typer.Option(help="Until when: the same. Default: now.")]
CsvOption = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Writes the rows as CSV.")]
ParquetOption = Annotated[
    Path | None, typer.Option("--parquet", metavar="FILE", help="Writes them as Parquet (extra `parquet`).")
]


@dataclass(frozen=True, slots=True)
class _Report:
    """One report in its forms: for a program, as rows of these columns, and for a reader."""

    as_json: dict[str, Any]
    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[str]
    show: Callable[[Console], None]


@cli.command(_SHOW)
def show(
    by: Annotated[
        str | None, typer.Option(help="day, deployment, tenant, category, tier, batch, kind, key: several by commas.")
    ] = None,
    since: SinceOption = reporting.DEFAULT_SINCE,
    until: UntilOption = None,
    tenant: Annotated[str | None, typer.Option(help="Only what this tenant pays.")] = None,
    savings: Annotated[bool, typer.Option("--savings", help="What routing saved, with the quality beside it.")] = False,
    utilisation: Annotated[bool, typer.Option("--utilisation", help="What was rented, and what became of it.")] = False,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    picture_: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draws the days, stacked: .svg or .png.")
    ] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """What was spent, by day and deployment or as --by says: jobs, tokens, costs and unit costs."""
    span = reporting.read_span(since, until, datetime.now(UTC), prefix="--")
    if savings and utilisation:
        raise UserError("are two reports: ask for one", param="--savings, --utilisation")
    if (savings or utilisation) and (picture_ is not None or by is not None):
        raise UserError("is of the report by groups alone", param="--by" if by is not None else "--picture")
    if utilisation and tenant is not None:
        raise UserError("is of what the fleet rents: no tenant has any", param="--utilisation")
    dimensions = reporting.read_dimensions(by or "day,deployment", param="--by")
    if picture_ is not None:
        picture.stacking(picture_, dimensions)
    with database(data_dir) as store:
        tenant_id = None if tenant is None else tenant_id_of(store, tenant)
        if savings:
            report = _savings(store, span, tenant_id)
        elif utilisation:
            report = _utilisation(store, span)
        else:
            report = _costs(store, span, dimensions, tenant_id, picture_)
    _write(report, csv, parquet)
    _tell(report, as_json=as_json)


@cli.command()
def reconcile(
    since: Annotated[
        str | None, typer.Option(help="Windows that started since then, as `costs` takes it. Default: all.")
    ] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Holds every closed rent window's postings against its rent, and all of them against the bill. Exit code 1 where
    anything differs."""
    now = datetime.now(UTC)
    start = datetime(1970, 1, 1, tzinfo=UTC)
    if since is not None:
        start = reporting.read_moment(since, now, param="--since")
    with database(data_dir) as store:
        found = ledger.books(store, start, _hosts(store))
    if as_json:
        print_json(reconciling.books_as_json(found))
    else:
        reconciling.show_books(Console(highlight=False), found)
    if not found.balanced:
        raise typer.Exit(1)


@cli.command(context_settings={"ignore_unknown_options": True})  # so that -5 is an amount
def adjust(
    tenant: Annotated[str, typer.Argument(help="A tenant; tieryard-rent for what the fleet pays itself.")],
    usd: Annotated[str, typer.Argument(help="Below 0 it is a credit.", metavar="USD")],
    why: Annotated[str, typer.Option(help="What the invoice says of it.")],
    key: Annotated[str | None, typer.Option(help="One of its keys, such as key_7.")] = None,
    deployment: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Posts an adjustment by hand, which counts from now on. Another one takes it back; budgets do not count it."""
    wanted = Adjustment(tenant, read_usd(usd, param="usd"), why, key=key, deployment=deployment)
    with database(data_dir) as store:
        posted = adjustments.post(store, wanted)
    typer.echo(f"{public(adjustments.KIND, posted)}: {tenant}, {tables.exact(wanted.usd)}")


def invoice(
    tenant: Annotated[str, typer.Argument(help="A tenant's name.")],
    month: Annotated[str, typer.Option(help="UTC, such as 2026-11.")],
    csv: CsvOption = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """What a tenant owes for a month: by tier and deployment, to the last digit of its ledger rows."""
    named, span = reporting.read_month(month, datetime.now(UTC), param="--month")
    with database(data_dir) as store:
        found = invoice_of(store, tenant, named, span)
    rows = [tables.line_as_json(line) for line in found.lines]
    report = _Report(
        tables.invoice_as_json(found), rows, tables.LINE_COLUMNS, lambda console: tables.show_invoice(console, found)
    )
    _write(report, csv, None)
    _tell(report, as_json=as_json)


def _costs(
    store: Store, span: Span, dimensions: tuple[Dimension, ...], tenant_id: int | None, drawn: Path | None
) -> _Report:
    found = ledger.costs(store, span, dimensions, tenant_id=tenant_id, most=1_000_000)
    if drawn is not None:
        with _saving(drawn):
            picture.draw(found, drawn)
    columns = [*map(str, dimensions), *reporting.FIGURES, *reporting.KIND_COLUMNS]
    return _Report(
        tables.costs_as_json(found), reporting.flat(found.rows), columns, lambda c: tables.show_costs(c, found)
    )


def _utilisation(store: Store, span: Span) -> _Report:
    found = ledger.utilisation(store, span)
    rows = [tables.utilisation_as_json(one) for one in found]
    whole = tables.span_as_json(span) | {"deployments": rows}
    return _Report(whole, rows, tables.UTILISATION_COLUMNS, lambda c: tables.show_utilisation(c, found, span))


def _savings(store: Store, span: Span, tenant_id: int | None) -> _Report:
    found = savings_of(store, span, tenant_id)
    rows = [tables.category_as_json(found, row) for row in found.rows]
    whole = tables.span_as_json(span) | tables.savings_as_json(found)
    return _Report(whole, rows, tables.SAVINGS_COLUMNS, lambda c: tables.show_savings(c, found, span))


def savings_of(store: Store, span: Span, tenant_id: int | None = None) -> Savings:
    """With the baseline of the catalog in force, and what its quality runs of the last year say."""
    rows = ledger.savings(store, span, tenant_id=tenant_id)
    today = datetime.now(tz=UTC).date()
    baseline = in_force(store).baseline_on(today) if catalogs.newest(store) is not None else None
    if baseline is None:
        return Savings(rows, None, {})
    with store.transaction() as connection:
        found = profiles.newest_qualities(connection, deployments=[baseline], within=_QUALITY_WITHIN)
    return Savings(rows, baseline, pooled([(one.category, one.n, one.score) for one in found]))


def _hosts(store: Store) -> dict[str, str]:
    """LoRA adapters and who serves them, by the catalog in force."""
    if catalogs.newest(store) is None:
        return {}
    catalog = in_force(store)
    return {name: catalog.host_of(name) for name in catalog.deployments if catalog.host_of(name) != name}


def _write(report: _Report, csv: Path | None, parquet: Path | None) -> None:
    for path, made in ((csv, export.as_csv), (parquet, export.as_parquet)):
        if path is not None:
            body = made(report.rows, report.columns)
            with _saving(path):
                path.write_bytes(body)


@contextlib.contextmanager
def _saving(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _tell(report: _Report, *, as_json: bool) -> None:
    if as_json:
        print_json(report.as_json)
    else:
        report.show(Console(highlight=False))
