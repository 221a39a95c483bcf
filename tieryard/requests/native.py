"""A job as `/v1/jobs` takes it: one flat object, whose parameter names are OpenAI's."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, model_validator

from tieryard.requests.fields import INT64, Duration, Metadata, Name, NotBlank, PromptCacheKey, ResponseFormat, Stop
from tieryard.requests.request import CHAT, DEFAULT_MAX_TOKENS, Request, needs_of
from tieryard.requests.slo import JobSlo, MaxCost


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class JobCreate(BaseModel):
    """One request for one completion."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
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

    prompt: NotBlank | None = Field(default=None, description="Short for one user message. Give this or `messages`.")
    messages: list[Message] | None = Field(default=None, min_length=1, description="The conversation.")
    tier: Name | None = Field(
        default=None, description="Service class: a tier of the catalog. Default: the list's, else `batch`."
    )
    model: Name = Field(
        default="auto",
        description="`auto` routes; `class:small|medium|large` restricts to a size class; a deployment's name pins.",
    )
    category: Name | None = Field(
        default=None, description="What is asked for, when you know better than the classifier."
    )
    max_tokens: int = Field(default=DEFAULT_MAX_TOKENS, ge=1, le=1_000_000, description="Most tokens to generate.")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    stop: Stop = None
    prompt_cache_key: PromptCacheKey | None = None
    response_format: ResponseFormat | None = Field(
        default=None, description="`json_schema` or `json_object`, as OpenAI's API takes it."
    )
    logprobs: bool | None = Field(
        default=None, description="Whether the answer's `extra` has its tokens' probabilities."
    )
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Likeliest tokens beside each of the answer's; needs `logprobs`."
    )
    custom_id: str | None = Field(default=None, max_length=256, description="Your own name for it, given back.")
    metadata: Metadata | None = Field(default=None, description="Your own notes, given back.")
    callback_url: AnyHttpUrl | None = Field(default=None, description="Told when the job is final, signed.")
    completion_window: Duration | None = Field(
        default=None, description="When not final this long after acceptance, the job expires. Default: the tier's."
    )

    slo: JobSlo | None = None
    max_cost_usd: MaxCost | None = None

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of `prompt` and `messages`")
        if self.messages is not None and not any(m.content.strip() for m in self.messages):
            raise ValueError("`messages` must not all be empty")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs: true`")
        return self

    def request(self) -> Request:
        """What routing and engines need of it."""
        if self.messages is None:
            conversation = [{"role": "user", "content": self.prompt or ""}]
        else:
            conversation = [{"role": m.role, "content": m.content} for m in self.messages]
        body: dict[str, Any] = {"messages": conversation, "max_tokens": self.max_tokens}
        for name in ("temperature", "top_p", "seed", "stop", "response_format", "logprobs", "top_logprobs"):
            if (value := getattr(self, name)) is not None:
                body[name] = value
        return Request(
            endpoint=CHAT,
            body=body,
            model=self.model,
            needs=needs_of(body),
            input_field="prompt" if self.messages is None else "messages",
            tier=self.tier,
            category=self.category,
            custom_id=self.custom_id,
            metadata=self.metadata,
            callback_url=str(self.callback_url) if self.callback_url else None,
            completion_window=self.completion_window,
            prompt_cache_key=self.prompt_cache_key,
            slo=self.slo,
            max_cost_usd=self.max_cost_usd,
        )
