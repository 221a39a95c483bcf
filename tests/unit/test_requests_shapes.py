"""OpenAI's shapes: what its package sends is taken, what is not served is refused by name, what is idle is dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletionMessage, ParsedChatCompletionMessage
from openai.types.chat import completion_create_params as chat_params

from tieryard.errors import RequestError
from tieryard.requests import CHAT, COMPLETIONS, EMBEDDINGS, Endpoint, parse_batch_line, parse_body, parse_job

SAID = [{"role": "user", "content": "Hi."}]
ASKED: dict[Endpoint, dict[str, Any]] = {
    CHAT: {"model": "auto", "messages": SAID},
    COMPLETIONS: {"model": "auto", "prompt": "Hi."},
    EMBEDDINGS: {"model": "auto", "input": "Hi."},
}


def body_of(endpoint: Endpoint = CHAT, **fields: Any) -> dict[str, Any]:
    """What an engine would be sent."""
    return parse_body(endpoint, json.dumps({**ASKED[endpoint], **fields})).request().body


def refused(endpoint: Endpoint = CHAT, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        body_of(endpoint, **fields)
    return caught.value


PARAMS = {
    CHAT: chat_params.CompletionCreateParamsNonStreaming,
    COMPLETIONS: completion_create_params.CompletionCreateParamsNonStreaming,
    EMBEDDINGS: embedding_create_params.EmbeddingCreateParams,
}


@pytest.mark.parametrize("endpoint", PARAMS)
def test_null_is_taken_for_every_parameter_that_openai_knows(endpoint: Endpoint) -> None:
    nulls = dict.fromkeys(PARAMS[endpoint].__annotations__.keys() - ASKED[endpoint].keys())
    if endpoint == COMPLETIONS:
        del nulls["max_tokens"]  # ours has a default, as OpenAI's has
    assert len(nulls) > 1
    assert body_of(endpoint, **nulls) == body_of(endpoint)


@pytest.mark.parametrize("kind", [ChatCompletionMessage, ParsedChatCompletionMessage])
def test_an_answer_can_be_sent_back_as_the_package_dumps_it(kind: type[ChatCompletionMessage]) -> None:
    extra = {"reasoning_content": "Hm.", "reasoning": "Hm.", "annotations": [], "refusal": None}
    answer = kind.model_validate({"role": "assistant", "content": "Hello.", **extra})
    body = body_of(messages=[*SAID, answer.model_dump(), *SAID])
    assert body["messages"][1] == {"role": "assistant", "content": "Hello."}


def test_calls_of_tools_can_be_sent_back_too() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = ChatCompletionMessage.model_validate({"role": "assistant", "content": None, "tool_calls": [call]})
    told = {"role": "tool", "tool_call_id": "c", "content": "4"}
    messages = body_of(messages=[*SAID, answer.model_dump(), told])["messages"]
    assert messages[1:] == [{"role": "assistant", "content": "", "tool_calls": [call]}, told]
    assert "tool_calls" not in body_of(messages=[{**SAID[0], "tool_calls": []}])["messages"][0]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("functions", [{"name": "f"}], "deprecated; use tools"),
        ("functions", [], "deprecated; use tools"),
        ("function_call", "auto", "deprecated; use tool_choice"),
        ("audio", {"voice": "alloy"}, "is not served here"),
        ("prediction", {"type": "content"}, "is not served here"),
        ("web_search_options", {}, "is not served here"),
        ("modalities", ["text", "audio"], "expected 'text', not 'audio'"),
        ("unheard_of", None, "no such field"),
    ],
)
def test_what_is_not_served_is_refused_by_name(field: str, value: Any, says: str) -> None:
    error = refused(**{field: value})
    assert (error.param or "").split(".")[0] == field
    assert error.message == says


def test_what_has_no_effect_is_not_passed_on() -> None:
    idle = {"tools": [], "modalities": ["text"], "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "x"}}
    assert body_of(**idle) == body_of()
    assert not parse_body(CHAT, json.dumps({**ASKED[CHAT], **idle})).request().needs


def saying(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


TEXT = {"type": "text", "text": "What is this?"}


def test_parts_of_text_are_joined() -> None:
    parts = [{**TEXT, "cache_control": {"type": "ephemeral"}}, {"type": "refusal", "refusal": "No."}]
    assert body_of(messages=saying(*parts))["messages"][0]["content"] == "What is this?\nNo."


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_a_part_that_is_not_text_is_refused_by_its_number(kind: str) -> None:
    error = refused(messages=[*SAID, *saying(TEXT, {"type": kind, kind: {"url": "https://a.example/"}})])
    assert (error.param, error.message) == ("messages.1.content", f"part 2: {kind} is not served here")


@pytest.mark.parametrize(
    ("content", "param", "says"),
    [
        (5, "content", "expected text, not 5"),
        ([{"type": "video"}], "content.0", "expected a part whose type is 'text' or 'refusal'"),
        (["text"], "content.0", "expected a part"),
        ([{"type": ["text"]}], "content.0", "expected a part"),
        ([TEXT, {"type": "text"}], "content.1.text", "is required"),
        ([{**TEXT, "image_url": "x"}], "content.0.image_url", "no such field"),
    ],
)
def test_bad_content_is_refused_by_its_place_and_as_what_it_is(content: Any, param: str, says: str) -> None:
    error = refused(messages=[{"role": "user", "content": content}])
    assert error.param == f"messages.0.{param}"
    assert says in error.message


@pytest.mark.parametrize(
    ("stop", "kept"),
    [("", None), ([], None), ([""], None), (["", "a"], ["a"]), ("a", "a"), (["a", "b"], ["a", "b"]), (None, None)],
)
def test_empty_stops_are_dropped(stop: Any, kept: Any) -> None:
    native = parse_job(json.dumps({"prompt": "x", "stop": stop})).body
    assert body_of(stop=stop).get("stop") == body_of(COMPLETIONS, stop=stop).get("stop") == native.get("stop") == kept


@pytest.mark.parametrize(
    "given", [{}, {"json_schema": None}, {"json_schema": {}}, {"json_schema": {"name": "n"}},
              {"json_schema": {"schema": {}}}, {"json_schema": {"name": "", "schema": {}}},
              {"json_schema": {"name": "n", "schema": None}}]
)  # fmt: skip
def test_a_schema_needs_a_name_and_itself(given: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", **given}
    with pytest.raises(RequestError) as native:
        parse_job(json.dumps({"prompt": "x", "response_format": wanted}))
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {**ASKED[CHAT], "response_format": wanted}}
    with pytest.raises(RequestError) as in_a_file:
        parse_batch_line(json.dumps(line))
    assert refused(response_format=wanted).param == native.value.param == "response_format.json_schema"
    assert in_a_file.value.param == "body.response_format.json_schema"


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
    ],
)
def test_other_formats_are_passed_on_as_they_came(wanted: dict[str, Any]) -> None:
    assert body_of(response_format=wanted)["response_format"] == wanted


@pytest.mark.parametrize("window", ["0s", "0ms", "0d"])
def test_a_window_of_none_is_refused_in_plain_words(window: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_job(json.dumps({"prompt": "x", "completion_window": window}))
    assert str(caught.value) == "completion_window: must be greater than 0s"
