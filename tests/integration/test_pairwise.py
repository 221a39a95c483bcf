"""Two quality runs side by side: both orders are asked, by a judge that is neither, and what it says is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import factories as make
from tests.integration.judged import Judged, judging, parts, verdict
from tieryard.bench.asking import PairwiseAsk, asked_runs
from tieryard.catalog.benchmarks import Benchmarks
from tieryard.errors import ConflictError, RequestError
from tieryard.golden import GoldenSet, Item
from tieryard.settings import Settings
from tieryard.store import Store, benchmarks, questions
from tieryard.store.benchmarks import BENCHMARK_TENANT, BenchmarkRun, NewRun, RunEnd, RunKind, RunState
from workers import pairwise

GOOD = {f"q{n}": f"good {n}" for n in range(4)}
BAD = {f"q{n}": f"bad {n}" for n in range(4)}


@pytest.fixture
def judged(settings: Settings, store: Store, tenant: int, tmp_path: Path) -> Iterator[Judged]:
    with judging(settings, store, tenant, tmp_path) as found:
        yield found


def compared(judged: Judged, a: BenchmarkRun, b: BenchmarkRun) -> BenchmarkRun:
    """A comparison that is ours."""
    [new] = asked_runs(PairwiseAsk(kind="pairwise", a=a.public_id, b=b.public_id), judged.yard.catalog, judged.store)
    [number] = benchmarks.create(judged.store, [new])
    return judged.claimed(number)


def through(judged: Judged, run: BenchmarkRun) -> RunEnd:
    """How it ends, its questions answered."""
    assert pairwise.advance(judged.yard, run) is None
    run = benchmarks.get(judged.store, run.id)
    assert run.batch_id is not None
    assert pairwise.advance(judged.yard, run) is None, "while its batch is open"
    judged.answer(run.batch_id)
    end = pairwise.advance(judged.yard, benchmarks.get(judged.store, run.id))
    assert end is not None
    return end


def prefers_good(prompt: str) -> str:
    first, second = parts(prompt)["first-answer"], parts(prompt)["second-answer"]
    better = "tie" if first[:3] == second[:3] else "first" if first.startswith("good") else "second"
    return verdict(better=better)


def test_the_better_answers_win_in_both_orders(judged: Judged) -> None:
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", GOOD)
    judged.says(prefers_good)
    run = compared(judged, a, b)
    end = through(judged, run)
    assert end.state is RunState.SUCCEEDED
    report = end.report or {}
    assert (report["judge"], report["a"]["deployment"], report["b"]["deployment"]) == ("judge", "one", "two")
    whole = report["whole"]
    assert (whole["pairs"], whole["judged"], whole["wins_a"], whole["wins_b"], whole["ties"]) == (4, 4, 0, 4, 0)
    assert whole["swaps"]["consistent"]["value"] == 1
    assert whole["b"]["low"] > 0.5
    assert {name: found["wins_b"] for name, found in report["categories"].items()} == {"chat": 2, "code": 2}
    assert (report["without_verdict"], report["faults"]) == (0, {})
    kept = judged.store.fetch("SELECT item_id, category, forward, swapped FROM preference ORDER BY item_id")
    assert kept == [(f"q{n}", "code" if n % 2 else "chat", "b", "b") for n in range(4)]
    judged.finish(run, end)


def test_its_questions_are_a_batch_of_the_benchmark_tenants_and_billed_to_it(judged: Judged) -> None:
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", GOOD)
    judged.says(prefers_good)
    run = compared(judged, a, b)
    end = through(judged, run)
    batch = benchmarks.get(judged.store, run.id).batch_id
    owner = judged.store.fetch(
        "SELECT t.name, b.tier, b.total FROM batch b JOIN tenant t ON t.id = b.tenant_id WHERE b.id = %(id)s",
        {"id": batch},
    )
    assert owner == [(BENCHMARK_TENANT, "bulk", 8)]
    assert judged.store.fetch("SELECT DISTINCT deployment FROM job WHERE batch_id = %(id)s", {"id": batch}) == [
        ("judge",)
    ]
    [[billed]] = judged.store.fetch("SELECT sum(cost_usd) FROM ledger WHERE batch_id = %(id)s", {"id": batch})
    assert billed > 0
    assert (end.report or {})["cost_usd"] == str(billed)
    assert sorted(parts(prompt)["question-user"] for prompt in judged.prompts) == sorted(
        2 * [f"Question {n}?" for n in range(4)]
    )


def test_a_judge_that_prefers_the_first_answer_always_finds_no_winner(judged: Judged) -> None:
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", GOOD)
    judged.says(lambda _: verdict(better="first"))
    end = through(judged, compared(judged, a, b))
    whole = (end.report or {})["whole"]
    assert whole["swaps"]["consistent"]["value"] == 0
    assert (whole["swaps"]["prefers_first"], whole["ties"], whole["better"]) == (4, 4, "tie")
    assert "do not rest on it" in (end.report or {})["says"][-1]


def test_verdicts_that_cannot_be_read_are_errors_and_count_nowhere(judged: Judged) -> None:
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", GOOD)
    judged.says(lambda prompt: "I like both" if "Question 1?" in prompt else prefers_good(prompt))
    end = through(judged, compared(judged, a, b))
    report = end.report or {}
    assert (report["whole"]["judged"], report["whole"]["wins_b"], report["without_verdict"]) == (3, 3, 2)
    [fault] = report["faults"]
    assert "no JSON" in fault
    assert judged.store.fetch("SELECT forward, swapped FROM preference WHERE item_id = 'q1'") == [(None, None)]


def test_a_judge_without_any_verdict_fails_the_comparison(judged: Judged) -> None:
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", GOOD)
    judged.says(lambda _: "no")
    end = through(judged, compared(judged, a, b))
    assert end.state is RunState.FAILED
    assert "no two verdicts on any item" in (end.why or "")


def test_only_items_that_both_have_answered_are_compared(judged: Judged) -> None:
    a = judged.quality_run("one", BAD | {"q0": None})
    b = judged.quality_run("two", {name: text for name, text in GOOD.items() if name != "q1"})
    judged.says(prefers_good)
    end = through(judged, compared(judged, a, b))
    assert (end.report or {})["whole"]["pairs"] == 2


@pytest.mark.parametrize(("subject", "pinned"), [("judge", None), ("twin", None), ("gone", "test/judge@1#abc")])
def test_a_model_does_not_judge_itself(judged: Judged, subject: str, pinned: str | None) -> None:
    """By its name, by its model at its revision, and by what it was when it answered."""
    a, b = judged.quality_run("one", BAD), judged.quality_run(subject, GOOD, pinned=pinned)
    end = pairwise.advance(judged.yard, compared(judged, a, b))
    assert end is not None
    assert end.state is RunState.FAILED
    assert (end.why or "").startswith("a model does not judge itself")
    assert make.count(judged.store, "batch") == 0


def test_runs_on_other_sets_are_refused(judged: Judged) -> None:
    other = GoldenSet("sea", (Item(id="q0", category="chat", prompt="Why?", criteria="Is kind."),))
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", {"q0": "x"}, items=other)
    with pytest.raises(RequestError):
        compared(judged, a, b)
    [number] = benchmarks.create(judged.store, [NewRun(RunKind.PAIRWISE, "one", {"a": a.id, "b": b.id})])
    end = pairwise.advance(judged.yard, judged.claimed(number))
    assert end is not None
    assert "not of one golden set" in (end.why or "")


@pytest.mark.parametrize("spec", [{}, {"a": 1}, {"a": "x", "b": 2}, {"a": 999_999, "b": 999_999}])
def test_a_spec_that_names_no_runs_fails(judged: Judged, spec: dict[str, object]) -> None:
    [number] = benchmarks.create(judged.store, [NewRun(RunKind.PAIRWISE, "one", spec)])
    end = pairwise.advance(judged.yard, judged.claimed(number))
    assert end is not None
    assert end.state is RunState.FAILED


def test_without_a_judge_nothing_is_compared(judged: Judged) -> None:
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", GOOD)
    catalog = judged.yard.catalog
    alone = catalog.model_copy(update={"benchmarks": Benchmarks()})
    with pytest.raises(RequestError, match=r"benchmarks\.judge"):
        asked_runs(PairwiseAsk(kind="pairwise", a=a.public_id, b=b.public_id), alone, judged.store)


def test_a_cancelled_comparison_cancels_its_batch(judged: Judged) -> None:
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", GOOD)
    run = compared(judged, a, b)
    assert pairwise.advance(judged.yard, run) is None
    end = pairwise.advance(judged.yard, benchmarks.cancel(judged.store, run.id))
    assert end is not None
    assert end.state is RunState.CANCELLED
    assert make.count(judged.store, "batch", "cancelling_at IS NOT NULL") == 1


def test_a_process_that_has_lost_the_run_asks_nothing(judged: Judged) -> None:
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", GOOD)
    run = compared(judged, a, b)
    judged.store.fetch("UPDATE benchmark SET fence = fence + 1 WHERE id = %(id)s RETURNING id", {"id": run.id})
    with pytest.raises(ConflictError):
        pairwise.advance(judged.yard, run)
    assert make.count(judged.store, "batch") == 0


def test_a_comparison_that_was_taken_over_is_told_the_same(judged: Judged) -> None:
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", GOOD)
    judged.says(prefers_good)
    run = compared(judged, a, b)
    first = through(judged, run)
    again = pairwise.advance(judged.yard, benchmarks.get(judged.store, run.id))
    assert again is not None
    assert again.report == first.report
    assert make.count(judged.store, "preference") == 4


def test_answers_come_in_the_order_of_their_lines(judged: Judged) -> None:
    a, b = judged.quality_run("one", BAD), judged.quality_run("two", GOOD)
    judged.says(prefers_good)
    run = compared(judged, a, b)
    through(judged, run)
    batch = benchmarks.get(judged.store, run.id).batch_id or 0
    found = questions.answers(judged.store, batch)
    assert found is not None
    assert [(answer.job_id, answer.line_no) for answer in found] == [(batch + n, n) for n in range(1, 9)]
    assert all(answer.answered and answer.cost_usd > 0 and answer.latency_ms is not None for answer in found)
