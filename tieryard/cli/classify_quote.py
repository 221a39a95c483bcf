"""`tieryard classify --dry-run`: what a run would ask, cost and take, by a sample of its texts; nothing is asked."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
from rich.console import Console

from tieryard.classification import prompts
from tieryard.classification.survey import Survey
from tieryard.cli.classify_progress import span
from tieryard.cli.classify_reports import usd
from tieryard.cli.client import Client
from tieryard.cli.tables import printable, table
from tieryard.requests.classification import TRUTH, ClassificationSpec

_MOST_BYTES = 16 * 2**20
"""Of a quote's body."""
_MOST_NOTES = 8
_NDJSON = {"content-type": "application/x-ndjson"}
_ENDS = ("low", "expected", "worst")


def estimate(client: Client, spec: ClassificationSpec, survey: Survey) -> dict[str, Any]:
    """What each model would be asked, and all of it together. A cascade's low end is its first model alone; at its
    worst the larger model is asked everything. What is expected of it nobody knows before it has run: `expected` is of
    the first model, with what gate and calibration ask of the other."""
    asked = [_quoted(client, spec, survey, "first", spec.model, survey.texts)]
    sampled = _sampled(spec, survey.texts)
    if spec.gate is not None and spec.gate.judge not in (TRUTH, spec.larger_model):
        asked.append(_quoted(client, spec, survey, "judge", spec.gate.judge, min(spec.gate.rows, survey.texts)))
    if spec.larger_model is not None:
        asked.append(_quoted(client, spec, survey, "larger", spec.larger_model, survey.texts, least=sampled))
    total = {end: sum((Decimal(one["cost_usd"][end]) for one in asked), Decimal(0)) for end in _ENDS}
    return {
        "rows": survey.rows,
        "empty": survey.empty,
        "texts": survey.texts,
        "texts_counted": survey.counted,
        "sampled": asked[0]["sampled"],
        "questions": asked,
        "cost_usd": {end: f"{usd_:f}" for end, usd_ in total.items()},
        "max_cost_usd": f"{spec.max_cost_usd:f}" if spec.max_cost_usd is not None else None,
    }


def _sampled(spec: ClassificationSpec, texts: int) -> int:
    """Texts that the larger model is asked whatever the first one says."""
    of_gate = spec.gate.rows if spec.gate is not None and spec.gate.judge == spec.larger_model else 0
    calibrates = spec.escalate is not None and spec.escalate.calibrate is not None
    of_calibration = spec.escalate.calibrate.rows if calibrates and spec.escalate and spec.escalate.calibrate else 0
    return min(texts, max(of_gate, of_calibration))


def _quoted(
    client: Client,
    spec: ClassificationSpec,
    survey: Survey,
    stage: str,
    model: str,
    texts: int,
    *,
    least: int | None = None,
) -> dict[str, Any]:
    """One model, asked so many texts; `least` of them where the others depend on what the first one says."""
    lines: list[bytes] = []
    size = 0
    for text in survey.drawn[:texts]:
        line = orjson.dumps({**prompts.body(spec, text, model=model, logprobs=False), "tier": spec.tier})
        size += len(line)
        if lines and size > _MOST_BYTES:
            break
        lines.append(line)
    params = {"tier": spec.tier, "sample_of": texts}
    found = client.post("/v1/quotes", content=b"\n".join(lines), headers=_NDJSON, params=params)
    [offer] = found["offers"]
    usd_ = {end: Decimal(offer["cost_usd"][end]) for end in _ENDS}
    if least is not None:
        usd_ |= {end: usd_[end] * least / texts for end in ("low", "expected")}
    return {
        "stage": stage,
        "model": model,
        "quote": found["id"],
        "texts": {"low": texts if least is None else least, "worst": texts},
        "sampled": len(lines),
        "prompt_tokens": found["prompt_tokens"],
        "prompt_tokens_error": found["prompt_tokens_error"],
        "output_tokens": offer["output_tokens"],
        "cost_usd": {end: f"{amount:f}" for end, amount in usd_.items()},
        "finish_s": offer["finish"] and {end: offer["finish"][f"{end}_s"] for end in _ENDS},
        "meets": offer["meets"],
        "missed": offer["missed"],
        "deployments": {share["deployment"]: share["requests"] for share in offer["deployments"]},
        "notes": offer["notes"],
    }


def show(console: Console, found: dict[str, Any]) -> None:
    about = "" if found["texts_counted"] else "about "
    empty = f", {found['empty']:,} without a text" if found["empty"] else ""
    _say(console, f"{found['rows']:,} rows{empty}, {about}{found['texts']:,} distinct texts; nothing was asked")
    headers = ("model", "texts", "prompt tokens", "output", "USD low", "expected", "worst", "done")
    rows = [_row(one) for one in found["questions"]]
    total = ["all", "", "", "", *(usd(Decimal(found["cost_usd"][end])) for end in _ENDS), ""]
    console.print(table(headers, [*rows, total], right=headers[1:], folds=("model",), sections=(len(rows) - 1,)))
    if found["sampled"] < found["texts"]:
        _say(console, f"by a sample of {found['sampled']:,} texts; the range has its sampling error")
    if len(found["questions"]) > 1:
        _say(console, "low: the larger model is asked what gate and calibration need; worst: it is asked everything")
    cap = found["max_cost_usd"]
    if cap is not None and Decimal(cap) < Decimal(found["cost_usd"]["worst"]):
        enough = Decimal(cap) >= Decimal(found["cost_usd"]["expected"])
        _say(console, f"--max-cost {cap} {'covers what is expected, not the worst' if enough else 'will stop it'}")
    for note in list(dict.fromkeys(note for one in found["questions"] for note in _notes(one)))[:_MOST_NOTES]:
        _say(console, f"· {note}")


def _row(one: dict[str, Any]) -> list[str]:
    texts, finish = one["texts"], one["finish_s"]
    n = f"{texts['worst']:,}" if texts["low"] == texts["worst"] else f"{texts['low']:,}–{texts['worst']:,}"
    error = f" ± {2 * one['prompt_tokens_error']:,}" if one["prompt_tokens_error"] else ""
    return [
        one["model"],
        n,
        f"{one['prompt_tokens']:,}{error}",
        f"{one['output_tokens']['expected']:,}",
        *(usd(Decimal(one["cost_usd"][end])) for end in _ENDS),
        span(finish["expected"]) if finish else "–",
    ]


def _notes(one: dict[str, Any]) -> list[str]:
    missed = [f"{one['missed']:,} of the texts would be taken by no deployment"] if one["missed"] else []
    spread = [f"{one['model']} goes to " + ", ".join(f"{name} ({n:,})" for name, n in one["deployments"].items())]
    return [*missed, *(spread if one["model"] not in one["deployments"] and one["deployments"] else []), *one["notes"]]


def _say(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
