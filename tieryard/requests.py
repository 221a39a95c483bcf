"""What a caller may ask for: the shape of one job, checked field by field.

Parameter names are OpenAI's, so that a line of a batch file and a native job say the same thing the same way.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from tieryard.errors import RequestError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = timedelta(days=365)
_MOST_FORMAT_BYTES = 64 * 1024
_INT64 = 2**63

# The escape of a NUL, and not an escaped backslash before "u0000". Neither Postgres nor an engine takes a NUL.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# Pydantic's words for the members of a union; the caller never wrote them.
_UNION_MEMBER = re.compile(r"str|constrained-str|url|list\[.*|function-.*")


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


Duration = Annotated[timedelta, BeforeValidator(parse_duration), Field(gt=timedelta(0))]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _plain_json(value: dict[str, Any]) -> dict[str, Any]:
    """Refuses what no engine can be sent: NaN and Infinity, integers beyond 64 bits, schemas of any size."""
    size = len(json.dumps(value, allow_nan=False))  # its ValueError is the refusal
    if size > _MOST_FORMAT_BYTES:
        raise ValueError(f"at most {_MOST_FORMAT_BYTES} bytes of JSON, not {size}")
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, int) and not -_INT64 <= item < _INT64:
            raise ValueError("integers must fit in 64 bits")
    return value


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class JobCreate(BaseModel):
    """One request for one completion."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"prompt": "Extract the city: 'I live in Oslo.'", "tier": "interactive", "max_tokens": 16},
                {
                    "messages": [{"role": "user", "content": "Compare a heap with a sorted list."}],
                    "tier": "batch",
                    "model": "auto",
                    "custom_id": "row-17",
                },
            ]
        },
    )

    prompt: Annotated[str, AfterValidator(_not_blank)] | None = Field(
        default=None, description="Short for one user message. Give this or `messages`."
    )
    messages: list[Message] | None = Field(default=None, min_length=1, description="The conversation.")
    tier: str | None = Field(
        default=None, description="Service class: a tier of the catalog. Default: the list's, else `batch`."
    )
    model: str = Field(
        default="auto",
        description="`auto` routes; `class:small|medium|large` restricts to a size class; a deployment's name pins.",
    )
    category: str | None = Field(
        default=None, description="What is asked for, when you know better than the classifier."
    )
    max_tokens: int = Field(default=256, ge=1, le=1_000_000, description="Most tokens to generate.")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    response_format: Annotated[dict[str, Any], AfterValidator(_plain_json)] | None = Field(
        default=None, description="`json_schema` or `json_object`, as OpenAI's API takes it."
    )
    custom_id: str | None = Field(default=None, max_length=256, description="Your own name for it, given back.")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=16, description="Your own notes, given back."
    )
    callback_url: AnyHttpUrl | None = Field(default=None, description="Told when the job is final, signed.")
    completion_window: Duration | None = Field(
        default=None, description="When not final this long after acceptance, the job expires. Default: the tier's."
    )

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of `prompt` and `messages`")
        if self.messages is not None and not any(m.content.strip() for m in self.messages):
            raise ValueError("`messages` must not all be empty")
        return self

    def conversation(self) -> list[dict[str, str]]:
        """The messages as engines and chat templates take them."""
        if self.messages is None:
            return [{"role": "user", "content": self.prompt or ""}]
        return [{"role": m.role, "content": m.content} for m in self.messages]

    def text(self) -> str:
        """What the caller wrote, for features and size checks."""
        if self.messages is None:
            return self.prompt or ""
        return "\n".join(m.content for m in self.messages)

    def engine_body(self) -> dict[str, Any]:
        """The chat completion request for an engine, less `model` and streaming options."""
        body: dict[str, Any] = {"messages": self.conversation(), "max_tokens": self.max_tokens}
        for name in ("temperature", "top_p", "seed", "stop", "response_format"):
            value = getattr(self, name)
            if value is not None:
                body[name] = value
        return body


def parse_job(raw: str | bytes, *, line: int | None = None) -> JobCreate:
    """Reads one JSON object. Raises RequestError that names the field (and the line)."""
    try:
        job = JobCreate.model_validate_json(raw)
    except ValidationError as error:
        raise refusal(error, line=line) from None
    if _NUL.search(raw.encode() if isinstance(raw, str) else raw):
        raise RequestError("must not contain a NUL character (\\u0000)", line=line)
    return job


def refusal(error: ValidationError, *, line: int | None = None) -> RequestError:
    """A pydantic refusal as ours: its first complaint, with the field it is about."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    path = [str(p) for p in first["loc"]]
    if first["type"] == "extra_forbidden":
        return RequestError("no such field", param=".".join(path), line=line)
    path = path[:1] + [p for p in path[1:] if not _UNION_MEMBER.fullmatch(p)]
    if first["type"] == "json_invalid":
        return RequestError(f"not valid JSON: {message.removeprefix('Invalid JSON: ')}", line=line)
    if not message[1:2].isupper():  # "URL scheme …" stays
        message = message[:1].lower() + message[1:]
    return RequestError(message, param=".".join(path) or None, line=line)
