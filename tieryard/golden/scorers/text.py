"""Scorers of short answers: exact, normalised, by a pattern, by shared words."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from functools import cached_property
from typing import Any, Literal

import regex
from pydantic import field_validator

from tieryard.golden.scorers.base import Score, Scorer, Unfit, Wanted, best, shown, texts

PATTERN_TIMEOUT_S = 1.0
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """NFKC, lower case, without punctuation and English articles, single spaces.

    It is `normalize_answer` of SQuAD's evaluation script (Rajpurkar et al. 2016, arXiv:1606.05250) with two additions
    for text that is not ASCII: NFKC and casefold, and punctuation of every script.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(c for c in folded if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _check_normalised(wanted: Wanted) -> None:
    for text in texts(wanted.expected):
        if not normalised(text):
            raise Unfit("expected", f"nothing is left of {shown(text)} without punctuation and articles; use exact")


class Exact(Scorer):
    """1 where the answer, less the space around it, is one of the expected texts, else 0."""

    name: Literal["exact"] = "exact"

    def check(self, wanted: Wanted) -> None:
        texts(wanted.expected)

    def rate(self, answer: str, wanted: Wanted) -> Score:
        if answer.strip() in {text.strip() for text in texts(wanted.expected)}:
            return Score(1.0, "equal")
        return Score(0.0, f"expected {shown(texts(wanted.expected)[0])}, got {shown(answer)}")


class Normalised(Scorer):
    """1 where `normalised(answer)` equals `normalised(expected)`, else 0."""

    name: Literal["normalised"] = "normalised"

    def check(self, wanted: Wanted) -> None:
        _check_normalised(wanted)

    def rate(self, answer: str, wanted: Wanted) -> Score:
        given = normalised(answer)
        if given in {normalised(text) for text in texts(wanted.expected)}:
            return Score(1.0, "equal once normalised")
        return Score(0.0, f"expected {shown(normalised(texts(wanted.expected)[0]))}, got {shown(given)}")


class TokenF1(Scorer):
    """F1 of the words that answer and expected text share, after `normalised`; the best of several expected texts.

    P = shared / words of the answer, R = shared / words expected, F1 = 2PR / (P + R), where `shared` counts a word as
    often as both have it: `f1_score` of SQuAD's evaluation script (Rajpurkar et al. 2016, arXiv:1606.05250).
    """

    name: Literal["token_f1"] = "token_f1"

    def check(self, wanted: Wanted) -> None:
        _check_normalised(wanted)

    def rate(self, answer: str, wanted: Wanted) -> Score:
        given = normalised(answer).split()
        return best([_overlap(given, normalised(text).split()) for text in texts(wanted.expected)])


def _overlap(given: list[str], right: list[str]) -> Score:
    shared = (Counter(given) & Counter(right)).total()
    value = 2 * shared / (len(given) + len(right))  # 2PR / (P + R), written out
    return Score(value, f"{shared} words shared, of {len(given)} given and {len(right)} expected")


class Regex(Scorer):
    """1 where `pattern` is found in the answer. With `expected`, the pattern has one group, and the text of its last
    match must be one of the expected texts. A pattern that takes more than a second on an answer scores it 0."""

    name: Literal["regex"] = "regex"
    pattern: str
    ignore_case: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError) as error:
            raise ValueError(f"no regular expression: {error}; write one as Python's `re` takes it") from None
        return pattern

    @cached_property
    def _compiled(self) -> Any:
        return regex.compile(self.pattern, regex.IGNORECASE if self.ignore_case else 0)

    def check(self, wanted: Wanted) -> None:
        if wanted.expected is None:
            return
        texts(wanted.expected)
        if self._compiled.groups != 1:
            raise Unfit("scorer.pattern", "write exactly one (group) around what `expected` is compared with")

    def rate(self, answer: str, wanted: Wanted) -> Score:
        last = None
        try:
            for last in self._compiled.finditer(answer, timeout=PATTERN_TIMEOUT_S):  # noqa: B007  # used after it
                if wanted.expected is None:
                    break
        except TimeoutError:
            return Score(0.0, f"the pattern took more than {PATTERN_TIMEOUT_S:g} s on this answer")
        except MemoryError:
            return Score(0.0, "the pattern took too much memory on this answer")
        if last is None:
            return Score(0.0, f"the pattern is not in {shown(answer)}")
        if wanted.expected is None:
            return Score(1.0, "the pattern is found")
        found = last[1] or ""
        if found.strip() in {text.strip() for text in texts(wanted.expected)}:
            return Score(1.0, "the group is as expected")
        return Score(0.0, f"expected {shown(texts(wanted.expected)[0])}, the group has {shown(found)}")
