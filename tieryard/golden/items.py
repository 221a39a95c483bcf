"""Golden sets: prompts whose good answers are known, and how an answer to each is scored."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tieryard.golden.scorers import AnyScorer
from tieryard.golden.scorers.base import Unfit
from tieryard.requests.fields import NotBlank, ResponseFormat
from tieryard.requests.native import Message


class Item(BaseModel):
    """One prompt. `expected` holds right answers, `references` good ones to be compared with or shown to a judge, and
    `criteria` is what a judge goes by where no scorer can tell."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: NotBlank = Field(max_length=256, description="Its own name in the set.")
    category: str = Field(description="What it asks for; one of the catalog's.")
    prompt: NotBlank | None = Field(default=None, description="Short for one user message. Give this or `messages`.")
    messages: list[Message] | None = Field(default=None, min_length=1, description="The conversation.")
    response_format: ResponseFormat | None = Field(
        default=None, description="`json_schema` or `json_object`: what the answer is constrained to."
    )
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000, description="Most tokens to generate.")
    expected: Any = Field(
        default=None, description="The right answer: a text, a list of texts of which any is, or JSON."
    )
    references: list[NotBlank] = Field(default_factory=list, description="Good answers.")
    criteria: NotBlank | None = Field(default=None, description="What a judge goes by.")
    scorer: AnyScorer | None = Field(default=None, description="A scorer's name, or an object of name and options.")

    @field_validator("scorer", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise Unfit("prompt", "give exactly one of `prompt` and `messages`")
        if self.messages is not None and not any(message.content.strip() for message in self.messages):
            raise Unfit("messages", "they must not all be empty; write what is asked")
        if self.scorer is not None:
            self.scorer.check(self)
        elif self.criteria is None:
            raise Unfit("scorer", "write a scorer, or `criteria` for a judge")
        return self

    @property
    def conversation(self) -> list[dict[str, str]]:
        """What is asked, as messages."""
        if self.messages is None:
            return [{"role": "user", "content": self.prompt or ""}]
        return [message.model_dump() for message in self.messages]

    @property
    def input_hash(self) -> str:
        """Equal for two items that ask the same of a model: conversation and constraint."""
        return _sha256([self.conversation, self.response_format])

    def canonical(self) -> dict[str, Any]:
        """What makes it this item and no other. Fields that say nothing are left out, so that a new one with a default
        changes no hash."""
        said = {name: getattr(self, name) for name in type(self).model_fields if name != "scorer"}
        said = {name: value for name, value in said.items() if value is not None}
        if not self.references:
            del said["references"]
        if self.messages is not None:
            said["messages"] = self.conversation
        if self.scorer is not None:
            options = self.scorer.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            said["scorer"] = options | {"name": self.scorer.name}
        return said


@dataclass(frozen=True)
class GoldenSet:
    """Items with distinct ids and inputs, in the file's order."""

    name: str
    items: tuple[Item, ...]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the items' canonical content, sorted by id: the same for any order of lines and fields, and for
        any name. Two scores are comparable where it is equal."""
        return _sha256([item.canonical() for item in sorted(self.items, key=lambda item: item.id)])

    @cached_property
    def counts(self) -> dict[str, int]:
        """Items by category, sorted."""
        return dict(sorted(Counter(item.category for item in self.items).items()))


def _sha256(content: Any) -> str:
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
