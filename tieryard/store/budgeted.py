"""Who has a budget, and what the dearest tokens cost: remembered for a second by one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal

from tieryard.catalog import Catalog, Price
from tieryard.store.connection import Connection, Store
from tieryard.store.prices import terms_of, today

_REMEMBERED_S = 1.0
_MOST = 10_000
_NOTHING = Decimal(0)

_BOUND = """
SELECT EXISTS (SELECT FROM budget WHERE tenant_id = %(tenant)s AND (api_key_id IS NULL OR api_key_id = %(key)s))
"""

# What stands now charges its jobs at these, and not at the catalog's price.
_STANDING = """
SELECT deployment, max(input_usd_per_1m), max(output_usd_per_1m) FROM rent_window
WHERE stopped_at IS NULL AND deployment IS NOT NULL GROUP BY deployment
"""


class Budgeted:
    """A budget that is set binds within a second. Safe to share between threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bound: dict[tuple[int, int | None], tuple[float, bool]] = {}
        self._prices: tuple[float, Catalog, Mapping[str, Price]] | None = None

    def binds(self, tenant_id: int, api_key_id: int | None) -> bool:
        """Whether any budget does. One look at an index a second; what it says is only whether to ask again, under the
        lock, when the jobs are saved."""
        whose, now = (tenant_id, api_key_id), time.monotonic()
        known = self._bound.get(whose)
        if known is None or now - known[0] >= _REMEMBERED_S:
            [(found,)] = self._store.fetch(_BOUND, {"tenant": tenant_id, "key": api_key_id})
            if len(self._bound) >= _MOST:
                self._bound.clear()
            known = self._bound[whose] = (now, bool(found))
        return known[1]

    def prices(self, catalog: Catalog) -> Mapping[str, Price]:
        """By deployment, USD per million: the dearest of the catalog's prices from today until a job of today has
        ended, and of what its tokens are charged at in rent windows. A LoRA adapter's are charged in those of its
        host."""
        now, known = time.monotonic(), self._prices
        if known is None or known[1] is not catalog or now - known[0] >= _REMEMBERED_S:
            with self._store.transaction() as connection:
                known = self._prices = (now, catalog, _dearest(connection, catalog))
        return known[2]


def _dearest(connection: Connection, catalog: Catalog) -> dict[str, Price]:
    day = today(connection)
    days = [day, *_changes(catalog, day)]
    standing: dict[str, list[Price]] = {name: [] for name in catalog.deployments}
    for name, input_usd, output_usd in connection.execute(_STANDING):
        if name in standing:
            standing[name].append(Price(input_usd_per_1m=input_usd, output_usd_per_1m=output_usd))
    prices = {}
    for name in catalog.deployments:
        host = catalog.host_of(name)
        if not standing[host] and (terms := terms_of(connection, catalog, host)) is not None:
            standing[host].append(terms.price)
        said = [catalog.price_of(name, each) for each in days]
        prices[name] = _dearest_of([*said, *standing[host]])
    return prices


def _changes(catalog: Catalog, day: date) -> set[date]:
    """Days to come on which a price begins, while a job that is accepted on this one may still end."""
    last = day + max(tier.window for tier in catalog.tiers.values()) + timedelta(days=1)
    return {row.valid_from for row in catalog.price_book.hosted if day < row.valid_from <= last}


def _dearest_of(prices: list[Price]) -> Price:
    return Price(
        input_usd_per_1m=max(max(p.input_usd_per_1m, p.cached_input_usd_per_1m or _NOTHING) for p in prices),
        output_usd_per_1m=max(p.output_usd_per_1m for p in prices),
    )
