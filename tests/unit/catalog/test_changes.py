"""Two catalogs are compared field by field, and what that needs of the fleet is said."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tieryard.catalog import Catalog, parse_catalog
from tieryard.catalog.changes import Change, changes, duration, needs, same_footing

OLD = """\
version: 1
tiers:
  realtime: {slo: {max_ttft_ms: 300}, window: 60s}
  bulk: {window: 24h}
categories: [chat, code]
deployments:
  base:
    model: org/model
    revision: abc
    size_class: small
    engine: {kind: openai_http, url: "http://vllm:8000"}
    context_limit: 8192
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.50}
"""
LORA = """\
  legal:
    model: org/legal
    revision: abd
    size_class: small
    engine: {kind: lora, host: base, weights: /adapters/legal}
    context_limit: 8192
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.50}
"""
OTHER = OLD.split("deployments:\n")[1].replace("base", "other")


def old() -> Catalog:
    return parse_catalog(OLD)


def edited(good: str, other: str) -> Catalog:
    assert OLD.count(good) == 1
    return parse_catalog(OLD.replace(good, other))


def test_equal_catalogs_have_no_changes() -> None:
    commented = parse_catalog("# as before\n" + OLD)
    assert changes(old(), commented) == []
    assert needs(old(), commented) == []
    assert old().hash() == commented.hash()


@pytest.mark.parametrize(
    ("good", "other", "change"),
    [
        ("0.10", "0.125", Change("deployments.base.price.input_usd_per_1m", "0.1", "0.125")),
        ("24h", "90m", Change("tiers.bulk.window", "24h", "90m")),
        ("max_ttft_ms: 300", "max_ttft_ms: 250", Change("tiers.realtime.slo.max_ttft_ms", "300", "250")),
        ("max_ttft_ms: 300", "", Change("tiers.realtime.slo.max_ttft_ms", "300", None)),
        ("[chat, code]", "[chat]", Change("categories", "[chat, code]", "[chat]")),
        ("utf8", "utf8\n    capabilities: [tools, logprobs]",
         Change("deployments.base.capabilities", "[]", "[logprobs, tools]")),
        ("window: 24h", "window: 24h, waits: false", Change("tiers.bulk.waits", None, "false")),
        ("version: 1", "version: 1\nrouting: {weights: {cost: 0.4}}", Change("routing.weights.cost", "0.3", "0.4")),
        ("version: 1", "version: 1\nrouting: {breaker: {within: 1500ms}}",
         Change("routing.breaker.within", "30s", "1500ms")),
    ],
)  # fmt: skip
def test_a_field_is_shown_with_both_its_values(good: str, other: str, change: Change) -> None:
    assert changes(old(), edited(good, other)) == [change]


def test_the_order_of_tiers_is_a_change() -> None:
    realtime, bulk = OLD.splitlines(keepends=True)[2:4]
    turned = parse_catalog(OLD.replace(realtime + bulk, bulk + realtime))
    assert turned.hash() != old().hash()
    assert changes(old(), turned) == [Change("tiers", "realtime > bulk", "bulk > realtime")]
    assert needs(old(), turned) == ["the new order of tiers holds in classify processes once they are started again"]
    assert changes(old(), parse_catalog(OLD.replace(realtime, realtime + "  batch: {}\n")))[0].field == "tiers.batch"


def test_a_deployment_that_comes_or_goes_is_one_change() -> None:
    both = parse_catalog(OLD + OTHER)
    [added] = changes(old(), both)
    assert (added.field, added.before) == ("deployments.other", None)
    assert added.after == "org/model@abc, small, openai_http"
    [removed] = changes(both, old())
    assert (removed.field, removed.after) == ("deployments.other", None)
    assert needs(old(), both) == [
        "other: needs an infer process, `python -m workers infer other`; the embedded fleet starts it itself"
    ]
    assert needs(both, old()) == [
        "other: its infer processes end; what waits for it is routed again, and fails where it named it"
    ]


@pytest.mark.parametrize(
    ("good", "other"),
    [
        ("http://vllm:8000", "http://vllm:8001"),
        ("revision: abc", "revision: abe"),
        ('8000"', '8000", limits: {requests_per_minute: 60}'),
        ("context_limit: 8192", "context_limit: 9000"),
        ("max_in_flight: 8", "max_in_flight: 16"),
        ("tokenizer: utf8", "tokenizer: /tokenizers/base"),
        ("max_in_flight: 8", "max_in_flight: 8\n    realtime_reserve: 2"),
    ],
)
def test_what_an_infer_process_is_made_of_starts_it_again(good: str, other: str) -> None:
    new = edited(good, other)
    assert not same_footing(old(), new, "base")
    assert needs(old(), new)[0] == "base: its infer processes finish what they run, and start again"


@pytest.mark.parametrize(
    ("good", "other"),
    [
        ("0.10", "0.20"),
        ("size_class: small", "size_class: medium"),
        ("utf8", "utf8\n    quality: 0.9"),
        ("[chat, code]", "[chat, code, poems]"),
    ],
)
def test_what_it_can_take_over_leaves_it_running(good: str, other: str) -> None:
    new = edited(good, other)
    assert same_footing(old(), new, "base")
    assert needs(old(), new) == []


def test_an_adapter_belongs_to_its_host() -> None:
    with_legal = parse_catalog(OLD + LORA)
    assert not same_footing(old(), with_legal, "base")
    assert needs(old(), with_legal) == ["base: its infer processes finish what they run, and start again"]
    [goes, starts] = needs(with_legal, old())
    assert goes == "legal: what waits for it is routed again, and fails where it named it"
    assert starts.startswith("base: ")
    cheaper = parse_catalog(OLD + LORA.replace("0.50", "0.40"))
    assert same_footing(with_legal, cheaper, "base")


def test_what_machines_and_callers_must_know_is_said() -> None:
    new = edited("tokenizer: utf8", "tokenizer: /tokenizers/base")
    assert any(need.startswith("the tokenizer /tokenizers/base must be where") for need in needs(old(), new))
    keyed = edited('8000"', '8000", key_env: HOSTED_KEY')
    assert any(need.startswith("HOSTED_KEY must be in the environment") for need in needs(old(), keyed))
    assert needs(old(), edited("  bulk: {window: 24h}\n", "")) == [
        "tier bulk: new jobs of it are refused; it can only go once none of its jobs is unfinished"
    ]
    assert needs(old(), edited("[chat, code]", "[chat]")) == ["category code: requests that name it are refused"]
    assert needs(old(), edited("context_limit: 8192", "context_limit: 4096"))[-1].startswith(
        "base: jobs that need more"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(86400, "24h"), (90, "90s"), (0.5, "500ms"), (1800, "30m"), (61.5, "61500ms")]
)
def test_durations_are_written_as_a_catalog_has_them(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text
