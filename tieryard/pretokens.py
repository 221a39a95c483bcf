"""Counting a text's tokens by its pre-tokens: how many tokens each has is remembered, so that most are only looked up.

A tokenizer cuts a text at its added tokens, then by a pattern into pre-tokens (words, numbers, runs of marks), and each
of these is encoded by itself. The patterns known here are those of most open models, in terms of characters on which
all versions of Unicode agree. Words with others are encoded as they stand, and so are texts of any other tokenizer.
"""

from __future__ import annotations

import re
from typing import Any

import orjson
from tokenizers import Tokenizer

_MOST_KEPT = 50_000  # pre-tokens: a few MB
_LONGEST = 32  # characters of one that may come again

_LETTER = "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0391-\u03a1\u03a3-\u03ce\u0400-\u0481\u048a-\u04ff"
_MARK = (
    r"!-/:-@\[-`{-~\u00a1-\u00a9\u00ab\u00ac\u00ae-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7\u2010-\u2027"
    r"\u2030-\u205e\u20a0-\u20b0\u2190-\u22ff"
)
_IN_DOUBT = re.compile(rf"[^ \t\n\r\u00a0{_LETTER}0-9{_MARK}]")
_BLANKS = str.maketrans(" \n\r\t", "ĠĊčĉ")  # as ByteLevel writes them
_BETWEEN_WORDS = re.compile(rf"(?<=[{_LETTER}])(?= [{_LETTER}])")  # a cut in each of the patterns below

_SHORT = r"'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = rf"{_SHORT}| ?[{_LETTER}]+| ?[0-9]+| ?[{_MARK}]+|\s+(?!\S)|\s+"
_LATER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _digits_first(digits: str) -> str:
    """Digits are told off first, and what is left is cut by itself: blanks before one stand at an end."""
    return rf"{_SHORT}| ?[{_LETTER}]+|{digits}| ?[{_MARK}]+|\s+(?![^\s0-9])|\s+"


def _later(digits: str) -> str:
    return rf"(?i:{_SHORT})|[ \t\u00a0{_MARK}]?[{_LETTER}]+|{digits}| ?[{_MARK}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


# As the tokenizers' files have it, and as Python does.
_SPLITS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": _GPT2,
    _LATER % r"\p{N}": _later("[0-9]"),  # Qwen 2 and 3
    _LATER % r"\p{N}{1,3}": _later("[0-9]{1,3}"),  # Llama 3
}


def pattern_of(tokenizer: Tokenizer) -> str | None:
    """The pattern of its pre-tokens, in Python's words; None where it is not known here, or is not all that matters."""
    file: dict[str, Any] = orjson.loads(tokenizer.to_str())
    plain = file["model"]["type"] == "BPE" and not file["model"].get("dropout")
    if not plain or (file["normalizer"] or {"type": "NFC"})["type"] != "NFC" or any(map(_bends, file["added_tokens"])):
        return None
    before = file["pre_tokenizer"] or {}
    match before.get("pretokenizers", [before]):
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return _GPT2
        case [
            {"type": "Digits", "individual_digits": alone},
            {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False},
        ]:
            return _digits_first("[0-9]" if alone else "[0-9]+")
        case [
            {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": pattern}},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ]:
            return _SPLITS.get(pattern)
    return None


def _bends(added: dict[str, Any]) -> bool:
    """Whether an added token may take blanks, or depends on what stands beside it."""
    return bool(added["lstrip"] or added["rstrip"] or added["single_word"])


class PretokenCounts:
    """Of one tokenizer, with the pattern that `pattern_of` found. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer, pattern: str) -> None:
        self._tokenizer, self._model = tokenizer, tokenizer.model
        self._pretokens = re.compile(pattern).findall
        added = sorted(
            (token.content for token in tokenizer.get_added_tokens_decoder().values()), key=len, reverse=True
        )
        self._cut = re.compile("|".join(map(re.escape, added))).split if added else lambda text: [text]
        self._known: dict[str, int] = {}

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text, without special tokens around it."""
        return [self._count(text) for text in texts]

    def _count(self, text: str) -> int:
        parts = self._cut(text)
        return len(parts) - 1 + sum(map(self._between, parts))

    def _between(self, text: str) -> int:
        """Of what stands between added tokens. Words with a character in doubt are encoded, with what hangs on them."""
        total, known_to = 0, 0
        while (doubt := _IN_DOUBT.search(text, known_to)) is not None:
            cuts = [cut.start() for cut in _BETWEEN_WORDS.finditer(text, known_to, doubt.start())]
            start = cuts[-1] if cuts else known_to
            cut = _BETWEEN_WORDS.search(text, doubt.end())
            end = cut.start() if cut is not None else len(text)
            total += self._looked_up(text[known_to:start]) + self._encoded(text[start:end])
            known_to = end
        return total + self._looked_up(text[known_to:])

    def _encoded(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def _looked_up(self, text: str) -> int:
        pretokens = self._pretokens(text)
        counts = list(map(self._known.get, pretokens))
        return sum(counts) if None not in counts else sum(map(self._learnt, pretokens))  # type: ignore[arg-type]

    def _learnt(self, pretoken: str) -> int:
        known = self._known.get(pretoken)
        if known is not None:
            return known
        if pretoken.isascii():  # its characters are its bytes, and the model knows those by these names
            tokens = len(self._model.tokenize(pretoken.translate(_BLANKS)))
        else:
            tokens = self._encoded(pretoken)
        if len(pretoken) <= _LONGEST:
            if len(self._known) >= _MOST_KEPT:
                self._known = {}
            self._known[pretoken] = tokens
        return tokens
