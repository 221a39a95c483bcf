"""vLLM's wire format, for the fake: requests checked and read, answers and errors written."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import orjson

from tieryard.engines.made_up import (
    MadeUp,
    Ranked,
    chat_logprobs,
    doubted,
    first_of,
    how_sure,
    instance,
    make_up,
    pieces_of,
)
from tieryard.testing.fake_logprobs import free_ranks, plain_logprobs
from tieryard.testing.fault_plan import FakePlan, Fault

_ERROR_TYPES = {400: "BadRequestError", 404: "NotFoundError"}


class RefusalError(Exception):
    """Answered with `status` and vLLM's error body."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        kind = _ERROR_TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
        self.status = status
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(slots=True, kw_only=True)
class Ask(ABC):
    """What every request has once it is read. `faulted` once its fault has ended it; `cached_tokens` once its prompt
    has been looked up, where there is a prefix cache."""

    number: int
    model: str
    prompt_tokens: int
    fault: Fault | None
    arrived: float
    faulted: bool = False
    prompt: str = ""
    salt: str | None = None
    cached_tokens: int | None = None

    def has(self, fault: str) -> bool:
        return self.fault is not None and self.fault.name == fault

    @property
    def completion_tokens(self) -> int:
        return 0

    @property
    def ended(self) -> str:
        """The reason under which vLLM's metrics count its end."""
        return "stop"

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""


@dataclass(slots=True, kw_only=True)
class Generation(Ask):
    """A chat or a plain completion: what to answer, a piece a token, and how to write it.

    With `call` the answer is a call of that function, and the pieces are its opening and its arguments.
    `tops` is how many alternatives each token's logprobs have; None where none were asked for. `ranked` are the
    alternatives, and what the wire has of them where it is None.
    """

    chat: bool
    pieces: list[str]
    finish_reason: str
    stream: bool
    include_usage: bool
    running_usage: bool
    call: str | None = None
    tops: int | None = None
    ranked: list[Ranked] | None = None

    @property
    def completion_tokens(self) -> int:
        return 1 if self.has("empty") else len(self.pieces)

    @property
    def ended(self) -> str:
        return "length" if self.finish_reason == "length" else "stop"

    def whole(self) -> dict[str, Any]:
        text = "".join(self.pieces)
        said = {"content": None, "tool_calls": [self._calling(text)]} if self.call else {"content": text}
        content = {"message": {"role": "assistant", **said}} if self.chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": self._logprobs(0, len(self.pieces))}
        usage = {} if self.has("no_usage") else {"usage": self._usage(self.completion_tokens, final=True)}
        return {**self._reply([{**choice, "finish_reason": self.finish_reason}], chunk=False), **usage}

    def piece(self, first: int, count: int) -> bytes:
        """The event of `count` tokens from `first` on."""
        pieces = self.pieces[first : first + count]
        if self.call:
            part = {"function": {"arguments": pieces[0]}} if first else self._calling()
            return self._event(first + 1, {"delta": {"tool_calls": [{"index": 0, **part}]}})
        last = first + len(pieces)
        return self.event(last, "".join(pieces), logprobs=self._logprobs(first, last))

    def event(
        self,
        tokens: int,
        text: str,
        finish_reason: str | None = None,
        *,
        role: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        """A streamed event of content. `tokens` is the count of completion tokens so far."""
        delta = {"role": role, "content": text} if role else {"content": text}
        content = {"delta": delta} if self.chat else {"text": text}
        return self._event(tokens, content, logprobs=logprobs, finish_reason=finish_reason)

    def tail(self) -> bytes:
        """The finish reason, the final usage in an event without choices, and the end mark."""
        tokens = self.completion_tokens
        usage = (
            event({**self._reply([], chunk=True), "usage": self._usage(tokens, final=True)})
            if self.include_usage
            else b""
        )
        return self.event(tokens, "", self.finish_reason) + usage + b"data: [DONE]\n\n"

    def _event(
        self,
        tokens: int,
        content: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {"index": 0, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": self._usage(tokens)} if self.running_usage else {}
        return event({**self._reply([choice], chunk=True), **usage})

    def _calling(self, arguments: str = "") -> dict[str, Any]:
        function = {"name": self.call, "arguments": arguments}
        return {"id": f"chatcmpl-tool-{self.number}", "type": "function", "function": function}

    def _logprobs(self, first: int, last: int) -> dict[str, Any] | None:
        if self.tops is None or self.call:
            return None
        pieces = self.pieces[first:last]
        ranked = free_ranks(pieces) if self.ranked is None else self.ranked[first:last]
        if self.chat:
            return chat_logprobs(pieces, ranked, self.tops)
        return plain_logprobs(pieces, ranked, self.tops, len("".join(self.pieces[:first])))

    def _usage(self, tokens: int, *, final: bool = False) -> dict[str, Any]:
        prompt = self.prompt_tokens
        usage = {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
        if self.cached_tokens is None or not final:
            return usage
        return {**usage, "prompt_tokens_details": {"cached_tokens": self.cached_tokens}}

    def _reply(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        name, prefix = ("chat.completion", "chatcmpl") if self.chat else ("text_completion", "cmpl")
        return {
            "id": f"{prefix}-{self.number}",
            "object": f"{name}.chunk" if chunk and self.chat else name,
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": "fake-vllm",
            "choices": choices,
        }


def event(body: object) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def read_object(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RefusalError(400, f"JSON decode error: {error}") from None
    if not isinstance(body, dict):
        raise RefusalError(400, "Input should be a valid dictionary")
    return body


def read_prompt(body: dict[str, Any], *, chat: bool) -> tuple[str, int]:
    """The prompt's text and its count of tokens: its words, and 4 more a message; or its token ids."""
    if not chat:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
            return "", len(prompt)
        if not isinstance(prompt, str):
            raise RefusalError(400, "prompt: Input should be a valid string or list of token ids", param="prompt")
        return prompt, len(prompt.split())
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusalError(400, "messages: Input should be a list with at least 1 item", param="messages")
    texts = [_text(message) for message in messages]
    return "\n".join(texts), sum(len(text.split()) + 4 for text in texts)


def _text(message: Any) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RefusalError(400, "messages: each needs a role", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")


def read_generation(body: dict[str, Any], plan: FakePlan, *, number: int, arrived: float, chat: bool) -> Generation:
    """Checks a completion request as vLLM does and settles its answer. Raises RefusalError."""
    if body.get("model") not in (None, plan.model):
        raise RefusalError(404, f"The model `{body['model']}` does not exist.", param="model")
    prompt, prompt_tokens = read_prompt(body, chat=chat)
    wanted = _checked(body)
    _check_room(prompt_tokens, wanted, plan.context_limit)
    most = plan.context_limit - prompt_tokens if wanted is None else wanted
    fault = plan.fault_for(number, prompt)
    name = fault.name if fault is not None else ""
    call, schema = _called(body) if chat else None, _schema(body)
    ranked = None
    if name == "empty":
        full = []
    elif call is not None:
        full = ["", orjson.dumps(instance(call.get("parameters") or {}, first_of)).decode()]
    elif schema is not None:
        made = _made_up(schema, plan, prompt)
        full, ranked = made.pieces, made.ranked
    elif plan.says is not None and (said := plan.says(prompt)) is not None:
        full = pieces_of(said)
    else:
        full = _answer(plan.length if not body.get("ignore_eos") else most)
    if name == "line_separators":
        full, ranked = [piece + "\u2028\u2029\x85" for piece in full], None
    options = body.get("stream_options") or {}
    include_usage = bool(options.get("include_usage")) and name != "no_usage"
    ended = "stop" if call is None else "tool_calls"
    return Generation(
        number=number,
        chat=chat,
        model=plan.model,
        prompt_tokens=prompt_tokens,
        pieces=full[:most],
        ranked=ranked,
        finish_reason="length" if len(full) >= most else ended,
        fault=fault,
        stream=bool(body.get("stream")),
        include_usage=include_usage,
        running_usage=include_usage and bool(options.get("continuous_usage_stats")),
        arrived=arrived,
        call=None if call is None else call["name"],
        tops=_tops(body, chat=chat),
        prompt=prompt,
        salt=_salt(body),
    )


def _called(body: dict[str, Any]) -> dict[str, Any] | None:
    """The function that an answer must call: the named one, or the first where any is required."""
    functions: list[dict[str, Any]] = [tool["function"] for tool in body.get("tools") or ()]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        wanted = (choice.get("function") or {}).get("name")
        if found := [function for function in functions if function["name"] == wanted]:
            return found[0]
        raise RefusalError(400, f"The tool specified in `tool_choice` is not in `tools`: {wanted}", param="tool_choice")
    if choice == "required":
        if not functions:
            raise RefusalError(400, "When using `tool_choice`, `tools` must be set.", param="tool_choice")
        return functions[0]
    return None


def _tops(body: dict[str, Any], *, chat: bool) -> int | None:
    """How many alternatives a token's logprobs are to have; None where no logprobs are wanted."""
    wanted = body.get("logprobs")
    if chat:
        return int(body.get("top_logprobs") or 0) if wanted else None
    return None if wanted is None else int(wanted)


def _salt(body: dict[str, Any]) -> str | None:
    salt = body.get("cache_salt")
    if salt is not None and not (isinstance(salt, str) and 0 < len(salt) <= 128 and not set(salt) & set("@/\\\0")):
        raise RefusalError(400, "Parameter 'cache_salt' must be a non-empty string if provided.", param="cache_salt")
    return salt


def _check_room(prompt_tokens: int, wanted: int | None, limit: int) -> None:
    if prompt_tokens + (wanted or 1) > limit:
        raise RefusalError(
            400,
            f"This model's maximum context length is {limit} tokens. However, you requested {wanted or 0} "
            f"output tokens and your prompt contains {prompt_tokens} input tokens, for a total of "
            f"{prompt_tokens + (wanted or 0)} tokens. Please reduce the length of the input prompt or the "
            "number of requested output tokens.",
            param="input_tokens",
        )


def _checked(body: dict[str, Any]) -> int | None:
    """The most tokens that the request asks for. Raises RefusalError where callers go wrong."""
    temperature = body.get("temperature")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float | None):
        raise RefusalError(400, "temperature: Input should be a valid number", param="temperature")
    if temperature is not None and temperature < 0:
        raise RefusalError(400, f"temperature must be non-negative, got {temperature}.", param="temperature")
    if body.get("n") not in (None, 1):
        raise RefusalError(400, "the fake gives one choice", param="n")
    kind = (body.get("response_format") or {}).get("type", "text")
    if kind not in ("text", "json_object", "json_schema"):
        raise RefusalError(
            400,
            "response_format.type: Input should be 'text', 'json_object' or 'json_schema'",
            param="response_format",
        )
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    wanted = body.get(name)
    if isinstance(wanted, bool) or not isinstance(wanted, int | None):
        raise RefusalError(400, f"{name}: Input should be a valid integer", param=name)
    if wanted is not None and wanted < 1:
        raise RefusalError(400, f"{name} must be at least 1, got {wanted}.", param=name)
    return wanted


def _answer(length: int) -> list[str]:
    """The whole answer, one piece a token: `tok0 tok1 …`."""
    return [f"tok{i}" if i == 0 else f" tok{i}" for i in range(length)]


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    """What the answer is constrained to; None where it is free."""
    wanted = body.get("response_format") or {}
    if wanted.get("type") not in ("json_object", "json_schema"):
        return None
    schema: dict[str, Any] = (wanted.get("json_schema") or {}).get("schema", {})
    return schema


def _made_up(schema: dict[str, Any], plan: FakePlan, prompt: str) -> MadeUp:
    """The plan's answer under a schema, else the prompt's."""
    said = plan.says(prompt) if plan.says is not None else None
    if said is None and plan.sure is None:
        return make_up(schema, prompt)
    text = make_up(schema, prompt).text if said is None else said
    return doubted(text, schema, how_sure(prompt) if plan.sure is None else plan.sure(prompt))
