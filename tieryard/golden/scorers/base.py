"""What all scorers share: the score that they give, what they are given, and how they say that an item is no use to
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import orjson
from pydantic import BaseModel, ConfigDict

_FENCE = "```"
_SHOWN = 80


class Counts(NamedTuple):
    """Found and right, found and wrong, missed."""

    right: int
    wrong: int
    missed: int


@dataclass(frozen=True, slots=True)
class Score:
    """`value` is 0 (no use) to 1 (as good as can be), `why` is for people. `counts` come from scorers that count parts
    of an answer, so that a whole set's can be added up."""

    value: float
    why: str
    counts: Counts | None = None


class Unfit(ValueError):  # noqa: N818  # it becomes a fault of a line, and never reaches a caller
    """An item that its scorer could not score: the field at fault, and what to write there."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class Wanted(Protocol):
    """The parts of an item that say what a good answer is."""

    @property
    def expected(self) -> Any: ...

    @property
    def references(self) -> Sequence[str]: ...


class Scorer(BaseModel):
    """One scorer with its options. Options that can never work are refused when they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    compares: ClassVar[str] = "expected"
    """The field that holds the right answers; the other one is not looked at."""

    name: str

    def check(self, wanted: Wanted) -> None:
        """Raises Unfit for an item that this scorer could not score."""
        raise NotImplementedError

    def rate(self, answer: str, wanted: Wanted) -> Score:
        """Never raises for an item that passed `check`, whatever the answer. `answer` holds no lone surrogates."""
        raise NotImplementedError


def texts(expected: Any, field: str = "expected") -> tuple[str, ...]:
    """The right answers where they are texts: one, or several of which any will do."""
    given = [expected] if isinstance(expected, str) else expected
    if not isinstance(given, list | tuple) or not given or not all(isinstance(text, str) for text in given):
        raise Unfit(field, "write the right answer as a text, or a list of texts of which any is right")
    return tuple(given)


def best(scores: Sequence[Score]) -> Score:
    """The highest; the first of equals."""
    return max(scores, key=lambda score: score.value)


def shown(text: object) -> str:
    """Short enough for a `why`, on one line."""
    flat = " ".join(str(text).split())
    return f"'{flat}'" if len(flat) <= _SHOWN else f"'{flat[:_SHOWN]}…'"


def fenced(answer: str) -> list[str]:
    """The contents of its blocks between lines of ```, in order. A last one that is left open is none."""
    blocks: list[str] = []
    inside: list[str] | None = None
    for line in answer.split("\n"):
        if not line.lstrip(" \t").startswith(_FENCE):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside = []
        else:
            blocks.append("\n".join(inside) + "\n")
            inside = None
    return blocks


def json_in(answer: str) -> Any:
    """The answer as JSON: all of it, or its last fenced block. Raises ValueError where there is none."""
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError as error:
        for block in reversed(fenced(answer)):
            try:
                return orjson.loads(block)
            except orjson.JSONDecodeError:
                continue
        raise ValueError(f"no JSON: {error}") from None
