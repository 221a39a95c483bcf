"""`tieryard webhooks` as a user meets it, on 80 columns; deliveries are made by the real callback worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import structlog
from standardwebhooks import Webhook

from tests import factories as make
from tests.conftest import eventually
from tests.integration.conftest import OpenYard
from tests.integration.test_cli import Run, run, url
from tests.integration.webhook_log import Owe, owe_deliveries
from tieryard.cli.listening import Receiver
from tieryard.settings import Settings
from tieryard.store import Store
from tieryard.webhooks.signing import new_secret, read_secret
from workers.callback import Callbacks

__all__ = ["run", "url"]  # fixtures

HOOK = "https://hooks.example.com/a/rather/long/path/that/names/the/team/and/the/environment"


@pytest.fixture
def delivering(open_yard: OpenYard) -> Iterator[None]:
    yard = open_yard("callback")
    yard.log = structlog.wrap_logger(structlog.ReturnLogger())  # standard error is the commands' here
    callbacks = Callbacks(yard)
    callbacks.start()
    yield
    callbacks.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


@pytest.fixture
def owe(store: Store) -> Owe:
    return owe_deliveries(store)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    """Where all commands of a test go."""
    monkeypatch.setenv("TIERYARD_URL", url)
    return url


@pytest.fixture
def asked(run: Run, api: str) -> Run:
    """Runs a command of `tieryard webhooks` against that API."""

    def call(*arguments: str) -> Any:
        ran = run("webhooks", *arguments, *(() if "--url" in arguments else ("--url", api)))
        assert all(len(line) <= 80 for line in ran.out.splitlines() if "--json" not in arguments), ran.out
        return ran

    return call


def add(asked: Run, address: str = HOOK, *options: str) -> dict[str, Any]:
    ran = asked("add", address, *options, "--json")
    assert ran.code == 0, ran.err
    made: dict[str, Any] = json.loads(ran.out)
    return made


def test_an_endpoint_from_its_making_to_its_end(asked: Run) -> None:
    ran = asked("add", HOOK, "--event", "job.failed", "--event", "batch.completed", "--description", "on call")
    assert ran.code == 0
    secret = ran.out.splitlines()[-1]
    assert read_secret(secret)
    assert "shown this once" in ran.err
    listed = json.loads(asked("list", "--json").out)["data"]
    [one] = listed
    assert one["events"] == ["job.failed", "batch.completed"]
    shown = asked("list").out
    assert all(word in shown for word in (one["id"], "hooks.", "job.failed", "enabled", "on call"))

    changed = asked("change", one["id"], "--address", f"{HOOK}/2", "--all-events", "--include-result")
    assert changed.code == 0
    assert all(word in changed.out for word in ("all", "sent, too"))
    assert secret not in asked("show", one["id"]).out
    rotated = asked("rotate", one["id"])
    assert read_secret(rotated.out.splitlines()[-1]) not in (None, read_secret(secret))
    assert "signs, too, until" in rotated.out
    assert asked("disable", one["id"]).out == f"{one['id']}: disabled\n"
    assert "by a key of its tenant" in " ".join(asked("show", one["id"]).out.split())
    assert asked("enable", one["id"]).out == f"{one['id']}: enabled\n"
    assert asked("remove", one["id"]).out == f"{one['id']}: removed\n"
    assert asked("show", one["id"]) == (2, "", f"tieryard: no webhook '{one['id']}'\n")
    assert "tieryard webhooks add" in asked("list").out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "ftp://x"), "url: 'ftp' is no scheme"),
        (("add", HOOK, "--event", "job.done"), "events: 'job.done' is no event; expected any of"),
        (("change", "webhook_1"), "say what to change"),
        (("change", "webhook_1", "--all-events", "--event", "job.failed"), "not both"),
        (("show", "delivery_9"), "no delivery 'delivery_9'"),
        (("redeliver",), "give a delivery's id, or --since"),
        (("redeliver", "delivery_1", "--since", "1h"), "give a delivery's id, or --since"),
        (("redeliver", "--since", "soon"), "since: expected a day"),
        (("deliveries", "--state", "lost"), "expected 'pending', 'delivered' or 'failed'"),
        (("test", "webhook_9"), "no webhook 'webhook_9'"),
        (("listen", "--no-register"), "needs a secret"),
        (("listen", "--secret", "mine"), "whsec_"),
        (("listen", "--secret", "whsec_"), "whsec_"),
        (("listen", "--event", "job.done"), "no event"),
    ],
)
def test_what_is_refused_says_so_in_one_line(asked: Run, arguments: tuple[str, ...], says: str) -> None:
    ran = asked(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert ran.err.startswith("tieryard: ")


def test_the_log_on_eighty_columns(asked: Run, owe: Owe) -> None:
    made = add(asked)
    attempts = [(500, "the receiver answered 500", "Internal Server Error: \x1b[31mdatabase is away"), (204, None, "")]
    [one] = owe(made["id"], attempts=attempts, outcome="delivered")
    [own] = owe(None, url=f"{HOOK}/own", event="job.failed", outcome="failed", attempts=attempts[:1])
    [waiting] = owe(made["id"])
    table = asked("deliveries").out
    for word in (one, own, waiting, made["id"], "hooks.", "job.failed", "delivered", "pending", " 500"):
        assert word in table
    assert [row["id"] for row in json.loads(asked("deliveries", "--state", "failed", "--json").out)["data"]] == [own]
    assert "the newest 1 only" in asked("deliveries", "--limit", "1").err
    assert asked("deliveries", "--event", "job.expired").out == "no deliveries\n"
    shown = asked("show", own).out
    assert "the receiver answered 500" in " ".join(shown.split())
    assert "␛[31mdatabase is away" in shown, "an answer must not steer the terminal"
    assert "\x1b" not in shown
    assert "no attempt yet" in asked("show", waiting).out
    assert asked("redeliver", own).out == "1 delivery is due again\n"
    assert asked("redeliver", waiting).code == 2
    assert asked("redeliver", "--since", "1h", "--state", "all", "--webhook", made["id"]).out == (
        "1 delivery is due again\n"
    )
    assert asked("redeliver", "--since", "1h").out == "0 deliveries are due again\n"


def test_a_test_says_how_it_was_taken(asked: Run, delivering: None, receiver: Receiver) -> None:
    made = add(asked, receiver.url)
    receiver.secrets = [made["secret"]]
    ran = asked("test", made["id"])
    assert ran.code == 0, ran.out
    assert "webhook.test" in ran.out
    assert "127.0.0.1" in ran.out
    got = next(receiver.deliveries())
    assert (got.type, got.fault, got.payload["data"]["id"]) == ("webhook.test", None, made["id"])

    with Receiver(status=503) as unwell:
        asked("change", made["id"], "--address", unwell.url)
        ran = asked("test", made["id"])
    assert (ran.code, "503" in ran.out) == (1, True)


# Listening


@contextlib.contextmanager
def listening(api: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`tieryard webhooks listen --json` as a process of its own, from where it listens."""
    command = [sys.executable, "-m", "tieryard", "webhooks", "listen", "--json", "--url", api, *options]
    environment = {**os.environ, "TIERYARD_API_KEY": "ty_test", "PYTHONUNBUFFERED": "1"}
    environment.pop("TIERYARD_WEBHOOK_SECRET", None)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def heard(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_listen_shows_what_comes_and_leaves_nothing(
    asked: Run, api: str, delivering: None, store: Store, tenant: int, how: signal.Signals
) -> None:
    with listening(api, "--event", "job.cancelled", "--answer", "500") as process:
        first = said(process)
        assert "for job.cancelled, as webhook_" in first
        [endpoint] = json.loads(asked("list", "--json").out)["data"]
        assert endpoint["id"] in first
        assert endpoint["url"] in first
        [job] = make.save_jobs(store, tenant)
        httpx.post(f"{api}/v1/jobs/job_{job}/cancel", headers={"authorization": "Bearer ty_test"}).raise_for_status()
        got = heard(process)
        assert (got["type"], got["attempt"], got["verified"], got["fault"]) == ("job.cancelled", 1, True, None)
        assert got["payload"]["data"]["id"] == f"job_{job}"
        eventually(
            lambda: json.loads(asked("deliveries", "--json").out)["data"][0]["last_status"] == 500,
            what="the attempt in the log",
        )
        process.send_signal(how)
        assert process.wait(20) == 0
        assert said(process) == f"{endpoint['id']}: removed\n"
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert json.loads(asked("list", "--json").out)["data"] == []


def test_listen_only_verifies_what_a_secret_has_signed(asked: Run, api: str) -> None:
    old, new, strange = new_secret(), new_secret(), new_secret()
    with listening(api, "--no-register", "--secret", f"{new} {old}") as process:
        address = said(process).split()[2].rstrip(";")
        assert json.loads(asked("list", "--json").out)["data"] == []
        for number, secret in enumerate((new, old, strange)):
            headers = signed(secret, f"msg_{number}")
            httpx.post(address, content=b'{"type": "job.failed"}', headers=headers).raise_for_status()
            got = heard(process)
            assert (got["id"], got["verified"]) == (f"msg_{number}", secret != strange)
        for headers, body, fault in (
            ({}, b"{}", "Missing required headers"),
            ({**signed(new, "msg_9"), "webhook-signature": "v1"}, b"{}", "cannot be read"),
            (signed(new, "msg_9"), b"\xff", "cannot be read"),
        ):
            httpx.post(address, content=body, headers=headers).raise_for_status()
            got = heard(process)
            assert not got["verified"]
            assert fault in got["fault"]
        assert httpx.get(address).status_code == 501
        assert httpx.post(address, content=b"x" * (2 << 20)).status_code == 413
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def signed(secret: str, message: str) -> dict[str, str]:
    now = datetime.now(tz=UTC)
    headers = {"webhook-id": message, "webhook-timestamp": str(int(now.timestamp()))}
    return {**headers, "webhook-signature": Webhook(secret).sign(message, now, '{"type": "job.failed"}')}


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    strict = "strict" in request.node.name
    return settings.model_copy(update={"webhook_allow_private": not strict})


def test_listen_says_what_a_strict_fleet_needs(asked: Run) -> None:
    ran = asked("listen")
    assert (ran.code, ran.out) == (2, "")
    for word in ("127.0.0.1", "TIERYARD_WEBHOOK_ALLOW_PRIVATE=true", "tieryard up --local-callbacks", "--at ADDRESS"):
        assert word in ran.err


def test_a_port_that_is_taken(asked: Run, receiver: Receiver) -> None:
    port = receiver.url.rstrip("/").rpartition(":")[2]
    ran = asked("listen", "--port", port)
    assert ran.code == 2
    assert "cannot listen" in ran.err
