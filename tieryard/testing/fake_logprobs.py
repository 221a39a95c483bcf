"""Logprobs as vLLM writes them, for the fake. Of a free answer each token is the likeliest, and its alternatives are
`alt1 alt2 …`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tieryard.engines.made_up import Ranked

_CHOSEN, _STEP = -0.25, -1.0
_MOST = 21  # what vLLM gives at most, and the token itself


def free_ranks(pieces: Sequence[str]) -> list[Ranked]:
    """A free answer's tokens with their alternatives, likeliest first."""
    return [[(f"alt{i}" if i else piece, _CHOSEN + i * _STEP) for i in range(_MOST)] for piece in pieces]


def plain_logprobs(pieces: Sequence[str], ranked: Sequence[Ranked], tops: int, offset: int) -> dict[str, Any]:
    """`offset` is how many characters of the answer came before."""
    return {
        "text_offset": list(accumulate(map(len, pieces), initial=offset))[:-1],
        "token_logprobs": [dict(ranks)[piece] for piece, ranks in zip(pieces, ranked, strict=True)],
        "tokens": list(pieces),
        "top_logprobs": [dict(ranks[: max(tops, 1)]) for ranks in ranked],
    }
