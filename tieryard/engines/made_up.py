"""Answers that no model made: JSON under a schema, and how sure it is of a label, decided by the prompt alone.

For engines without a model, in tests and benchmarks. Of an enum the prompt's digest picks a member, unless the prompt
names one: `[[label:billing]]`, or with how sure the answer is to be, `[[label:billing:0.62]]`; the last mark counts.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

_TOKEN = 4  # characters
_MARK = re.compile(r"\[\[label:(.+?)(?::(\d(?:\.\d+)?))?\]\]")

Choose = Callable[[Sequence[Any]], Any]
Ranked = list[tuple[str, float]]
"""A token and what might have stood in its place, likeliest first, with their logprobs."""


@dataclass(frozen=True, slots=True)
class MadeUp:
    """An answer, one piece a token. `ranked` is beside each; `cut` when there would be more."""

    pieces: list[str]
    ranked: list[Ranked]
    cut: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def logprobs(self, tops: int) -> dict[str, Any]:
        """As a chat's are written, with so many alternatives a token."""
        return chat_logprobs(self.pieces, self.ranked, tops)

    def shortened(self, most: int | None) -> MadeUp:
        """Its first tokens."""
        if most is None or most >= len(self.pieces):
            return self
        return MadeUp(self.pieces[:most], self.ranked[:most], cut=True)


def make_up(schema: Any, prompt: str) -> MadeUp:
    """The answer to a prompt under a JSON schema; always the same."""
    mark, digest = _last_mark(prompt), _digest(prompt)

    def choose(members: Sequence[Any]) -> Any:
        return mark[1] if mark and mark[1] in members else members[digest % len(members)]

    return doubted(orjson.dumps(instance(schema, choose)).decode(), schema, how_sure(prompt))


def how_sure(prompt: str) -> float:
    """What the prompt's mark says, else something from a half to 1."""
    mark = _last_mark(prompt)
    return min(1.0, float(mark[2])) if mark and mark[2] else 0.5 + (_digest(prompt) >> 32) / 2**33


def doubted(text: str, schema: Any, sure: float) -> MadeUp:
    """A text as an engine gives it that is so sure of the last label in it, and would have said the enum's next one
    instead; of one without a label it has no doubts."""
    pieces = pieces_of(text)
    ranked: list[Ranked] = [[(piece, 0.0)] for piece in pieces]
    members = _enum(schema)
    said = [member for member in members if isinstance(member, str) and _quoted(member) in text]
    if said and len(members) > 1:
        last = max(said, key=lambda member: text.rindex(_quoted(member)))
        instead = members[(members.index(last) + 1) % len(members)]
        before, _, after = text.rpartition(_quoted(last))  # the last, for a label may be called as its member is
        other = pieces_of(before + _quoted(instead) + after)
        at = next((i for i, (a, b) in enumerate(zip(pieces, other, strict=False)) if a != b), None)
        if at is not None:
            doubt = [(pieces[at], _log(sure)), (other[at], _log(1 - sure))]
            ranked[at] = sorted(doubt, key=lambda one: -one[1])
    return MadeUp(pieces, ranked)


def pieces_of(text: str) -> list[str]:
    """Four characters a token."""
    return [text[i : i + _TOKEN] for i in range(0, len(text), _TOKEN)]


def chat_logprobs(pieces: Sequence[str], ranked: Sequence[Ranked], tops: int) -> dict[str, Any]:
    """A chat's logprobs of these tokens: each with its own and those of the likeliest."""
    content = []
    for piece, ranks in zip(pieces, ranked, strict=True):
        own = next(logprob for token, logprob in ranks if token == piece)
        content.append({**_item(piece, own), "top_logprobs": [_item(*one) for one in ranks[:tops]]})
    return {"content": content}


def instance(schema: Any, choose: Choose, root: Any = None) -> Any:
    """A value that a JSON schema accepts: of enums the chosen one, the first of each other choice, required properties,
    least numbers, and the shortest list, but one label where it may hold labels.

    Knows const, enum, anyOf, oneOf, `$ref` into the same schema, and the plain types; no patterns, no allOf.
    """
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        found = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return instance(found, choose, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return choose(schema["enum"])
    for choices in ("anyOf", "oneOf"):
        if choices in schema:
            return instance(schema[choices][0], choose, root)
    return _of_type(schema, choose, root)


def first_of(members: Sequence[Any]) -> Any:
    return members[0]


def _of_type(schema: dict[str, Any], choose: Choose, root: Any) -> Any:
    def inner(part: Any) -> Any:
        return instance(part, choose, root)

    kind = schema.get("type", "object")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            return {name: inner(schema.get("properties", {}).get(name, {})) for name in schema.get("required", ())}
        case "array":
            items = schema.get("items", {})
            fewest = max(schema.get("minItems", 0), isinstance(items, dict) and "enum" in items)
            return [inner(items) for _ in range(fewest)]
        case "string":
            return "a" * schema.get("minLength", 0)
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
    return None


def _last_mark(prompt: str) -> re.Match[str] | None:
    return next(reversed(list(_MARK.finditer(prompt))), None) if "[[label:" in prompt else None


def _digest(prompt: str) -> int:
    return int.from_bytes(hashlib.blake2b(prompt.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _enum(schema: Any) -> list[Any]:
    """The members of the first enum in a schema; none where there is none."""
    if isinstance(schema, dict):
        if isinstance(members := schema.get("enum"), list):
            return members
        return next((found for part in schema.values() if (found := _enum(part))), [])
    if isinstance(schema, list):
        return next((found for part in schema if (found := _enum(part))), [])
    return []


def _quoted(member: Any) -> str:
    return orjson.dumps(member).decode()


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -9999.0  # as vLLM writes what cannot be


def _item(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
