"""What a model has answered: labels, and how sure it was, told from its tokens' probabilities.

The confidence is the probability of the answer among all answers that are allowed. At each token of the label there
were other tokens; those that could not have become a label are left out, those that could are counted, and what they
have in common with the answer is its share:

    confidence = Π over tokens  agreeing / (agreeing + disagreeing)

where *agreeing* is the probability of tokens with which the answer so far still is a beginning of the one that came,
and *disagreeing* that of tokens which lead to another label. So it does not matter whether an engine gives its
probabilities before the constraint (llama.cpp) or after it (vLLM). It can only know of the alternatives that it was
given, so a label that is not among the likeliest tokens counts as impossible.

Of an answer without alternatives it is the product of its tokens' own probabilities. Braces, blanks and the member's
name do not count.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

from tieryard.errors import UnreadableError
from tieryard.requests.classification import ClassificationSpec

_MEMBER = re.compile(rb'"labels?"\s*:')
_BLANKS = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """Distinct labels, in the order given; exactly one in a run with one label a text. `confidence` is from 0 to 1,
    None where the engine gave no logprobs, or none that fit its text."""

    labels: tuple[str, ...]
    confidence: float | None


def read(spec: ClassificationSpec, response_body: dict[str, Any]) -> Answer:
    """Reads a chat completion. Raises UnreadableError where it holds none of the labels."""
    vocabulary = _vocabulary(tuple(label.name for label in spec.labels))
    reader = _Reader(vocabulary, several=spec.multi_label)
    try:
        choice = response_body["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise UnreadableError("no answer: the response has no message") from None
    if not isinstance(text, str):
        raise UnreadableError("no answer: the message has no content")
    written = text.encode(errors="surrogatepass")
    found = reader.read(written)
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return Answer(tuple(dict.fromkeys(found.labels)), _confidence(reader, found, content) if content else None)


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The labels as they may stand between quotes, in either of JSON's spellings: whole ones and all beginnings."""

    spellings: dict[str, tuple[bytes, ...]]
    whole: dict[bytes, str]
    beginnings: frozenset[bytes]

    def only(self, beginning: bytes) -> str | None:
        """The one label that begins so; None where there are more."""
        found = {name for literal, name in self.whole.items() if literal.startswith(beginning)}
        return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=8)
def _vocabulary(names: tuple[str, ...]) -> _Vocabulary:
    spellings = {
        name: tuple(json.dumps(name, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (False, True))
        for name in names
    }
    whole = {literal: name for name, literals in spellings.items() for literal in literals}
    return _Vocabulary(spellings, whole, frozenset(literal[:n] for literal in whole for n in range(len(literal) + 1)))


@dataclass(frozen=True, slots=True)
class _State:
    """What has been read of a value: labels that are whole, the beginning of one that is not, and whether it is over.
    `rest` is where what follows the value begins."""

    labels: tuple[str, ...]
    begun: bytes | None
    over: bool
    rest: int


@dataclass(frozen=True, slots=True)
class _Read:
    """A value as it was read: its labels, with what was said twice, whether it came to its end, and where it stands."""

    labels: tuple[str, ...]
    over: bool
    begins: int
    ends: int


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads values that are a label, or a list of labels with `several`."""

    vocabulary: _Vocabulary
    several: bool

    def read(self, written: bytes) -> _Read:
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
        return _Read(labels, state.over, member.end(), member.end() + state.rest)

    def state(self, value: bytes) -> _State | None:
        """How far a value has come; None where it cannot become one that is allowed."""
        at = _blank(value, 0)
        if not self.several:
            return self._label(value, at, (), after=True)
        if at == len(value):
            return _State((), None, over=False, rest=at)
        if value[at : at + 1] != b"[":
            return None
        return self._list(value, at + 1)

    def _list(self, value: bytes, at: int) -> _State | None:
        labels: tuple[str, ...] = ()
        while True:
            at = _blank(value, at)
            sign = value[at : at + 1]
            if sign == b"]" and not labels:
                return _State((), None, over=True, rest=at + 1)
            state = self._label(value, at, labels, after=False)
            if state is None or state.begun is not None or state.labels == labels:
                return state
            labels, at = state.labels, _blank(value, state.rest)
            sign = value[at : at + 1]
            if sign == b"]":
                return _State(labels, None, over=True, rest=at + 1)
            if sign != b",":
                return _State(labels, None, over=False, rest=at) if not sign else None
            at += 1

    def _label(self, value: bytes, at: int, before: tuple[str, ...], *, after: bool) -> _State | None:
        """A quoted label at `at`; `after` says whether the value is over with it."""
        if at == len(value):
            return _State(before, None, over=False, rest=at)
        if value[at : at + 1] != b'"':
            return None
        literal, closed = _literal(value, at + 1)
        if not closed:
            begun = literal in self.vocabulary.beginnings
            return _State(before, literal, over=False, rest=len(value)) if begun else None
        name = self.vocabulary.whole.get(literal)
        if name is None:
            return None
        return _State((*before, name), None, over=after, rest=at + len(literal) + 2)

    def agrees(self, state: _State, read: _Read) -> bool:
        """Whether a value that has come so far may still become the one that was read."""
        n = len(state.labels)
        if state.labels != read.labels[:n] or (state.over and n < len(read.labels)):
            return False
        if state.begun is None:
            return True
        if n == len(read.labels):
            return not read.over  # beyond where it was cut short
        return any(literal.startswith(state.begun) for literal in self.vocabulary.spellings[read.labels[n]])


def _blank(value: bytes, at: int) -> int:
    while at < len(value) and value[at] in _BLANKS:
        at += 1
    return at


def _literal(value: bytes, at: int) -> tuple[bytes, bool]:
    """What stands between quotes from `at` on, and whether the closing one has come."""
    start = at
    while at < len(value):
        if value[at] == 0x5C:  # a backslash: the next byte is no quote
            at += 2
        elif value[at] == 0x22:
            return value[start:at], True
        else:
            at += 1
    return value[start:], False


@dataclass(frozen=True, slots=True)
class _Token:
    """One of an answer's tokens, or what might have stood in its place."""

    written: bytes
    logprob: float


def _confidence(reader: _Reader, answer: _Read, content: Any) -> float | None:
    """The formula above, over the tokens of the value; None where they are not those of the answer that was read."""
    try:
        tokens = [_token(item) for item in content]
        beside = [[_token(top) for top in item.get("top_logprobs") or ()] for item in content]
        # Once more, since some engines have tokens of which their text says nothing.
        whole = b"".join(token.written for token in tokens)
        read = reader.read(whole)
    except (AttributeError, KeyError, TypeError, ValueError, UnreadableError):
        return None
    if read.labels != answer.labels:
        return None
    starts = list(accumulate((len(token.written) for token in tokens), initial=0))
    inside = [i for i, token in enumerate(tokens) if starts[i] < read.ends and starts[i + 1] > read.begins]
    others = {i: [top for top in beside[i] if top.written != tokens[i].written] for i in inside}
    if any(others.values()):
        shares = [_share(reader, read, whole, starts[i], tokens[i], others[i]) for i in inside]
    else:
        quote = whole.find(b'"', read.begins, read.ends)  # what lays out the value says nothing about it
        shares = [math.exp(tokens[i].logprob) for i in inside if starts[i + 1] > quote + 1]
    return min(1.0, math.prod(shares)) if shares and not any(map(math.isnan, shares)) else None


def _share(reader: _Reader, read: _Read, whole: bytes, start: int, token: _Token, others: Sequence[_Token]) -> float:
    """agreeing / (agreeing + disagreeing) for the token that begins at `start`; NaN where all are impossible."""
    lead = whole[start : read.begins]  # of a token that begins before the value
    before = whole[read.begins : start]
    agreeing, disagreeing = [token.logprob], [-math.inf]
    for other in others:
        if other.written.startswith(lead) and (state := reader.state(before + other.written[len(lead) :])) is not None:
            (agreeing if reader.agrees(state, read) else disagreeing).append(other.logprob)
    top = max(*agreeing, *disagreeing)
    if top == -math.inf:
        return math.nan
    agree, disagree = (sum(math.exp(logprob - top) for logprob in side) for side in (agreeing, disagreeing))
    return agree / (agree + disagree)


def _token(item: dict[str, Any]) -> _Token:
    """Raises ValueError for a probability that is none."""
    given = item.get("bytes")
    written = bytes(given) if given else str(item["token"]).encode(errors="surrogatepass")
    logprob = -math.inf if item["logprob"] is None else float(item["logprob"])
    if math.isnan(logprob):
        raise ValueError("a logprob is no number")
    return _Token(written, min(0.0, logprob))
