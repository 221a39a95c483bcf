"""`tieryard webhooks`: endpoints that are told what happens, what was delivered to them, a receiver to try it with."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Console

from tieryard.cli import webhook_tables as tables
from tieryard.cli.client import DEFAULT_URL, Client, UrlOption
from tieryard.cli.printing import JsonOption, print_json
from tieryard.cli.webhook_listen import listen
from tieryard.errors import UserError

cli = typer.Typer(help="Be told what happens: endpoints, their deliveries, a receiver to try.", no_args_is_help=True)
cli.command()(listen)

PATH = "/v1/webhooks"
_EVERY_S = 0.3

WebhookArgument = Annotated[str, typer.Argument(help="An endpoint's id, such as webhook_7.", metavar="WEBHOOK")]
EventsOption = Annotated[list[str] | None, typer.Option("--event", help="Only this one; repeat it. Default: all.")]
_State = Annotated[str | None, typer.Option(help="`pending`, `delivered` or `failed`.")]


@cli.command()
def add(
    address: Annotated[str, typer.Argument(help="Where to deliver: an https or http URL.", metavar="ADDRESS")],
    events: EventsOption = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    include_result: Annotated[bool, typer.Option("--include-result", help="Send jobs' results, too.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Registers an endpoint and shows its secret, this once."""
    wanted = {"url": address, "events": events or [], "description": description, "include_result": include_result}
    _show_secret(Client(url).post(PATH, json=wanted), as_json=as_json)


@cli.command("list")
def list_endpoints(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL) -> None:
    """Lists endpoints, oldest first: what each is told, and whether it takes it."""
    found = Client(url).get(PATH)
    if as_json:
        print_json(found)
    elif not found["data"]:
        typer.echo("no endpoint yet: tieryard webhooks add ADDRESS")
    else:
        Console().print(tables.endpoints(found["data"]))


@cli.command()
def show(
    which: Annotated[str, typer.Argument(help="An endpoint, such as webhook_7, or a delivery, such as delivery_42.")],
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """An endpoint; or a delivery with all its attempts, and what the receiver answered."""
    is_delivery = which.startswith("delivery_")
    found = Client(url).get(f"/v1/deliveries/{which}" if is_delivery else f"{PATH}/{which}")
    if as_json:
        print_json(found)
    else:
        (tables.show_delivery if is_delivery else tables.show_endpoint)(Console(), found)


@cli.command()
def change(
    webhook: WebhookArgument,
    address: Annotated[str | None, typer.Option(help="Where to deliver from now on.")] = None,
    events: Annotated[list[str] | None, typer.Option("--event", help="Only this one; repeat it.")] = None,
    all_events: Annotated[bool, typer.Option("--all-events", help="All of them.")] = False,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    include_result: Annotated[bool | None, typer.Option(help="Whether to send jobs' results, too.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Changes an endpoint: what is named, nothing else. Also deliveries that are waiting go to the new address."""
    if all_events and events:
        raise UserError("give --event or --all-events, not both")
    given = {
        "url": address,
        "events": [] if all_events else events or None,
        "description": description,
        "include_result": include_result,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    if not wanted:
        raise UserError("say what to change: --address, --event, --all-events, --description or --include-result")
    found = Client(url).patch(f"{PATH}/{webhook}", json=wanted)
    if as_json:
        print_json(found)
    else:
        tables.show_endpoint(Console(), found)


@cli.command()
def rotate(webhook: WebhookArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL) -> None:
    """Gives an endpoint a new secret and shows it, this once. For 24 hours deliveries are signed with both."""
    _show_secret(Client(url).post(f"{PATH}/{webhook}/rotate"), as_json=as_json)


@cli.command()
def enable(webhook: WebhookArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL) -> None:
    """Delivers to it again, from now on. What it missed: `tieryard webhooks redeliver`."""
    _say_state(Client(url).post(f"{PATH}/{webhook}/enable"), as_json=as_json)


@cli.command()
def disable(webhook: WebhookArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL) -> None:
    """Delivers nothing to it until it is enabled again."""
    _say_state(Client(url).post(f"{PATH}/{webhook}/disable"), as_json=as_json)


@cli.command()
def remove(webhook: WebhookArgument, url: UrlOption = DEFAULT_URL) -> None:
    """Removes an endpoint, for good. What was delivered to it stays in the log."""
    Client(url).delete(f"{PATH}/{webhook}")
    typer.echo(f"{webhook}: removed")


@cli.command()
def deliveries(
    webhook: Annotated[str | None, typer.Option(help="Only this endpoint's. Default: callback URLs' too.")] = None,
    event: Annotated[str | None, typer.Option(help="Only of this event.")] = None,
    state: _State = None,
    since: Annotated[str | None, typer.Option(help="Since 24h, 7d, a UTC day, or a time.")] = None,
    until: Annotated[str | None, typer.Option(help="Until then.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Lists deliveries, newest first. `tieryard webhooks show delivery_42` has the attempts of one."""
    asked = {"webhook": webhook, "event": event, "state": state, "since": since, "until": until, "limit": limit}
    page = Client(url).get("/v1/deliveries", **asked)
    if as_json:
        print_json(page)
        return
    if not page["data"]:
        typer.echo("no deliveries")
        return
    Console().print(tables.deliveries(page["data"]))
    if page["next"]:
        Console(stderr=True).print(f"the newest {limit} only; --limit shows more", highlight=False)


@cli.command()
def redeliver(
    delivery: Annotated[str | None, typer.Argument(help="A delivery, such as delivery_42. Or give --since.")] = None,
    webhook: Annotated[str | None, typer.Option(help="Of a time: only this endpoint's.")] = None,
    event: Annotated[str | None, typer.Option(help="Of a time: only of this event.")] = None,
    since: Annotated[str | None, typer.Option(help="Events since 24h, 7d, a UTC day, or a time.")] = None,
    until: Annotated[str | None, typer.Option(help="Until then. Default: now.")] = None,
    state: Annotated[str, typer.Option(help="Of a time: `failed`, `delivered` or `all`.")] = "failed",
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Delivers again, with the same webhook-id and a new timestamp: one delivery, or all of a time that have failed."""
    if (delivery is None) == (since is None):
        raise UserError("give a delivery's id, or --since")
    of_time = {"webhook": webhook, "event": event, "since": since, "until": until, "state": state}
    wanted = {"delivery": delivery} if delivery is not None else {k: v for k, v in of_time.items() if v is not None}
    client = Client(url)
    found = client.post("/v1/redeliveries", json=wanted)
    n = found["redelivered"]
    while found["has_more"]:
        found = client.post("/v1/redeliveries", json={**wanted, "after": found["next"]})
        n += found["redelivered"]
    if as_json:
        print_json({**found, "redelivered": n})
    else:
        typer.echo(f"{n:,} {'delivery is' if n == 1 else 'deliveries are'} due again")


@cli.command("test")
def send_test(
    webhook: WebhookArgument,
    wait_s: Annotated[float, typer.Option(min=0, help="How long to wait for the first attempt.")] = 30.0,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Sends an endpoint a `webhook.test`, whatever events it wants, and says how it was taken. Exit code 1 if it was
    not."""
    client = Client(url)
    found = client.post(f"{PATH}/{webhook}/test")
    deadline = time.monotonic() + wait_s
    while not found["attempts"] and time.monotonic() < deadline:
        time.sleep(_EVERY_S)
        found = client.get(f"/v1/deliveries/{found['id']}")
    if as_json:
        print_json(found)
    else:
        tables.show_delivery(Console(), found)
    if found["state"] != "delivered":
        raise typer.Exit(1)


def _show_secret(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    tables.show_endpoint(Console(), made)
    Console(stderr=True).print("its secret, shown this once:", highlight=False)
    typer.echo(made["secret"])


def _say_state(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['id']}: {found['state']}")
