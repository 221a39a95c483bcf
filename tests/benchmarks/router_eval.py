"""`make router-eval`: what the learned quality model is worth on prompts that it never saw, held to its targets.

Reads ../shared/data/routing, writes build/router-eval.json, prints a table; exits with 1 where a target is missed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from tieryard.cli.tables import table
from tieryard.learning.evaluation import Evaluation, evaluate
from tieryard.learning.tables import Table, read_table

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "routing"
OUT = ROOT / "build" / "router-eval.json"
TARGETS = {"MMLU": 0.68, "GSM8K": 0.66, "ulab": 0.72, "MMLU, unseen subjects": 0.65}
COST_TARGET = 0.40  # for 95 % of the large model's quality
PRICES = (1.0, 3.0, 10.0)
# The target is held to the first; the other has the weakest 7B model as its small one.
TIERS = {
    "three tiers, Qwen small": ("qwen2.5-7b-instruct", "gemma-2-9b-it", "llama-3.1-nemotron-51b-instruct"),
    "three tiers, Mistral small": ("mistral-7b-instruct-v0.3", "gemma-2-9b-it", "llama-3.1-nemotron-51b-instruct"),
}
_JOBS = min(os.cpu_count() or 1, 8)


def main() -> int:
    if not DATA.is_dir():
        print(f"no data: {DATA} is absent", file=sys.stderr)
        return 1
    began = time.monotonic()
    made = _evaluations(Console(stderr=True))
    missed = _missed(made)
    seconds = round(time.monotonic() - began, 1)
    report = {"seconds": seconds, "targets": TARGETS, "cost_target": COST_TARGET, "missed": missed}
    report["tables"] = {name: one.as_dict() for name, one in made.items()}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    _show(Console(), made)
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed else 0


def _evaluations(console: Console) -> dict[str, Evaluation]:
    routellm = read_table(
        DATA / "dev_routellm.csv", {"weak": "weak", "strong": "strong"}, category="task", group="source"
    )
    pair = {"mistral-7b-instruct-v0.3": "weak", "llama-3.1-nemotron-51b-instruct": "strong"}
    mmlu = _only(routellm, "rl_mmlu")
    tables: dict[str, tuple[Table, int]] = {
        "MMLU": (mmlu, 10),
        "GSM8K": (_only(routellm, "rl_gsm8k"), 10),
        "ulab": (read_table(DATA / "dev_ulab.csv", pair, category="task"), 5),
        # A subject that training never saw has no entry of its own, so the category would change nothing here.
        "MMLU, unseen subjects": (
            Table(mmlu.source, mmlu.prompts, mmlu.scores, None, mmlu.categories),
            len(set(mmlu.categories or ())),
        ),
    }
    made = {}
    with console.status("training on every fold") as status:
        for name, (rows, folds) in tables.items():
            status.update(f"{name}: {folds} folds")
            made[name] = evaluate(rows, weak="weak", strong="strong", many_folds=folds, jobs=_JOBS)
        for name, models in TIERS.items():
            status.update(name)
            rows = read_table(DATA / "dev_ulab.csv", {model: model for model in models}, category="task")
            made[name] = evaluate(rows, weak=models[0], strong=models[-1], many_folds=5, prices=PRICES, jobs=_JOBS)
    return made


def _only(whole: Table, source: str) -> Table:
    assert whole.groups is not None
    assert whole.categories is not None
    rows = [row for row, group in enumerate(whole.groups) if group == source]
    return Table(
        whole.source,
        [whole.prompts[row] for row in rows],
        {name: [scores[row] for row in rows] for name, scores in whole.scores.items()},
        [whole.categories[row] for row in rows],
    )


def _missed(made: dict[str, Evaluation]) -> list[str]:
    """Below a target, the figure and its interval."""
    below = [
        f"{name}: APGR {figure} < {target:.2f}"
        for name, target in TARGETS.items()
        if (figure := made[name].curves["learned"].apgr).value < target
    ]
    for name in list(TIERS)[:1]:
        trade = made[name].trade
        assert trade is not None
        if trade.cost_at_95 is None or trade.cost_at_95 > COST_TARGET:
            below.append(f"{name}: 95 % of the quality at {trade.cost_at_95} of the cost > {COST_TARGET:.2f}")
    return below


def _show(console: Console, made: dict[str, Evaluation]) -> None:
    headers = ("table", "router", "APGR", "95 %", "CPT50", "CPT80")
    rows: list[tuple[str, ...]] = []
    for name, one in made.items():
        for router, c in one.curves.items():
            apgr = c.apgr
            spread = f"{apgr.low:.3f}–{apgr.high:.3f}"
            rows.append((name, router, f"{apgr.value:.3f}", spread, f"{c.cpt50.value:.0%}", f"{c.cpt80.value:.0%}"))
            name = ""
    console.print(table(headers, rows, right=headers[2:], folds=("table",)))
    for name, one in made.items():
        if one.trade is not None:
            costs: list[Any] = [one.trade.cost_at_95, one.trade.cost_at_100]
            said = " and ".join("not reached" if cost is None else f"{cost:.1%}" for cost in costs)
            console.print(
                f"{name}: 95 % and 100 % of {one.trade.best}'s quality at {said} of its cost", highlight=False
            )


if __name__ == "__main__":
    sys.exit(main())
