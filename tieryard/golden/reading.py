"""Reads a golden set from JSON lines: whole and right, or refused with the line and field of each fault."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tieryard.complaints import complaint
from tieryard.errors import UserError
from tieryard.golden.items import GoldenSet, Item
from tieryard.golden.scorers import SCORERS
from tieryard.golden.scorers.base import Unfit, shown
from tieryard.requests.fields import INT64

MOST_FAULTS = 20
_ITEM = '{"id": "a1", "category": "chat", "prompt": "…", "expected": "…", "scorer": "exact"}'
_FIELDS = ", ".join(Item.model_fields)
_DEEPEST = 100
_MOST_DIGITS = 20
_TOO_LONG = "a whole number has more than 64 bits; write it as a text"


@dataclass(frozen=True, slots=True)
class Fault:
    """`message` says what was wrong and what to write."""

    line: int
    field: str | None
    message: str

    def __str__(self) -> str:
        return ", ".join([f"line {self.line}", *([self.field] if self.field else [])]) + f": {self.message}"


def parse_golden(lines: Iterable[str | bytes], *, name: str, categories: Collection[str]) -> GoldenSet:
    """One item a line, of one of `categories`. Blank lines, a byte order mark and CRLF do no harm.

    Raises UserError with up to 20 faults, in the order of lines; with one, its `line` and `param` say where.
    """
    items: list[Item] = []
    faults: list[Fault] = []
    ids: dict[str, int] = {}
    inputs: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            item = _item(line, number, categories)
        except _Faulty as error:
            faults += error.faults
            continue
        if item is None:
            continue
        items.append(item)
        faults += _twice(item, number, ids, inputs)
    if not items and not faults:
        faults.append(Fault(1, None, f"the set has no items; write one a line, such as {_ITEM}"))
    refuse(faults, name)
    return GoldenSet(name, tuple(items))


def refuse(faults: Sequence[Fault], name: str) -> None:
    """Raises UserError where there are any."""
    if not faults:
        return
    if len(faults) == 1:
        raise UserError(faults[0].message, param=faults[0].field, line=faults[0].line)
    more = f"; the first {MOST_FAULTS}" if len(faults) > MOST_FAULTS else ""
    listed = "\n".join(f"  {fault}" for fault in faults[:MOST_FAULTS])
    raise UserError(f"{name} has {len(faults)} faults, and nothing of it was taken{more}:\n{listed}")


class _Faulty(Exception):  # noqa: N818  # never leaves this module
    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = faults


def _twice(item: Item, line: int, ids: dict[str, int], inputs: dict[str, int]) -> Iterator[Fault]:
    first = ids.setdefault(item.id, line)
    if first != line:
        yield Fault(line, "id", f"line {first} has {shown(item.id)}, too; write another id")
    first = inputs.setdefault(item.input_hash, line)
    if first != line:
        field = "prompt" if item.messages is None else "messages"
        yield Fault(line, field, f"line {first} asks the same; keep one of the two lines")


def _item(line: str | bytes, number: int, categories: Collection[str]) -> Item | None:
    """None for a blank line."""
    text = _text(line, number)
    if not text.strip():
        return None
    given = _object(text, number)
    try:
        item = Item.model_validate(given)
    except ValidationError as error:
        raise _Faulty(*(_fault(given, detail, number) for detail in error.errors(include_url=False))) from None
    if item.category not in categories:
        known = ", ".join(sorted(categories))
        raise _Faulty(
            Fault(number, "category", f"{shown(item.category)} is none of the catalog's; write one of {known}")
        )
    return item


def _text(line: str | bytes, number: int) -> str:
    try:
        text = line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError as error:
        raise _Faulty(Fault(number, None, f"byte {error.start + 1} is not UTF-8; save the file as UTF-8")) from None
    return text.removeprefix("\ufeff") if number == 1 else text


def _object(text: str, number: int) -> dict[str, Any]:
    try:
        given = json.loads(text, object_pairs_hook=_without_twins, parse_constant=_no_number, parse_int=_whole)
        _storable(given)
    except json.JSONDecodeError as error:
        where = f"{error.msg.lower()} at character {error.colno}"
        raise _Faulty(Fault(number, None, f"no JSON: {where}; write one object a line")) from None
    except RecursionError:
        raise _Faulty(Fault(number, None, "it is too deeply nested; write it flatter")) from None
    except ValueError as error:
        raise _Faulty(Fault(number, None, str(error))) from None
    if not isinstance(given, dict):
        raise _Faulty(Fault(number, None, f"{shown(text)} is no object; write {_ITEM}"))
    return given


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {shown(twin)} stands twice; keep one")
    return made


def _whole(digits: str) -> int:
    """Not read at all where it is longer than any that is taken: Python would refuse it in words of its own."""
    if len(digits) > _MOST_DIGITS:
        raise ValueError(_TOO_LONG)
    return int(digits)


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON; write a number, or null")


def _storable(value: Any) -> None:
    """Raises ValueError for what Postgres or an engine would refuse later, RecursionError for what cannot be written as
    JSON again."""
    waiting = [(value, 1)]
    while waiting:
        part, depth = waiting.pop()
        if depth > _DEEPEST:
            raise RecursionError
        if isinstance(part, dict):
            waiting += [(inner, depth + 1) for inner in (*part, *part.values())]
        elif isinstance(part, list):
            waiting += [(inner, depth + 1) for inner in part]
        elif isinstance(part, str):
            if "\x00" in part or not _encodable(part):
                raise ValueError("a text holds a NUL or half a character (\\u0000, \\ud800); take it out")
        elif isinstance(part, int) and not -INT64 <= part < INT64:
            raise ValueError(_TOO_LONG)
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError("a number is larger than any that can be kept; write it as a text")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fault(given: dict[str, Any], detail: Any, number: int) -> Fault:
    """One of pydantic's complaints as ours."""
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, Unfit):
        return Fault(number, error.field, error.message)
    loc = [str(part) for part in detail["loc"]]
    if loc[:1] == ["scorer"]:
        loc = loc[:1] + loc[2:]  # without the name of the union's member
    field = ".".join(loc) or None
    kind = detail["type"]
    if kind == "extra_forbidden":
        return Fault(number, field, _no_such_field(given, loc))
    if kind.startswith("union_tag"):
        return Fault(number, "scorer", _no_such_scorer(given.get("scorer")))
    if kind == "missing":
        return Fault(number, field, "it is missing; write it")
    return Fault(number, field, complaint(detail))


def _no_such_field(given: dict[str, Any], loc: list[str]) -> str:
    if len(loc) == 1:
        return f"no such field; the fields are {_FIELDS}"
    name = given.get("scorer")
    name = name.get("name") if isinstance(name, dict) else name
    if loc[0] != "scorer" or not isinstance(name, str) or name not in SCORERS:
        return "no such field; take it out"
    options = [info.alias or option for option, info in SCORERS[name].model_fields.items() if option != "name"]
    return f"{name} has no such option; it has {', '.join(options) or 'none'}"


def _no_such_scorer(given: Any) -> str:
    name = given.get("name") if isinstance(given, dict) else given
    return f"{shown(name)} is no scorer; write one of {', '.join(SCORERS)}, or an object of `name` and options"
