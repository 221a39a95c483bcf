"""Field types and refusals that every shape of request shares."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from tieryard.complaints import complaint
from tieryard.errors import RequestError

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = timedelta(days=365)
_MOST_JSON_BYTES = 64 * 1024
INT64 = 2**63

# The escape of a NUL, and not an escaped backslash before "u0000". Neither Postgres nor an engine takes a NUL.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# Pydantic's words for the members of a union; the caller never wrote them.
_UNION_MEMBER = re.compile(
    r"str|constrained-str|float|constrained-float|Relative|timedelta|datetime|url|list\[.*|function-.*|TextPart"
    r"|RefusalPart|dict\[.*"
)


def parse_duration(value: object) -> object:
    """`"15m"`, `"24h"`, `"90s"`, `"500ms"`, `"7d"` → timedelta; anything else is left for pydantic to refuse."""
    if isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        seconds = float(found[1]) * _UNIT_S[found[2]]
        if seconds > _LONGEST.total_seconds():  # before timedelta, which would overflow
            raise ValueError(f"at most {_LONGEST.days} days")
        return timedelta(seconds=seconds)
    if isinstance(value, timedelta):
        return value
    raise ValueError("expected a duration such as '90s', '15m' or '24h'")


def _positive(duration: timedelta) -> timedelta:
    if duration <= timedelta(0):  # not `Field(gt=…)`, whose refusal quotes Python
        raise ValueError("must be greater than 0s")
    return duration


Duration = Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_positive)]


def _exact(value: object) -> object:
    """A number read as a float was written as its shortest decimal form."""
    return repr(float(value)) if isinstance(value, float) else value  # YAML's remember how they were written


Usd = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, max_digits=20, decimal_places=6, strict=False)]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Name = Annotated[str, Field(max_length=256)]
"""Of something in the catalog: long enough for any, short enough to be quoted when there is none."""
NotBlank = Annotated[str, AfterValidator(_not_blank)]


def _plain_json(value: Any) -> Any:
    """Refuses what no engine can be sent: NaN and Infinity, integers beyond 64 bits, structures of any size."""
    size = len(json.dumps(value, allow_nan=False))  # its ValueError is the refusal
    if size > _MOST_JSON_BYTES:
        raise ValueError(f"at most {_MOST_JSON_BYTES} bytes of JSON, not {size}")
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, int) and not -INT64 <= item < INT64:
            raise ValueError("integers must fit in 64 bits")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_plain_json)]


def _named_schema(given: dict[str, Any]) -> dict[str, Any]:
    if not (isinstance(given.get("name"), str) and given["name"] and isinstance(given.get("schema"), dict)):
        raise ValueError("needs a `name`, and a `schema` that is an object")
    return given


class _SchemaFormat(BaseModel):
    json_schema: Annotated[dict[str, Any], AfterValidator(_named_schema)]


def _whole_format(value: dict[str, Any]) -> dict[str, Any]:
    """Refuses what engines refuse, or take for any JSON at all: `json_schema` without its schema."""
    if value.get("type") == "json_schema":
        _SchemaFormat.model_validate(value)
    return value


ResponseFormat = Annotated[JsonObject, AfterValidator(_whole_format)]


def _without_empty(stop: str | list[str] | None) -> str | list[str] | None:
    """None where nothing is left: engines refuse an empty stop, or stop at it at once."""
    return (stop if isinstance(stop, str) else [text for text in stop or () if text]) or None


Stop = Annotated[str | Annotated[list[str], Field(max_length=16)] | None, AfterValidator(_without_empty)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
"""A caller's own notes, within OpenAI's limits."""


PromptCacheKey = Annotated[
    str,
    Field(
        description="Jobs with the same one are sent to the same replica, whose cache then has their common beginning. "
        "Default: told by the first 256 bytes of the prompt.",
    ),
]
"""OpenAI takes up to 64 characters. It is only hashed here, so that any length does."""


def refuse_nul(raw: str | bytes, *, line: int | None = None) -> None:
    """Raises RequestError when JSON holds a NUL, written out or escaped."""
    body = raw.encode() if isinstance(raw, str) else raw
    if b"\x00" in body or _NUL.search(body):
        raise RequestError("must not contain a NUL character (\\u0000)", line=line)


def refusal(error: ValidationError, *, line: int | None = None, under: str | None = None) -> RequestError:
    """A pydantic refusal as ours: its first complaint, with the field it is about (below `under`)."""
    first = error.errors(include_url=False)[0]
    path = [str(p) for p in first["loc"]]
    above = [under] if under else []
    written = 1 if first["type"] == "extra_forbidden" else 0  # the caller's own word at the end, whatever it is
    between = [p for p in path[1 : len(path) - written] if not _UNION_MEMBER.fullmatch(p)]
    path = above + path[:1] + between + path[max(1, len(path) - written) :]
    return RequestError(complaint(first), param=".".join(path) or None, line=line)
