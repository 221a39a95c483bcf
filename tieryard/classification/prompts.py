"""The question that each text is asked with: a chat whose answer the engine constrains to the labels.

A run's questions begin alike and end in the text, so that an engine's prefix cache holds all but the text. Examples are
earlier turns of the chat unless the template has a place for them: small models follow those, and lose their way in one
long message (docs/explanation/classification.md has the figures).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import nlargest
from typing import Any

from tieryard.errors import RequestError
from tieryard.requests import CHAT, parse_body
from tieryard.requests.classification import ClassificationSpec, Example, Label

DEFAULT_TEMPLATE = """\
Classify the text into one of the labels.

{labels}
---
{text}"""

DEFAULT_SEVERAL = """\
Classify the text: give all of these labels that fit it.

{labels}
---
{text}"""

ALTERNATIVES = 20
"""Likeliest tokens that are asked for beside each token of an answer: what a confidence is measured against."""
MOST_PER_TEXT = 16
"""Labels that one text may be given."""

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
_KNOWN = ("text", "labels", "examples")
_LINE = re.compile(r"^---[ \t]*\r?\n", re.MULTILINE)
_STRUCTURE_TOKENS = 24  # braces, quotes, the member's name and the blanks between, however an engine lays them out
_BETWEEN_TOKENS = 4  # quotes, comma and blanks between two labels


def check(spec: ClassificationSpec) -> None:
    """Raises RequestError, with the field, for what no question could be made of: a template without `{text}` or with
    a placeholder that is none, a label that stands twice, an example with an unknown label."""
    names = [label.name for label in spec.labels]
    _check_labels(spec.labels)
    if spec.template is not None:
        _check_template(spec.template, with_examples=bool(spec.examples))
    for number, example in enumerate(spec.examples, start=1):
        _check_example(example, frozenset(names), number, several=spec.multi_label)
    try:
        parse_body(CHAT, json.dumps(body(spec, "a", model="auto", logprobs=True)).encode())
    except RequestError as error:
        raise RequestError(f"no question can be made of them: {error}", param="labels") from None


def body(spec: ClassificationSpec, text: str, *, model: str, logprobs: bool) -> dict[str, Any]:
    """A chat completion that asks for the text's label (of a run with several, for its labels). `spec` is one that
    `check` has let pass."""
    made = _made(_Same(spec))
    asked = {
        "model": model,
        "messages": made.messages(text),
        "category": "classification",
        "response_format": made.response_format,
        "temperature": 0,
        "max_tokens": made.max_tokens,
    }
    return {**asked, "logprobs": True, "top_logprobs": ALTERNATIVES} if logprobs else asked


@dataclass(frozen=True, slots=True)
class _Made:
    """What all questions of a run share. `before` are the messages that come first; `pieces` are those of the last one,
    and the text stands between each two."""

    before: tuple[dict[str, str], ...]
    pieces: tuple[str, ...]
    response_format: dict[str, Any]
    max_tokens: int

    def messages(self, text: str) -> list[dict[str, str]]:
        return [*self.before, _said("user", text.join(self.pieces))]


class _Same:
    """A spec as a key: by which object it is, since comparing a thousand labels for each text would take longer than
    to write the question."""

    __slots__ = ("spec",)

    def __init__(self, spec: ClassificationSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.spec is self.spec


@lru_cache(maxsize=16)
def _made(same: _Same) -> _Made:
    spec = same.spec
    return _Made(*_written(spec), _response_format(spec), _max_tokens(spec))


def template_of(spec: ClassificationSpec) -> str:
    """The run's own template, or ours."""
    if spec.template is not None:
        return spec.template
    return DEFAULT_SEVERAL if spec.multi_label else DEFAULT_TEMPLATE


def _written(spec: ClassificationSpec) -> tuple[tuple[dict[str, str], ...], tuple[str, ...]]:
    """The messages before the last, and the pieces of that. What stands above a template's line is the system's word;
    examples that have no place of their own are earlier turns."""
    above, below = _halves(template_of(spec))
    known = {"labels": _listed(spec.labels), "examples": _shown(spec.examples, several=spec.multi_label)}
    pieces = _filled(below, known)
    before = [] if above is None else [_said("system", "".join(_filled(above, known)).strip())]
    if above is not None and "examples" not in _placeholders(template_of(spec)):
        for example in spec.examples:
            before.append(_said("user", example.text.join(pieces)))
            before.append(_said("assistant", answer_text(example.answer, several=spec.multi_label)))
    return tuple(before), pieces


def _halves(template: str) -> tuple[str | None, str]:
    """What stands above a line of `---`, None where there is no such line; and what below it."""
    line = _LINE.search(template)
    return (None, template) if line is None else (template[: line.start()], template[line.end() :])


def _placeholders(template: str) -> set[str]:
    return {match[2] for match in _PLACEHOLDER.finditer(template) if match[2] is not None}


def _filled(template: str, known: dict[str, str]) -> tuple[str, ...]:
    """What stands around the text. One pass, so that no placeholder is found in what has been put in."""
    pieces, at = [""], 0
    for found in _PLACEHOLDER.finditer(template):
        pieces[-1] += template[at : found.start()]
        at = found.end()
        if found[1] is not None:
            pieces[-1] += f"{{{found[1]}}}"
        elif found[2] == "text":
            pieces.append("")
        else:
            pieces[-1] += known[found[2]]
    pieces[-1] += template[at:]
    return tuple(pieces)


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _listed(labels: Sequence[Label]) -> str:
    return "\n".join(
        f"- {label.name}: {label.description}" if label.description else f"- {label.name}" for label in labels
    )


def _shown(examples: Sequence[Example], *, several: bool) -> str:
    return "\n\n".join(f"Text: {example.text}\n{answer_text(example.answer, several=several)}" for example in examples)


def answer_text(labels: Sequence[str], *, several: bool) -> str:
    """The answer that a model would give, as it writes it."""
    said: dict[str, Any] = {"labels": list(labels)} if several else {"label": labels[0]}
    return json.dumps(said, ensure_ascii=False)


def _response_format(spec: ClassificationSpec) -> dict[str, Any]:
    """An object, because OpenAI takes no bare enum. There is no `uniqueItems`: OpenAI and some of vLLM's backends
    refuse it, llama.cpp overlooks it; who reads an answer counts a label once."""
    names = [label.name for label in spec.labels]
    member: dict[str, Any] = {"type": "string", "enum": names}
    if spec.multi_label:
        member = {"type": "array", "items": member, "maxItems": min(len(names), MOST_PER_TEXT)}
    name = "labels" if spec.multi_label else "label"
    schema = {"type": "object", "properties": {name: member}, "required": [name], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def _max_tokens(spec: ClassificationSpec) -> int:
    """No token is shorter than a byte, so one label always fits. Of several, two bytes a token: models do better, and
    a list that is cut short is read as far as it goes."""
    sizes = [len(json.dumps(label.name, ensure_ascii=False).encode()) for label in spec.labels]
    if not spec.multi_label:
        return _STRUCTURE_TOKENS + max(sizes)
    return _STRUCTURE_TOKENS + sum(-(-size // 2) + _BETWEEN_TOKENS for size in nlargest(MOST_PER_TEXT, sizes))


def _check_labels(labels: Sequence[Label]) -> None:
    seen: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if label.name in seen:
            raise RequestError(
                f"'{label.name}' stands twice: as label {seen[label.name]} and label {number}", param="labels"
            )
        if label.name != label.name.strip():
            raise RequestError(f"label {number}, '{label.name}', begins or ends with a blank", param="labels")
        seen[label.name] = number


def _check_template(template: str, *, with_examples: bool) -> None:
    above, below = _halves(template)
    if unknown := sorted(_placeholders(template) - set(_KNOWN)):
        raise RequestError(
            f"{{{unknown[0]}}} is no placeholder; there are {{text}}, {{labels}} and {{examples}}, and"
            f" {{{{{unknown[0]}}}}} for the word in braces",
            param="template",
        )
    if "text" not in _placeholders(template):
        raise RequestError("{text} is missing: no text would be read", param="template")
    if above is not None and "text" in _placeholders(above):
        raise RequestError("{text} must stand below the line of ---, in the question itself", param="template")
    if above is None and with_examples and "examples" not in _placeholders(below):
        raise RequestError(
            "{examples} is missing: the examples would not be shown; give them their place, or put a line of --- above"
            " the question, to show them as earlier turns",
            param="template",
        )


def _check_example(example: Example, known: frozenset[str], number: int, *, several: bool) -> None:
    where = f"examples.{number - 1}"
    if several != (example.labels is not None):
        wanted = "`labels`, for" if several else "`label`, for"
        raise RequestError(f"give {wanted} this run has {'several' if several else 'one'} a text", param=where)
    for name in example.answer:
        if name not in known:
            raise RequestError(f"'{name}' is none of the labels", param=where)
    if len(set(example.answer)) < len(example.answer):
        raise RequestError("a label stands twice", param=where)
    if len(example.answer) > MOST_PER_TEXT:
        raise RequestError(f"at most {MOST_PER_TEXT} labels a text", param=where)
