"""Requests in OpenAI's shapes: the bodies of three endpoints, and a line of a batch file around one of them.

Parameters that change what is generated go to the engine or are refused; those that only concern OpenAI's own
service (`store`, `user`, `service_tier`, …) are taken and have no effect. docs/reference/openai.md lists them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from tieryard.errors import RequestError
from tieryard.requests.fields import (
    INT64,
    Duration,
    JsonObject,
    Metadata,
    Name,
    NotBlank,
    PromptCacheKey,
    ResponseFormat,
    Stop,
    refusal,
)
from tieryard.requests.request import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    Endpoint,
    Request,
    needs_of,
)
from tieryard.requests.slo import JobSlo, MaxCost

_Penalty = Annotated[float, Field(ge=-2, le=2)]


def _only_null(why: str) -> BeforeValidator:
    """For what clients send as null because OpenAI's API knows it, and what is not served with a value."""

    def refuse(value: object) -> None:
        if value is not None:
            raise ValueError(why)

    return BeforeValidator(refuse)


_NotServed = Annotated[None, _only_null("is not served here")]
_Functions = Annotated[None, _only_null("deprecated; use tools")]
_FunctionCall = Annotated[None, _only_null("deprecated; use tool_choice")]
_OldCall = Annotated[None, _only_null("deprecated; use tool_calls")]


class _Open(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(_Open):
    type: Literal["text"]
    text: str
    cache_control: Any = Field(default=None, description="Without effect.")


class RefusalPart(_Open):
    type: Literal["refusal"]
    refusal: str


def _form_of(content: object) -> str:
    return "list[part]" if isinstance(content, list) else "str"


def _kind_of(part: object) -> str | None:
    """The name of the part's class; None, which is refused, for anything but a part."""
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return {"text": "TextPart", "refusal": "RefusalPart"}.get(kind) if isinstance(kind, str) else None


def _of_text(content: object) -> object:
    """Says which part is not served, by its number (from 1)."""
    for number, part in enumerate(content if isinstance(content, list) else (), start=1):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image_url", "input_audio", "file"):
            raise ValueError(f"part {number}: {kind} is not served here")
    return content


# Unions that are told apart by a look: a refusal then speaks of what was meant, not of each thing it might have been.
# The tags are words that `refusal` leaves out.
_Part = Annotated[
    Annotated[TextPart, Tag("TextPart")] | Annotated[RefusalPart, Tag("RefusalPart")],
    Discriminator(
        _kind_of, custom_error_type="part", custom_error_message="expected a part whose type is 'text' or 'refusal'"
    ),
]
_Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[_Part], Tag("list[part]")],
    Discriminator(_form_of),
    BeforeValidator(_of_text),
]


class ChatMessage(_Open):
    """One turn of a conversation, of text. An answer's message can be sent back as the `openai` package dumps it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Content | None = None
    name: str | None = Field(default=None, max_length=64)
    tool_calls: list[JsonObject] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    # Of an answer, and of no use to the next.
    annotations: Any = Field(default=None, description="Without effect.")
    parsed: Any = Field(default=None, description="Without effect.")
    reasoning: Any = Field(default=None, description="Without effect.")
    reasoning_content: Any = Field(default=None, description="Without effect.")
    audio: _NotServed = None
    function_call: _OldCall = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.refusal)):
            raise ValueError("`content` is missing")
        return self

    def plain(self) -> dict[str, Any]:
        """As chat templates take it: text parts joined by line breaks, absent members left out."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(p.text if isinstance(p, TextPart) else p.refusal for p in content)
        said: dict[str, Any] = {"role": self.role, "content": content or ""}
        for name in ("name", "tool_calls", "tool_call_id"):
            if (value := getattr(self, name)) not in (None, []):  # templates take an empty list of calls for calls
                said[name] = value
        return said


class StreamOptions(_Open):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class _Body(_Open):
    """What the bodies share: the model, and Tieryard's own fields (in the OpenAI client: `extra_body`)."""

    _to_engine: ClassVar[tuple[str, ...]] = ()

    model: Name = Field(
        description="`auto` routes; `class:small|medium|large` restricts to a size class; a deployment's name pins."
    )
    user: str | None = None
    safety_identifier: str | None = None
    metadata: Metadata | None = None

    tier: Name | None = Field(default=None, description="Service class: a tier of the catalog.")
    category: Name | None = Field(
        default=None, description="What is asked for, when you know better than the classifier."
    )

    slo: JobSlo | None = None
    max_cost_usd: MaxCost | None = None

    def _passed(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self._to_engine}
        return {name: value for name, value in found.items() if value not in (None, [])}  # no tools: none given

    def _request(self, endpoint: Endpoint, body: dict[str, Any], input_field: str, custom_id: str | None) -> Request:
        return Request(
            endpoint=endpoint,
            body=body,
            model=self.model,
            needs=needs_of(body),
            input_field=input_field,
            tier=self.tier,
            category=self.category,
            custom_id=custom_id,
            metadata=self.metadata,
            prompt_cache_key=getattr(self, "prompt_cache_key", None),
            slo=self.slo,
            max_cost_usd=self.max_cost_usd,
        )


class _Generated(_Body):
    """What chat and plain completions share."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    stop: Stop = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    n: Literal[1] | None = Field(default=None, description="One answer a request.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_cache_key: PromptCacheKey | None = None
    # Of vLLM and llama.cpp, for `extra_body`.
    top_k: int | None = Field(default=None, ge=-1, lt=INT64)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(default=None, ge=0, le=1_000_000)

    _sampling: ClassVar[tuple[str, ...]] = (
        "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias",
        "top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens", "response_format",
    )  # fmt: skip


class ChatCreate(_Generated):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "auto",
                    "messages": [{"role": "user", "content": "What is the capital of Peru?"}],
                    "max_tokens": 16,
                }
            ]
        }
    )
    _to_engine: ClassVar[tuple[str, ...]] = (
        *_Generated._sampling, "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
        "reasoning_effort", "chat_template_kwargs",
    )  # fmt: skip

    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[JsonObject] | None = Field(default=None, max_length=128, description="`[]` is none.")
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = Field(default=None, max_length=16)
    chat_template_kwargs: JsonObject | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None
    modalities: list[Literal["text"]] | None = None
    audio: _NotServed = None
    moderation: _NotServed = None
    prediction: _NotServed = None
    web_search_options: _NotServed = None
    functions: _Functions = None
    function_call: _FunctionCall = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not any(message.plain()["content"].strip() or message.tool_calls for message in self.messages):
            raise ValueError("`messages` must not all be empty")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give one of `max_tokens` and `max_completion_tokens`")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs: true`")
        return self

    def request(self, custom_id: str | None = None) -> Request:
        body = {"messages": [m.plain() for m in self.messages], **self._passed()}
        if (most := self.max_completion_tokens or self.max_tokens) is not None:
            body["max_tokens"] = most
        return self._request(CHAT, body, "messages", custom_id)


class CompletionCreate(_Generated):
    """`POST /v1/completions`: a raw prompt, without a chat template."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "auto", "prompt": "The capital of Peru is", "max_tokens": 8}]}
    )
    _to_engine: ClassVar[tuple[str, ...]] = (*_Generated._sampling, "logprobs")

    prompt: NotBlank | Annotated[list[NotBlank], Field(min_length=1, max_length=1)] = Field(
        description="One text. Lists of prompts, and of tokens, are for a batch's lines."
    )
    max_tokens: int = Field(default=16, ge=1, le=1_000_000, description="Most tokens to generate. OpenAI's default.")
    logprobs: int | None = Field(default=None, ge=0, le=5)
    response_format: ResponseFormat | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    def request(self, custom_id: str | None = None) -> Request:
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        body = {"prompt": prompt, "max_tokens": self.max_tokens, **self._passed()}
        return self._request(COMPLETIONS, body, "prompt", custom_id)


class EmbeddingCreate(_Body):
    """`POST /v1/embeddings`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "auto", "input": "Oslo"}]})

    input: NotBlank | Annotated[list[NotBlank], Field(min_length=1, max_length=2048)]
    dimensions: int | None = Field(default=None, ge=1, le=65_536)
    encoding_format: Literal["float", "base64"] | None = None

    _to_engine: ClassVar[tuple[str, ...]] = ("dimensions",)

    def request(self, custom_id: str | None = None) -> Request:
        return self._request(EMBEDDINGS, {"input": self.input, **self._passed()}, "input", custom_id)


BODIES: dict[Endpoint, type[ChatCreate | CompletionCreate | EmbeddingCreate]] = {
    CHAT: ChatCreate,
    COMPLETIONS: CompletionCreate,
    EMBEDDINGS: EmbeddingCreate,
}


class BatchLine(BaseModel):
    """A line of a batch file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    custom_id: str = Field(min_length=1, max_length=512, description="Your own name for it, unique in the file.")
    method: Literal["POST"]
    url: Endpoint
    body: dict[str, Any]


class ExpiresAfter(_Open):
    """When a file is to go, counted from its creation."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)

    def delta(self) -> timedelta:
        return timedelta(seconds=self.seconds)


class BatchCreate(_Open):
    """`POST /v1/batches`. The last three are Tieryard's own (in the OpenAI client: `extra_body`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input_file_id": "file_7", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
                {
                    "input_file_id": "file_7",
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "90m",
                    "metadata": {"run": "nightly"},
                    "reuse": True,
                },
            ]
        }
    )

    input_file_id: str = Field(description="An uploaded file of purpose `batch`.")
    endpoint: Endpoint = Field(description="What all its lines call.")
    completion_window: Annotated[str, Field(max_length=32)] = Field(
        description="When its lines must be done: any duration, such as `15m`, `1h` or `24h`."
    )
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None
    tier: Name | None = Field(default=None, description="Service class. Default: `bulk` where the catalog has it.")
    reuse: bool = Field(
        default=False,
        description="Take answers that earlier batches got to the same requests from what is still deployed.",
    )
    callback_url: AnyHttpUrl | None = Field(default=None, description="Told when the batch is over, signed.")

    def window(self) -> timedelta:
        """Raises RequestError."""
        try:
            return _duration.validate_python(self.completion_window)
        except ValidationError as error:
            raise RequestError(refusal(error).message, param="completion_window") from None


_duration: TypeAdapter[timedelta] = TypeAdapter(Duration)
