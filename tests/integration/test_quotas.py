"""Quotas over a real Valkey: what all processes may ask of a hosted API together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.conftest import eventually
from tieryard import quotas
from tieryard.catalog import RateLimits, load_catalog
from tieryard.quotas import Quota, Quotas, Start, Taken

ONE = Start(0)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    found = redis.Redis.from_url(redis_url)
    yield found
    found.close()


def limited(client: redis.Redis, *, kept: float = 0.0, **limits: int) -> Quota:
    return Quota(client, "api", RateLimits(**{f"{name}_per_minute": n for name, n in limits.items()}), kept=kept)


def test_requests_beyond_the_limit_wait_and_are_told_how_long(client: redis.Redis) -> None:
    quota = limited(client, requests=5)
    taken = quota.take([ONE] * 8)
    assert (len(taken.granted), taken.left, taken.why) == (5, 0, "its 5 requests a minute are used up")
    assert 60 < taken.wait_s <= 62
    assert quota.take([ONE]).granted == []
    assert quota.take().wait_s > 60, "who only asks is told too"


def test_tokens_are_taken_in_order_so_that_a_large_job_is_not_passed_by_small_ones(client: redis.Redis) -> None:
    quota = limited(client, tokens=100)
    taken = quota.take([Start(60), Start(50), Start(10)])
    assert [ticket.tokens for ticket in taken.granted] == [60]
    assert taken.why == "its 100 tokens a minute are used up"
    assert taken.left is None, "requests are not limited"


def test_who_only_asks_is_told_whether_the_next_one_would_fit(client: redis.Redis) -> None:
    quota = limited(client, tokens=100)
    quota.take([Start(60)])
    assert quota.take(next_tokens=40).wait_s == 0
    assert quota.take(next_tokens=41).why == "its 100 tokens a minute are used up"
    assert quota.take(next_tokens=5000).why, "as one that is larger than the limit would take all of it"
    assert quota.take().wait_s == 0
    assert len(quota.take([Start(40)]).granted) == 1, "nothing was taken meanwhile"


def test_a_job_larger_than_the_limit_takes_all_of_a_minute(client: redis.Redis) -> None:
    quota = limited(client, tokens=100)
    assert [ticket.tokens for ticket in quota.take([Start(5000)]).granted] == [100]
    assert quota.take([Start(1)]).granted == []


def test_what_was_not_used_is_given_back(client: redis.Redis) -> None:
    quota = limited(client, requests=3, tokens=100)
    [ticket] = quota.take([Start(100)]).granted
    quota.settle(ticket, 30)
    [second] = quota.take([Start(70)]).granted
    quota.settle(second, 90)  # more than was taken
    assert quota.take([Start(1)]).why == "its 100 tokens a minute are used up"
    quota.settle(second, 0, sent=False)
    assert len(quota.take([Start(0), Start(0), Start(0)]).granted) == 2, "one that was never sent made no request"


def test_a_window_that_has_passed_counts_no_more(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "WINDOW_S", 0.3)
    monkeypatch.setattr(quotas, "_GRAIN_S", 0.05)
    quota = limited(client, requests=4)
    assert len(quota.take([ONE] * 4).granted) == 4
    assert 0.3 < quota.take([ONE]).wait_s <= 0.4
    eventually(lambda: quota.take([ONE]).granted, what="room in the window")
    assert quota.take().left == 3, "all four of the first bucket left together"


def test_a_share_is_kept_for_what_is_urgent(client: redis.Redis) -> None:
    quota = limited(client, requests=10, kept=0.2)
    taken = quota.take([ONE] * 10)
    assert (len(taken.granted), taken.left, taken.left_urgent, taken.all_wait) == (8, 0, 2, False)
    urgent = quota.take([Start(0, urgent=True)] * 3)
    assert (len(urgent.granted), urgent.all_wait) == (2, True)


def test_a_refusal_holds_every_process_for_as_long_as_the_provider_says(client: redis.Redis) -> None:
    one, other = limited(client, requests=100), limited(client, requests=100)
    one.refused(7.0)
    one.refused(3.0)
    assert one.owes_refusals
    assert other.take([ONE]).granted, "it is not told yet"
    assert 6 < one.take().wait_s <= 7
    assert not one.owes_refusals
    taken = other.take([ONE])
    assert (taken.granted, taken.all_wait, taken.refusals) == ([], True, 2)
    assert 6 < taken.wait_s <= 7
    assert taken.why == "its provider refused a request for its rate limit (429)"


def test_two_processes_never_take_more_than_there_is(client: redis.Redis) -> None:
    granted: list[Taken] = []

    def take() -> None:
        quota = limited(client, requests=100, tokens=5000)
        granted.extend(quota.take([Start(60)] * 7) for _ in range(10))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(taken.granted) for taken in granted) == 5000 // 60


def test_without_redis_everything_is_let_through_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = redis.Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.2)
    quota = limited(nowhere, requests=1)
    assert len(quota.take([ONE, ONE]).granted) == 2
    assert len(quota.take([ONE]).granted) == 1, "and it is not asked again at once"


def test_only_hosted_deployments_have_a_quota(redis_url: str, tmp_path: Path) -> None:
    engine = 'engine: {{kind: openai_http, url: "http://127.0.0.1:9", {}}}'
    rest = "context_limit: 512, max_in_flight: 8, tokenizer: utf8, price: {input_usd_per_1m: 0, output_usd_per_1m: 0}"
    kinds = {"own": "server: vllm", "api": "server: openai", "bounded": "limits: {requests_per_minute: 5}"}
    deployments = [
        f'  {name}: {{model: m, revision: "1", size_class: small, {engine.format(fields)}, {rest}}}'
        for name, fields in kinds.items()
    ]
    file = tmp_path / "tieryard.yaml"
    file.write_text("\n".join(["version: 1", "tiers: {batch: {}}", "categories: [chat]", "deployments:", *deployments]))
    found, catalog = Quotas(redis_url), load_catalog(file)
    assert [name for name in kinds if found.of(catalog, name) is not None] == ["api", "bounded"]
    found.close()
