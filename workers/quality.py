"""Receives a quality run that is ours, again and again. Asks a golden set's questions as a batch, scores the answers,
has a judge score those for which no rule can tell, and reports by category. All that it has done is in Postgres.
Next: `workers/benchmark.py` finishes the run, and its profiles are what `workers/classify.py` decides by."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tieryard.catalog import Catalog
from tieryard.golden import GoldenSet, Item, advice, score
from tieryard.golden.judge import VerdictError, judge_prompt, read_verdict
from tieryard.golden.report import by_category, figures, profiles
from tieryard.golden.saving import load
from tieryard.profiles import Observed
from tieryard.store import batches, benchmarks, golden, questions
from tieryard.store.benchmarks import BenchmarkRun, RunEnd, RunState
from tieryard.store.golden import ItemScore
from tieryard.store.questions import Answer
from workers.questions import ask, hurry, self_judged
from workers.yard import Yard

SEED = 0
"""Of all questions, at temperature 0: what differs between two runs is the model."""

_SCORING_S = 4.0  # of one step; what is left is scored in the next
_NO_JUDGE = "no judge: the item has criteria and no scorer, and the catalog no benchmarks.judge"
_SELF_JUDGED = "a model does not judge itself: {judge} is {subject}, or the same model; name another benchmarks.judge"


@dataclass(frozen=True, slots=True)
class _Asked:
    """An item with what became of its question."""

    item: Item
    answer: Answer

    @property
    def needs_judge(self) -> bool:
        return self.item.scorer is None and self.answer.answered

    def scored(self, value: float | None, why: str, **more: Any) -> ItemScore:
        item, answer = self.item, self.answer
        latency_ms = (answer.latency_ms or 0.0) if answer.answered else None
        whose = (item.id, item.category, item.input_hash, answer.job_id)
        return ItemScore(*whose, value, why, latency_ms=latency_ms, cost_usd=answer.cost_usd, **more)


def advance(yard: Yard, run: BenchmarkRun) -> RunEnd | None:
    """One step, of a few seconds at most: how the run ended, None while it has not. Raises ConflictError when the run
    is not ours any more, StoreError when Postgres is away."""
    if run.cancelling:
        return _ended(yard, run, RunState.CANCELLED, "cancelled while it ran")
    if run.pinned is not None and run.pinned != _build(yard.catalog, run.deployment):
        why = f"the catalog has changed what '{run.deployment}' is while it ran: run it again"
        return _ended(yard, run, RunState.FAILED, why)
    found = questions.answers(yard.store, run.batch_id) if run.batch_id is not None else None
    if found is None and run.batch_id is not None:
        return None
    made = load(yard.store, golden.get_set(yard.store, run.golden_set_id or 0))
    if found is None:
        return _ask(yard, run, made)
    scored = golden.scores(yard.store, run.id)
    known = {one.item_id for one in scored}
    asked = [_Asked(item, answer) for item, answer in zip(made.items, found, strict=True) if item.id not in known]
    if not asked:
        return _report(yard, run, made, scored)
    if by_rule := [one for one in asked if not one.needs_judge]:
        _score(yard, run, by_rule)
        return None
    if run.report is None:
        return _ask_judge(yard, run, asked)
    _hear_judge(yard, run, asked)
    return None


def tell(yard: Yard, run: BenchmarkRun, end: RunEnd) -> None:
    """Moves the deployment's live quality by what was measured. Raises redis.RedisError."""
    for category, found in end.profiles.items():
        seen = Observed(n=int(found["n"]), quality_score=float(found["quality_score"]))
        yard.metrics.observe(run.deployment, category, seen)


def _ask(yard: Yard, run: BenchmarkRun, made: GoldenSet) -> RunEnd | None:
    """The set's questions as a batch, and its id at the run: both or neither."""
    if (fault := _refusal(yard.catalog, run.deployment, made)) is not None:
        return RunEnd(RunState.FAILED, fault)
    with yard.store.transaction() as connection:
        batch_id = ask(connection, yard, run.deployment, [_question(item) for item in made.items])
        benchmarks.attach_batch(connection, run, batch_id, pinned=_build(yard.catalog, run.deployment))
    hurry(yard)
    return None


def _refusal(catalog: Catalog, subject: str, made: GoldenSet) -> str | None:
    spec = catalog.deployments.get(subject)
    if spec is None:
        return f"the catalog in force has no deployment '{subject}'"
    if spec.serves != "text":
        return f"'{subject}' serves {spec.serves}; golden sets are for deployments that serve text"
    judge = catalog.benchmarks.judge
    if judge is None or all(item.scorer is not None for item in made.items):
        return None
    name = judge.deployment
    return _SELF_JUDGED.format(judge=name, subject=subject) if self_judged(catalog, name, subject) else None


def _question(item: Item) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": item.conversation, "category": item.category, "custom_id": item.id}
    for name in ("max_tokens", "response_format"):
        if (value := getattr(item, name)) is not None:
            body[name] = value
    return body | {"temperature": 0.0, "seed": SEED}


def _score(yard: Yard, run: BenchmarkRun, asked: Sequence[_Asked]) -> None:
    """By the items' own scorers, as many as a few seconds allow. A failed question has no score, whatever was asked:
    that is the engine's fault, and its reason stands beside it."""
    until = time.monotonic() + _SCORING_S
    done: list[ItemScore] = []
    for one in asked:
        if not one.answer.answered:
            done.append(one.scored(None, one.answer.fault))
            continue
        found = score(one.item, one.answer.output or "")
        done.append(one.scored(found.value, found.why, counts=list(found.counts) if found.counts else None))
        if time.monotonic() > until:
            break
    golden.save_scores(yard.store, run, done)


def _ask_judge(yard: Yard, run: BenchmarkRun, asked: Sequence[_Asked]) -> RunEnd | None:
    """A second batch, of the answers that no rule can score. Its id, and who is asked about which item in which line,
    are noted in the run's report until there is one."""
    judge = yard.catalog.benchmarks.judge
    if judge is None:
        golden.save_scores(yard.store, run, [one.scored(None, _NO_JUDGE) for one in asked])
        return None
    name = judge.deployment
    if self_judged(yard.catalog, name, run.deployment):
        return RunEnd(RunState.FAILED, _SELF_JUDGED.format(judge=name, subject=run.deployment))
    constrained = "json_schema" in yard.catalog.deployments[name].capabilities
    bodies = [
        judge_prompt(one.item, one.answer.output or "", constrained=constrained) | {"seed": SEED} for one in asked
    ]
    with yard.store.transaction() as connection:
        batch_id = ask(connection, yard, name, bodies)
        note = {"judge": name, "batch": batch_id, "items": [one.item.id for one in asked]}
        benchmarks.note(connection, run, {"judging": note})
    hurry(yard)
    return None


def _hear_judge(yard: Yard, run: BenchmarkRun, asked: Sequence[_Asked]) -> None:
    """Saves the verdicts, once all are there. What is no verdict is an error, and no score."""
    note = (run.report or {})["judging"]
    verdicts = questions.answers(yard.store, note["batch"])
    if verdicts is None:
        return
    said = dict(zip(note["items"], verdicts, strict=True))
    judged = [_judged(one, said.get(one.item.id), note["judge"]) for one in asked]
    golden.save_scores(yard.store, run, judged)


def _judged(one: _Asked, verdict: Answer | None, judge: str) -> ItemScore:
    if verdict is None or not verdict.answered:
        return one.scored(None, f"the judge: {verdict.fault if verdict else 'was not asked'}", judge=judge)
    try:
        found = read_verdict(verdict.output or "")
    except VerdictError as error:
        return one.scored(None, f"no verdict: {error}", judge=judge)
    return one.scored(found.score, found.reason, judge=judge)


def _report(yard: Yard, run: BenchmarkRun, made: GoldenSet, scores: Sequence[ItemScore]) -> RunEnd:
    report = {
        "golden_set": made.name,
        "hash": made.hash,
        "whole": figures(scores),
        "categories": {category: figures(among) for category, among in by_category(scores).items()},
        "advice": advice(made),
        **_judging_of(yard, run),
    }
    if not any(one.score is not None for one in scores):
        reasons = "; ".join(f"{why} ({n})" for why, n in report["whole"]["unscored"].items())
        return RunEnd(RunState.FAILED, f"none of {len(scores)} items has a score: {reasons}", report)
    found = profiles(scores, made.name)
    end = RunEnd(RunState.SUCCEEDED, report=report, measured_at=datetime.now(tz=UTC), profiles=found)
    return replace(end, pinned=run.pinned)


def _judging_of(yard: Yard, run: BenchmarkRun) -> dict[str, Any]:
    note = (run.report or {}).get("judging")
    if note is None:
        return {"judge": None}
    asked = questions.answers(yard.store, note["batch"]) or []
    cost_usd = sum((verdict.cost_usd for verdict in asked), Decimal(0))
    return {"judge": note["judge"], "judge_cost_usd": f"{cost_usd:f}"}


def _build(catalog: Catalog, deployment: str) -> str | None:
    known = catalog.deployments.get(deployment)
    return known.build if known is not None else None


def _ended(yard: Yard, run: BenchmarkRun, state: RunState, why: str) -> RunEnd:
    """Its batches end too: what waits is never asked, what runs is stopped."""
    note = (run.report or {}).get("judging")
    for batch_id in (run.batch_id, note["batch"] if note is not None else None):
        if batch_id is not None:
            batches.cancel(yard.store, batch_id)
    return RunEnd(state, why)
