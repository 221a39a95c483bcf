"""What a classification run has come to: its counts and cost, and where the truth is known how good it was."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tieryard.cli.classify_progress import span
from tieryard.cli.classify_run import Outcome
from tieryard.cli.printing import shown_time
from tieryard.cli.tables import FittedTable, printable, table

if TYPE_CHECKING:
    from tieryard.bench.stats import Interval
    from tieryard.classification.evaluation import Evaluation, LabelScore

_MOST_LABELS = 40  # of a table: beyond, those with the lowest F1
_FEW_LABELS = 20
_MOST_CONFUSIONS = 5
_FEW_ROWS = 30  # of a label: fewer say little of it


def show(
    console: Console, run: Mapping[str, Any], outcome: Outcome, made: Evaluation | None, seconds: float | None
) -> None:
    """All of it. `seconds` since the command began to wait."""
    took = f" in {span(seconds)}" if seconds is not None else ""
    why = f" ({run['why']})" if run.get("why") else ""
    _say(console, f"{run['id']} is {run['state']}{why}{took}: ${run['cost_usd']}", style="bold")
    _say(console, _rows(run, outcome))
    for said in decided(run):
        _say(console, said)
    for error, n in sorted(outcome.errors.items(), key=lambda item: -item[1])[:_MOST_CONFUSIONS]:
        _say(console, f"{n:,} without an answer: {error}")
    if outcome.models:
        console.print(_models(outcome, made))
    if made is not None:
        _show_evaluation(console, made)
    if outcome.shown:
        _say(console, f"{outcome.shown:,} of the rows are examples themselves: the model was shown their labels")


def as_json(
    run: Mapping[str, Any], outcome: Outcome, made: Evaluation | None, files: Mapping[str, str | None]
) -> dict[str, Any]:
    """The same, with every figure. `files` are those that were written."""
    return {
        "run": run,
        "files": files,
        "rows": outcome.rows,
        "answered": outcome.answered,
        "failed": outcome.failed,
        "empty": outcome.empty,
        "shown_as_examples": outcome.shown,
        "errors": outcome.errors,
        "sum_of_row_costs_usd": f"{outcome.cost_usd:f}",
        "models": {
            name: {"rows": int(rows), "mean_confidence": total / known if known else None}
            for name, (rows, known, total) in outcome.models.items()
        },
        "evaluation": _evaluation_json(made) if made is not None else None,
    }


def decided(run: Mapping[str, Any]) -> list[str]:
    """What gate and calibration have said, in their own words."""
    found = (("gate", run.get("gate")), ("threshold", run.get("threshold")))
    return [f"{name}: {one['said']}" for name, one in found if one and one.get("said")]


def runs(found: list[dict[str, Any]]) -> FittedTable:
    """A list of runs."""
    headers = ("run", "made (UTC)", "state", "rows", "done", "USD", "why")
    cells = [
        (
            one["id"],
            shown_time(one["created_at"], "%m-%d %H:%M"),
            one["state"],
            f"{one['counts']['rows']:,}",
            f"{one['counts']['final_rows']:,}",
            one["cost_usd"],
            one["why"] or "",
        )
        for one in found
    ]
    return table(headers, cells, right=("rows", "done", "USD"), folds=("why",))


def one_run(console: Console, run: Mapping[str, Any]) -> None:
    """A run as it is now."""
    why = f" ({run['why']})" if run.get("why") else ""
    _say(console, f"{run['id']}: {run['state']}{why}, ${run['cost_usd']}", style="bold")
    counts = run["counts"]
    left = f", {span(run['eta_s'])} left" if run.get("eta_s") is not None else ""
    pace = f"; {run['rate']:,.1f}/s{left}" if run["state"] in ("receiving", "running") else ""
    _say(console, f"{counts['final_rows']:,} of {counts['rows']:,} rows have their answer{pace}")
    for said in decided(run):
        _say(console, said)


def _rows(run: Mapping[str, Any], outcome: Outcome) -> str:
    counts = run["counts"]
    parts = [f"{outcome.rows:,} rows", f"{counts['unique']:,} distinct texts"]
    parts += [f"{counts['asked']:,} questions"] if counts["asked"] != counts["unique"] else []
    parts += [f"{counts['escalated']:,} to the larger model"] if counts["escalated"] else []
    parts += [f"{outcome.failed:,} without an answer"] if outcome.failed else []
    parts += [f"{outcome.empty:,} without a text"] if outcome.empty else []
    return ", ".join(parts)


def _models(outcome: Outcome, made: Evaluation | None) -> FittedTable:
    """By model: how many rows it answered, how sure it was, and how often right."""
    scores = {one.model: one for one in made.models} if made is not None else {}
    total = sum(rows for rows, _, _ in outcome.models.values())
    headers = ("model", "rows", "share", "mean confidence", *(("with truth", "accuracy") if made is not None else ()))
    rows = []
    for name, (n, known, confidence) in sorted(outcome.models.items(), key=lambda item: -item[1][0]):
        score = scores.get(name)
        judged = (f"{score.rows:,}", _interval(score.accuracy)) if score is not None else ("–", "–")
        sure = f"{confidence / known:.3f}" if known else "–"
        rows.append((name, f"{n:,}", f"{n / total:.1%}", sure, *(judged if made is not None else ())))
    return table(headers, rows, right=headers[1:], folds=("model",))


def _show_evaluation(console: Console, made: Evaluation) -> None:
    share = made.accuracy
    _say(
        console,
        f"accuracy {share.value:.1%} (95 % interval {share.low:.1%}–{share.high:.1%}), {made.right:,} of {made.rows:,} "
        f"rows right" + (f"; {made.unanswered:,} without an answer count as wrong" if made.unanswered else ""),
        style="bold",
    )
    between = made.macro_f1_interval
    ends = f" (95 % interval {between.low:.3f}–{between.high:.3f})" if between is not None else ""
    _say(console, f"macro F1 {made.macro_f1:.3f}{ends} over {len(made.labels)} labels")
    shown = list(made.labels)
    if len(shown) > _MOST_LABELS:
        shown = sorted(shown, key=lambda one: (one.f1, -one.rows))[:_FEW_LABELS]
        _say(console, f"the {_FEW_LABELS} labels with the lowest F1, of {len(made.labels)}; --json has all:")
    console.print(_labels(shown))
    few = sum(one.rows < _FEW_ROWS for one in made.labels)
    if few:
        _say(console, f"{few} of the labels have fewer than {_FEW_ROWS} rows: mind their intervals")
    for (truth, answer), n in _confused(made):
        _say(console, f"{n:,} × {truth} taken for {answer}")


def _labels(scores: list[LabelScore]) -> FittedTable:
    headers = ("label", "rows", "answered", "precision", "recall", "F1")
    rows = [
        (
            one.name,
            f"{one.rows:,}",
            f"{one.answered:,}",
            _interval(one.precision),
            _interval(one.recall),
            f"{one.f1:.3f}",
        )
        for one in scores
    ]
    return table(headers, rows, right=headers[1:], folds=("label",))


def _confused(made: Evaluation) -> list[tuple[tuple[str, str], int]]:
    """What is taken most often for what."""
    wrong = [((truth, answer), n) for (truth, answer), n in made.confusion.items() if answer is not None]
    return sorted((one for one in wrong if one[0][0] != one[0][1]), key=lambda one: -one[1])[:_MOST_CONFUSIONS]


def _interval(found: Interval | None) -> str:
    return "–" if found is None else f"{found.value:.1%} ({found.low * 100:.1f}–{found.high * 100:.1f})"


def _evaluation_json(made: Evaluation) -> dict[str, Any]:
    return {
        "rows": made.rows,
        "right": made.right,
        "unanswered": made.unanswered,
        "accuracy": _ends(made.accuracy),
        "macro_f1": _ends(made.macro_f1_interval) or {"value": made.macro_f1},
        "labels": [
            {
                "label": one.name,
                "rows": one.rows,
                "answered": one.answered,
                "right": one.right,
                "precision": _ends(one.precision),
                "recall": _ends(one.recall),
                "f1": one.f1,
            }
            for one in made.labels
        ],
        "models": [
            {"model": one.model, "rows": one.rows, "right": one.right, "accuracy": _ends(one.accuracy)}
            for one in made.models
        ],
        "confusion": [
            {"truth": truth, "answer": answer, "rows": n}
            for (truth, answer), n in sorted(made.confusion.items(), key=lambda item: -item[1])
        ],
    }


def _ends(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}


def usd(amount: Decimal) -> str:
    """To a cent, or to two digits of what is less."""
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return f"${amount:.{1 - amount.adjusted()}f}"


def _say(console: Console, text: str, **style: Any) -> None:
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True, **style)
