"""`tieryard route`: where a job would go, and where jobs went."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from tieryard.cli import route_reports, route_trials
from tieryard.cli.candidates import show_decision
from tieryard.cli.client import DEFAULT_URL, Client, UrlOption
from tieryard.cli.printing import JsonOption, print_json
from tieryard.errors import UserError

_ASK = "ask"


class _AskFirst(TyperGroup):
    """What names none of the commands is a prompt to ask about."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_ASK, *args]
        return super().parse_args(ctx, args)


cli = typer.Typer(
    cls=_AskFirst, no_args_is_help=True, help='Where jobs go, and why. `tieryard route "PROMPT"` asks about one.'
)

cli.command()(route_reports.replay)
cli.command()(route_reports.summary)
cli.command()(route_trials.shadow)
cli.command()(route_trials.status)


@cli.command(_ASK)
def ask(
    prompt: Annotated[str, typer.Argument(help="What the job would ask.")],
    model: Annotated[str | None, typer.Option(help="`auto`, a class, or a deployment.")] = None,
    tier: Annotated[str | None, typer.Option(help="Of the catalog. Default: `batch`.")] = None,
    category: Annotated[str | None, typer.Option(help="Default: what the classifier finds.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to generate. Default: 256.")] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE, such as max_latency_ms=2000 or min_quality.of=NAME; repeat it. Or JSON."),
    ] = None,
    max_cost_usd: Annotated[str | None, typer.Option(help="Most that the job may cost.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Where a job would go now, and why: every deployment with its figures. The job is not run."""
    given = {
        "prompt": prompt,
        "model": model,
        "tier": tier,
        "category": category,
        "max_tokens": max_tokens,
        "slo": parse_slo(slo) if slo else None,
        "max_cost_usd": max_cost_usd,
    }
    found = Client(url).post("/v1/route", json={k: v for k, v in given.items() if v is not None})
    if as_json:
        print_json(found)
        return
    console = Console()
    where = f"to {found['deployment']}" if found["deployment"] else "nowhere now"
    console.print(f"would go {where}", style="bold", highlight=False)
    show_decision(console, found)


def parse_slo(given: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` terms, of which a dot goes one member deeper, or JSON objects. Raises UserError."""
    found: dict[str, Any] = {}
    for term in given:
        if term.lstrip().startswith("{"):
            found |= _json_object(term)
            continue
        name, equals, value = term.partition("=")
        if not (name and equals and value):
            raise UserError(f"--slo {term}: expected KEY=VALUE, such as max_latency_ms=2000, or a JSON object")
        *above, last = name.split(".")
        place = found
        for part in above:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UserError(f"--slo {term}: '{part}' has a value already")
        place[last] = _value(value)
    return found


def _json_object(term: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(term)  # whatever begins with a brace is an object, or no JSON
    except ValueError as error:
        raise UserError(f"--slo: not valid JSON: {error}") from None
    return found


def _value(text: str) -> float | str:
    """A number where it is one, else text: a duration, a time, a name."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
