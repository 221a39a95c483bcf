"""What a caller may ask for: each fault is refused by the name of its field, and nothing odd gets through."""

from __future__ import annotations

import contextlib
import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.errors import RequestError
from tieryard.requests import JobCreate, Request, parse_duration, parse_job


def refused(raw: str | bytes, **where: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_job(raw, **where)
    return caught.value


BAD_FIELDS: list[tuple[str, Any]] = [
    ("prompt", ""),
    ("prompt", " \t\n\u2003"),
    ("prompt", 7),
    ("tier", 1),
    ("model", None),
    ("category", ["a"]),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 10**9),
    ("max_tokens", 1.5),
    ("max_tokens", "many"),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("top_p", 0),
    ("top_p", 1.01),
    ("seed", "x"),
    ("seed", 2**63),
    ("seed", 10**400),
    ("stop", {"a": 1}),
    ("response_format", "json"),
    ("response_format", {"big": 2**70}),
    ("custom_id", "x" * 257),
    ("metadata", {"a": 1}),
    ("metadata", {str(i): "x" for i in range(17)}),
    ("callback_url", "not a url"),
    ("callback_url", "ftp://example.com"),
    ("callback_url", "file:///etc/passwd"),
    ("completion_window", "tomorrow"),
    ("completion_window", "0s"),
    ("completion_window", "-5m"),
    ("completion_window", 60),
    ("completion_window", "9" * 400 + "d"),
    ("unknown", 1),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_bad_field_is_refused_by_its_name(field: str, value: Any) -> None:
    error = refused(json.dumps({"prompt": "x", field: value}))
    assert error.param is not None
    assert error.param.split(".")[0] == field
    assert error.message


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "robot", "content": "x"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": 5}], "messages.1.content"),
        ([{"role": "user", "content": "x", "name": "y"}], "messages.0.name"),
    ],
)
def test_a_bad_message_is_refused_by_its_place(messages: list[Any], param: str) -> None:
    assert refused(json.dumps({"messages": messages})).param == param


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "x", "messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": " "}, {"role": "system", "content": ""}]},
    ],
)
def test_exactly_one_input_with_something_in_it(body: dict[str, Any]) -> None:
    assert "messages" in str(refused(json.dumps(body)))


@pytest.mark.parametrize(
    "raw",
    ["", "null", "[]", "7", '"x"', "{", '{"prompt": "x"', "{'prompt': 'x'}", '{"prompt": "x",}', b"\xff\xfe", "{}{}",
     r'{"prompt": "\ud800"}', '{"prompt": "a\x00b"}', '{"prompt": "a\nb"}'],
)  # fmt: skip
def test_what_is_not_one_json_object_is_refused(raw: str | bytes) -> None:
    error = refused(raw, line=12)
    assert error.line == 12
    assert str(error).startswith("line 12")


@pytest.mark.parametrize("field", ["max_tokens", "temperature", "top_p", "seed"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(field: str, number: str) -> None:
    assert refused(f'{{"prompt": "x", "{field}": {number}}}').param == field


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999999"])
def test_numbers_that_are_none_do_not_hide_in_a_schema(number: str) -> None:
    raw = f'{{"prompt": "x", "response_format": {{"type": "json_schema", "deep": [{{"a": {number}}}]}}}}'
    assert refused(raw).param == "response_format"


@pytest.mark.parametrize(
    "raw",
    [
        r'{"prompt": "a\u0000b"}',
        r'{"messages": [{"role": "user", "content": "\u0000"}]}',
        r'{"prompt": "x", "metadata": {"k": "\\\u0000"}}',
    ],
)
def test_a_nul_is_refused_wherever_it_stands(raw: str) -> None:
    assert "NUL" in str(refused(raw))


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert parse_job(r'{"prompt": "write \\u0000"}').text() == r"write \u0000"


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("90s", 90), ("1.5m", 90), ("24h", 86400), ("7d", 604800), (" 2h ", 7200)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "5 h", "h", "1w", "-1s", "1e3s", "1h30m", "٣s5", None, 5, "NaNs"])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.text(min_size=1).filter(str.strip).filter(lambda t: "\x00" not in t))
def test_any_text_is_asked_as_it_was_written(text: str) -> None:
    job = parse_job(json.dumps({"prompt": text}))
    assert job.conversation == [{"role": "user", "content": text}]
    assert job.text() == text
    assert job.body == {"messages": job.conversation, "max_tokens": 256}


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_whatever_comes_is_a_job_or_a_refusal(raw: bytes | str) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(parse_job(raw), Request)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(JobCreate.model_fields)), json_values))
def test_any_json_object_is_a_job_or_a_refusal(body: dict[str, Any]) -> None:
    with contextlib.suppress(RequestError):
        job = parse_job(json.dumps(body))
        json.dumps(job.body, allow_nan=False)
