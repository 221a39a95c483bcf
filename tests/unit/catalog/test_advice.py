"""What is unlike its size class is said, by the field, and nothing is refused for it."""

from __future__ import annotations

import pytest

from tieryard.catalog import parse_catalog
from tieryard.catalog.advice import advice
from tieryard.catalog.reading import line_of

USUAL = """\
version: 1
tiers:
  realtime: {slo: {max_ttft_ms: 300}, window: 60s}
categories: [chat]
deployments:
  one:
    model: org/model
    revision: abc
    size_class: small
    engine: {kind: vllm_server, flags: {tensor_parallel_size: 2}}
    context_limit: 8192
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.50}
"""
CASES = [
    ("0.10", "0.09", 14, "deployments.one.price.input_usd_per_1m", "0.09 USD is below what small"),
    ("0.50", "0.60", 14, "deployments.one.price.output_usd_per_1m", "0.6 USD is above what small"),
    ("0.50", "0", 14, "deployments.one.price.output_usd_per_1m", "0 USD is below"),
    ("8192", "4096", 11, "deployments.one.context_limit", "4,096 tokens is below what small deployments usually have"),
    ("8192", "262144", 11, "deployments.one.context_limit", "is above what small"),
    ("{tensor_parallel_size: 2}", "{tensor_parallel_size: 4}", 10,
     "deployments.one.engine.flags.tensor_parallel_size", "4 is above what small deployments usually need (1–2 GPUs)"),
    ("revision: abc", "revision: abc\n    gpus: 3", 9, "deployments.one.gpus", "3 is above"),
    ("300", "90", 3, "tiers.realtime.slo.max_ttft_ms", "90 ms is less than a small deployment usually needs"),
]  # fmt: skip


def test_what_is_usual_needs_no_advice() -> None:
    assert advice(parse_catalog(USUAL)) == []


@pytest.mark.parametrize(("good", "odd", "line", "field", "message"), CASES)
def test_what_is_odd_is_said_with_its_line_and_field(good: str, odd: str, line: int, field: str, message: str) -> None:
    assert USUAL.count(good) == 1
    text = USUAL.replace(good, odd)
    [found] = advice(parse_catalog(text))
    assert (line_of(text, found.at), found.field) == (line, field)
    assert message in found.message


@pytest.mark.parametrize(
    ("size_class", "price", "context", "gpus", "ttft_ms"),
    [("small", "0.1", 128_000, 1, 100), ("medium", "3", 131_072, 4, 300), ("large", "15", 1_048_576, 16, 1000)],
)
def test_the_ends_of_each_range_are_usual(size_class: str, price: str, context: int, gpus: int, ttft_ms: int) -> None:
    text = (
        USUAL.replace("small", size_class)
        .replace("0.10", price)
        .replace("0.50", price)
        .replace("8192", str(context))
        .replace("tensor_parallel_size: 2", f"tensor_parallel_size: {gpus}")
        .replace("300", str(ttft_ms))
    )
    assert advice(parse_catalog(text)) == []


def test_a_tier_is_held_to_the_fastest_class_there_is() -> None:
    other = USUAL.split("deployments:\n")[1].replace("one", "two").replace("small", "large")
    found = advice(parse_catalog(USUAL.replace("300", "150") + other))
    assert not [a for a in found if a.at[0] == "tiers"]
    [only_large] = [a for a in advice(parse_catalog(USUAL.replace("small", "large"))) if a.at[0] == "tiers"]
    assert "a large deployment usually needs (1–3 s)" in only_large.message


def test_embeddings_have_no_usual_price_here() -> None:
    text = USUAL.replace("revision: abc", "revision: abc\n    serves: embeddings").replace("0.10", "0.01")
    assert advice(parse_catalog(text)) == []
