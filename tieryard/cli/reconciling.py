"""How reconciling is shown: a table for readers, and the same as JSON with every digit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rich.console import Console

from tieryard.cli.cost_tables import HOSTS, exact, windows
from tieryard.cli.tables import table
from tieryard.costs.reconciling import Books, WindowSum
from tieryard.ids import public

_MOST_SHOWN = 20
"""Windows that differ, by name."""


def books_as_json(found: Books) -> dict[str, Any]:
    return {
        "balanced": found.balanced,
        "closed_windows": len(found.closed),
        "rent_usd": found.rents_usd,
        "by_token_usd": found.by_token_usd,
        "by_hand_usd": found.by_hand_usd,
        "bill_usd": found.bill_usd,
        "by_kind": {str(kind): usd for kind, usd in found.by_kind.items()},
        "posted_usd": found.posted_usd,
        "difference_usd": found.difference_usd,
        "differing": [_window(window) for window in found.differing],
        "open": [_window(window) for window in found.open],
        "charged_twice": [public("job", number) for number in found.charged_twice],
        "unheard": [dataclasses.asdict(one) for one in found.unheard],
        "strays": [public("window", number) for number in found.strays],
    }


def _window(window: WindowSum) -> dict[str, Any]:
    shown = ("deployment", "place", "started_at", "stopped_at", "closed_at", "rent_usd", "posted_usd", "difference_usd")
    return {"id": public("window", window.id)} | {name: getattr(window, name) for name in shown}


def show_books(console: Console, found: Books) -> None:
    rows = [(str(kind), exact(usd)) for kind, usd in found.by_kind.items()]
    rows += [("= posted", exact(found.posted_usd)), ("rent of closed windows", exact(found.rents_usd))]
    rows += [("charged by the token", exact(found.by_token_usd)), ("put right by hand", exact(found.by_hand_usd))]
    rows += [("= bill", exact(found.bill_usd)), ("difference", exact(found.difference_usd))]
    at = len(found.by_kind)
    console.print(table(("", "USD"), rows, right=("USD",), sections=[at - 1, at, at + 3, at + 4]))
    console.print(f"{windows(len(found.closed))} closed, {len(found.differing):,} differ from their rent")
    if found.differing:
        _show_windows(console, found.differing)
    if found.open:
        rent = exact(sum((window.rent_usd for window in found.open), Decimal(0)))
        posted = exact(sum((window.posted_usd for window in found.open), Decimal(0)))
        console.print(
            f"{windows(len(found.open))} not closed, in none of the sums: rent so far {rent}, posted {posted}",
            soft_wrap=True,
        )
    for one in found.unheard:
        console.print(
            f"of what is charged by the token, {exact(one.cost_usd)} is work of {one.deployment} while it was rented, "
            f"posted without a window ({one.postings:,}): idle shares have its time, too",
            markup=False,
            soft_wrap=True,
        )
    if found.charged_twice:
        named = ", ".join(public("job", number) for number in found.charged_twice[:_MOST_SHOWN])
        console.print(f"{len(found.charged_twice):,} jobs charged more than once: {named}", soft_wrap=True)
    if found.strays:
        console.print(f"rows name {windows(len(found.strays))} that do not exist: {found.strays[:_MOST_SHOWN]}")
    console.print("everything adds up" if found.balanced else "it does not add up")


def _show_windows(console: Console, shown: Sequence[WindowSum]) -> None:
    headers = ("window", "deployment", "place", "rent", "posted", "difference")
    rows = [
        (
            public("window", one.id),
            one.deployment or HOSTS,
            one.place,
            exact(one.rent_usd),
            exact(one.posted_usd),
            exact(one.difference_usd),
        )
        for one in shown[:_MOST_SHOWN]
    ]
    console.print(table(headers, rows, right=headers[3:], folds=("deployment", "place")))
