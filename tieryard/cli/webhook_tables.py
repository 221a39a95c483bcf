"""Endpoints and deliveries as `tieryard webhooks` shows them, on 80 columns."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tieryard.cli.printing import shown_time
from tieryard.cli.tables import FittedTable, printable, table

_TIME = "%m-%d %H:%M:%S"


def endpoints(found: list[dict[str, Any]]) -> FittedTable:
    rows = [(one["id"], one["url"], _events(one), one["state"], one["description"] or "") for one in found]
    headers = ["id", "address", "events", "state"]
    if any(one["description"] for one in found):  # a terminal of 80 columns has no room for an empty one
        headers.append("description")
    return table(headers, [row[: len(headers)] for row in rows], folds=("address", "events", "description"))


def show_endpoint(console: Console, one: dict[str, Any]) -> None:
    facts = [("endpoint", one["id"]), ("address", one["url"]), ("events", _events(one))]
    facts += [("description", one["description"])] if one["description"] else []
    facts += [("results", "sent, too" if one["include_result"] else "not sent: ids and a link")]
    facts += [("made", shown_time(one["created_at"])), ("state", _state(one))]
    if one["previous_secret_until"]:
        facts.append(("old secret", f"signs, too, until {shown_time(one['previous_secret_until'])}"))
    _print(console, facts)


def deliveries(found: list[dict[str, Any]]) -> FittedTable:
    headers = ("delivery", "of", "to", "made (UTC)", "state", "tries", "answer")
    rows = [
        (
            one["id"],
            f"{one['event']} {one['subject']}",
            one["webhook"] or urlsplit(one["url"]).netloc,
            shown_time(one["created_at"], _TIME),
            one["state"],
            str(one["attempts"]),
            str(one["last_status"] or one["last_error"] or "–"),
        )
        for one in found
    ]
    return table(headers, rows, right=("tries",), folds=("of", "to", "answer"))


def show_delivery(console: Console, one: dict[str, Any]) -> None:
    facts = [
        ("delivery", one["id"]),
        ("of", f"{one['event']} {one['subject']}"),
        ("to", f"{one['webhook']}, {one['url']}" if one["webhook"] else one["url"]),
        ("webhook-id", one["message"]),
        ("made", shown_time(one["created_at"])),
        ("state", one["state"] + (f", tried again {shown_time(one['next_at'])}" if one["next_at"] else "")),
    ]
    _print(console, facts)
    if not one["history"]:
        console.print("no attempt yet")
        return
    headers = ("attempt", "at (UTC)", "ms", "address", "answer")
    rows = [
        (
            str(tried["attempt"]),
            shown_time(tried["at"], _TIME),
            "–" if tried["latency_ms"] is None else f"{tried['latency_ms']:,.0f}",
            tried["address"] or "–",
            tried["error"] or str(tried["status"]),
        )
        for tried in one["history"]
    ]
    console.print(table(headers, rows, right=("attempt", "ms"), folds=("address", "answer")))
    if said := one["history"][-1]["answer"]:
        console.rule("the last answer", align="left")
        console.print(printable(said), markup=False, highlight=False, soft_wrap=True)


def _events(one: dict[str, Any]) -> str:
    return " ".join(one["events"]) or "all"


def _state(one: dict[str, Any]) -> str:
    if one["disabled_at"]:
        return f"disabled {shown_time(one['disabled_at'])}: {one['disabled_why']}"
    if one["failing_since"]:
        return f"failing since {shown_time(one['failing_since'])}"
    return str(one["state"])


def _print(console: Console, facts: list[tuple[str, str]]) -> None:
    shown = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts:
        shown.add_row(name, Text(printable(value), overflow="fold"))
    console.print(shown)
