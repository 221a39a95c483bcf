"""The fake vLLM's prefix cache: whole blocks of tokens, each known by all that came before it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

BLOCK = 16
"""Tokens, as in vLLM on a GPU."""


class PrefixCache:
    """Of some blocks; the one that was used longest ago makes room."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, None] = OrderedDict()

    def read(self, tokens: Sequence[str], salt: str | None, *, blocks: int) -> int:
        """How many of these tokens need not be computed; they are held from now on, as far as `blocks` reach. The last
        token is always computed, since its successor comes from it."""
        known, unbroken = 0, True
        whole = (len(tokens) - 1) // BLOCK
        for number, block in enumerate(_chained(tokens, salt)):
            unbroken = unbroken and block in self._held
            known += BLOCK if unbroken and number < whole else 0
            self._held[block] = None
            self._held.move_to_end(block)
        while len(self._held) > blocks:
            self._held.popitem(last=False)
        return known


def _chained(tokens: Sequence[str], salt: str | None) -> Iterator[int]:
    before = hash(salt)
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        before = hash((before, *tokens[end - BLOCK : end]))
        yield before
