"""`tieryard estimate`, `breakeven`, `tco` and `prices`: what a workload would cost, before anything is rented or
bought. They need no fleet."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from tieryard.catalog import Price
from tieryard.catalog.price_book import HostedPrice, PriceBook
from tieryard.cli import money_reports as reports
from tieryard.cli import rates
from tieryard.cli.fleet import DataDirOption
from tieryard.cli.printing import JsonOption, print_json
from tieryard.complaints import complaint
from tieryard.costs import ownership, planning
from tieryard.costs.ownership import Effort, Option, Rent
from tieryard.costs.planning import Needed, Throughput, Workload
from tieryard.costs.price_book import EXAMPLE, load_price_book
from tieryard.errors import UserError

cli = typer.Typer(help="The price book: what hosted models and instances cost, and who says so.", no_args_is_help=True)

_PLACES = 6


def _number(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise typer.BadParameter(f"'{text}' is no number") from None
    if not value.is_finite() or value < 0:
        raise typer.BadParameter(f"must be 0 or more, not {text}")
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -_PLACES or value >= 10**12:
        raise typer.BadParameter(f"at most {_PLACES} decimal places, and below a million million, not {text}")
    return value


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"expected a date such as 2026-11-22, not '{text}'") from None


def _decimal(help: str) -> typer.models.OptionInfo:  # noqa: A002  # typer's own word
    option: typer.models.OptionInfo = typer.Option(parser=_number, metavar="NUMBER", help=help)
    return option


PricesOption = Annotated[
    Path, typer.Option("--prices", show_default=False, help="The price book. Default: the example that is shipped.")
]
OnOption = Annotated[
    date | None, typer.Option("--on", parser=_day, metavar="DATE", help="The day whose prices hold. Default: today.")
]
QueriesOption = Annotated[int, typer.Option("--daily-queries", min=0, help="Queries a day.")]
InputOption = Annotated[int, typer.Option("--input-tokens", min=0, help="Tokens in, of each query.")]
OutputOption = Annotated[int, typer.Option("--output-tokens", min=0, help="Tokens out, of each query.")]
InputPriceOption = Annotated[Decimal | None, _decimal("USD per million input tokens.")]
OutputPriceOption = Annotated[Decimal | None, _decimal("USD per million output tokens.")]


def estimate(
    daily_queries: QueriesOption,
    input_tokens: InputOption,
    output_tokens: OutputOption,
    input_price: InputPriceOption = None,
    output_price: OutputPriceOption = None,
    models: Annotated[bool, typer.Option("--models", help="Compare the models of the price book.")] = False,
    peak_factor: Annotated[
        Decimal, _decimal("The busiest minute, as a multiple of the day's average.")
    ] = planning.PEAK_FACTOR,
    prices: PricesOption = EXAMPLE,
    on: OnOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a workload costs a month with hosted models, and what it asks of their limits."""
    workload = Workload(daily_queries, input_tokens, output_tokens)
    given = _price(input_price, output_price)
    if given is None and not models:
        raise UserError("give --input-price and --output-price, or --models", param="--input-price")
    needed = Needed.of(workload, peak_factor)
    day = on or _today()
    rows = load_price_book(prices).hosted_on(day)
    if models and not rows:
        raise UserError(f"{reports.called(prices)} has no hosted model on {day}", param="--on")
    report = reports.Estimated(workload, peak_factor, needed, given, rows if models else [], rows, prices, day)
    if as_json:
        print_json(report.as_json())
    else:
        report.show(Console())


def breakeven(
    input_tokens: InputOption,
    output_tokens: OutputOption,
    rent_per_day: Annotated[Decimal | None, _decimal("USD a day, for all that is rented.")] = None,
    instance: Annotated[str | None, typer.Option(help="Instead: an instance of the price book, 24 hours.")] = None,
    input_price: InputPriceOption = None,
    output_price: OutputPriceOption = None,
    model: Annotated[str | None, typer.Option(help="Instead of the prices: a model of the price book.")] = None,
    prefill_tps: Annotated[Decimal | None, _decimal("Measured: prompt tokens a second, reading alone.")] = None,
    decode_tps: Annotated[Decimal | None, _decimal("Measured: output tokens a second, writing alone.")] = None,
    utilization: Annotated[Decimal, _decimal("Share of the day in which there is work.")] = Decimal(1),
    prices: PricesOption = EXAMPLE,
    on: OnOption = None,
    as_json: JsonOption = False,
) -> None:
    """From how many tokens a day on renting is cheaper than an API, and whether the GPU can do as many."""
    book, day = load_price_book(prices), on or _today()
    if (prefill_tps is None) != (decode_tps is None):
        raise UserError("one needs the other: give --prefill-tps and --decode-tps", param="--prefill-tps")
    throughput = None
    if prefill_tps is not None and decode_tps is not None:
        throughput = Throughput(prefill_tps, decode_tps, utilization)
    rent = _rent_per_day(rent_per_day, instance, book, day)
    price = _one_price(input_price, output_price, model, book, day)
    found = planning.breakeven(
        rent_usd_per_day=rent,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        price=price,
        throughput=throughput,
    )
    report = reports.BrokenEven(found, rent, input_tokens, output_tokens, price, throughput)
    if as_json:
        print_json(report.as_json())
    else:
        report.show(Console())


def tco(
    a: Annotated[str, typer.Option("--from", metavar="A", help="A name in the price book, or an option's YAML file.")],
    b: Annotated[str, typer.Option("--to", metavar="B", help="The same, for what would take its place.")],
    daily_queries: QueriesOption,
    input_tokens: InputOption,
    output_tokens: OutputOption,
    months: Annotated[int, typer.Option(help="How far to look ahead, 6 to 12.")] = ownership.LONGEST,
    hourly_rate: Annotated[Decimal | None, _decimal("USD for an hour of work.")] = None,
    instances: Annotated[int | None, typer.Option(min=1, help="B: how many are rented.")] = None,
    evaluation: Annotated[Decimal | None, _decimal("B, once: USD.")] = None,
    setup: Annotated[Decimal | None, _decimal("B, once: USD for anything else.")] = None,
    engineering_hours: Annotated[Decimal | None, _decimal("B, once.")] = None,
    prompt_migration_hours: Annotated[Decimal | None, _decimal("B, once.")] = None,
    model_update_hours: Annotated[Decimal | None, _decimal("B, a month.")] = None,
    maintenance_hours: Annotated[Decimal | None, _decimal("B, a month.")] = None,
    monitoring: Annotated[Decimal | None, _decimal("B, a month: USD.")] = None,
    prices: PricesOption = EXAMPLE,
    on: OnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Total cost of ownership of A and B, month by month: tokens or rent, evaluation, work, and when B pays back."""
    book, day = load_price_book(prices), on or _today()
    effort = _given(
        evaluation_usd=evaluation,
        setup_usd=setup,
        engineering_hours=engineering_hours,
        prompt_migration_hours=prompt_migration_hours,
        model_update_hours=model_update_hours,
        maintenance_hours=maintenance_hours,
        monitoring_usd=monitoring,
    )
    first = _option(a, {}, None, book, day)
    second = _option(b, effort, instances, book, day)
    workload, rate = Workload(daily_queries, input_tokens, output_tokens), _rate(hourly_rate, first, second)
    found = ownership.compare(first, second, workload, months=months, usd_per_hour=rate)
    report = reports.Owned(found, first, second, workload, rate)
    if as_json:
        print_json(report.as_json())
    else:
        report.show(Console())


@cli.command("list")
def list_prices(
    prices: PricesOption = EXAMPLE,
    from_fleet: Annotated[bool, typer.Option("--from-fleet", help="What the fleet has recorded, instead.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every row, with its days and its standing; sources are in --json."""
    if from_fleet:
        rates.list_recorded(data_dir, as_json=as_json)
        return
    book = load_price_book(prices)
    if as_json:
        print_json(book.model_dump(by_alias=True))
    else:
        reports.show_prices(Console(), book)


@cli.command()
def check(
    file: Annotated[Path, typer.Argument(show_default=False, help="A price book. Default: the example.")] = EXAMPLE,
) -> None:
    """Reads a price book and says what is wrong with it: line, field, what was expected. Doubts are said too."""
    book = load_price_book(file)
    checked = sum(row.status == "checked" for row in book.rows)
    where = "the shipped example" if file == EXAMPLE else str(file)
    hosted, rented = len(book.hosted), len(book.instances)
    typer.echo(f"{where}: valid ({hosted} hosted models, {rented} instances; {checked} checked, the rest as printed)")
    for row in book.rows:
        if row.doubt is not None:
            typer.echo(f"- {row.name}: {row.doubt}")


cli.command("rates")(rates.rates)


def _today() -> date:
    return datetime.now(UTC).date()


def _price(into: Decimal | None, out: Decimal | None) -> Price | None:
    if (into is None) != (out is None):
        raise UserError("a price has two parts: give --input-price and --output-price", param="--input-price")
    return None if into is None or out is None else Price(input_usd_per_1m=into, output_usd_per_1m=out)


def _one_price(into: Decimal | None, out: Decimal | None, model: str | None, book: PriceBook, day: date) -> Price:
    given = _price(into, out)
    if (given is None) == (model is None):
        raise UserError("give --input-price and --output-price, or --model", param="--input-price")
    if given is not None:
        return given
    assert model is not None
    return book.find_hosted(model, day).price()


def _rent_per_day(rent: Decimal | None, instance: str | None, book: PriceBook, day: date) -> Decimal:
    if (rent is None) == (instance is None):
        raise UserError("give --rent-per-day, or --instance", param="--rent-per-day")
    if rent is not None:
        return rent
    assert instance is not None
    return book.find_instance(instance, day).sound().usd_per_h * planning.HOURS_A_DAY


def _rate(given: Decimal | None, *options: Option) -> Decimal:
    if given is None and any(option.effort.has_hours for option in options):
        raise UserError("hours have a price: give it", param="--hourly-rate")
    return given or Decimal(0)


def _given(**effort: Decimal | None) -> dict[str, Decimal]:
    return {name: value for name, value in effort.items() if value is not None}


def _effort(given: dict[str, Decimal]) -> Effort:
    try:
        return Effort(**given)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        option = str(fault["loc"][0]).removesuffix("_usd").replace("_", "-")
        raise UserError(complaint(fault), param=f"--{option}") from None


def _option(text: str, effort: dict[str, Decimal], instances: int | None, book: PriceBook, day: date) -> Option:
    """From a file, or by name with the rest as given."""
    if text.endswith((".yaml", ".yml")):
        if effort or instances is not None:
            raise UserError(f"what {text} costs besides stands in that file; leave the options for B out", param="--to")
        return ownership.read_option(Path(text))
    row = book.find(text, day)
    if isinstance(row, HostedPrice):
        if instances is not None:
            raise UserError(f"{row.name} is not rented", param="--instances")
        return Option(row.name, row.price(), _effort(effort))
    rent = Rent(usd_per_h=row.sound().usd_per_h, instances=instances or 1)
    return Option(row.name, rent, _effort(effort))
