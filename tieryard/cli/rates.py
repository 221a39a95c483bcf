"""`tieryard prices rates` and `prices list --from-fleet`: what the fleet charges and rents by, and what is recorded.
Work on the database itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console

from tieryard.catalog import BookPrice, Catalog, Price
from tieryard.cli.bench import in_force
from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json
from tieryard.cli.tables import table
from tieryard.costs.terms import Standard
from tieryard.ids import public
from tieryard.store import Connection, prices
from tieryard.store.benchmarks import KIND
from tieryard.store.prices import INSTANCE, Recorded

_USD = ("in per 1M", "out per 1M", "cached", "an hour")


@dataclass(frozen=True, slots=True)
class Rate:
    """What a deployment's tokens, or a host, cost now. `why` says where that comes from; `usd_per_hour` is a
    replica's, None where nothing is rented."""

    name: str
    price: Price | None
    usd_per_hour: Decimal | None
    gpus: int | None
    purchase: str | None
    measured_by: tuple[str, ...]
    why: str


def rates(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """What each deployment's tokens are charged at now, what its replicas and the other hosts are rented for, and where
    each comes from: the catalog, its price book, or speed runs under full load."""
    with database(data_dir) as store, store.transaction() as connection:
        catalog = in_force(store)
        found = list(_rates(connection, catalog))
        baseline = catalog.baseline_on(prices.today(connection))
    if as_json:
        print_json({"baseline": baseline, "rates": [_as_json(rate) for rate in found]})
        return
    rows = [
        (
            rate.name,
            *(_shown(usd) for usd in _usd(rate)),
            _rented(rate),
            rate.why,
        )
        for rate in found
    ]
    console = Console()
    console.print(table(("name", *_USD, "GPUs, bought", "by"), rows, right=_USD, folds=("name", "by")))
    console.print(f"savings are counted against: {baseline or 'nothing'}", markup=False, highlight=False)


def list_recorded(data_dir: Path | None, *, as_json: bool) -> None:
    """All rows of `price`."""
    with database(data_dir) as store, store.transaction() as connection:
        found = prices.load_book(connection)
    if as_json:
        print_json([asdict(row) for row in found])
        return
    rows = [
        (
            f"{row.provider}/{row.name}",
            str(row.valid_from),
            *(("offered no more", "", "", "") if row.ends else map(_shown, _recorded_usd(row))),
            f"{str(row.purchase).replace('_', ' ')}, {row.region}" if row.kind == INSTANCE else "",
            row.status.replace("_", " "),
        )
        for row in found
    ]
    heads = ("name", "from", *_USD, "bought", "status")
    Console().print(table(heads, rows, right=_USD, folds=("name", "bought")))


def _rates(connection: Connection, catalog: Catalog) -> list[Rate]:
    day, found = prices.today(connection), []
    lapsed = {at[1]: why for at, why in catalog.lapsed_on(day)}
    for name, spec in catalog.deployments.items():
        host = catalog.host_of(name)
        terms = prices.terms_of(connection, catalog, host)
        standard = prices.standard_price_of(connection, catalog, host)
        if terms is None or standard is None:
            by = f"price book: {spec.price.book}" if isinstance(spec.price, BookPrice) else "catalog"
            found.append(Rate(name, catalog.price_of(name, day), None, None, None, (), _and(by, lapsed.get(name))))
            continue
        runs = tuple(public(KIND, run) for run in standard.measured_by)
        why = f"as {host}, its host" if host != name else _and(_why(standard, runs), lapsed.get(name))
        found.append(Rate(name, standard.price, terms.usd_per_hour, terms.gpus, terms.purchase, runs, why))
    hosts = {host.name: number for number, host in enumerate(catalog.overhead)}
    for name, rent in prices.host_terms(connection, catalog).items():
        why = _and("overhead", lapsed.get(hosts[name]))
        found.append(Rate(name, None, rent.usd_per_hour, rent.gpus, rent.purchase, (), why))
    return found


def _why(standard: Standard, runs: tuple[str, ...]) -> str:
    if not runs:
        return "catalog, as no speed run has kept its replicas full"
    weight = standard.prefill_weight or Decimal(0)
    said = f"a prompt token counts {weight:.4f}" + (", assumed" if standard.weight_is_assumed else "")
    return f"{' and '.join(runs)}; {said}"


def _and(why: str, lapsed: str | None) -> str:
    return why if lapsed is None else f"{why}; {lapsed}"


def _usd(rate: Rate) -> tuple[Decimal | None, ...]:
    price = rate.price
    tokens = (price.input_usd_per_1m, price.output_usd_per_1m, price.cached_input_usd_per_1m) if price else (None,) * 3
    return *tokens, rate.usd_per_hour


def _recorded_usd(row: Recorded) -> tuple[Decimal | None, ...]:
    return row.input_usd_per_1m, row.output_usd_per_1m, row.cached_input_usd_per_1m, row.usd_per_hour


def _rented(rate: Rate) -> str:
    if rate.purchase is None:
        return ""
    bought = rate.purchase.replace("_", " ")
    return f"{rate.gpus}, {bought}" if rate.gpus else bought


def _shown(usd: Decimal | None) -> str:
    return "–" if usd is None else f"{usd.normalize():f}"


def _as_json(rate: Rate) -> dict[str, Any]:
    return asdict(rate) | {"price": rate.price.model_dump() if rate.price is not None else None}
