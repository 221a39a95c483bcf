"""The benchmarks section, and candidates: what is refused, and by which field."""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import Any

import pytest

from tieryard.catalog import Catalog, parse_catalog
from tieryard.catalog.benchmarks import Window
from tieryard.errors import CatalogError

BASE = """
version: 1
tiers: {bulk: {window: 24h}}
categories: [chat, code]
deployments:
  serving: &serving
    model: org/model
    revision: "1"
    size_class: small
    engine: {kind: openai_http, url: "http://a.invalid", server: vllm}
    context_limit: 512
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0.1, output_usd_per_1m: 0.4}
  awq: {<<: *serving, quantization: awq, candidate_of: serving}
  vectors: {<<: *serving, serves: embeddings}
"""


def catalog(more: str = "", **changes: str) -> Catalog:
    text = BASE
    for old, new in changes.items():
        text = text.replace(old, new)
    return parse_catalog(text + more)


def test_a_candidate_takes_only_jobs_that_name_it() -> None:
    found = catalog()
    assert found.deployments["awq"].named_only
    assert not found.deployments["serving"].named_only


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ("candidate_of: nobody", "deployments.awq.candidate_of"),
        ("candidate_of: awq", "deployments.awq.candidate_of"),
        ("candidate_of: serving, auto: true", "deployments.awq.auto"),
    ],
)
def test_a_candidate_that_cannot_be_one(changed: str, field: str) -> None:
    with pytest.raises(CatalogError, match=field):
        parse_catalog(BASE.replace("candidate_of: serving", changed))


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("sample: {items: [{category: poetry, prompt: hi}]}", "benchmarks.sample.items.0.category"),
        ("sample: {redact: [{pattern: '('}]}", "benchmarks.sample.redact.0.pattern"),
        ("gate: {floors: {poetry: 0.5}}", "benchmarks.gate.floors.poetry"),
        ("judge: {deployment: nobody}", "benchmarks.judge.deployment"),
        ("judge: {deployment: vectors}", "benchmarks.judge.deployment"),
        ("schedules: {nightly: {run: speed, at: 'often'}}", "benchmarks.schedules.nightly.at"),
        ("schedules: {nightly: {run: speed, at: '99 3 * * *'}}", "benchmarks.schedules.nightly.at"),
        ("schedules: {nightly: {run: speed, at: '0 3 * * *', deployments: [no]}}", "nightly.deployments.0"),
        ("schedules: {weekly: {run: quality, at: '0 3 * * 0'}}", "benchmarks.schedules.weekly"),
        ("schedules: {nightly: {run: speed, at: '0 3 * * *', golden: [a]}}", "benchmarks.schedules.nightly.golden"),
    ],
)
def test_a_section_that_cannot_be_used(section: str, field: str) -> None:
    with pytest.raises(CatalogError, match=field.replace(".", r"\.")):
        catalog("benchmarks: {" + section + "}\n")


@pytest.mark.parametrize(
    ("start", "end", "hour", "holds"),
    [(2, 5, 2, True), (2, 5, 4, True), (2, 5, 5, False), (22, 3, 23, True), (22, 3, 2, True), (22, 3, 12, False)],
)
def test_a_window_of_the_day(start: int, end: int, hour: int, *, holds: bool) -> None:
    window = Window(start=time(start), end=time(end))
    assert window.holds(datetime(2026, 11, 23, hour, 30 if hour != end else 0, tzinfo=UTC)) is holds


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("revision", '"2"', False),
        ("quantization", "gptq", False),
        ("tokenizer", "/else", False),
        ("max_in_flight", "9", True),
        ("region", "eu", True),
    ],
)
def test_a_build_is_all_that_decides_what_it_answers(field: str, value: Any, *, same: bool) -> None:
    before = catalog().deployments["awq"].build
    text = BASE.replace("quantization: awq", f"{field}: {value}" if field == "quantization" else "quantization: awq")
    if field != "quantization":
        text = text.replace("candidate_of: serving}", f"candidate_of: serving, {field}: {value}}}")
    assert (parse_catalog(text).deployments["awq"].build == before) is same
