"""Logprobs as vLLM writes them, for the fake: each token is the likeliest, and its alternatives are `alt1 alt2 …`."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

_CHOSEN, _STEP = -0.25, -1.0


def chat_logprobs(tokens: list[str], tops: int) -> dict[str, Any]:
    return {"content": [{**_item(*_ranked(t, 1)[0]), "top_logprobs": _tops(t, tops)} for t in tokens]}


def plain_logprobs(tokens: list[str], tops: int, offset: int) -> dict[str, Any]:
    """`offset` is how many characters of the answer came before."""
    return {
        "text_offset": list(accumulate(map(len, tokens), initial=offset))[:-1],
        "token_logprobs": [_CHOSEN for _ in tokens],
        "tokens": tokens,
        "top_logprobs": [dict(_ranked(token, max(tops, 1))) for token in tokens],
    }


def _tops(token: str, count: int) -> list[dict[str, Any]]:
    return [_item(*ranked) for ranked in _ranked(token, count)]


def _ranked(token: str, count: int) -> list[tuple[str, float]]:
    """The token and its alternatives, likeliest first."""
    return [(f"alt{i}" if i else token, _CHOSEN + i * _STEP) for i in range(count)]


def _item(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
