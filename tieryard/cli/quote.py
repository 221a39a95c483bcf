"""`tieryard quote FILE`: what a batch would cost and when it would be done, before it runs, and what came of it."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from tieryard.cli.client import DEFAULT_URL, Client, UrlOption
from tieryard.cli.printing import JsonOption, print_json, shown_time
from tieryard.cli.tables import FittedTable, printable, table
from tieryard.errors import UserError
from tieryard.ids import internal, public

_OF = "of"
_MOST_NOTES = 8


class _OfFirst(TyperGroup):
    """What names none of the commands is a file to quote."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_OF, *args]
        return super().parse_args(ctx, args)


cli = typer.Typer(
    cls=_OfFirst, no_args_is_help=True, help="What a batch would cost. `tieryard quote FILE` prices a file of jobs."
)


@cli.command(_OF)
def of(
    file: Annotated[str, typer.Argument(help="One job a line; OpenAI's batch lines; or an uploaded file's id.")],
    deadline: Annotated[str | None, typer.Option(help="When all is to be done: `6h`, or a time with its zone.")] = None,
    tier: Annotated[str | None, typer.Option(help="The only tier to price. Default: all of the catalog.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Prices a file of jobs under each tier, without running it."""
    asked = {name: value for name, value in (("deadline", deadline), ("tier", tier)) if value is not None}
    client = Client(url)
    path = Path(file)
    if file.startswith("file_") and not path.exists():
        found = client.post("/v1/quotes", json={"input_file_id": file, **asked})
    else:
        found = _quote_path(client, path, asked)
    if as_json:
        print_json(found)
    else:
        show(Console(), found)


@cli.command("show")
def show_one(
    quote: Annotated[str, typer.Argument(help="Its id, such as `quote_7`.")],
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """A quote, and once its batch is over what came of it."""
    found = Client(url).get(f"/v1/quotes/{public('quote', internal('quote', quote))}")
    if as_json:
        print_json(found)
    else:
        show(Console(), found)


@cli.command("list")
def list_all(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Quotes, newest first, with how far they were off."""
    found = Client(url).get("/v1/quotes", limit=limit)
    if as_json:
        print_json(found)
        return
    headers = ("quote", "made (UTC)", "requests", "batch", "tier", "expected USD", "actual USD", "cost ×", "time ×")
    rows = [_row(quote) for quote in found["data"]]
    Console().print(table(headers, rows, right=("requests", "expected USD", "actual USD", "cost ×", "time ×")))


def _quote_path(client: Client, path: Path, asked: dict[str, str]) -> dict[str, Any]:
    """A file of native jobs is sent as it is; one of OpenAI's lines is uploaded, and can be run by its id."""
    try:
        body = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not _has_openai_lines(body):
        headers = {"content-type": "application/x-ndjson"}
        return client.post("/v1/quotes", content=body, headers=headers, params=asked)
    upload = {"file": (path.name, body, "application/jsonl")}
    uploaded = client.post("/v1/files", data={"purpose": "batch"}, files=upload)
    return client.post("/v1/quotes", json={"input_file_id": uploaded["id"], **asked})


def _has_openai_lines(body: bytes) -> bool:
    """By the first line that is not blank."""
    first = next((line for line in body.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()), b"")
    try:
        found = json.loads(first)
    except ValueError:
        return False
    return isinstance(found, dict) and "url" in found


def show(console: Console, quote: dict[str, Any]) -> None:
    lines = quote["lines"]
    sampled = f", {lines['read']:,} of them read" if lines["read"] < quote["requests"] else ""
    bad = f", {lines['bad']:,} bad" if lines["bad"] else ""
    error = f" ± {2 * quote['prompt_tokens_error']:,}" if quote["prompt_tokens_error"] else ""
    console.print(
        f"{quote['id']}: {quote['requests']:,} requests{sampled}{bad}; {quote['prompt_tokens']:,}{error} prompt tokens",
        style="bold",
        highlight=False,
    )
    if quote["input_file_id"] is not None:
        console.print(f"file: {quote['input_file_id']}", highlight=False)
    for fault in lines["faults"]:
        where = f"line {fault['line']}" + (f", {fault['param']}" if fault["param"] else "")
        console.print(f"{where}: {printable(fault['message'])}", markup=False, soft_wrap=True, highlight=False)
    console.print(_offers(quote))
    console.print(_shares(quote))
    _say_choice(console, quote)
    _say_notes(console, quote["offers"])
    if quote["actual"] is not None:
        console.print(_held(quote))
    elif quote["batch_id"] is not None:
        console.print(f"{quote['batch_id']} runs by it, in {quote['tier']}", highlight=False)


def _offers(quote: dict[str, Any]) -> FittedTable:
    ends = ("low", "expected", "worst")
    headers = ("tier", "USD low", "expected", "worst", "output tokens", "done low", "expected ", "worst ", "in time")
    rows: list[list[str | Text]] = []
    for one in quote["offers"]:
        style = "bold" if one["tier"] == quote["cheapest"] else ""
        finish = one["finish"]
        done = [_span(finish[f"{end}_s"]) if finish else "–" for end in ends]
        cells = [one["tier"], *(_usd(one["cost_usd"][end]) for end in ends), f"{one['output_tokens']['expected']:,}"]
        rows.append([Text(cell, style=style) for cell in (*cells, *done, one["meets"])])
    return table(headers, rows, right=[h.strip() for h in headers[1:-1]], folds=("tier",))


def _shares(quote: dict[str, Any]) -> FittedTable:
    headers = ("tier", "deployment", "requests", "USD", "done")
    rows = [
        [
            one["tier"],
            share["deployment"],
            f"{share['requests']:,}",
            _usd(share["cost_usd"]),
            _span(share["finish"]["expected_s"]) if share["finish"] else "–",
        ]
        for one in quote["offers"]
        for share in one["deployments"]
    ]
    return table(headers, rows, right=("requests", "USD", "done"), folds=("deployment",))


def _say_choice(console: Console, quote: dict[str, Any]) -> None:
    by = f"by {shown_time(quote['deadline'])}" if quote["deadline"] else "within its window"
    chosen = quote["cheapest"]
    said = f"cheapest that is done {by}: {chosen}" if chosen else f"no tier is sure or likely to be done {by}"
    console.print(said, style="bold", highlight=False)
    budget = quote["budget"]
    if budget is not None:
        covers = "covers" if budget["covers"] else "does not cover"
        left = Decimal(budget["left_usd"])
        what = f"the {_usd(budget['left_usd'])} USD left {covers}" if left > 0 else f"nothing is left, which {covers}"
        console.print(f"budget: {what} the {_usd(budget['reserves_usd'])} USD to reserve", highlight=False)


def _say_notes(console: Console, offers: list[dict[str, Any]]) -> None:
    for one in offers:
        for name, says in (("waits", "would wait first"), ("fallbacks", "find no deployment that meets SLO and floor")):
            if one[name]:
                console.print(f"{one['tier']}: {one[name]:,} requests {says}", highlight=False)
    notes = list(dict.fromkeys(note for one in offers for note in one["notes"]))
    for note in notes[:_MOST_NOTES]:
        console.print(f"· {printable(note)}", markup=False, soft_wrap=True, highlight=False)
    if len(notes) > _MOST_NOTES:
        console.print(f"… and {len(notes) - _MOST_NOTES} more notes; --json has them", highlight=False)


def _held(quote: dict[str, Any]) -> FittedTable:
    actual = quote["actual"]
    said = next((one for one in quote["offers"] if one["tier"] == quote["tier"]), None)
    usd = said["cost_usd"] if said else {"expected": None, "worst": None}
    finish = said["finish"] if said else None
    rows = [
        ["cost USD", _usd(usd["expected"]), _usd(actual["cost_usd"]), *_compared(actual["cost"])],
        [
            "finish",
            _span(finish["expected_s"]) if finish else "–",
            _span(actual["finish_s"]),
            *_compared(actual["finish"]),
        ],
        ["output tokens", f"{said['output_tokens']['expected']:,}" if said else "–",
         f"{actual['completion_tokens']:,}", "", ""],
        ["prompt tokens", f"{said['prompt_tokens']:,}" if said else "–", f"{actual['prompt_tokens']:,}", "", ""],
    ]  # fmt: skip
    title = f"{quote['batch_id']}, {quote['tier']}: {actual['outcome']} at {shown_time(actual['finished_at'])}"
    headers = ("", "expected", "actual", "actual ÷ expected", "in the range")
    return table(headers, rows, right=("expected", "actual", "actual ÷ expected"), title=title)


def _compared(held: dict[str, Any]) -> list[str]:
    inside = held["inside"]
    return [_ratio(held["ratio"]), "–" if inside is None else "yes" if inside else "no"]


def _row(quote: dict[str, Any]) -> list[str]:
    named = quote["tier"] or quote["cheapest"]
    said = next((one for one in quote["offers"] if one["tier"] == named), None)
    actual = quote["actual"]
    return [
        quote["id"],
        shown_time(quote["created_at"], "%m-%d %H:%M"),
        f"{quote['requests']:,}",
        quote["batch_id"] or "–",
        named or "–",
        _usd(said["cost_usd"]["expected"]) if said else "–",
        _usd(actual["cost_usd"]) if actual else "–",
        _ratio(actual["cost"]["ratio"]) if actual else "–",
        _ratio(actual["finish"]["ratio"]) if actual else "–",
    ]


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _usd(amount: str | None) -> str:
    """To a cent, or to two digits of what is less."""
    if amount is None:
        return "–"
    usd = Decimal(amount)
    if usd == 0 or usd >= 1:
        return f"{usd:,.2f}"
    return f"{usd:.{1 - usd.adjusted()}f}"


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours < 48 else f"{hours / 24:.1f}d"
