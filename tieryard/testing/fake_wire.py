"""vLLM's wire format, for the fake: requests checked and read, answers and errors written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson

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


@dataclass(slots=True)
class Ask:
    """One request as read: what to answer, and how to write it. `faulted` once its fault has ended it."""

    number: int
    chat: bool
    model: str
    prompt_tokens: int
    pieces: list[str]
    finish_reason: str
    fault: Fault | None
    stream: bool
    include_usage: bool
    running_usage: bool
    arrived: float
    faulted: bool = False

    def has(self, fault: str) -> bool:
        return self.fault is not None and self.fault.name == fault

    @property
    def completion_tokens(self) -> int:
        return 1 if self.has("empty") else len(self.pieces)

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        text = "".join(self.pieces)
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": self.finish_reason}
        usage = {} if self.has("no_usage") else {"usage": self._usage(self.completion_tokens)}
        return {**self._reply([choice], chunk=False), **usage}

    def event(self, tokens: int, text: str, finish_reason: str | None = None, *, role: str | None = None) -> bytes:
        """A streamed event of content. `tokens` is the count of completion tokens so far."""
        delta = {"role": role, "content": text} if role else {"content": text}
        content = {"delta": delta} if self.chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": self._usage(tokens)} if self.running_usage else {}
        return event({**self._reply([choice], chunk=True), **usage})

    def tail(self) -> bytes:
        """The finish reason, the final usage in an event without choices, and the end mark."""
        tokens = self.completion_tokens
        usage = event({**self._reply([], chunk=True), "usage": self._usage(tokens)}) if self.include_usage else b""
        return self.event(tokens, "", self.finish_reason) + usage + b"data: [DONE]\n\n"

    def _usage(self, tokens: int) -> dict[str, int]:
        prompt = self.prompt_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}

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


def read_ask(body: dict[str, Any], plan: FakePlan, *, number: int, arrived: float, chat: bool) -> Ask:
    """Checks a completion request as vLLM does and settles its answer. Raises RefusalError."""
    if body.get("model") not in (None, plan.model):
        raise RefusalError(404, f"The model `{body['model']}` does not exist.", param="model")
    prompt, prompt_tokens = read_prompt(body, chat=chat)
    wanted = _checked(body)
    _check_room(prompt_tokens, wanted, plan.context_limit)
    most = plan.context_limit - prompt_tokens if wanted is None else wanted
    fault = plan.fault_for(number, prompt)
    name = fault.name if fault is not None else ""
    full = [] if name == "empty" else _answer(body, plan.length if not body.get("ignore_eos") else most)
    if name == "line_separators":
        full = [piece + "\u2028\u2029\x85" for piece in full]
    options = body.get("stream_options") or {}
    include_usage = bool(options.get("include_usage")) and name != "no_usage"
    return Ask(
        number=number,
        chat=chat,
        model=plan.model,
        prompt_tokens=prompt_tokens,
        pieces=full[:most],
        finish_reason="length" if len(full) >= most else "stop",
        fault=fault,
        stream=bool(body.get("stream")),
        include_usage=include_usage,
        running_usage=include_usage and bool(options.get("continuous_usage_stats")),
        arrived=arrived,
    )


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


def _answer(body: dict[str, Any], length: int) -> list[str]:
    """The whole answer, one piece a token: `tok0 tok1 …`, or JSON under the schema asked for."""
    wanted = body.get("response_format") or {}
    if wanted.get("type") in ("json_object", "json_schema"):
        schema = (wanted.get("json_schema") or {}).get("schema", {})
        text = orjson.dumps(smallest_instance(schema)).decode()
        return [text[i : i + 4] for i in range(0, len(text), 4)]
    return [f"tok{i}" if i == 0 else f" tok{i}" for i in range(length)]


def smallest_instance(schema: Any, root: Any = None) -> Any:
    """A value that a JSON schema accepts: the first of each choice, required properties, least numbers.

    Knows const, enum, anyOf, oneOf, `$ref` into the same schema, and the plain types; no patterns, no allOf.
    """
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        found = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return smallest_instance(found, root)
    if "const" in schema:
        return schema["const"]
    for choices in ("enum", "anyOf", "oneOf"):
        if choices in schema:
            first = schema[choices][0]
            return first if choices == "enum" else smallest_instance(first, root)
    return _of_type(schema, root)


def _of_type(schema: dict[str, Any], root: Any) -> Any:
    kind = schema.get("type", "object")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            wanted = schema.get("required", ())
            return {name: smallest_instance(schema.get("properties", {}).get(name, {}), root) for name in wanted}
        case "array":
            return [smallest_instance(schema.get("items", {}), root)] * schema.get("minItems", 0)
        case "string":
            return "a" * schema.get("minLength", 0)
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
    return None
