"""Rent windows as tests open, post to and close them, and what must hold of them all at the end."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import Any

import psycopg

from tests import factories as make
from tieryard.catalog import Price
from tieryard.costs.terms import Terms
from tieryard.costs.windows import WindowPrice, charge_usd, rent_usd
from tieryard.store import Store, windows
from tieryard.store.finish import Ending, finish
from tieryard.store.jobs import Claimed

PRICE = Price(input_usd_per_1m=Decimal("0.123457"), output_usd_per_1m=Decimal("0.456789"))
TERMS = Terms(Decimal("1006.123457"), 1, "on_demand", PRICE, "0123456789ab")


def opened(store: Store, *, place: str = "host/one/1", worker_id: int | None = None, terms: Terms = TERMS) -> int:
    with store.transaction() as connection:
        return windows.open_window(
            connection,
            store.next_id(),
            place=place,
            worker_id=worker_id or make.worker(store),
            deployment="one",
            terms=terms,
        )


def stopped(store: Store, window_id: int) -> None:
    with store.transaction() as connection:
        assert windows.stop(connection, window_id)


def closed(store: Store, grace_s: float = 0.0) -> int:
    with psycopg.connect(store.url, autocommit=True, options="-c timezone=UTC") as connection:
        return windows.close_due(connection, grace_s)


def write(store: Store, *endings: Ending) -> None:
    with store.transaction() as connection:
        finish(connection, list(endings))


def used(job: Claimed, window: WindowPrice | None, **fields: Any) -> dict[str, Any]:
    """What an ending says of the tokens of a start that used some."""
    tokens = {"prompt_tokens": 1000 + job.id, "cached_tokens": 7, "completion_tokens": 13 * job.fence, **fields}
    cost = charge_usd(window.price, **tokens) if window is not None else Decimal("0.5")
    return {**tokens, "cost_usd": cost, "window_id": window.window_id if window is not None else None}


def row(store: Store, window_id: int, columns: str) -> Any:
    return store.fetch(f"SELECT {columns} FROM rent_window WHERE id = %(id)s", {"id": window_id})[0]


def books(store: Store) -> None:
    """Every window is closed, and what was posted to it is its rent."""
    posted: defaultdict[int, Decimal] = defaultdict(Decimal)
    for window_id, usd in store.fetch("SELECT window_id, cost_usd FROM ledger WHERE window_id IS NOT NULL"):
        posted[window_id] += usd
    found = store.fetch("SELECT id, usd_per_hour, started_at, stopped_at, closed_at FROM rent_window")
    for window_id, usd_per_hour, started_at, stopped_at, closed_at in found:
        assert closed_at is not None
        assert posted[window_id] == rent_usd(usd_per_hour, started_at, stopped_at), f"window {window_id}"
