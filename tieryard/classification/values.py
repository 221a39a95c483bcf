"""A label, or a list of labels, as JSON that is still being written: what it says so far, and what it may become."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache

from tieryard.errors import UnreadableError

_MEMBER = re.compile(rb'"labels?"\s*:')
_BLANKS = re.compile(rb"[ \t\r\n]+")
_LETTERS = re.compile(rb'(?:[^"\\]|\\.)*', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The labels as they may stand between quotes, in either of JSON's spellings: whole ones and all beginnings."""

    spellings: dict[str, tuple[bytes, ...]]
    whole: dict[bytes, str]
    beginnings: frozenset[bytes]

    def only(self, beginning: bytes) -> str | None:
        """The one label that begins so; None where there are more."""
        found = {name for literal, name in self.whole.items() if literal.startswith(beginning)}
        return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=8)
def vocabulary_of(names: tuple[str, ...]) -> Vocabulary:
    spellings = {
        name: tuple(json.dumps(name, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (False, True))
        for name in names
    }
    whole = {literal: name for name, literals in spellings.items() for literal in literals}
    return Vocabulary(spellings, whole, frozenset(literal[:n] for literal in whole for n in range(len(literal) + 1)))


@dataclass(frozen=True, slots=True)
class State:
    """What has been read of a value: labels that are whole, the beginning of one that is not, and whether it is over.
    `rest` is where what follows the value begins."""

    labels: tuple[str, ...]
    begun: bytes | None
    over: bool
    rest: int


@dataclass(frozen=True, slots=True)
class Read:
    """A value as it was read: its labels, with what was said twice, whether it came to its end, and where it stands."""

    labels: tuple[str, ...]
    over: bool
    begins: int
    ends: int


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads values that are a label, or a list of labels with `several`."""

    vocabulary: Vocabulary
    several: bool

    def read(self, written: bytes) -> Read:
        """A whole text; of one that was cut short, as far as its labels are certain."""
        member = _MEMBER.search(written)
        state = self.state(written[member.end() :]) if member else None
        if member is None or state is None:
            raise UnreadableError("the answer is none of the labels")
        labels = state.labels
        if not state.over and state.begun is not None and (only := self.vocabulary.only(state.begun)) is not None:
            labels += (only,)
        if not labels and not (self.several and state.over):
            raise UnreadableError("the answer was cut short before it was a label")
        return Read(labels, state.over, member.end(), member.end() + state.rest)

    def state(self, value: bytes) -> State | None:
        """How far a value has come; None where it cannot become one that is allowed."""
        at = _blank(value, 0)
        if not self.several:
            return self._label(value, at, (), after=True)
        if at == len(value):
            return State((), None, over=False, rest=at)
        if value[at : at + 1] != b"[":
            return None
        return self._list(value, at + 1)

    def _list(self, value: bytes, at: int) -> State | None:
        labels: tuple[str, ...] = ()
        while True:
            at = _blank(value, at)
            sign = value[at : at + 1]
            if sign == b"]" and not labels:
                return State((), None, over=True, rest=at + 1)
            state = self._label(value, at, labels, after=False)
            if state is None or state.begun is not None or state.labels == labels:
                return state
            labels, at = state.labels, _blank(value, state.rest)
            sign = value[at : at + 1]
            if sign == b"]":
                return State(labels, None, over=True, rest=at + 1)
            if sign != b",":
                return State(labels, None, over=False, rest=at) if not sign else None
            at += 1

    def _label(self, value: bytes, at: int, before: tuple[str, ...], *, after: bool) -> State | None:
        """A quoted label at `at`; `after` says whether the value is over with it."""
        if at == len(value):
            return State(before, None, over=False, rest=at)
        if value[at : at + 1] != b'"':
            return None
        literal, closed = _literal(value, at + 1)
        if not closed:
            begun = literal in self.vocabulary.beginnings
            return State(before, literal, over=False, rest=len(value)) if begun else None
        name = self.vocabulary.whole.get(literal)
        if name is None:
            return None
        return State((*before, name), None, over=after, rest=at + len(literal) + 2)

    def agrees(self, state: State, read: Read) -> bool:
        """Whether a value that has come so far may still become the one that was read."""
        n = len(state.labels)
        if state.labels != read.labels[:n] or (state.over and n < len(read.labels)):
            return False
        if state.begun is None:
            return True
        if n == len(read.labels):
            return not read.over  # beyond where it was cut short
        return any(literal.startswith(state.begun) for literal in self.vocabulary.spellings[read.labels[n]])

    def decides(self, before: bytes, between: bytes) -> bool:
        """Whether what is written between has ruled out anything that was possible before."""
        return self._possible(before) != self._possible(before + between)

    def _possible(self, value: bytes) -> tuple[tuple[str, ...], bool, frozenset[str]] | None:
        """The labels so far, whether there can be no more, and those that may come next."""
        state = self.state(value)
        if state is None:
            return None
        begun = state.begun or b""
        ahead = (name for literal, name in self.vocabulary.whole.items() if literal.startswith(begun))
        return state.labels, state.over, frozenset(() if state.over else ahead)


def _blank(value: bytes, at: int) -> int:
    found = _BLANKS.match(value, at)
    return found.end() if found else at


def _literal(value: bytes, at: int) -> tuple[bytes, bool]:
    """What stands between quotes from `at` on, and whether the closing one has come."""
    found = _LETTERS.match(value, at)
    end = found.end() if found else at
    if value[end : end + 1] == b'"':
        return value[at:end], True
    return value[at:], False  # with a backslash at the end, whose letter is still to come
