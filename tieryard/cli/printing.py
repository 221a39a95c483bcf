"""How commands print what is not a table: `--json`, and times with their zone."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import orjson
import typer

JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]

_FORMAT = orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


def print_json(value: Any) -> None:
    """The API's answer as it is, or frozen values as objects: money as text, times in UTC."""
    typer.echo(orjson.dumps(value, default=_plain, option=_FORMAT))


def shown_time(when: datetime | str, shown: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    """In UTC, as logs and JSON say it; where `shown` leaves the zone out, the column's header has it."""
    moment = datetime.fromisoformat(when) if isinstance(when, str) else when
    return moment.astimezone(UTC).strftime(shown)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    raise TypeError(f"{type(value).__name__} has no JSON")
