"""Scorers: how good an answer is, 0 to 1, and why. Pure but for `unit_tests`, which starts a process."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import Field

from tieryard.errors import UserError
from tieryard.golden.scorers.base import Counts, Score, Scorer, Unfit, Wanted
from tieryard.golden.scorers.code import UnitTests
from tieryard.golden.scorers.numbers import Numeric
from tieryard.golden.scorers.resemblance import RougeL, Similarity
from tieryard.golden.scorers.structured import EntityF1, JsonSchema, micro_f1
from tieryard.golden.scorers.text import Exact, Normalised, Regex, TokenF1

__all__ = ["SCORERS", "AnyScorer", "Counts", "Score", "Scorer", "Unfit", "Wanted", "micro_f1", "score"]

AnyScorer = Annotated[
    Exact | Normalised | Numeric | Regex | JsonSchema | TokenF1 | EntityF1 | UnitTests | RougeL | Similarity,
    Field(discriminator="name"),
]
SCORERS: dict[str, type[Scorer]] = {
    "exact": Exact,
    "normalised": Normalised,
    "numeric": Numeric,
    "regex": Regex,
    "json_schema": JsonSchema,
    "token_f1": TokenF1,
    "entity_f1": EntityF1,
    "unit_tests": UnitTests,
    "rouge_l": RougeL,
    "similarity": Similarity,
}


class Scored(Wanted, Protocol):
    @property
    def id(self) -> str: ...

    @property
    def scorer(self) -> Scorer | None: ...


def score(item: Scored, answer: str) -> Score:
    """How good the answer is, by the item's own scorer. Any text is an answer: one that cannot be read scores 0 and
    says why. Raises UserError for an item without a scorer, whose criteria are for a judge."""
    if item.scorer is None:
        raise UserError(f"item '{item.id}' has criteria and no scorer: only a judge can score it")
    return item.scorer.rate(answer.encode("utf-8", "replace").decode(), item)
