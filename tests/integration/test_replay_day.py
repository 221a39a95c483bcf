"""Deciding a day's jobs again under another catalog, and the summary of where they went, on a real Postgres."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import factories as make
from tests.integration.test_cli import Run, run  # noqa: F401  # a fixture
from tieryard.catalog import Catalog, SizeClass, parse_catalog
from tieryard.cli.fleet import database
from tieryard.job import State
from tieryard.replay import REFUSED, Report, notes, replay
from tieryard.routing import JobFeatures, Measured, Profile, Snapshot, TextFeatures, decide
from tieryard.store import Store, catalogs, jobs, keys, routes
from tieryard.store.finish import finish
from tieryard.store.jobs import Routed

CATALOG = """
version: 1
tiers:
  interactive: {{slo: {{max_latency_ms: 1000}}, window: 5m}}
  batch: {{slo: {{max_ttft_ms: 400}}, slo_from: claimed, window: 24h, waits: {waits}}}
categories: [chat, code]
deployments:
  cheap: &one
    model: test/cheap
    revision: "1"
    size_class: small
    engine: {{kind: instant}}
    context_limit: 1000
    max_in_flight: 64
    tokenizer: {tokenizer}
    quality: 0.5
    price: {{input_usd_per_1m: {price}, output_usd_per_1m: 1}}
  {dear}:
    <<: *one
    model: test/dear
    size_class: large
    quality: 0.9
    price: {{input_usd_per_1m: 10, output_usd_per_1m: 20}}
routing:
  classifier: rules
"""
SEEN = Profile(samples=100, timestamp=0.0, ttft_p95_ms=100, tpot_p95_ms=10, output_tokens=20, quality_score=0.6)
HOUR = timedelta(hours=1)


def text_of(
    *, price: str = "1", dear: str = "dear", tokenizer: str = "utf8", waits: str = "false", more: str = ""
) -> str:
    return CATALOG.format(price=price, dear=dear, tokenizer=tokenizer, waits=waits) + more


def catalog_of(**parts: str) -> Catalog:
    return parse_catalog(text_of(**parts))


@pytest.fixture
def catalog() -> Catalog:
    return catalog_of()


def asked(**fields: Any) -> JobFeatures:
    text = TextFeatures("chat", SizeClass(fields.pop("wanted", "small")), "short and plain", 2, has_code=False)
    return JobFeatures(text, fields.pop("model", "auto"), {"utf8": 100}, 50, **{"tier": "batch", **fields})


@dataclass
class Day:
    """A fleet's day: jobs that were routed and have ended."""

    store: Store
    tenant: int
    catalog: Catalog
    exploring: bool = True

    def snapshot(self, *, down: str = "") -> Snapshot:
        broken = {down: "its circuit breaker is open"}
        names = self.catalog.deployments
        gauges = {n: Measured(capacity=64, replicas=1, broken=broken.get(n, "")) for n in names}
        profiles = {n: {"chat": SEEN} for n in gauges}
        return Snapshot.of(self.catalog, gauges=gauges, profiles=profiles, exploring=self.exploring)

    def job(self, features: JobFeatures, *, down: str = "", tenant: int | None = None, **ending: Any) -> int:
        """One job, decided as the classifier would; run to its end unless `ending` is None for a field of its own."""
        [job_id] = make.save_jobs(self.store, tenant or self.tenant, tier=features.tier)
        snapshot = self.snapshot(down=down)
        made = decide(features, snapshot)
        self.save(job_id, features, snapshot, made.deployment, made)
        if made.deployment is not None and ending.pop("ends", True):
            [job] = make.claim(self.store, [job_id], make.worker(self.store), made.deployment)
            bill = {"deployment": made.deployment, "prompt_tokens": 100, "completion_tokens": 20}
            with self.store.transaction() as connection:
                finish(connection, [make.ending(job, **{**bill, "cost_usd": Decimal("0.00012"), **ending})])
        return job_id

    def save(self, job_id: int, features: JobFeatures | None, snapshot: Snapshot, to: str | None, made: Any) -> None:
        with self.store.transaction() as connection:
            [waiting] = jobs.load_parcel(connection, [job_id])
            at = jobs.save_snapshot(connection, snapshot.to_json())
            said = {"defer_s": made.defer_s, "fallback": made.fallback, "explored": made.explored} if made else {}
            routed = Routed(job_id, waiting.fence, to, "chat", "because", features, **said)
            jobs.save_decisions(connection, [routed], snapshot_id=at, patience_s=8)

    def again(self, catalog: Catalog, **how: Any) -> Report:
        return replay(self.store, catalog, *routes.window(self.store, HOUR), **how)


@pytest.fixture
def day(store: Store, tenant: int, catalog: Catalog) -> Day:
    return Day(store, tenant, catalog)


def test_the_same_catalog_moves_nothing(day: Day) -> None:
    for features in (asked(), asked(wanted="large"), asked(model="dear"), asked(tier="interactive")):
        day.job(features)
    day.job(asked(model="cheap"), down="cheap")
    day.job(replace(asked(), max_tokens=5000))
    report = day.again(day.catalog)
    assert (report.total.jobs, report.total.moved, report.moves) == (6, 0, {})
    assert (report.total.refused, report.total.old_usd) == (1, Decimal("0.0006"))
    assert report.total.old_missed == report.total.new_missed
    assert report.total.old_quality == report.total.new_quality


def test_prices_move_jobs_and_dollars(day: Day) -> None:
    for _ in range(3):
        day.job(asked())
    day.job(asked(wanted="large"))
    assert {row[0] for row in day.store.fetch("SELECT deployment FROM job")} == {"cheap", "dear"}
    report = day.again(catalog_of(price="1000"))
    assert {move: sums.jobs for move, sums in report.moves.items()} == {("cheap", "dear"): 3}
    total = report.total
    assert (total.jobs, total.moved, total.compared, total.charged) == (4, 3, 4, 4)
    assert total.old_usd == Decimal("0.00048")  # as the ledger has it
    assert total.new_usd == 4 * (100 * Decimal(10) + 20 * Decimal(20)) / 1_000_000  # its tokens at the new prices
    assert report.tiers.keys() == {"batch"}
    assert total.old_quality == total.new_quality == pytest.approx(4 * 0.6)  # as measured, by the deployment's name


def test_misses_as_measured_and_as_predicted(day: Day) -> None:
    quick, slow = {"ttft_ms": 100.0, "latency_ms": 500.0}, {"ttft_ms": 500.0, "latency_ms": 2000.0}
    day.job(asked(), **quick)
    day.job(asked(), **slow)  # its first token came after 400 ms
    day.job(asked(tier="interactive"), **slow)
    day.job(asked(tier="interactive", bounds=None), state=State.FAILED, error_kind="bad_request", output=None)
    report = day.again(day.catalog)
    assert (report.total.measured, report.total.missed) == (3, 2)
    assert {tier: sums.missed for tier, sums in report.tiers.items()} == {"batch": 1, "interactive": 1}
    assert (report.total.old_missed, report.total.new_missed) == (0, 0)
    strict = parse_catalog(CATALOG.format(price=1, dear="dear", tokenizer="utf8", waits="false").replace("400", "50"))
    report = day.again(strict)
    assert (report.tiers["batch"].old_missed, report.tiers["batch"].new_missed) == (0, 2)


def test_a_deployment_that_is_new_or_gone(day: Day) -> None:
    day.job(asked(wanted="large"))
    day.job(asked(model="dear"))
    day.job(asked())
    report = day.again(catalog_of(dear="better"))
    # Nothing is known of how quick `better` is: it is taken for a usual large one, which would be late.
    assert {move: sums.jobs for move, sums in report.moves.items()} == {("dear", "cheap"): 1, ("dear", REFUSED): 1}
    said = " ".join(notes(report))
    assert "better was not measured when 3 jobs were routed" in said
    assert "1 jobs would be refused; what they cost, $0.00012, is on neither side" in said
    assert report.total.old_usd == Decimal("0.00024")


def test_a_new_tokenizer_a_tier_that_is_gone_and_a_policy(day: Day, store: Store) -> None:
    keys.add_key(store, "ty_other", tenant="other", name="test")
    other = keys.holder_of(store, "ty_other").tenant_id
    day.job(asked(tier="interactive"))
    day.job(asked(), tenant=other)
    more = "  policies:\n    other: {models: [dear]}\n"
    text = CATALOG.format(price=1, dear="dear", tokenizer="utf9", waits="false") + more
    without = "\n".join(line for line in text.splitlines() if "interactive:" not in line)
    report = day.again(parse_catalog(without))
    assert {move: sums.jobs for move, sums in report.moves.items()} == {("cheap", "dear"): 1}
    said = " ".join(notes(report))
    assert "no prompt was counted with utf9 for 2 jobs" in said
    assert "the catalog has no tier interactive, of which 1 jobs are" in said


def test_what_waits_what_cannot_be_read_and_what_is_routed_again(day: Day, store: Store) -> None:
    waiting = catalog_of(waits="true")
    day.catalog = waiting
    job_id = day.job(asked(due_in_s=50_000.0), down="cheap")
    assert store.fetch("SELECT deployment, deferred FROM decision") == [(None, True)]
    report = day.again(waiting)
    assert (report.total.waits, report.moves.keys()) == (1, {("(waiting)", "dear")})
    assert "1 jobs would first wait for a cheaper deployment" in " ".join(notes(report))
    store.fetch("UPDATE job SET not_before = NULL RETURNING id")
    day.save(job_id, asked(), day.snapshot(), "cheap", None)
    assert store.fetch("SELECT deployment, deferred FROM decision") == [("cheap", True)]  # it has waited

    [unread] = make.save_jobs(store, day.tenant)
    day.save(unread, None, day.snapshot(), None, None)
    [job] = make.claim(store, [job_id], make.worker(store), "cheap")
    with store.transaction() as connection:
        finish(connection, [make.hand_back(job)])
    day.save(job_id, asked(), day.snapshot(), "cheap", None)
    assert make.count(store, "decision") == 3
    report = day.again(waiting)
    assert (report.total.jobs, report.unknown) == (1, 1)  # by its newest decision alone
    assert day.again(waiting, limit=1).total.jobs + day.again(waiting, limit=1).unknown == 1


def test_what_another_software_stored_is_counted_as_unknown(day: Day, store: Store) -> None:
    for _ in range(3):
        day.job(asked())
    first = "UPDATE decision SET features = features || '{\"odd\": 1}' WHERE job_id = (SELECT min(id) FROM job)"
    last = "UPDATE routing_snapshot SET body = body - 'candidates' WHERE id = (SELECT max(snapshot_id) FROM decision)"
    with store.transaction() as connection:
        assert connection.execute(first).rowcount == connection.execute(last).rowcount == 1
    report = day.again(catalog_of(price="2"))
    assert (report.total.jobs, report.unknown) == (1, 2)


def test_what_could_not_be_explored_then_is_not_explored_again(day: Day) -> None:
    exploring = "  exploration: {share: 0.2, tiers: [batch]}\n"
    day.catalog = catalog_of(more=exploring)
    catalogs.apply(day.store, text_of(more=exploring), name=day.catalog.hash(), tiers=day.catalog.tiers)
    day.exploring = False  # the day's money was used up
    day.job(asked())
    assert day.again(catalog_of(price="0.9", more=exploring)).moves == {}
    day.exploring = True
    day.job(asked())
    assert day.store.fetch("SELECT deployment FROM job ORDER BY id") == [("cheap",), ("dear",)]
    assert day.again(catalog_of(price="0.9", more=exploring)).moves == {}
    day.catalog = catalog_of()  # one that never explored says nothing of money
    day.job(asked())
    assert day.again(catalog_of(price="0.9", more=exploring)).total.moved == 1


def test_a_policy_that_does_not_stick_and_a_prompt_that_the_model_never_read(day: Day, store: Store) -> None:
    keys.add_key(store, "ty_other", tenant="other", name="test")
    other = keys.holder_of(store, "ty_other").tenant_id
    text = text_of(price="9.9").replace("output_usd_per_1m: 1}", "output_usd_per_1m: 19}")
    day.catalog = parse_catalog(text)
    day.job(asked(sticky="dear"), tenant=other)
    assert day.store.fetch("SELECT deployment FROM job") == [("dear",)]
    assert day.again(parse_catalog(text + "  max_error_rate: 0.02\n")).total.moved == 0
    free = parse_catalog(text + "  policies:\n    other: {sticky: false}\n")
    assert day.again(free).moves.keys() == {("dear", "cheap")}
    learned = day.again(parse_catalog(text.replace("classifier: rules", "classifier: learned")))
    assert "the learned model has read no prompt of 1 jobs: the rules decide there" in " ".join(notes(learned))


# On the command line


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    monkeypatch.setenv("TIERYARD_DATABASE_URL", database_url)


def test_replay_on_the_command_line(
    run: Run,  # noqa: F811
    embedded: None,
    day: Day,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = tmp_path / "new.yaml"
    path.write_text(CATALOG.format(price=1000, dear="dear", tokenizer="utf8", waits="false"))
    asking = ("route", "replay", "--since", "1h", "--catalog", str(path))
    assert run(*asking).out == "no job was routed in the last 1h\n"
    for _ in range(3):
        day.job(asked(), ttft_ms=500.0)
    day.job(asked(tier="interactive", wanted="large"))
    ran = run(*asking)
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 100
    rows: dict[str, list[str]] = {}
    for line in ran.out.splitlines():
        rows.setdefault(line.split()[0] if line.strip() else "", line.split())
    assert rows["batch"][1:7] == ["3", "100.0%", "0.00036", "0.0042", "+1066.7%"]
    assert rows["all"][1] == "4"
    assert rows["cheap"][:3] == ["cheap", "dear", "3"]
    found = json.loads(run(*asking, "--json").out)
    assert (found["total"]["jobs"], found["total"]["old_usd"]) == (4, "0.00048")
    assert found["moves"][0]["from"] == "cheap"
    assert found["total"]["new_quality"] == pytest.approx(0.6)
    assert run("route", "replay", "--since", "soon", "--catalog", str(path)).code == 2
    assert run("route", "replay", "--catalog", str(tmp_path / "none.yaml")).code == 2


def test_summary(run: Run, embedded: None, day: Day, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("COLUMNS", "100")
    for _ in range(3):
        day.job(asked(), ttft_ms=500.0)
    day.job(asked(), ttft_ms=100.0)
    day.job(asked(tier="interactive"), latency_ms=2000.0)
    day.job(asked(tier="interactive", bounds=None, wanted="large"), down="dear", ends=False)
    day.job(replace(asked(), max_tokens=5000))
    day.store.fetch("UPDATE decision SET decided_at = now() - interval '2 hours' WHERE job_id = 0 RETURNING job_id")
    with database(None) as store:
        found = routes.summary(store, *routes.window(store, HOUR))
    assert [(r.tier, r.deployment, r.decisions, r.fallbacks, r.measured, r.missed) for r in found] == [
        ("batch", "cheap", 4, 0, 4, 3),
        ("batch", None, 1, 0, 0, 0),
        ("interactive", "cheap", 2, 1, 1, 1),
    ]
    ran = run("route", "summary", "--since", "1h")
    assert ran.code == 0
    assert "7 decisions in the last 1h: 14.3% SLO fallbacks, 0.0% explored" in ran.out
    assert "(refused)" in ran.out
    assert json.loads(run("route", "summary", "--json").out)[0]["missed"] == 3
