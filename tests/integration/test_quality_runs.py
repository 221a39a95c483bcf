"""Quality runs, step by step: what is asked, how it is scored, who judges, and that a crash loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import factories as make
from tests.conftest import CATALOGS
from tests.integration.conftest import OpenYard
from tieryard.errors import ConflictError
from tieryard.golden import parse_golden
from tieryard.golden.saving import save
from tieryard.job import State
from tieryard.settings import Settings
from tieryard.store import Store, batches, benchmarks, golden, reads
from tieryard.store.benchmarks import BENCHMARK_TENANT, BenchmarkRun, NewRun, RunKind, RunState
from tieryard.store.finish import finish
from workers import quality
from workers.yard import Yard

CATEGORIES = ("extraction", "reasoning", "chat")
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"properties": {"why": {}, "n": {}}}}}
SUM = {"id": "sum", "category": "reasoning", "prompt": "2 + 2?", "expected": "4", "scorer": "numeric", "max_tokens": 8}
LESS = {"id": "less", "category": "reasoning", "prompt": "2 - 2?", "expected": "0", "scorer": "numeric",
        "response_format": FORMAT}  # fmt: skip
WHO = {"id": "who", "category": "extraction", "prompt": "Who? 'Ada met Bob.'", "scorer": "entity_f1",
       "expected": {"person": ["Ada", "Bob"]}}  # fmt: skip
SORRY = {"id": "sorry", "category": "chat", "prompt": "Say sorry.", "criteria": "It apologises."}
JUDGED = "\nbenchmarks: {judge: {deployment: long}}\n"
GOOD = json.dumps({"reason": "it does", "score": 7})

Answers = dict[str, str | None]
"""By custom_id; None has failed."""


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    """`long` is another model than `short` and judges."""
    text = (CATALOGS / "instant.yaml").read_text(encoding="utf-8")
    head, _, tail = text.partition("  long:\n")
    path = tmp_path / "judged.yaml"
    path.write_text(
        f"{head}  long:\n{tail.replace('test/instant', 'test/judge')}\nbenchmarks: {{judge: {{deployment: long}}}}\n"
    )
    return path


def start(store: Store, *items: dict[str, Any], deployment: str = "short") -> BenchmarkRun:
    """A run on these items, claimed."""
    made = parse_golden(map(json.dumps, items), name="mine", categories=CATEGORIES)
    row, _ = save(store, made)
    benchmarks.create(store, [NewRun(RunKind.QUALITY, deployment, {"golden": "mine"}, golden_set_id=row.id)])
    return claim(store)


def claim(store: Store) -> BenchmarkRun:
    claimed = benchmarks.claim(store, make.worker(store, kind="benchmark"), [RunKind.QUALITY])
    assert claimed is not None
    return claimed


def fresh(store: Store, run: BenchmarkRun) -> BenchmarkRun:
    return benchmarks.get(store, run.id)


def lines(store: Store, batch_id: int) -> list[dict[str, Any]]:
    rows = store.fetch("SELECT body FROM line WHERE source_id = %(id)s ORDER BY line_no", {"id": batch_id})
    return [json.loads(row[0]) for row in rows]


def answer(store: Store, batch_id: int, to: str, said: Callable[[dict[str, Any]], str | None]) -> None:
    """What the fleet does with a batch: `said` answers a line, None fails."""
    make.expand(store)
    asked = lines(store, batch_id)
    ids = list(range(batch_id + 1, batch_id + 1 + len(asked)))
    make.release(store, batch_id, len(asked))
    make.route(store, ids, to)
    for job in make.claim(store, ids, make.worker(store), to):
        text = said(asked[job.id - batch_id - 1])
        fields: dict[str, Any] = {"deployment": to, "output": text, "latency_ms": 40.0, "cost_usd": Decimal("0.002")}
        if text is None:
            fields |= {"state": State.FAILED, "error_kind": "engine", "error": "it broke", "cost_usd": Decimal("0.5")}
        with store.transaction() as connection:
            finish(connection, [make.ending(job, **fields)])
    with store.transaction() as connection:
        assert batches.complete(connection, [batch_id]) == [(batch_id, True)]


def by_id(said: Answers) -> Callable[[dict[str, Any]], str | None]:
    return lambda body: said[body["custom_id"]]


def steps(yard: Yard, run: BenchmarkRun) -> Any:
    """Until there is an end, or what follows waits for a batch."""
    while True:
        now = fresh(yard.store, run)
        scored, noted = len(golden.scores(yard.store, run.id)), now.report
        if (end := quality.advance(yard, now)) is not None:
            return end
        if len(golden.scores(yard.store, run.id)) == scored and fresh(yard.store, run).report == noted:
            return None


def test_each_question_is_asked_once_behind_everybody(yard: Yard, store: Store, tenant: int) -> None:
    run = start(store, SUM, LESS, SORRY)
    assert quality.advance(yard, run) is None
    batch_id = fresh(store, run).batch_id
    assert batch_id is not None
    assert quality.advance(yard, fresh(store, run)) is None, "it waits"
    [row] = store.fetch("SELECT t.name, b.id, b.tier, b.total FROM batch b JOIN tenant t ON t.id = b.tenant_id")
    assert row == (BENCHMARK_TENANT, batch_id, "bulk", 3)
    first, second, third = lines(store, batch_id)
    assert first == {
        "messages": [{"role": "user", "content": "2 + 2?"}], "category": "reasoning", "custom_id": "sum",
        "max_tokens": 8, "temperature": 0.0, "seed": quality.SEED, "model": "short", "tier": "bulk",
    }  # fmt: skip
    assert json.dumps(second["response_format"]) == json.dumps(FORMAT), "in its order"
    assert "max_tokens" not in third
    assert reads.list_batches(store, tenant_id=tenant, after=None, limit=10) == []


def test_answers_are_scored_and_reported_by_category(yard: Yard, store: Store) -> None:
    run = start(store, SUM, LESS, WHO)
    quality.advance(yard, run)
    batch_id = fresh(store, run).batch_id
    assert batch_id is not None
    answer(store, batch_id, "short", by_id({"sum": "It is 4", "less": None, "who": '{"person": ["Ada", "Eve"]}'}))
    end = steps(yard, run)
    assert end.state is RunState.SUCCEEDED
    found = {one.item_id: one for one in golden.scores(store, run.id)}
    assert (found["sum"].score, found["sum"].latency_ms, found["sum"].cost_usd) == (1.0, 40.0, Decimal("0.002"))
    assert (found["less"].score, found["less"].why) == (None, "failed: it broke")
    assert (found["less"].latency_ms, found["less"].cost_usd) == (None, Decimal("0.5"))
    assert (found["who"].score, found["who"].counts, found["who"].job_id) == (0.5, [1, 1, 1], batch_id + 3)
    assert end.report["golden_set"] == "mine"
    assert end.report["judge"] is None
    reasoning = end.report["categories"]["reasoning"]
    assert (reasoning["n"], reasoning["answered"], reasoning["scored"], reasoning["mean_score"]) == (2, 1, 1, 1.0)
    assert reasoning["unscored"] == {"failed: it broke": 1}
    assert (reasoning["latency_ms"], Decimal(reasoning["cost_usd"])) == (40.0, Decimal("0.002"))
    assert reasoning["quality_per_usd"] == pytest.approx(500)
    assert end.report["categories"]["extraction"]["micro_f1"] == 0.5
    assert end.report["whole"]["pass_rate"]["value"] == 0.5
    assert len(end.report["advice"]) == 2
    assert end.profiles.keys() == {"reasoning", "extraction"}
    assert (end.profiles["reasoning"]["quality_score"], end.profiles["reasoning"]["n"]) == (1.0, 1)
    assert end.measured_at is not None
    quality.tell(yard, run, end)
    told = yard.metrics.read(yard.catalog).profiles["short"]
    assert (told["reasoning"].quality_score, told["reasoning"].quality_samples) == (1.0, 1)
    with store.transaction() as connection:
        assert benchmarks.finish(connection, fresh(store, run), end) == 0
    assert make.count(store, "ledger", "job_id > 0") == 3, "billed by its jobs"


def test_a_judge_scores_what_no_rule_can(yard: Yard, store: Store) -> None:
    run = start(
        store, SORRY, {**SORRY, "id": "odd", "prompt": "Say so."}, {**SORRY, "id": "lost", "prompt": "So."}, SUM
    )
    quality.advance(yard, run)
    first = fresh(store, run).batch_id
    assert first is not None
    answer(store, first, "short", by_id({"sorry": "Sorry!", "odd": "no", "lost": "lost", "sum": "4"}))
    assert steps(yard, run) is None
    note = fresh(store, run).report
    assert note is not None
    judging = note["judging"]
    assert (judging["judge"], judging["items"]) == ("long", ["sorry", "odd", "lost"])
    asked = lines(store, judging["batch"])
    assert {body["model"] for body in asked} == {"long"}
    assert "Sorry!" in asked[0]["messages"][1]["content"]
    assert "response_format" not in asked[0], "`long` cannot"
    verdicts = iter([GOOD, "I give it a ten", None])
    answer(store, judging["batch"], "long", lambda _: next(verdicts))
    end = steps(yard, run)
    found = {one.item_id: one for one in golden.scores(store, run.id)}
    assert (found["sorry"].score, found["sorry"].why, found["sorry"].judge) == (0.7, "it does", "long")
    assert found["odd"].score is None
    assert found["odd"].why.startswith("no verdict: no JSON")
    assert found["lost"].why == "the judge: failed: it broke"
    assert found["sum"].judge is None
    chat = end.report["categories"]["chat"]
    assert (chat["n"], chat["answered"], chat["scored"], chat["judged"]) == (3, 3, 1, 1)
    assert chat["pass_rate"]["value"] == 1.0, "0.7 passes"
    assert (end.report["judge"], end.report["judge_cost_usd"]) == ("long", "0.504")


def test_without_a_judge_its_items_have_no_score(settings: Settings, open_yard: OpenYard, store: Store) -> None:
    settings.catalog.write_text((CATALOGS / "instant.yaml").read_text(encoding="utf-8"))
    yard = open_yard("benchmark")
    run = start(store, SORRY, SUM)
    quality.advance(yard, run)
    batch_id = fresh(store, run).batch_id
    assert batch_id is not None
    answer(store, batch_id, "short", by_id({"sorry": "Sorry!", "sum": "4"}))
    end = steps(yard, run)
    assert end.state is RunState.SUCCEEDED
    [reason] = end.report["categories"]["chat"]["unscored"]
    assert reason.startswith("no judge")
    assert end.profiles.keys() == {"reasoning"}
    assert make.count(store, "batch") == 1


@pytest.mark.parametrize(
    ("deployment", "why"),
    [("long", "a model does not judge itself"), ("gone", "has no deployment 'gone'")],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_asked(
    yard: Yard, store: Store, deployment: str, why: str
) -> None:
    run = start(store, SORRY, deployment=deployment)
    end = quality.advance(yard, run)
    assert end is not None
    assert (end.state, why in (end.why or "")) == (RunState.FAILED, True)
    assert make.count(store, "batch") == 0


def test_the_same_model_elsewhere_does_not_judge_either(settings: Settings, open_yard: OpenYard, store: Store) -> None:
    text = (CATALOGS / "instant.yaml").read_text(encoding="utf-8")
    settings.catalog.write_text(text + JUDGED)
    end = quality.advance(open_yard("benchmark"), start(store, SORRY))
    assert end is not None
    assert "long is short, or the same model" in (end.why or "")


def test_no_answer_at_all_is_a_failure_with_its_reason(yard: Yard, store: Store) -> None:
    run = start(store, SUM, LESS)
    quality.advance(yard, run)
    batch_id = fresh(store, run).batch_id
    assert batch_id is not None
    answer(store, batch_id, "short", lambda _: None)
    end = steps(yard, run)
    assert (end.state, end.why) == (RunState.FAILED, "none of 2 items has a score: failed: it broke (2)")
    assert end.profiles == {}
    assert end.report["whole"]["mean_score"] is None


def test_another_worker_goes_on_where_one_has_stopped(
    yard: Yard, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "_SCORING_S", 0.0)
    ours = start(store, SUM, LESS, WHO)
    quality.advance(yard, ours)
    batch_id = fresh(store, ours).batch_id
    assert batch_id is not None
    answer(store, batch_id, "short", by_id({"sum": "4", "less": "0", "who": "[]"}))
    assert quality.advance(yard, fresh(store, ours)) is None
    assert len(golden.scores(store, ours.id)) == 1, "a step's worth"
    stale = fresh(store, ours)
    store.fetch("UPDATE worker SET stopped_at = now() RETURNING id")
    theirs = claim(store)
    assert (theirs.id, theirs.fence) == (ours.id, ours.fence + 1)
    with pytest.raises(ConflictError):
        quality.advance(yard, stale)
    end = steps(yard, theirs)
    assert end.report["whole"]["scored"] == 3
    assert make.count(store, "batch") == 1


def test_a_run_that_is_lost_while_it_asks_leaves_no_batch(yard: Yard, store: Store) -> None:
    run = start(store, SUM)
    with pytest.raises(ConflictError):
        quality.advance(yard, replace(run, fence=run.fence + 1))
    assert make.count(store, "batch") == make.count(store, "line") == 0


def test_cancelling_ends_its_batches(yard: Yard, store: Store) -> None:
    run = start(store, SORRY)
    quality.advance(yard, run)
    first = fresh(store, run).batch_id
    assert first is not None
    answer(store, first, "short", by_id({"sorry": "Sorry!"}))
    assert steps(yard, run) is None
    benchmarks.cancel(store, run.id)
    end = quality.advance(yard, fresh(store, run))
    assert end is not None
    assert end.state is RunState.CANCELLED
    assert make.count(store, "batch", "cancelling_at IS NOT NULL") == 1, "the judge's; its own is over"


def test_cancelling_what_was_handed_back_ends_its_batch_too(yard: Yard, store: Store) -> None:
    run = start(store, SUM)
    quality.advance(yard, run)
    assert benchmarks.hand_back(store, run, why="its worker has stopped")
    waiting = benchmarks.cancel(store, run.id)
    assert (waiting.state, waiting.cancelling) == (RunState.QUEUED, True)
    end = quality.advance(yard, claim(store))
    assert end is not None
    assert end.state is RunState.CANCELLED
    assert make.count(store, "batch", "cancelling_at IS NOT NULL") == 1


def test_answers_of_two_builds_are_no_run(yard: Yard, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(store, SUM)
    quality.advance(yard, run)
    asked = fresh(store, run)
    assert asked.pinned == yard.catalog.deployments["short"].build
    changed = yard.catalog.deployments["short"].model_copy(update={"revision": "2"})
    others = yard.catalog.model_copy(update={"deployments": {**yard.catalog.deployments, "short": changed}})
    monkeypatch.setattr(type(yard), "catalog", others)
    end = quality.advance(yard, asked)
    assert end is not None
    assert (end.state, "the catalog has changed" in (end.why or "")) == (RunState.FAILED, True)
    assert make.count(store, "batch", "cancelling_at IS NOT NULL") == 1


def test_a_report_is_of_the_build_that_was_asked(yard: Yard, store: Store) -> None:
    run = start(store, SUM)
    quality.advance(yard, run)
    batch_id = fresh(store, run).batch_id
    assert batch_id is not None
    answer(store, batch_id, "short", by_id({"sum": "4"}))
    assert steps(yard, run).pinned == yard.catalog.deployments["short"].build
