"""A canary takes its share of real decisions, is watched, and ends by itself where the candidate does worse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from api.shapes import DecisionPublic
from tests import factories as make
from tests.integration.receivers import fan_out, take
from tests.integration.test_cli import Run, here, run
from tests.integration.trials import CATALOG
from tieryard.catalog import Catalog
from tieryard.metrics import Gauge
from tieryard.routing import JobFeatures, Snapshot, decide
from tieryard.routing.trials import Canary
from tieryard.settings import Settings
from tieryard.store import Store, catalogs, reads, trials
from tieryard.store.leader import lead
from workers.classify import Classifier
from workers.rescue import EPOCH
from workers.trials import _LOOKED, look
from workers.yard import Yard

__all__ = ["here", "run"]  # fixtures

HOOK = "https://hooks.example.com/fleet"
Said = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CATALOG + f'benchmarks: {{callback_url: "{HOOK}"}}\n')
    return path


@pytest.fixture
def said() -> Said:
    return []


@pytest.fixture
def yard(settings: Settings, said: Said) -> Iterator[Yard]:
    class Log:
        """Keeps what is said."""

        def __getattr__(self, level: str) -> Any:
            return lambda event, **fields: said.append((str(event), fields))

    yard = Yard("test", settings, consume=[])
    yard.log = Log()  # type: ignore[assignment]
    yard.redis.set(EPOCH, "known")
    for name in yard.catalog.deployments:
        yard.metrics.publish_gauge(name, 1, Gauge(capacity=64, in_flight=0, backlog=0))
    yield yard
    yard.store.close()
    yard.redis.close()
    yard.app.close()


def started(yard: Yard, share: float = 0.5, categories: frozenset[str] | None = None) -> None:
    with yard.store.transaction() as connection:
        trials.start_canary(connection, Canary("awq", "big", build(yard.catalog), share, categories))


def build(catalog: Catalog) -> str:
    return catalog.deployments["awq"].build


def watch(yard: Yard) -> None:
    """One look at the canaries, and what deciders are told."""
    yard.redis.delete(_LOOKED)
    with lead(yard.store, "rescue") as connection:
        assert connection is not None
        look(yard, connection)


def ran(
    store: Store, deployment: str, outcomes: Sequence[str], *, ms: float = 100.0, score: float | None = None
) -> None:
    """Jobs that count for the canary, decided for this deployment and started there, ending so."""
    rows = [(store.next_id(), outcome) for outcome in outcomes]
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO decision (job_id, fence, snapshot_id, deployment, reason, features, canary, decided_at) "
            "VALUES (%s, 0, 1, %s, 'so', '{\"tier\": \"batch\"}', 'awq', clock_timestamp())",
            [(job_id, deployment) for job_id, _ in rows],
        )
        cursor.executemany(
            "INSERT INTO timing (job_id, fence, claimed_at, ended_at, wait_ms, latency_ms, deployment, outcome) "
            "VALUES (%s, 1, now(), clock_timestamp(), 5, %s, %s, %s)",
            [(job_id, ms + i, deployment, outcome) for i, (job_id, outcome) in enumerate(rows)],
        )
        if score is not None:
            cursor.executemany(
                "INSERT INTO outcome (job_id, source, score, deployment, category, scored_at) "
                "VALUES (%s, 'judge:big', %s, %s, 'chat', clock_timestamp())",
                [(job_id, score, deployment) for job_id, _ in rows],
            )


def running(store: Store) -> list[trials.OnTrial]:
    with store.transaction() as connection:
        return trials.canaries(connection)


# --- its share --------------------------------------------------------------------------------------------


def test_a_share_of_real_jobs_goes_to_the_candidate_and_is_told_apart(yard: Yard, store: Store, tenant: int) -> None:
    started(yard, 0.25)
    watch(yard)
    classifier = Classifier(yard, yard.admission())
    ids = make.released_batch(store, tenant, 256)
    assert classifier.classify("bulk", 0.0, [(ids[0], 256)]) == 256
    rows = store.fetch("SELECT deployment, canary, reason, features::text, snapshot_id FROM decision")
    found = Counter((deployment, canary) for deployment, canary, *_ in rows)
    assert found["awq", "awq"] == pytest.approx(64, abs=3)
    assert found["big", "awq"] == pytest.approx(64, abs=3)
    assert found["big", None] == 256 - found["awq", "awq"] - found["big", "awq"]
    [[body]] = store.fetch("SELECT body::text FROM routing_snapshot")
    snapshot = Snapshot.from_json(orjson.loads(body))
    for deployment, canary, reason, features, _ in rows:
        again = decide(JobFeatures.from_dict(orjson.loads(features)), snapshot)
        assert (again.deployment, again.canary or None, again.reason) == (deployment, canary, reason)
    [[taken]] = store.fetch("SELECT job_id FROM decision WHERE deployment = 'awq' LIMIT 1")
    made, stored_body = reads.get_story(store, taken, tenant_id=tenant).decisions[0]
    shown = DecisionPublic.stored(made, stored_body)
    assert (shown.canary, shown.reason) == ("awq", "canary of big: takes 25.0% of its jobs")
    assert [c.name for c in shown.candidates if c.chosen] == ["awq"]


def test_realtime_jobs_and_other_categories_are_left_alone(yard: Yard, store: Store, tenant: int) -> None:
    started(yard, 1.0, frozenset({"reasoning"}))
    watch(yard)
    classifier = Classifier(yard, yard.admission())
    for tier, category in (("realtime", "reasoning"), ("batch", "chat"), ("batch", "reasoning")):
        [job_id] = make.save_jobs(store, tenant, tier=tier, text=make.body("Why?", category=category))
        classifier.classify(tier, 0.0, [(job_id, 1)])
    assert [row[0] for row in store.fetch("SELECT deployment FROM decision ORDER BY job_id")] == ["big", "big", "awq"]


def test_one_that_nobody_watches_is_forgotten(yard: Yard) -> None:
    started(yard)
    watch(yard)
    assert yard.metrics.read(yard.catalog).trials.canaries
    assert 0 < yard.redis.pttl("canaries") <= 30_000
    yard.redis.delete("canaries")
    assert yard.metrics.read(yard.catalog).trials.canaries == ()


# --- its watch --------------------------------------------------------------------------------------------


def test_one_that_fails_is_ended_and_told_of(yard: Yard, store: Store, said: Said) -> None:
    started(yard)
    ran(store, "big", ["succeeded"] * 40)
    ran(store, "awq", ["succeeded"] * 25 + ["failed", "fault", "crash"] * 5)
    watch(yard)
    assert running(store) == []
    [(breached, why, report)] = store.fetch("SELECT breached, ended_why, report FROM canary")
    assert breached
    assert why.startswith("37.5% of 40 of its starts fail, 0.0% of 40 where it stands beside (p ")
    assert report["measures"]["errors"]["candidate"] == [15, 40]
    assert yard.metrics.read(yard.catalog).trials.canaries == (), "deciders hear of it at once"
    [fields] = [fields for event, fields in said if event == "canary.ended"]
    assert (fields["deployment"], fields["serving"], fields["breached"], fields["why"]) == ("awq", "big", True, why)
    assert fan_out(store) == 1
    [owed] = take(store)
    assert (owed.event, owed.url) == ("canary.ended", HOOK)


@pytest.mark.parametrize(
    ("candidate", "said_of"),
    [
        ({"ms": 900.0}, "its p95 of latency"),
        ({"ms": 70_000.0}, "of its answers miss their SLO"),
        ({"score": 0.2}, "of its scored answers do not pass"),
    ],
)
def test_one_that_is_slower_or_worse_is_ended(
    yard: Yard, store: Store, candidate: dict[str, float], said_of: str
) -> None:
    started(yard)
    ran(store, "big", ["succeeded"] * 120, score=0.9)
    ran(store, "awq", ["succeeded"] * 120, **{"score": 0.9, **candidate})
    watch(yard)
    assert said_of in store.fetch("SELECT ended_why FROM canary")[0][0]


def test_one_that_does_as_well_goes_on_and_no_look_is_spent_on_what_was_seen(yard: Yard, store: Store) -> None:
    started(yard)
    for name in ("big", "awq"):
        ran(store, name, ["succeeded"] * 40 + ["drain", "outage", "cancelled"] * 5, score=0.9)
    for _ in range(3):
        watch(yard)
    [canary] = running(store)
    assert canary.report is not None
    assert canary.report["look"] == 1
    assert canary.report["measures"]["errors"]["candidate"] == [0, 40], "what says nothing does not count"
    for name in ("big", "awq"):
        ran(store, name, ["succeeded"] * 19)
    watch(yard)
    assert (running(store)[0].report or {})["look"] == 1, "not half as much again"
    ran(store, "awq", ["succeeded"])
    watch(yard)
    assert (running(store)[0].report or {})["look"] == 2
    ended = yard.metrics.read(yard.catalog).trials.canaries
    assert [canary.share for canary in ended] == [0.5]


def test_jobs_of_before_and_of_no_canary_do_not_count(yard: Yard, store: Store) -> None:
    ran(store, "awq", ["failed"] * 50)
    started(yard)
    ran(store, "big", ["succeeded"] * 50)
    ran(store, "awq", ["succeeded"] * 50)
    ran(store, "awq", ["failed"] * 50)
    store.fetch("UPDATE decision SET canary = NULL WHERE job_id IN (SELECT job_id FROM timing WHERE outcome = 'failed' "
                "ORDER BY job_id DESC LIMIT 50) RETURNING job_id")  # fmt: skip
    watch(yard)
    assert (running(store)[0].report or {})["measures"]["errors"]["candidate"] == [0, 50]


def test_one_of_another_build_is_in_force_nowhere_and_ends(yard: Yard, store: Store, said: Said) -> None:
    with store.transaction() as connection:
        trials.start_canary(connection, Canary("awq", "big", "another build", 0.5))
    watch(yard)
    assert yard.metrics.read(yard.catalog).trials.canaries == ()
    assert len(running(store)) == 1, "the catalog may be one that this process has yet to hear of"
    store.fetch("UPDATE canary SET started_at = now() - interval '5 minutes' RETURNING id")
    watch(yard)
    assert running(store) == []
    assert "has no awq of this build" in next(f["why"] for event, f in said if event == "canary.ended")
    assert store.fetch("SELECT breached FROM canary") == [(False,)]


def test_the_watch_reads_by_index(yard: Yard, store: Store) -> None:
    started(yard)
    for name in ("big", "awq"):
        ran(store, name, ["succeeded"] * 3000, score=0.9)
    [canary] = running(store)
    with store.transaction() as connection:
        connection.execute("ANALYZE decision, timing, outcome")
        for statement in (trials._STARTS, trials._SCORES):
            wanted = {**trials._sides(canary), "most": 50, "telling": trials._TELLING}
            plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {statement}", wanted))
            assert "Seq Scan" not in plan, plan
            assert "decision_by_canary" in plan or "outcome_by_deployment" in plan
        assert len(trials.starts(connection, canary, most=50)) == 100
        assert len(trials.scores(connection, canary, most=50)) == 100


# --- by hand ----------------------------------------------------------------------------------------------


def test_it_is_started_replaced_and_stopped(run: Run, here: None, store: Store, catalog: Catalog) -> None:
    catalogs.apply(store, CATALOG, name=catalog.hash(), tiers=catalog.tiers)
    assert run("models", "canary", "awq").code == 2
    assert "is no share" in run("models", "canary", "awq", "--share", "500%").err
    assert "is not a category" in run("models", "canary", "awq", "--share", "5%", "--category", "none").err
    assert "is no candidate" in run("models", "canary", "big", "--share", "5%").err
    told = run("models", "canary", "awq", "--share", "5%", "--category", "chat")
    assert told.out.startswith("awq takes 5.0% of the jobs of big in chat, within seconds\n")
    assert run("models", "canary", "awq", "--share", "0.1").code == 0
    [canary] = running(store)
    assert (canary.told.share, canary.categories, canary.pinned) == (0.1, None, build(catalog))
    assert "10.0% of all" in " ".join(run("models", "list").out.split())
    assert run("models", "canary", "awq", "--stop").out == "the canary of awq has ended\n"
    assert run("models", "canary", "awq", "--stop").code == 2
    assert "canary of awq" in run("models", "list").out
