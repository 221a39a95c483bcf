"""The fake's prefix cache behaves as vLLM's: whole blocks, from the beginning, within one salt."""

from __future__ import annotations

from typing import Any

import httpx

from tieryard.testing.fake_prefixes import PrefixCache
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan

WORDS = [f"w{n}" for n in range(100)]
BLOCKS = 1000


def test_whole_blocks_are_found_again() -> None:
    cache = PrefixCache()
    assert cache.read(WORDS, None, blocks=BLOCKS) == 0
    assert cache.read(WORDS, None, blocks=BLOCKS) == 96
    assert cache.read([*WORDS[:40], "other", *WORDS[41:]], None, blocks=BLOCKS) == 32
    assert cache.read(["other", *WORDS], None, blocks=BLOCKS) == 0


def test_the_last_token_is_always_computed() -> None:
    cache = PrefixCache()
    cache.read(WORDS[:32], None, blocks=BLOCKS)
    assert cache.read(WORDS[:32], None, blocks=BLOCKS) == 16
    assert cache.read(WORDS[:33], None, blocks=BLOCKS) == 32


def test_salts_share_nothing() -> None:
    cache = PrefixCache()
    cache.read(WORDS, "one", blocks=BLOCKS)
    assert cache.read(WORDS, "two", blocks=BLOCKS) == 0
    assert cache.read(WORDS, "one", blocks=BLOCKS) == 96


def test_what_was_used_longest_ago_makes_room() -> None:
    cache = PrefixCache()
    for salt in ("one", "two"):
        assert cache.read(WORDS, salt, blocks=6) == 0
    assert cache.read(WORDS, "two", blocks=6) == 96
    assert cache.read(WORDS, "one", blocks=6) == 0


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": " ".join(WORDS)}], "max_tokens": 2, **fields}
    return client.post("/v1/chat/completions", json=body)


def test_usage_and_metrics_say_what_was_cached() -> None:
    with FakeVllm.in_thread(FakePlan(cache_blocks=100)) as fake, httpx.Client(base_url=fake.url) as client:
        said = [ask(client, cache_salt=salt).json()["usage"] for salt in ("a", "a", "b")]
        assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in said] == [0, 96, 0]
        metrics = client.get("/metrics").text
        assert 'vllm:prefix_cache_queries_total{engine="0",model_name="fake"} 300' in metrics
        assert 'vllm:prefix_cache_hits_total{engine="0",model_name="fake"} 96' in metrics
        assert ask(client, cache_salt="").status_code == 400


def test_without_a_cache_usage_says_nothing_of_one() -> None:
    with FakeVllm.in_thread() as fake, httpx.Client(base_url=fake.url) as client:
        assert "prompt_tokens_details" not in ask(client).json()["usage"]
