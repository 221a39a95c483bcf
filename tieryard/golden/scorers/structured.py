"""Scorers of JSON answers: by a schema, and by the entities that they list."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, ClassVar, Literal

import jsonschema_rs
from pydantic import Field

from tieryard.golden.scorers.base import Counts, Score, Scorer, Unfit, Wanted, json_in, shown

_BACKTRACKS = 100_000  # of a schema's `pattern`, so that no answer can stop the scorer
Entity = tuple[str, str]
"""Type and text, both folded."""


class JsonSchema(Scorer):
    """1 where the answer (or its last fenced block) is JSON that keeps to `schema` and, where there is an `expected`,
    equals it; else 0. Equal as JSON Schema's `const` has it: 1 and 1.0 are, 1 and true are not, the order of an
    object's fields means nothing. A `$ref` may only point into the schema."""

    compares: ClassVar[str] = "expected"
    name: Literal["json_schema"] = "json_schema"
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")

    @cached_property
    def _valid(self) -> jsonschema_rs.Validator:
        return _validator(self.schema_)

    def check(self, wanted: Wanted) -> None:
        try:
            valid = self._valid
        except ValueError as error:
            raise Unfit("scorer.schema", f"no JSON Schema: {_first_line(error)}") from None
        if wanted.expected is None:
            if not self.schema_:
                raise Unfit("scorer.schema", "write a schema, or an `expected` to be equal to, or both")
            return
        fault = next(iter(valid.iter_errors(wanted.expected)), None)
        if fault is not None:
            raise Unfit("expected", f"it does not keep to the item's own schema: {_first_line(fault)}")

    def rate(self, answer: str, wanted: Wanted) -> Score:
        try:
            given = json_in(answer)
            fault = next(iter(self._valid.iter_errors(given)), None)
            if fault is not None:
                return Score(0.0, f"against the schema: {_first_line(fault)}")
            if wanted.expected is not None and not _validator({"const": wanted.expected}).is_valid(given):
                return Score(0.0, f"valid, and not as expected: {shown(given)}")
        except (ValueError, RecursionError) as error:
            return Score(0.0, _first_line(error))
        return Score(1.0, "valid" if wanted.expected is None else "valid and as expected")


def _validator(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS)
    return jsonschema_rs.validator_for(schema, offline=True, pattern_options=patterns)


def _first_line(error: BaseException) -> str:
    return shown(str(error).partition("\n")[0])[1:-1]


class EntityF1(Scorer):
    """Micro F1 over the item's typed entities: F1 = 2·right / (2·right + wrong + missed), over all types together.

    An entity is right where type and text are both an expected one's, each folded: NFKC, lower case, single spaces, and
    in types `_` and space as `-`. An entity counts once however often it stands there, so order and repeats mean
    nothing: WNUT 2017's surface F1 (Derczynski et al. 2017, W17-4418). Nothing expected and nothing found is 1.

    `expected` and the answer (or its last fenced block) are JSON: `[{"type": "person", "text": "Ada"}, …]`, or
    `{"person": ["Ada", …], …}`, either also as the value of `{"entities": …}`.
    """

    name: Literal["entity_f1"] = "entity_f1"

    def check(self, wanted: Wanted) -> None:
        try:
            entities(wanted.expected)
        except ValueError as error:
            raise Unfit("expected", str(error)) from None

    def rate(self, answer: str, wanted: Wanted) -> Score:
        right = entities(wanted.expected)
        try:
            given = entities(json_in(answer))
        except (ValueError, RecursionError) as error:
            return Score(0.0, _first_line(error), Counts(0, 0, len(right)))
        counts = Counts(len(given & right), len(given - right), len(right - given))
        return Score(f1(counts), f"{counts.right} right, {counts.wrong} wrong, {counts.missed} missed", counts)


def f1(counts: Counts) -> float:
    """2·right / (2·right + wrong + missed); 1 where there was nothing to find and nothing was found."""
    whole = 2 * counts.right + counts.wrong + counts.missed
    return 2 * counts.right / whole if whole else 1.0


def micro_f1(scores: Iterable[Score]) -> float:
    """Over a whole set: the counts of all its scores added up, then F1 once. Scores without counts are passed over."""
    counted = [score.counts for score in scores if score.counts is not None]
    return f1(Counts(*(sum(column) for column in zip(*counted, strict=True))) if counted else Counts(0, 0, 0))


def entities(value: Any) -> frozenset[Entity]:
    """Raises ValueError, with what to write, for any other shape."""
    if isinstance(value, dict) and value.keys() == {"entities"}:
        value = value["entities"]
    return frozenset((_folded(kind).replace("_", "-").replace(" ", "-"), _folded(text)) for kind, text in _pairs(value))


def _pairs(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list | tuple):
        for entity in value:
            if not isinstance(entity, dict) or not _texts([entity.get("type"), entity.get("text")]):
                raise ValueError('an entity is {"type": "person", "text": "Ada"}; it has another shape')
            yield entity["type"], entity["text"]
    elif isinstance(value, dict):
        for kind, found in value.items():
            if not isinstance(found, list | tuple) or not _texts(found):
                raise ValueError('entities by type are {"person": ["Ada"]}; a type has something else than texts')
            yield from ((kind, text) for text in found)
    else:
        raise ValueError('write a list of entities, such as [{"type": "person", "text": "Ada"}]; it is no list')


def _texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
