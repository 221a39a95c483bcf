"""Outcomes that contradict the learned model take the router back to its rules, until they no longer do."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests import factories as make
from tests.conftest import CATALOGS
from tests.integration.test_cli import Run, run  # noqa: F401  # a fixture
from tieryard import telemetry
from tieryard.hardness import Loaded
from tieryard.routing import Snapshot
from tieryard.snapshots import Snapshots
from tieryard.store import Store, jobs
from tieryard.store.leader import lead
from workers.rescue import EPOCH, sweep
from workers.stepback import _LOOKED, look
from workers.yard import Yard

LEARNED = """
routing: {classifier: learned}
"""
OLD, NEW = "0123456789ab", "ba9876543210"
"""Quality models, by their hash."""


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text((CATALOGS / "instant.yaml").read_text() + LEARNED)
    return path


@pytest.fixture
def said() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def yard(yard: Yard, said: list[tuple[str, dict[str, Any]]]) -> Yard:
    class Log:
        """Keeps what is said."""

        def __getattr__(self, level: str) -> Any:
            return lambda event, **fields: said.append((str(event), fields))

    yard.log = Log()  # type: ignore[assignment]
    yard.redis.set(EPOCH, "known")
    routed(yard, OLD)
    return yard


def routed(yard: Yard, quality_model: str) -> None:
    """Something was, by a process that has this model."""
    with yard.store.transaction() as connection:
        jobs.save_snapshot(connection, Snapshot.of(yard.catalog, quality_model=quality_model).to_json())


def score(store: Store, n: int, *, contradict: bool, quality_model: str | None = OLD) -> None:
    """`n` outcomes more, now: of answers that were good where the model said so, or where it said the opposite."""
    rng = random.Random(make.count(store, "outcome"))
    rows = []
    for _ in range(n):
        learned = 1 / (1 + math.exp(rng.gauss(0.0, 1.0)))
        chance = 1 - learned if contradict else learned
        rows.append((store.next_id(), float(rng.random() < chance), learned, quality_model))
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO outcome (job_id, source, score, deployment, category, predicted, rules_predicted, scored_at, "
            "quality_model) VALUES (%s, 'caller', %s, 'short', 'chat', %s, 0.5, clock_timestamp(), %s)",
            rows,
        )


def looked(yard: Yard, quality_model: str = OLD) -> str:
    """What a router with this model hears after a look: why it goes by its rules, or nothing."""
    yard.redis.delete(_LOOKED)
    with lead(yard.store, "rescue") as connection:
        assert connection is not None
        look(yard, connection)
    snapshots = Snapshots(yard.metrics, yard.catalog, telemetry.logger(), learned=Loaded(quality_model=quality_model))
    snapshots.read()
    rules = snapshots.last.rules
    assert rules.classifier == ("rules" if rules.step_back else "learned")
    return rules.step_back


def test_it_steps_back_and_comes_back_and_says_so(
    yard: Yard, store: Store, said: list[tuple[str, dict[str, Any]]]
) -> None:
    score(store, 49, contradict=True)
    assert looked(yard) == "", "too few"
    score(store, 51, contradict=True)
    why = looked(yard)
    assert why.startswith("measured outcomes contradict the learned model: on 100 outcomes its squared error is 0.")
    assert looked(yard) == why
    score(store, 49, contradict=False)
    assert looked(yard) == why, "not on so few"
    score(store, 51, contradict=False)
    assert looked(yard) == ""
    assert looked(yard) == "", "what was before it came back is forgiven"
    score(store, 100, contradict=True)
    assert looked(yard) != ""
    assert [event for event, _ in said] == ["router.stepped_back", "router.came_back", "router.stepped_back"]
    assert make.count(store, "step_back") == 2


def test_another_model_is_not_judged_by_its_predecessors_predictions(
    yard: Yard, store: Store, said: list[tuple[str, dict[str, Any]]]
) -> None:
    score(store, 100, contradict=True)
    score(store, 100, contradict=True, quality_model=None)  # of before the model was kept
    routed(yard, NEW)
    assert looked(yard, NEW) == ""
    score(store, 100, contradict=False, quality_model=NEW)
    assert looked(yard, NEW) == ""
    score(store, 400, contradict=True, quality_model=NEW)
    assert "on 500 outcomes" in looked(yard, NEW)
    assert [(event, fields["quality_model"]) for event, fields in said] == [("router.stepped_back", NEW)]


def test_another_model_ends_a_step_back_and_that_is_said(
    yard: Yard, store: Store, said: list[tuple[str, dict[str, Any]]]
) -> None:
    score(store, 100, contradict=True)
    why = looked(yard)
    assert why
    assert looked(yard, NEW) == "", "who has the new model already does not step back from it"
    routed(yard, "")
    assert looked(yard) == why, "a process that cannot read its model, or a catalog without one, ends nothing"
    routed(yard, NEW)
    assert looked(yard, NEW) == looked(yard) == ""
    assert [event for event, _ in said] == ["router.stepped_back", "router.came_back"]
    assert said[1][1] == {
        "quality_model": NEW,
        "why": f"it had stepped back from another quality model, {OLD}",
    }
    routed(yard, OLD)
    assert looked(yard) == "", "its earlier outcomes are forgiven"
    score(store, 100, contradict=True)
    assert "on 100 outcomes" in looked(yard)


def test_a_step_back_of_before_models_were_kept_ends(
    yard: Yard, store: Store, said: list[tuple[str, dict[str, Any]]]
) -> None:
    store.fetch("INSERT INTO step_back (why) VALUES ('of old') RETURNING id")
    routed(yard, "")
    assert looked(yard) == ""
    routed(yard, OLD)
    assert looked(yard) == ""
    assert [event for event, _ in said] == ["router.came_back"]
    assert make.count(store, "step_back", "until IS NULL") == 0


def test_agreeing_outcomes_change_nothing(yard: Yard, store: Store, said: list[tuple[str, dict[str, Any]]]) -> None:
    for _ in range(5):
        score(store, 60, contradict=False)
        assert looked(yard) == ""
    assert said == []


def test_a_router_that_goes_by_rules_anyway_does_not_step_back(yard: Yard, store: Store) -> None:
    score(store, 200, contradict=True)
    routing = yard.catalog.routing.model_copy(update={"classifier": "rules"})
    yard.in_force.catalog = yard.catalog.model_copy(update={"routing": routing})
    yard.redis.delete(_LOOKED)
    with lead(yard.store, "rescue") as connection:
        assert connection is not None
        look(yard, connection)
    assert yard.metrics.read(yard.catalog).step_back == {}


def test_a_sweep_looks_once_a_minute_and_heals_what_redis_forgot(
    yard: Yard, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yard.publisher, "publish", lambda parcels: None)
    sweep(yard)
    score(store, 100, contradict=True)
    sweep(yard)
    assert yard.metrics.read(yard.catalog).step_back == {}, "the minute is not over"
    yard.redis.flushall()
    sweep(yard)
    live = yard.metrics.read(yard.catalog)
    assert live.step_back.keys() == {OLD}
    profile = live.profiles["short"]["chat"]
    [[mean]] = store.fetch("SELECT avg(score) FROM outcome")
    assert (profile.quality_samples, profile.samples) == (100, 0)
    assert profile.quality_score == pytest.approx(mean)
    sweep(yard)
    assert yard.metrics.read(yard.catalog).profiles["short"]["chat"].quality_samples == 100, "and only once"


def test_the_status(
    yard: Yard,
    store: Store,
    run: Run,  # noqa: F811
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIERYARD_DATABASE_URL", database_url)
    shown = run("route", "status")
    assert shown.out.startswith("not stepped back")
    assert f"quality model {OLD}" in shown.out
    assert "so far 0 outcomes; a verdict needs 50" in shown.out
    score(store, 100, contradict=True)
    assert "so far, on 100 outcomes" in run("route", "status").out
    looked(yard)
    shown = run("route", "status")
    assert "stepped back to the rules since" in shown.out
    assert "contradict the learned model" in shown.out
    told = json.loads(run("route", "status", "--json").out)
    assert (told["stepped_back"], told["quality_model"]) == (True, OLD)
    assert told["last"]["until"] is None
    score(store, 100, contradict=False)
    looked(yard)
    shown = run("route", "status")
    assert re.search(r"stepped back from [\d-]{10} [\d:]{8} UTC to [\d-]{10} [\d:]{8} UTC: ", shown.out)
    assert "since then 0 outcomes" in shown.out
    routed(yard, "")
    assert "what was routed last had no learned model" in run("route", "status").out
