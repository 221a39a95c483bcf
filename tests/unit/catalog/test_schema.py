"""The JSON Schema for editors says what the code reads, and what it refuses at a glance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from tests.conftest import CATALOGS
from tests.unit.test_catalog import GOOD, VLLM
from tieryard.catalog.schema import json_schema

ROOT = Path(__file__).parents[3]
CHECKED_IN = ROOT / "docs" / "reference" / "tieryard.schema.json"
SHIPPED = sorted([ROOT / "tieryard" / "local.yaml", ROOT / "deploy" / "tieryard.yaml", *CATALOGS.glob("*.yaml")])


def refusals(text: str) -> list[str]:
    tree = YAML(typ="safe", pure=True).load(text)
    validator = jsonschema.Draft202012Validator(json_schema())
    return [error.message for error in validator.iter_errors(tree)]


def test_the_schema_in_the_docs_is_the_codes() -> None:
    printed = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert CHECKED_IN.read_text(encoding="utf-8") == printed, (
        "tieryard config schema > docs/reference/tieryard.schema.json"
    )


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_catalogs_hold_to_it(path: Path) -> None:
    assert refusals(path.read_text(encoding="utf-8")) == []


def test_so_does_one_with_everything() -> None:
    assert refusals(VLLM) == []
    whole = """
routing:
  weights: {quality: 0.6, cost: 0.3, latency: 0.1}
  floors: {code: 0.7}
  breaker: {failures: 3, within: 10s}
  shadows: [{of: small, to: small, share: 0.1}]
  policies: {Acme Ltd: {models: [small], max_cost_usd: 0.05}}
"""
    slo = "slo: {max_cost_per_1k: 0.01, deadline: 2h, min_quality: {share: 0.9, of: small}}"
    assert refusals(GOOD.replace("slo: {max_latency_ms: 1000}", slo) + whole) == []


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("version: 1", "version: 2"),
        ("window: 24h", "window: a day"),
        ("window: 24h", "window: 24h, slo_ms: 5"),
        ("  bulk:", "  Bulk!:"),
        ("size_class: small", "size_class: tiny"),
        ("kind: openai_http", "kind: tgi"),
        ("    model: org/model\n", ""),
        ("0.40", "-1"),
        ("quality: 0.5", "quality: 2"),
        ("context_limit: 4096", "context_limt: 4096"),
    ],
)
def test_it_refuses_what_an_editor_should_underline(good: str, bad: str) -> None:
    assert GOOD.count(good) == 1
    assert refusals(GOOD.replace(good, bad))


def fields(node: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        for name, field in node.get("properties", {}).items():
            yield f"{at}.{name}", field
        for name, below in node.items():
            yield from fields(below, f"{at}.{name}")


def test_every_field_is_described() -> None:
    assert [name for name, field in fields(json_schema()) if "description" not in field] == []
