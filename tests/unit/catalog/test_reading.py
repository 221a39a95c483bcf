"""What a refusal of the catalog reads like: each place said once, in the file's words and not the checker's."""

from __future__ import annotations

import pytest

from tests.conftest import CATALOGS
from tieryard.catalog import parse_catalog
from tieryard.errors import CatalogError

GOOD = (CATALOGS / "instant.yaml").read_text()


def said(text: str) -> str:
    with pytest.raises(CatalogError) as caught:
        parse_catalog(text, name="t.yaml")
    return str(caught.value)


def test_a_fault_says_its_place_once() -> None:
    assert said(GOOD.replace("version: 1", "version: 2")) == "t.yaml:2: version: expected 1, not 2"


def test_a_duplicate_key_does_not_show_what_it_holds() -> None:
    message = said(GOOD.replace("  long:", "  short:"))
    assert 'found duplicate key "short"' in message
    assert "test/instant" not in message


def test_an_engine_of_no_kind_is_told_which_there_are() -> None:
    message = said(GOOD.replace("engine: {kind: instant}", "engine: {delay_ms: 1}", 1))
    assert "engine: `kind` is required: one of 'openai_http', 'llama_cpp', 'vllm_server', 'lora', 'instant'" in message
    message = said(GOOD.replace("engine: {kind: instant}", "engine: {kind: vllm}", 1))
    assert "engine: there is no kind 'vllm': one of 'openai_http', 'llama_cpp'," in message
