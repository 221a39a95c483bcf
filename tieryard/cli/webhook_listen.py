"""`tieryard webhooks listen`: what the fleet would tell a receiver, shown on a terminal as it comes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from tieryard.cli.client import DEFAULT_URL, Client, UrlOption, checked_url
from tieryard.cli.listening import Delivery, Receiver, check_secret
from tieryard.cli.tables import printable
from tieryard.errors import TieryardError, UserError

_PATH = "/v1/webhooks"
_HERE = (
    "This listens on 127.0.0.1. A fleet delivers there only with TIERYARD_WEBHOOK_ALLOW_PRIVATE=true in its settings; "
    "`tieryard up --local-callbacks` sets it. A fleet elsewhere needs a tunnel to this port: --at ADDRESS --port PORT"
)


def listen(
    events: Annotated[list[str] | None, typer.Option("--event", help="Only this one; repeat it. Default: all.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1. Default: any.")] = 0,
    at: Annotated[
        str | None, typer.Option(help="The address that leads here from the fleet, such as a tunnel's.")
    ] = None,
    include_result: Annotated[bool, typer.Option("--include-result", help="Have jobs' results sent, too.")] = False,
    secret: Annotated[
        str | None,
        typer.Option(
            envvar="TIERYARD_WEBHOOK_SECRET",
            help="Verifies what is signed with it, too: the fleet's, which signs for callback URLs. Two, by a space.",
        ),
    ] = None,
    register: Annotated[bool, typer.Option(help="Register an endpoint for this time, or just verify.")] = True,
    answer: Annotated[int, typer.Option(min=200, max=599, help="Status to answer with, to see what follows.")] = 204,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Receives on this machine until Ctrl-C: registers an endpoint, prints each delivery and whether its signature
    holds, and removes the endpoint again."""
    secrets = [check_secret(one) for one in (secret or "").split()]
    if not register and not secrets:
        raise UserError("without an endpoint of its own it needs a secret to verify with: --secret, or "
                        "TIERYARD_WEBHOOK_SECRET")  # fmt: skip
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    address = checked_url(at) if at is not None else None
    with Receiver(port=port, status=answer) as receiver, _until_stopped():
        receiver.secrets = secrets
        if not register:
            console.print(f"listening on {receiver.url}; Ctrl-C ends it", markup=False)
            _show_all(receiver, as_json=as_json)
        wanted = {"url": address or receiver.url, "events": events or [], "include_result": include_result}
        with _endpoint(Client(url), wanted, console) as made:
            receiver.secrets = [made["secret"], *secrets]
            told = ", ".join(made["events"]) or "all events"
            said = f"listening on {receiver.url} for {told}, as {made['id']}; Ctrl-C ends it and removes {made['id']}"
            console.print(said, markup=False)
            _show_all(receiver, as_json=as_json)


@contextlib.contextmanager
def _endpoint(client: Client, wanted: dict[str, Any], console: Console) -> Iterator[dict[str, Any]]:
    """Registered while it is entered, whatever ends that."""
    try:
        made = client.post(_PATH, json={**wanted, "description": "tieryard webhooks listen"})
    except UserError as refused:
        if "ALLOW_PRIVATE" in str(refused):
            raise UserError(f"{refused}\n{_HERE}") from None
        raise
    try:
        yield made
    finally:
        try:
            client.delete(f"{_PATH}/{made['id']}")
        except TieryardError as error:
            console.print(f"{made['id']} is still there ({error}): tieryard webhooks remove {made['id']}", markup=False)
        else:
            console.print(f"{made['id']}: removed", markup=False)


@contextlib.contextmanager
def _until_stopped() -> Iterator[None]:
    """Ctrl-C and SIGTERM are how this ends, not errors."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_all(receiver: Receiver, *, as_json: bool) -> None:
    for delivery in receiver.deliveries():
        typer.echo(orjson.dumps(delivery.shown(), option=orjson.OPT_UTC_Z) if as_json else _shown(delivery))


def _shown(delivery: Delivery) -> str:
    verified = "verified" if delivery.fault is None else f"NOT VERIFIED: {delivery.fault}"
    when = f"{delivery.at:%H:%M:%S} UTC"
    head = f"{when}  {delivery.type}  {delivery.id}  attempt {delivery.attempt}  {verified}"
    body = orjson.dumps(delivery.payload, option=orjson.OPT_INDENT_2).decode() if delivery.payload is not None else ""
    return printable(f"{head}\n{body or 'not JSON'}")
