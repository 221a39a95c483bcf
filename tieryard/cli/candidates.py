"""A routing decision as a terminal shows it: why, which candidates there were with their figures, and what is not
known of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.text import Text

from tieryard.cli.tables import printable, table

_WIDE = 130
"""Columns, from which on a verdict has room beside the figures."""
_FIGURES = ("tokens", "wait ms", "TTFT ms", "latency ms", "cost USD", "quality", "score")


def show_decision(console: Console, decision: dict[str, Any]) -> None:
    """Of a `DecisionPublic` or `RoutePublic`, without its headline."""
    console.print(f"because {printable(decision['reason'])}", markup=False, highlight=False)
    if decision["fallback"]:
        console.print("an SLO fallback: none qualifies", style="yellow")
    if canary := decision.get("canary"):
        console.print(f"counts for the canary of {printable(canary)}", markup=False, highlight=False)
    if decision["defer_s"]:
        console.print(f"waits {decision['defer_s']:.0f} s, then is routed again", highlight=False)
    if decision["features"]:
        console.print(f"features: {_features(decision)}", markup=False, highlight=False)
        if asked := _asked(decision["features"]):
            console.print(f"asks: {asked}", markup=False, highlight=False)
    if decision["candidates"]:
        _show_candidates(console, decision["candidates"])
    if decision["step_back"]:
        console.print(f"the rules decide: {printable(decision['step_back'])}", markup=False, highlight=False)
    for note in decision["notes"]:
        console.print(f"– {printable(note)}", markup=False, highlight=False)


def _show_candidates(console: Console, candidates: list[dict[str, Any]]) -> None:
    """Where the terminal is narrow, verdicts stand below the figures."""
    rows = [_row(candidate) for candidate in candidates]
    headers = ("candidate", *_FIGURES, "verdict")
    if console.width >= _WIDE:
        console.print(table(headers, rows, right=_FIGURES, folds=("candidate", "verdict")))
        return
    console.print(table(headers[:-1], [row[:-1] for row in rows], right=_FIGURES, folds=("candidate",)))
    console.print()
    for row in rows:
        console.print(Text.assemble(f"{row[0]}: ", row[-1]))


def _features(decision: dict[str, Any]) -> str:
    features = decision["features"]
    text = features["text"]
    shown = [f"category {text['category']}"]
    if decision["classifier"] == "learned":
        shown.append("judged by the learned classifier")
    else:
        shown.append(f"wants {text['wanted']} ({text['cue']})")
    shown += [f"{text['words']:,} word{'' if text['words'] == 1 else 's'}", f"max_tokens {features['max_tokens']}"]
    if features.get("needs"):
        shown.append(f"needs {', '.join(features['needs'])}")
    if features.get("due_in_s") is not None:
        shown.append(_due(features["due_in_s"]))
    return printable(", ".join(shown))


def _asked(features: dict[str, Any]) -> str:
    """What the job itself asks; its tier's SLO is in the catalog."""
    bounds = {name: value for name, value in (features.get("bounds") or {}).items() if value is not None}
    share, of = bounds.pop("quality_share", None), bounds.pop("quality_of", None)
    asked = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in bounds.items()]
    if of is not None:
        asked.append(f"min_quality {share:g} of {of}")
    if features.get("max_cost_usd") is not None:
        asked.append(f"max_cost_usd {features['max_cost_usd']}")
    return printable(", ".join(asked))


def _due(due_in_s: float) -> str:
    if due_in_s < 0:
        return f"was due {_time(-due_in_s)} ago"
    return f"due in {_time(due_in_s)}"


def _time(s: float) -> str:
    """In the largest unit of which there are two or more."""
    for unit, length_s in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if s >= 2 * length_s:
            return f"{s / length_s:,.0f} {unit}"
    return f"{s:,.0f} s"


def _row(candidate: dict[str, Any]) -> list[str | Text]:
    verdict = Text("chosen", "bold green") if candidate["chosen"] else Text(printable(candidate["why"]))
    times = [f"{candidate[name]:,.0f}" for name in ("wait_ms", "ttft_ms", "latency_ms")]
    score = "–" if candidate["score"] is None else f"{candidate['score']:.2f}"
    tokens = f"{candidate['prompt_tokens']:,}+{candidate['output_tokens']:,}"
    cost = shown_usd(Decimal(candidate["expected_cost_usd"]))
    return [candidate["name"], tokens, *times, cost, f"{candidate['quality']:.2f}", score, verdict]


def shown_usd(usd: Decimal) -> str:
    """Three significant digits, never an exponent."""
    return f"{Decimal(f'{usd:.3g}'):f}"
