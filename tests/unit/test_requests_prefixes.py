"""Prefix keys and salts: what an engine's prefix cache may share, and between whom."""

from __future__ import annotations

import string
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.errors import RequestError
from tieryard.requests import Request, parse_batch_line, parse_job

SYSTEM = "You sort letters into boxes. " * 12  # 348 bytes
texts = st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1)
turns = st.lists(texts.filter(str.strip), max_size=4)


def chat(*contents: str, **fields: Any) -> Request:
    roles = ["system", *("user" if n % 2 == 0 else "assistant" for n in range(len(contents) - 1))]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return parse_job(orjson.dumps({"messages": messages, **fields}))


def line(url: str, **body: Any) -> Request:
    return parse_batch_line(orjson.dumps({"custom_id": "1", "method": "POST", "url": url, "body": body}).decode())


@given(turns, turns)
def test_conversations_that_begin_alike_share_a_key_however_they_go_on(one: list[str], other: list[str]) -> None:
    assert chat(SYSTEM, *one).prefix_key(1) == chat(SYSTEM, *other).prefix_key(1) != 0


@given(st.text(alphabet=string.ascii_letters + "éß語", min_size=256), texts)
def test_raw_prompts_do_too(prompt: str, more: str) -> None:
    keys = {line("/v1/completions", model="auto", prompt=p).prefix_key(1) for p in (prompt, prompt + more)}
    assert len(keys) == 1
    assert keys != {0}


def test_a_job_and_a_line_that_say_the_same_share_a_key() -> None:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Box?"}]
    asked = line("/v1/chat/completions", model="auto", messages=messages)
    assert asked.prefix_key(1) == chat(SYSTEM, "Box?").prefix_key(1)


@given(texts.filter(lambda text: text.strip() and len(text.encode()) < 240))
def test_what_is_short_has_none(text: str) -> None:
    assert parse_job(orjson.dumps({"prompt": text})).prefix_key(1) == 0


def test_other_beginnings_roles_tools_and_tenants_have_other_keys() -> None:
    tool = {"type": "function", "function": {"name": "look_up"}}
    system, user = ({"role": role, "content": SYSTEM} for role in ("system", "user"))
    url = "/v1/chat/completions"
    keys = [
        chat(SYSTEM).prefix_key(1),
        chat(SYSTEM).prefix_key(2),
        chat("!" + SYSTEM).prefix_key(1),
        line(url, model="auto", messages=[user]).prefix_key(1),
        line(url, model="auto", messages=[system], tools=[tool]).prefix_key(1),
        line("/v1/completions", model="auto", prompt=SYSTEM).prefix_key(1),
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 < key < 2**32 for key in keys)


def test_embeddings_have_none() -> None:
    assert line("/v1/embeddings", model="auto", input=SYSTEM).prefix_key(1) == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda key: chat("Hi.", prompt_cache_key=key),
        lambda key: line("/v1/completions", model="auto", prompt="Hi.", prompt_cache_key=key),
        lambda key: line(
            "/v1/chat/completions", model="auto", messages=[{"role": "user", "content": "Hi."}], prompt_cache_key=key
        ),
    ],
    ids=["job", "completion", "chat"],
)
def test_the_callers_own_key_counts_whatever_the_prompt(ask: Any) -> None:
    wanted = chat("Something else, and longer. " * 20, prompt_cache_key="s-1").prefix_key(1)
    assert ask("s-1").prefix_key(1) == wanted
    assert ask("s-2").prefix_key(1) not in (0, wanted)
    assert ask("s-1").prefix_key(2) not in (0, wanted)
    assert ask("").prefix_key(1) == 0
    assert "prompt_cache_key" not in ask("s-1").body, "no engine knows it"
    assert ask("x" * 5000).prefix_key(1) not in (0, ask("x" * 5001).prefix_key(1)), "of any length"


def test_the_salt_is_the_tenants_and_nobody_elses() -> None:
    one, again, other = chat("Hi.").salted(1), chat("Ho.").salted(1), chat("Hi.").salted(2)
    assert one["cache_salt"] == again["cache_salt"] != other["cache_salt"]
    assert {**one, "cache_salt": ""} == {**chat("Hi.").body, "cache_salt": ""}
    assert len(one["cache_salt"]) == 32


def test_callers_cannot_name_a_salt() -> None:
    with pytest.raises(RequestError, match="no such field"):
        chat("Hi.", cache_salt="of another")
    with pytest.raises(RequestError, match="no such field"):
        line("/v1/completions", model="auto", prompt="Hi.", cache_salt="of another")
