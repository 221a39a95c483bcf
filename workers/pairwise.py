"""A comparison of two quality runs: a judge sees both answers to each item, in both orders, and says which is better.

All its state is in Postgres: the batch of questions, whose lines follow from the two runs, and the preferences. Its
spec names the runs and the judge, `{"a": id, "b": id, "judge": deployment}`; without a judge it is the catalog's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from tieryard.bench.preferences import Judged, by_category, sentences, tally
from tieryard.bench.stats import Preference
from tieryard.catalog import Catalog
from tieryard.errors import NotFoundError
from tieryard.golden.items import Item
from tieryard.golden.judge import Place, VerdictError, pair_prompt, read_preference
from tieryard.ids import public
from tieryard.store import batches, benchmarks, preferences, questions
from tieryard.store.benchmarks import KIND, BenchmarkRun, RunEnd, RunKind, RunState
from tieryard.store.preferences import Pair, Preferred
from tieryard.store.questions import Answer
from workers.questions import ask, hurry, self_judged
from workers.yard import Yard

_FORWARD: dict[Place, Preference] = {"first": "a", "second": "b", "tie": "tie"}
_SWAPPED: dict[Place, Preference] = {"first": "b", "second": "a", "tie": "tie"}
_MOST_FAULTS = 5  # kinds of them, in the report


class _UnfitError(Exception):
    """Why the two cannot be compared."""


def advance(yard: Yard, run: BenchmarkRun) -> RunEnd | None:
    """A step of a comparison that is ours: how it ended, None while it waits for its batch. Raises ConflictError when
    it is another worker's by now."""
    if run.cancelling:
        return _ended(yard, run, RunState.CANCELLED, "cancelled while it ran")
    said: list[Answer] | None = None
    if run.batch_id is not None and (said := questions.answers(yard.store, run.batch_id)) is None:
        return None
    try:
        a, b = _compared(yard, run)
        judge = _judge(yard.catalog, run, a, b)
    except _UnfitError as error:
        return _ended(yard, run, RunState.FAILED, str(error))
    assert a.golden_set_id is not None
    pairs = preferences.pairs(yard.store, a.id, b.id, golden_set_id=a.golden_set_id)
    if not pairs:
        return RunEnd(RunState.FAILED, f"{a.public_id} and {b.public_id} have no item that both answered")
    if said is None:
        _ask(yard, run, judge, pairs)
        return None
    return _conclude(yard, run, judge, (a, b), pairs, said)


def _ended(yard: Yard, run: BenchmarkRun, state: RunState, why: str) -> RunEnd:
    """Before its batch was over: whatever of that waits is not to be asked any more."""
    if run.batch_id is not None:
        batches.cancel(yard.store, run.batch_id)
    return RunEnd(state, why)


def _compared(yard: Yard, run: BenchmarkRun) -> tuple[BenchmarkRun, BenchmarkRun]:
    """The two quality runs. Raises _UnfitError."""
    found = []
    for side in ("a", "b"):
        number = run.spec.get(side)
        if not isinstance(number, int):
            raise _UnfitError(f"its spec names no run as '{side}'")
        try:
            one = benchmarks.get(yard.store, number)
        except NotFoundError as error:
            raise _UnfitError(error.message) from None
        if one.kind != RunKind.QUALITY or one.state != RunState.SUCCEEDED:
            what = f"{one.public_id} is a {one.kind} run that is {one.state}"
            raise _UnfitError(f"{what}: quality runs that succeeded are compared")
        found.append(one)
    a, b = found
    if a.id == b.id:
        raise _UnfitError(f"{a.public_id} cannot be compared with itself")
    if a.golden_set_id is None or a.golden_set_id != b.golden_set_id:
        raise _UnfitError(f"{a.public_id} and {b.public_id} are not of one golden set")
    return a, b


def _judge(catalog: Catalog, run: BenchmarkRun, *subjects: BenchmarkRun) -> str:
    """The deployment that compares them. Raises _UnfitError where it cannot."""
    named = catalog.benchmarks.judge
    judge = run.spec.get("judge") or (named.deployment if named is not None else None)
    if judge not in catalog.deployments:
        raise _UnfitError(f"its judge '{judge}' is no deployment of the catalog in force: name one in benchmarks.judge")
    for subject in subjects:
        if self_judged(catalog, judge, subject.deployment, subject.pinned):
            raise _UnfitError(
                f"a model does not judge itself: {subject.public_id} is of '{subject.deployment}', and the judge is "
                f"'{judge}' ({catalog.deployments[judge].pinned})"
            )
    return str(judge)


def _ask(yard: Yard, run: BenchmarkRun, judge: str, pairs: Sequence[Pair]) -> None:
    """Two lines for each item: a's answer first, then b's."""
    constrained = "json_schema" in yard.catalog.deployments[judge].capabilities
    bodies: list[dict[str, Any]] = []
    for pair in pairs:
        item = Item.model_validate_json(pair.item)
        bodies.append(pair_prompt(item, pair.a, pair.b, constrained=constrained))
        bodies.append(pair_prompt(item, pair.b, pair.a, constrained=constrained))
    with yard.store.transaction() as connection:
        benchmarks.attach_batch(connection, run, ask(connection, yard, judge, bodies))
    hurry(yard)


def _conclude(
    yard: Yard,
    run: BenchmarkRun,
    judge: str,
    runs: tuple[BenchmarkRun, BenchmarkRun],
    pairs: Sequence[Pair],
    said: Sequence[Answer],
) -> RunEnd:
    by_line = {answer.line_no: answer for answer in said}
    faults: Counter[str] = Counter()
    found = []
    for place, pair in enumerate(pairs):
        forward, swapped = (_read(by_line.get(2 * place + turn), faults) for turn in (1, 2))
        mine = None if forward is None else _FORWARD[forward]
        other = None if swapped is None else _SWAPPED[swapped]
        found.append(Preferred(pair.item_id, pair.category, mine, other))
    preferences.save(yard.store, run.id, found)
    report = {
        "judge": judge,
        **_report(runs, found, faults),
        "cost_usd": str(sum((answer.cost_usd for answer in said), Decimal(0))),
    }
    if report["whole"]["judged"] == 0:
        most = faults.most_common(1)
        why = f"the judge gave no two verdicts on any item: {most[0][0] if most else 'no answers'}"
        return RunEnd(RunState.FAILED, why, report=report)
    return RunEnd(RunState.SUCCEEDED, report=report)


def _read(answer: Answer | None, faults: Counter[str]) -> Place | None:
    if answer is None or answer.output is None or not answer.answered:
        faults["no answer" if answer is None else answer.fault] += 1
        return None
    try:
        return read_preference(answer.output)
    except VerdictError as error:
        faults[error.message] += 1
        return None


def _report(
    runs: tuple[BenchmarkRun, BenchmarkRun], found: Sequence[Preferred], faults: Counter[str]
) -> dict[str, Any]:
    judged = [Judged(row.category, row.forward, row.swapped) for row in found]
    whole, (a, b) = tally(judged), runs
    return {
        "a": {"benchmark": public(KIND, a.id), "deployment": a.deployment, "pinned": a.pinned},
        "b": {"benchmark": public(KIND, b.id), "deployment": b.deployment, "pinned": b.pinned},
        "whole": asdict(whole) | {"better": whole.better},
        "categories": {name: asdict(one) | {"better": one.better} for name, one in by_category(judged).items()},
        "says": sentences(whole, f"a ({a.deployment})", f"b ({b.deployment})"),
        "without_verdict": sum(faults.values()),
        "faults": dict(faults.most_common(_MOST_FAULTS)),
    }
