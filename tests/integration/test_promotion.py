"""`tieryard models`: what the gate accepts is promoted, by category; what it does not is told, and nothing changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import factories as make
from tests.integration.test_cli import Run, here, run
from tests.integration.trials import CATALOG, golden_set, passing, quality_run
from tieryard import telemetry
from tieryard.catalog import Catalog, parse_catalog
from tieryard.routing import decide
from tieryard.settings import Settings
from tieryard.snapshots import Snapshots
from tieryard.store import Store, catalogs, trials
from tieryard.store.golden import SetRow
from workers.rescue import EPOCH, sweep
from workers.yard import Yard

__all__ = ["here", "run"]  # fixtures

N = 200
SERVING = {"extraction": passing(180, N), "reasoning": passing(170, N)}
AWQ = {"extraction": passing(181, N), "reasoning": passing(140, N)}
"""It drops 15 points on reasoning."""


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CATALOG)
    return path


@pytest.fixture
def applied(store: Store, catalog: Catalog) -> Catalog:
    catalogs.apply(store, CATALOG, name=catalog.hash(), tiers=catalog.tiers)
    return catalog


@pytest.fixture
def asked(store: Store) -> SetRow:
    return golden_set(store, {"extraction": N, "reasoning": N})


@pytest.fixture
def yard(settings: Settings) -> Iterator[Yard]:
    yard = Yard("test", settings, consume=[])
    yard.redis.set(EPOCH, "known")
    yield yard
    yard.store.close()
    yard.redis.close()
    yard.app.close()


def measured(store: Store, catalog: Catalog, asked: SetRow) -> None:
    quality_run(store, catalog, "big", asked, SERVING)
    quality_run(store, catalog, "awq", asked, AWQ)


def chosen(yard: Yard, category: str) -> str:
    """Where a job goes, by what a decider hears after a sweep, while both are down: the cheaper of those allowed."""
    sweep(yard)
    snapshots = Snapshots(yard.metrics, yard.catalog, telemetry.logger())
    features = make.features(model="auto")
    text = features.text.__class__(category, features.text.wanted, "plain", 2, has_code=False)
    snapshots.read()
    job = features.__class__(text, "auto", {"utf8": 10}, 16)
    return decide(job, snapshots.last).deployment or ""


def test_what_is_accepted_is_promoted_and_takes_jobs_there(
    run: Run, here: None, store: Store, applied: Catalog, asked: SetRow, yard: Yard
) -> None:
    measured(store, applied, asked)
    assert chosen(yard, "extraction") == "big"
    tried = run("models", "promote", "awq", "--dry-run")
    assert (tried.code, make.count(store, "promotion")) == (0, 0)
    assert "it would be promoted in extraction; nothing has changed" in tried.out
    ran = run("models", "promote", "awq", "--note", "cheaper")
    assert ran.code == 0, ran.err
    assert "extraction: accepted" in ran.out.replace("\n", " ")
    assert "reasoning: worse" in ran.out.replace("\n", " ")
    assert "awq is promoted in extraction, within seconds" in ran.out
    assert chosen(yard, "extraction") == "awq"
    assert chosen(yard, "reasoning") == "big"
    yard.redis.flushall()
    yard.redis.set(EPOCH, "known")
    assert chosen(yard, "extraction") == "awq", "told again"
    [model] = [m for m in json.loads(run("models", "list", "--json").out)["models"] if m["deployment"] == "awq"]
    assert (model["promoted"], model["promotion_holds"], model["candidate_of"]) == (["extraction"], True, "big")
    assert "extraction" in run("models", "list").out
    assert run("models", "demote", "awq", "--category", "reasoning").code == 2
    assert run("models", "demote", "awq").out == "awq is no longer promoted in extraction\n"
    assert chosen(yard, "extraction") == "big"
    assert run("models", "demote", "awq").code == 2


def test_another_build_is_unmeasured_again(
    run: Run, here: None, store: Store, applied: Catalog, asked: SetRow, yard: Yard
) -> None:
    measured(store, applied, asked)
    assert run("models", "promote", "awq").code == 0
    newer = CATALOG.replace('acme/big-awq\n    revision: "1"', 'acme/big-awq\n    revision: "2"')
    catalogs.apply(store, newer, name="x", tiers=applied.tiers)
    refused = run("models", "promote", "awq")
    assert refused.code == 2
    assert "tieryard golden run mixed --models awq" in refused.err.replace("\n", " ")
    assert "big," not in refused.err, "its run holds"
    assert "another build" in " ".join(run("models", "list").out.split())
    [model] = [m for m in json.loads(run("models", "list", "--json").out)["models"] if m["deployment"] == "awq"]
    assert (model["promoted"], model["promotion_holds"]) == (["extraction"], False)
    yard.in_force.catalog = parse_catalog(newer)
    assert chosen(yard, "extraction") == "big"
    yard.in_force.catalog = applied
    assert chosen(yard, "extraction") == "awq", "and back"


def test_where_nothing_is_accepted_nothing_changes(
    run: Run, here: None, store: Store, applied: Catalog, asked: SetRow
) -> None:
    measured(store, applied, asked)
    ran = run("models", "promote", "awq", "--category", "reasoning")
    assert ran.code == 1
    assert "nothing has changed" in ran.out
    few = golden_set(store, {"extraction": 40}, name="few")
    quality_run(store, applied, "big", few, {"extraction": passing(36, 40)})
    quality_run(store, applied, "awq", few, {"extraction": passing(36, 40)[::-1]})
    unproven = run("models", "promote", "awq", "--set", "few", "--json")
    assert unproven.code == 1
    [category] = json.loads(unproven.out)["categories"]
    assert category["outcome"] == "worse" or category["items_needed"] > 40
    assert make.count(store, "promotion") == 0


def test_what_was_promoted_elsewhere_is_kept_unless_it_is_worse_now(
    run: Run, here: None, store: Store, applied: Catalog, asked: SetRow
) -> None:
    other = golden_set(store, {"chat": N}, name="other")
    for name in ("big", "awq"):
        quality_run(store, applied, name, other, {"chat": passing(150, N)})
    assert run("models", "promote", "awq", "--set", "other").code == 0
    measured(store, applied, asked)
    assert run("models", "promote", "awq", "--set", "mixed").code == 0
    with store.transaction() as connection:
        [held] = trials.promotions(connection)
    assert held.categories == ["chat", "extraction"]
    quality_run(store, applied, "awq", other, {"chat": passing(100, N)})
    assert run("models", "promote", "awq").code == 0
    with store.transaction() as connection:
        [held] = trials.promotions(connection)
    assert held.categories == ["extraction"]
    assert {run["golden_set"] for run in held.verdict["runs"]} == {"mixed", "other"}
    assert make.count(store, "promotion", "ended_at IS NOT NULL") == 2


def test_what_cannot_be_compared_is_refused(
    run: Run, here: None, store: Store, applied: Catalog, asked: SetRow
) -> None:
    assert "is no candidate" in run("models", "promote", "big").err
    assert "has no deployment 'none'" in run("models", "promote", "none").err
    both = run("models", "promote", "awq").err.replace("\n", " ")
    assert "tieryard golden run mixed --models big" in both
    assert "tieryard golden run mixed --models awq" in both
    assert "no golden set 'none'" in run("models", "promote", "awq", "--set", "none").err
    measured(store, applied, asked)
    quality_run(store, applied, "awq", asked, AWQ, judge="big")
    assert "different judges" in run("models", "promote", "awq").err
    lacking = {"extraction": [None] * 50 + passing(150, 150), "reasoning": passing(140, N)}
    quality_run(store, applied, "awq", asked, lacking)
    assert "50 of 400 items have no score" in run("models", "promote", "awq").err


def test_no_answer_counts_as_a_wrong_one(run: Run, here: None, store: Store, applied: Catalog, asked: SetRow) -> None:
    quality_run(store, applied, "big", asked, {"extraction": [None, *passing(180, N - 1)]})
    quality_run(store, applied, "awq", asked, {"extraction": [1.0, None, *passing(180, N - 2)]})
    ran = run("models", "promote", "awq", "--dry-run", "--json")
    found = json.loads(ran.out)
    [category] = found["categories"]
    assert (found["unscored"], category["n"]) == (2, N - 1)
    assert category["serving_rate"]["value"] == pytest.approx(180 / 199)
    assert category["candidate_rate"]["value"] == pytest.approx(180 / 199)
    assert (category["better"], category["worse"]) == (1, 1), "the one without an answer was right where it serves"
