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

import math
from dataclasses import dataclass
from typing import Any

from tieryard.classification.values import Read, Reader, vocabulary_of
from tieryard.errors import UnreadableError
from tieryard.requests.classification import ClassificationSpec


@dataclass(frozen=True, slots=True)
class Answer:
    """Distinct labels, in the order given; exactly one in a run with one label a text. `confidence` is from 0 to 1,
    None where the engine gave no logprobs, or none that fit its text."""

    labels: tuple[str, ...]
    confidence: float | None


def read(spec: ClassificationSpec, response_body: dict[str, Any]) -> Answer:
    """Reads a chat completion. Raises UnreadableError where it holds none of the labels."""
    vocabulary = vocabulary_of(tuple(label.name for label in spec.labels))
    reader = Reader(vocabulary, several=spec.multi_label)
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
    return Answer(tuple(dict.fromkeys(found.labels)), _confidence(reader, found, written, content) if content else None)


@dataclass(frozen=True, slots=True)
class _Token:
    """One of an answer's tokens, or what might have stood in its place."""

    written: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where a token stands in the answer, and what might have stood there. Without a token: a gap."""

    start: int
    end: int
    token: _Token | None
    others: list[_Token]


def _confidence(reader: Reader, read: Read, written: bytes, content: Any) -> float | None:
    """The formula above, over the tokens of the value; None where they are not those of the answer, and where one that
    decided is not among them."""
    try:
        placed = _place(read, written, content)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    tokens = [one for one in placed if one.token is not None]
    gaps = [(max(one.start, read.begins), one.end) for one in placed if one.token is None]
    if not tokens or any(reader.decides(written[read.begins : start], written[start:end]) for start, end in gaps):
        return None
    if any(one.others for one in tokens):
        shares = [_share(reader, read, written, one) for one in tokens]
    else:
        quote = written.find(b'"', read.begins, read.ends)  # what lays out the value says nothing about it
        shares = [math.exp(one.token.logprob) for one in tokens if one.token is not None and one.end > quote + 1]
    return min(1.0, math.prod(shares)) if shares and not any(map(math.isnan, shares)) else None


def _place(read: Read, written: bytes, content: Any) -> list[_Placed]:
    """The value's tokens in their places. There may be others around it that the text does not have, and llama.cpp
    leaves out those whose text it holds back: parts of a character, and a backslash. Raises ValueError where they are
    of another answer."""
    tokens = [_token(item) for item in content]
    before = b"".join(token.written for token in tokens).find(written)
    placed, at = [], -max(before, 0)
    for token, item in zip(tokens, content, strict=True):
        # Where all of the text is in the tokens, they follow each other; else each is looked for.
        start = at if before >= 0 else written.find(token.written, at)
        if start < 0 and before < 0:
            if read.begins <= at < read.ends:
                raise ValueError("a token is not in the answer")
            continue
        if start > at:
            placed.append(_Placed(at, start, None, []))
        at = start + len(token.written)
        if start < read.ends and at > read.begins:
            others = [
                other for top in item.get("top_logprobs") or () if (other := _token(top)).written != token.written
            ]
            placed.append(_Placed(start, at, token, others))
    placed.append(_Placed(at, len(written), None, []))
    return [one for one in placed if one.start < read.ends and one.end > read.begins]


def _share(reader: Reader, read: Read, written: bytes, placed: _Placed) -> float:
    """agreeing / (agreeing + disagreeing) for one token; NaN where all are impossible."""
    assert placed.token is not None
    lead = placed.token.written[: max(0, read.begins - placed.start)]  # of a token that begins before the value
    before = written[read.begins : max(placed.start, read.begins)]
    agreeing, disagreeing = [placed.token.logprob], [-math.inf]
    for other in placed.others:
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
