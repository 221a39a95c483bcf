"""What `tieryard classify` is asked, as the spec of a run: labels, template and examples from options and files."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tieryard.classification import prompts
from tieryard.classification.survey import truth_of
from tieryard.classification.tables import open_table, text_of
from tieryard.errors import RequestError, UserError
from tieryard.requests.classification import TRUTH, ClassificationSpec
from tieryard.requests.fields import refusal

_LABEL_FILES = (".json", ".yaml", ".yml", ".csv", ".tsv", ".jsonl")
_EXAMPLE_COLUMNS = (("text", "label"), ("text", "labels"), ("prompt", "expected"))
_DEFAULT_GATE_AGREEMENT = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options as they were given; None where one was not."""

    labels: str
    column: str
    multi_label: bool = False
    template: Path | None = None
    examples: Path | None = None
    per_label: int = 2
    model: str = "auto"
    tier: str = "bulk"
    escalate_to: str | None = None
    below: float | None = None
    calibrate: int | None = None
    max_drop: float | None = None
    gate: int | None = None
    judge: str | None = None
    min_agreement: float | None = None
    otherwise: str | None = None
    truth: str | None = None
    max_cost: Decimal | None = None


def spec_of(asked: Asked) -> ClassificationSpec:
    """Raises UserError, by the option at fault."""
    labels = read_labels(asked.labels)
    told: dict[str, Any] = {
        "labels": labels,
        "multi_label": asked.multi_label,
        "template": _read(asked.template) if asked.template is not None else None,
        "examples": _examples(asked, [one["name"] for one in labels]),
        "model": asked.model,
        "tier": asked.tier,
        "escalate": _escalate(asked),
        "gate": _gate(asked),
        "max_cost_usd": asked.max_cost,
    }
    try:
        spec = ClassificationSpec.model_validate(told)
        prompts.check(spec)
    except ValidationError as error:
        raise _by_option(refusal(error)) from None
    except RequestError as error:
        raise _by_option(error) from None
    return spec


def read_labels(given: str) -> list[dict[str, str]]:
    """`a,b,c`, or a file: JSON or YAML with a list of names, of objects with `name` and `description`, or one object of
    descriptions by name; CSV with the columns `name` and, if wanted, `description`."""
    path = Path(given)
    if path.suffix.lower() not in _LABEL_FILES:
        return [{"name": name.strip()} for name in given.split(",") if name.strip()]
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        rows = [row for batch in open_table(path).batches() for row in batch.objects()]
        return [_label(path, number, row) for number, row in enumerate(rows, start=1)]
    try:
        found = YAML(typ="safe", pure=True).load(_read(path)) if path.suffix != ".json" else json.loads(_read(path))
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--labels {path}: cannot be read: {str(error).splitlines()[0]}") from None
    if isinstance(found, dict):
        found = [{"name": name, "description": about} for name, about in found.items()]
    if not isinstance(found, list):
        raise UserError(f"--labels {path}: expected a list of labels, or descriptions by label")
    return [_label(path, number, one) for number, one in enumerate(found, start=1)]


def _label(path: Path, number: int, given: Any) -> dict[str, str]:
    told = given if isinstance(given, dict) else {"name": given}
    name, about = told.get("name"), told.get("description")
    if not isinstance(name, str) or not name.strip() or not isinstance(about, str | None):
        raise UserError(f"--labels {path}: label {number} needs a `name`, and may have a `description`, as text")
    return {"name": name.strip()} | ({"description": about} if about else {})


def _examples(asked: Asked, labels: list[str]) -> list[dict[str, Any]]:
    """The first `per_label` texts of each label, in the order of labels: the same each time."""
    if asked.examples is None:
        return []
    table = open_table(asked.examples)
    found: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for batch in table.batches():
        names = _example_columns(
            asked, table.columns or tuple(dict.fromkeys(k for row in batch.objects() for k in row))
        )
        if names is None:
            raise UserError(f"--examples {asked.examples}: expected the columns text and label, or prompt and expected")
        for text, value in zip(batch.values(names[0]), batch.values(names[1]), strict=True):
            read, answer = text_of(text), truth_of(value, several=asked.multi_label)
            if read is None or not answer:
                continue
            if unknown := next((one for one in answer if one not in labels), None):
                raise UserError(f"--examples {asked.examples}: '{unknown[:100]}' is none of the labels")
            shown = found[answer]
            if len(shown) < asked.per_label:
                shown[read] = None
    by_label = sorted(found.items(), key=lambda item: [labels.index(one) for one in item[0]])
    several = asked.multi_label
    return [
        {"text": text} | ({"labels": list(answer)} if several else {"label": answer[0]})
        for answer, texts in by_label
        for text in texts
    ]


def _example_columns(asked: Asked, columns: tuple[str, ...]) -> tuple[str, str] | None:
    own = [(asked.column, asked.truth)] if asked.truth is not None else []
    return next((pair for pair in [*own, *_EXAMPLE_COLUMNS] if set(pair) <= set(columns)), None)


def _escalate(asked: Asked) -> dict[str, Any] | None:
    if asked.escalate_to is None:
        _refuse_without(asked, ("below", "calibrate", "max_drop"), "--escalate-to")
        return None
    if (asked.below is None) == (asked.calibrate is None):
        raise UserError("--escalate-to: give either --below or --calibrate, which finds the threshold")
    if asked.calibrate is None:
        _refuse_without(asked, ("max_drop",), "--calibrate")
        return {"model": asked.escalate_to, "below": asked.below}
    by = TRUTH if asked.truth is not None else "model"
    drop = {} if asked.max_drop is None else {"max_drop": asked.max_drop}
    return {"model": asked.escalate_to, "calibrate": {"rows": asked.calibrate, "by": by, **drop}}


def _gate(asked: Asked) -> dict[str, Any] | None:
    if asked.gate is None:
        _refuse_without(asked, ("judge", "min_agreement", "otherwise"), "--gate")
        return None
    judge = asked.judge or (TRUTH if asked.truth is not None else asked.escalate_to)
    if judge is None:
        raise UserError("--gate: say who judges: --judge MODEL, or --truth COLUMN")
    if judge == TRUTH and asked.truth is None:
        raise UserError("--judge truth: needs --truth COLUMN")
    has_other = asked.escalate_to is not None or judge != TRUTH
    return {
        "rows": asked.gate,
        "judge": judge,
        "min_agreement": _DEFAULT_GATE_AGREEMENT if asked.min_agreement is None else asked.min_agreement,
        "otherwise": asked.otherwise or ("escalate" if has_other else "stop"),
    }


def _refuse_without(asked: Asked, names: tuple[str, ...], needed: str) -> None:
    for name in names:
        if getattr(asked, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: needs {needed}")


_OPTIONS = {
    "escalate.below": "--below",
    "escalate.model": "--escalate-to",
    "escalate.calibrate.rows": "--calibrate",
    "escalate.calibrate.max_drop": "--max-drop",
    "gate.rows": "--gate",
    "gate.judge": "--judge",
    "gate.min_agreement": "--min-agreement",
    "gate.otherwise": "--otherwise",
    "max_cost_usd": "--max-cost",
}


def _by_option(error: RequestError) -> UserError:
    """The field of the spec as the option that it came by."""
    param = error.param or ""
    option = _OPTIONS.get(param, f"--{param.partition('.')[0].replace('_', '-')}" if param else None)
    return UserError(error.message, param=option)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; save it as UTF-8") from None
