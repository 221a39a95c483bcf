"""The commands as a user meets them: one line that says what is wrong, a code, and figures that are exact."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import uvicorn

from api.app import create_app
from tests import factories as make
from tests.conftest import CATALOGS, eventually
from tests.integration.receivers import happen
from tieryard import __version__
from tieryard.cli import main
from tieryard.cli.submit import summarize
from tieryard.embedded import EmbeddedPostgres
from tieryard.job import State
from tieryard.settings import Settings
from tieryard.store import Store, batches, keys, workers
from tieryard.store.finish import finish
from tieryard.store.keys import Scope
from tieryard.store.workers import Taken
from tieryard.supervisor import RUNNING


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line of `tieryard`, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TIERYARD_API_KEY", "ty_test")
    monkeypatch.delenv("TIERYARD_URL", raising=False)

    def call(*arguments: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["tieryard", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return Ran(int(ended.value.code or 0), shown.out, shown.err)

    return call


@pytest.fixture
def url(settings: Settings, tenant: int) -> Iterator[str]:
    """The real API on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def nowhere() -> str:
    """A URL that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


def file_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "jobs.jsonl"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_version(run: Run) -> None:
    assert run("version") == Ran(0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("key", "says"), [(None, "set TIERYARD"), ("", "set TIERYARD"), ("k\u00e9y", "no key"), ("a b", "no key")]
)
def test_submit_without_a_usable_key(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str | None, says: str
) -> None:
    if key is None:
        monkeypatch.delenv("TIERYARD_API_KEY")
    else:
        monkeypatch.setenv("TIERYARD_API_KEY", key)
    ran = run("submit", file_of(tmp_path, "{}"))
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_a_fleet_that_is_not_there(run: Run, nowhere: str) -> None:
    ran = run("jobs", "list", "--url", nowhere)
    assert ran.code == 1
    assert nowhere in ran.err
    assert "is the fleet up?" in ran.err


@pytest.mark.parametrize("wrong", ["localhost:8000", "http://", "http://[", "ftp://a", ""])
@pytest.mark.parametrize("command", [("jobs", "list"), ("doctor",)])
def test_what_is_no_url(run: Run, wrong: str, command: tuple[str, ...]) -> None:
    ran = run(*command, "--url", wrong)
    assert ran.code in (1, 2)
    assert "URL" in ran.err or "fleet" in ran.out or "no answer" in ran.err
    assert "Traceback" not in ran.err


def test_submit_without_a_file(run: Run, nowhere: str, tmp_path: Path) -> None:
    ran = run("submit", str(tmp_path / "none.jsonl"), "--url", nowhere)
    assert ran.code == 2
    assert "none.jsonl: cannot be read (No such file or directory)" in ran.err
    assert run("submit", str(tmp_path), "--url", nowhere).code == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "x"}\n\n{"prompt": \n', "line 3: not valid JSON"),
        ('{"prompt": "x"}\n{"prompt": " "}\n', "line 2, prompt: must not be empty"),
        ("", "at least one job"),
    ],
)
def test_submit_of_a_bad_file(run: Run, url: str, tmp_path: Path, store: Store, text: str, says: str) -> None:
    ran = run("submit", file_of(tmp_path, text), "--url", url)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert store.fetch("SELECT count(*) FROM line") == [(0,)]


def test_submit_prints_the_batch(run: Run, url: str, tmp_path: Path) -> None:
    ran = run("submit", file_of(tmp_path, '{"prompt": "x"}\n'), "--url", f"{url}/")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("batch_")


def finish_all(store: Store, *, failing: int = 0) -> None:
    """Stands in for the workers: the first batch to come is run to its end, but for some that fail."""
    eventually(lambda: make.count(store, "batch"), what="the batch")
    make.expand(store)
    [[number, total]] = store.fetch("SELECT id, total FROM batch")
    make.release(store, number, total)
    ids = list(range(number + 1, number + total + 1))
    make.route(store, ids, "short")
    started = make.claim(store, ids, make.worker(store), "short")
    bad = {"state": State.FAILED, "error_kind": "bad_request", "error": "no", "output": None, "finish_reason": None}
    endings = [make.ending(job, deployment="short", **(bad if i < failing else {})) for i, job in enumerate(started)]
    with store.transaction() as connection:
        finish(connection, endings)
        assert batches.complete(connection, [number]) == [(number, True)]


@pytest.mark.parametrize("failing", [0, 1])
def test_submit_waits_and_tells_how_it_went(run: Run, url: str, tmp_path: Path, store: Store, failing: int) -> None:
    """Every line of it: `make demo` runs this command too, and the acceptance tests do not."""
    out, summary = tmp_path / "results" / "out.jsonl", tmp_path / "figures" / "summary.json"
    text = "".join(f'{{"prompt": "x", "custom_id": "row-{n}"}}\n' for n in range(3))
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(finish_all, store, failing=failing)
        asked = ["submit", file_of(tmp_path, text), "--wait", "--out", str(out), "--summary", str(summary)]
        ran = run(*asked, "--url", url)
        working.result()
    [[number]] = store.fetch("SELECT id FROM batch")
    assert ran.code == failing
    assert f"batch_{number}: 3 jobs" in ran.err
    assert ("row-0): failed: no" in ran.err) == bool(failing)
    assert f"batch_{number}: {3 - failing} of 3 succeeded" in ran.out
    assert "0.000009" in ran.out
    results = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(job["custom_id"], job["deployment"]) for job in results] == [(f"row-{n}", "short") for n in range(3)]
    figures = json.loads(summary.read_text(encoding="utf-8"))
    assert (figures["jobs"], figures["failed"], figures["sum_of_job_costs_usd"]) == (3, failing, figures["cost_usd"])


def test_out_needs_wait(run: Run, tmp_path: Path) -> None:
    ran = run("submit", file_of(tmp_path, "{}"), "--out", "x")
    assert ran.code == 2
    assert "need --wait" in ran.err


def test_a_wrong_key(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERYARD_API_KEY", "ty_wrong")
    ran = run("jobs", "list", "--url", url)
    assert (ran.code, ran.err) == (2, "tieryard: this API key is not known, or was revoked\n")


def test_an_unknown_job(run: Run, url: str) -> None:
    assert run("jobs", "show", "job_99", "--url", url) == Ran(2, "", "tieryard: no job 'job_99'\n")
    assert run("jobs", "cancel", "nope", "--url", url) == Ran(2, "", "tieryard: no job 'nope'\n")


@pytest.mark.parametrize(
    ("command", "instead"),
    [("show", "tieryard jobs list --batch batch_65"), ("cancel", "POST /v1/batches/batch_65/cancel")],
)
def test_a_batch_where_a_job_is_meant(run: Run, nowhere: str, command: str, instead: str) -> None:
    ran = run("jobs", command, "batch_65", "--url", nowhere)
    assert ran == Ran(2, "", f"tieryard: 'batch_65' is a batch, not a job; use: {instead}\n")


def test_a_running_job_is_asked_to_stop(run: Run, url: str, store: Store, tenant: int) -> None:
    [job] = make.running(store, tenant)
    assert run("jobs", "cancel", f"job_{job.id}", "--url", url) == Ran(0, f"job_{job.id}: asked to stop\n", "")


def test_jobs_are_listed_and_shown_as_they_were_written(run: Run, url: str, tmp_path: Path) -> None:
    """Brackets are no markup here, and nothing a caller wrote reaches the terminal as an escape."""
    import httpx

    body = {"prompt": "x", "custom_id": "[/red] [bold]\u001b[2J"}
    job = httpx.post(f"{url}/v1/jobs", json=body, headers={"authorization": "Bearer ty_test"}).json()["id"]
    listed, shown = run("jobs", "list", "--url", url), run("jobs", "show", job, "--url", url)
    assert listed.code == shown.code == 0
    assert job in listed.out
    assert "[/red] [bold]" in shown.out
    assert "\x1b[2J" not in listed.out + shown.out
    assert run("jobs", "cancel", job, "--url", url).out == f"{job}: cancelled\n"


def test_jobs_as_the_api_tells_them(run: Run, url: str, tmp_path: Path) -> None:
    import httpx

    who = {"authorization": "Bearer ty_test"}
    batch = run("submit", file_of(tmp_path, '{"prompt": "x", "custom_id": "a"}\n{"prompt": "y"}\n'), "--url", url)
    job = httpx.post(f"{url}/v1/jobs", json={"prompt": "x"}, headers=who).json()["id"]
    for path, words in (
        ("/v1/jobs?limit=20", ("list",)),
        (f"/v1/jobs?batch={batch.out.strip()}", ("list", "--batch", batch.out.strip())),
        (f"/v1/jobs/{job}/story", ("show", job)),
    ):
        ran = run("jobs", *words, "--json", "--url", url)
        assert (ran.code, json.loads(ran.out)) == (0, httpx.get(url + path, headers=who).json())


def test_times_are_shown_with_their_zone(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In UTC, wherever the terminal is."""
    import httpx

    made = httpx.post(f"{url}/v1/jobs", json={"prompt": "x"}, headers={"authorization": "Bearer ty_test"}).json()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        shown, listed = run("jobs", "show", made["id"], "--url", url).out, run("jobs", "list", "--url", url).out
    finally:
        monkeypatch.undo()
        time.tzset()
    assert f"accepted  {made['created_at'][:19].replace('T', ' ')} UTC" in " ".join(shown.split("\n"))
    assert "created (UTC)" in listed
    assert made["created_at"][5:19].replace("T", " ") in listed


def test_config_check(run: Run, tmp_path: Path) -> None:
    good = run("config", "check", str(CATALOGS / "instant.yaml"))
    assert good.code == 0
    assert "valid (4 tiers, 2 deployments)" in good.out
    bad = tmp_path / "bad.yaml"
    text = (CATALOGS / "instant.yaml").read_text(encoding="utf-8")
    bad.write_text(text.replace("context_limit: 512", "context_limit: many"), encoding="utf-8")
    ran = run("config", "check", str(bad))
    assert (ran.code, ran.out) == (2, "")
    line = text.split("context_limit: 512")[0].count("\n") + 1
    assert f"{bad}:{line}: " in ran.err
    assert "context_limit" in ran.err
    assert run("config", "check", str(tmp_path / "none.yaml")).code == 2


def test_doctor_says_which_process_cannot_take_the_catalog(
    run: Run, url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In full only where it may ask the database: the route that it asks needs no key."""
    me = make.worker(store, kind="classify")
    workers.beat(store, me, lease_s=60, taken=Taken(99, "tokenizer '/x': no file /x"))
    found = json.loads(run("doctor", "--url", url, "--json").out)
    [catalog] = [f for f in found if f["name"] == "catalog"]
    assert (catalog["ok"], "classify one still by version 99" in catalog["found"]) == (False, True)
    assert "/x" not in catalog["found"]
    monkeypatch.setenv("TIERYARD_DATABASE_URL", store.url)
    [catalog] = [f for f in json.loads(run("doctor", "--url", url, "--json").out) if f["name"] == "catalog"]
    assert catalog["found"].endswith("still by version 99: tokenizer '/x': no file /x")
    assert "tieryard config rollback" in catalog["advice"]


def test_doctor_says_whether_anybody_delivers_callbacks(
    run: Run, url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> list[tuple[bool, str]]:
        found = json.loads(run("doctor", "--url", url, "--json").out)
        return [(f["ok"], f["found"]) for f in found if f["name"] == "callbacks"]

    assert told() == [], "only the database knows"
    monkeypatch.setenv("TIERYARD_DATABASE_URL", store.url)
    assert told() == [(True, "nothing owed")]
    happen(store, 1, 2)
    [(ok, said)] = told()
    assert (ok, said.startswith("2 owed, the oldest for ")) == (False, True)
    make.worker(store, kind="callback")
    assert told()[0][0]


def test_doctor_without_a_fleet(run: Run, nowhere: str) -> None:
    ran = run("doctor", "--url", nowhere)
    assert ran.code == 1
    assert "tieryard up" in " ".join(ran.out.split())


def test_doctor_of_a_fleet_that_is_not_ready(run: Run, url: str) -> None:
    ran = run("doctor", "--url", url)
    assert ran.code == 1
    assert "no live worker" in ran.out


@pytest.mark.parametrize(
    ("key", "says"),
    [("ty_test", "API key works"), ("ty_wrong", "does not know"), ("", "set TIERYARD_API_KEY"), ("a b", "no key")],
)
def test_doctor_tries_the_key(run: Run, url: str, monkeypatch: pytest.MonkeyPatch, key: str, says: str) -> None:
    monkeypatch.setenv("TIERYARD_API_KEY", key)
    monkeypatch.setenv("COLUMNS", "300")
    assert says in " ".join(run("doctor", "--url", url).out.split())


# Keys and tenants, in the database itself


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    """All that these commands need."""
    monkeypatch.setenv("TIERYARD_DATABASE_URL", database_url)
    for other in ("REDIS_URL", "CATALOG", "API_KEY"):
        monkeypatch.delenv(f"TIERYARD_{other}", raising=False)


def test_keys_and_tenants_as_json(run: Run, here: None, store: Store, tenant: int) -> None:
    run("keys", "create", "ci", "--tenant", "acme", "--scope", "read", "--requests-per-minute", "60")
    *_, key = json.loads(run("keys", "list", "--json").out)
    fields = {"prefix", "name", "tenant", "scopes", "requests_per_minute", "tokens_per_minute"}
    assert key.keys() == {*fields, "id", "created_at", "revoked_at"}
    assert (key["id"][:4], key["name"], key["scopes"], key["requests_per_minute"]) == ("key_", "ci", ["read"], 60)
    *_, acme = json.loads(run("tenants", "list", "--json").out)
    assert acme.keys() == {"name", "keys", "max_enqueued_tokens", "created_at"}
    assert (acme["name"], acme["keys"], acme["created_at"][-1]) == ("acme", 1, "Z")


def test_a_key_is_shown_once(run: Run, here: None, store: Store) -> None:
    made = run(
        "keys", "create", "ci", "--tenant", "acme", "--scope", "infer", "--scope", "read",
        "--requests-per-minute", "60", "--tokens-per-minute", "1000000",
    )  # fmt: skip
    key = made.out.removesuffix("\n")
    assert (made.code, made.err, key[:3], "\n" in key) == (0, "", "ty_", False)
    holder = keys.holder_of(store, key)
    assert (holder.scopes, holder.requests_per_minute, holder.tokens_per_minute) == ({"infer", "read"}, 60, 1_000_000)
    listed = run("keys", "list")
    assert (listed.code, listed.err) == (0, "")
    assert key not in listed.out
    assert keys.digest(key).hex() not in listed.out
    for shown in ("key_", f"{key[:7]}…", "ci", "acme", "infer", "read", "60 req", "1,000,000 tok"):
        assert shown in listed.out
    assert run("keys", "revoke", key[:7]) == Ran(0, f"key_{holder.key_id}: revoked\n", "")
    [revoked] = keys.list_keys(store)
    assert revoked.revoked_at is not None
    assert "revoked" not in listed.out
    again = run("keys", "list").out
    assert "revoked" in again
    assert f"{revoked.revoked_at:%Y-%m-%d}" in again
    again = run("keys", "revoke", f"key_{holder.key_id}")
    assert again.code == 2
    assert "revoked already" in again.err
    assert run("keys", "revoke", "nope").code == 2
    unlimited = keys.holder_of(store, run("keys", "create", "all").out.strip())
    assert (len(unlimited.scopes), unlimited.requests_per_minute, unlimited.tokens_per_minute) == (4, None, None)


@pytest.mark.parametrize(
    "wrong",
    [("--scope", "admin"), ("--requests-per-minute", "0"), ("--tokens-per-minute", "9" * 12), ("--tenant", " ")],
)
def test_a_key_that_cannot_be(run: Run, here: None, store: Store, wrong: tuple[str, str]) -> None:
    ran = run("keys", "create", "ci", *wrong)
    assert (ran.code, ran.out) == (2, "")
    if wrong[0] == "--scope":
        assert all(scope in ran.err for scope in ("admin", "'infer'", "'batch'", "'read'"))
    assert keys.list_keys(store) == []


@pytest.mark.parametrize("name", ["", " "])
def test_a_key_without_a_name(run: Run, here: None, store: Store, name: str) -> None:
    ran = run("keys", "create", name)
    assert (ran.code, ran.out) == (2, "")
    assert "must not be empty" in ran.err
    assert keys.list_keys(store) == []


def test_the_list_of_keys_cuts_nothing_at_80_columns(run: Run, here: None, store: Store) -> None:
    limits = {"requests_per_minute": 6000, "tokens_per_minute": 1_000_000}
    made = keys.new_key()
    keys.add_key(store, made, tenant="acme research", name="nightly evaluation", scopes=[Scope.INFER], **limits)
    keys.revoke(store, made)
    listed = run("keys", "list").out
    assert max(map(len, listed.splitlines())) <= 80
    for whole in (f"{made[:7]}…", "6,000 req", "1,000,000 tok"):
        assert whole in listed
    assert len(re.findall(r"\d{4}-\d\d-\d\d", listed)) == 2


def test_tenants_are_listed_and_capped(run: Run, here: None, store: Store) -> None:
    keys.add_key(store, "ty_a", tenant="acme", name="a")
    capped = run("tenants", "cap", "acme", "--max-enqueued-tokens", "5000000")
    assert capped == Ran(0, "acme: at most 5,000,000 tokens enqueued\n", "")
    assert "5,000,000" in run("tenants", "list").out
    assert run("tenants", "cap", "acme", "--none") == Ran(0, "acme: no cap\n", "")
    assert store.fetch("SELECT max_enqueued_tokens FROM tenant") == [(None,)]
    for wrong in (["acme"], ["acme", "--none", "--max-enqueued-tokens", "1"], ["nobody", "--none"]):
        assert run("tenants", "cap", *wrong).code == 2


def test_budgets_are_set_listed_and_removed(run: Run, here: None, store: Store) -> None:
    keys.add_key(store, "ty_a", tenant="acme", name="a")
    assert run("budgets", "set", "acme", "12.50") == Ran(0, "budget_1: acme, $12.50 a month, hard\n", "")
    told = run("budgets", "set", "acme", "12.50", "--alert-url", "https://a.example/x").out
    assert told == "budget_1: acme, $12.50 a month, hard, tells https://a.example/x\n"
    assert run("budgets", "set", "acme", "$3", "--period", "day", "--key", "key_1", "--soft").code == 0
    listed = run("budgets", "list", "--tenant", "acme").out
    assert max(map(len, listed.splitlines())) <= 80
    assert all(whole in listed for whole in ("budget_1", "$12.50", "acme, key_1", "day, soft"))
    [whole, _] = json.loads(run("budgets", "list", "--json").out)
    assert (whole["id"], whole["key"], whole["limit_usd"], whole["left_usd"]) == ("budget_1", None, "12.50", "12.50")
    for wrong, param in (
        (["acme", "-1"], "limit_usd"),
        (["acme", "NaN"], "limit_usd"),
        (["acme", "much"], "limit_usd"),
        (["nobody", "1"], "tenant"),
        (["acme", "1", "--key", "key_9"], "key"),
        (["acme", "1", "--period", "year"], "period"),
        (["acme", "1", "--alert-url", "x"], "alert_url"),
    ):
        refused = run("budgets", "set", *wrong)
        assert (refused.code, param in refused.err) == (2, True), refused
    assert run("budgets", "remove", "budget_1") == Ran(0, "budget_1: removed\n", "")
    assert run("budgets", "remove", "budget_1").code == 2


@pytest.mark.parametrize("command", [("keys", "list"), ("keys", "create", "x"), ("tenants", "list")])
@pytest.mark.parametrize(
    ("url", "code", "says"),
    [
        (None, 2, "set TIERYARD_DATABASE_URL"),
        ("secret", 2, "no postgresql://"),
        ("postgresql://u:secret@h:port/x", 2, "no postgresql://"),
        ("postgresql://u:secret@127.0.0.1:9/x", 1, "Postgres is away"),
    ],
)
def test_a_database_that_is_not_there(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], url: str | None, code: int, says: str
) -> None:
    if url is None:
        monkeypatch.delenv("TIERYARD_DATABASE_URL", raising=False)
    else:
        monkeypatch.setenv("TIERYARD_DATABASE_URL", url)
    ran = run(*command)
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err
    assert "secret" not in ran.err


def test_a_database_without_the_schema(run: Run, monkeypatch: pytest.MonkeyPatch, postgres: EmbeddedPostgres) -> None:
    monkeypatch.setenv("TIERYARD_DATABASE_URL", postgres.url)
    ran = run("keys", "list")
    assert ran.code == 2
    assert "tieryard migrate" in ran.err


def test_the_embedded_fleets_database(
    run: Run, monkeypatch: pytest.MonkeyPatch, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    monkeypatch.delenv("TIERYARD_DATABASE_URL", raising=False)
    ran = run("keys", "create", "x", "--data-dir", str(tmp_path))
    assert (ran.code, ran.out) == (2, "")
    assert f"tieryard up --data-dir {tmp_path}" in ran.err.replace("\n", "")
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE tieryard TEMPLATE template_fleet")  # by the name that `tieryard up` uses
        try:
            parts = {"database_url": postgres.url_of("tieryard")}
            (tmp_path / RUNNING).write_text(json.dumps(parts))
            key = run("keys", "create", "x", "--data-dir", str(tmp_path)).out.strip()
            assert f"{key[:7]}…" in run("keys", "list", "--data-dir", str(tmp_path)).out
        finally:
            connection.execute("DROP DATABASE tieryard WITH (FORCE)")


# The figures of a batch


def done(deployment: str, cost: str, ttft_ms: float | None, state: str = "succeeded") -> dict[str, Any]:
    return {
        "state": state,
        "deployment": deployment,
        "cost_usd": cost,
        "usage": {"prompt_tokens": 30, "completion_tokens": 2},
        "timings": {"ttft_ms": ttft_ms, "latency_ms": ttft_ms},
    }


def test_sums_are_exact() -> None:
    jobs = [done("a", "0.00000003", 1.0) for _ in range(3)] + [done("b", "1E-7", 2.0)]
    jobs.append({**done("a", "0", None, "cancelled"), "timings": None, "usage": None, "cost_usd": None})
    figures = summarize({"id": "batch_1", "cost_usd": "1.90E-7"}, jobs)
    assert figures["cost_usd"] == figures["sum_of_job_costs_usd"] == "0.00000019"
    assert (figures["jobs"], figures["succeeded"], figures["failed"]) == (5, 4, 1)
    assert figures["deployments"]["a"] == {
        "jobs": 3,
        "tokens": 96,
        "ttft_ms": {"p50": 1.0, "p95": 1.0},
        "latency_ms": {"p50": 1.0, "p95": 1.0},
        "cost_usd": "0.00000009",
    }


def test_percentiles_of_one_and_of_none() -> None:
    figures = summarize({"id": "batch_1", "cost_usd": "0"}, [done("a", "0", 7.04), done("b", "0", None)])
    assert figures["deployments"]["a"]["ttft_ms"] == {"p50": 7.0, "p95": 7.0}
    assert figures["deployments"]["b"]["ttft_ms"] == {"p50": None, "p95": None}
    assert figures["cost_usd"] == "0"


def test_percentiles_are_inclusive() -> None:
    figures = summarize({"id": "batch_1", "cost_usd": "0"}, [done("a", "0", float(i)) for i in range(1, 102)])
    assert figures["deployments"]["a"]["latency_ms"] == {"p50": 51.0, "p95": 96.0}


@pytest.mark.parametrize("width", [80, 100])
def test_no_figure_is_cut(width: int) -> None:
    from rich.console import Console

    from tieryard.cli.submit import _table

    figures = summarize({"id": "batch_1", "cost_usd": "0.00025475"}, [done("smol-short", "0.00008365", 17_684.0)] * 48)
    console = Console(width=width, record=True)
    console.print(_table(figures))
    text = console.export_text()
    assert "…" not in text
    assert "17,684" in text
    assert "0.00025475" in text
    assert max(map(len, text.splitlines())) <= width
