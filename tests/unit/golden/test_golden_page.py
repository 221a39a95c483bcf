"""docs/reference/golden-sets.md says what the code has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from tieryard.golden import Item, Kind, parse_golden, sandbox, score
from tieryard.golden.scorers import SCORERS

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "golden-sets.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
SECTIONS = {found[1]: found[2] for found in SECTION.finditer(PAGE)}
CATEGORIES = ("chat", "classification", "code", "extraction", "reasoning", "summarization")


def example(section: str) -> str:
    [found] = re.findall(r"```json\n([^\n]*)\n```", SECTIONS[section])
    return str(found)


def test_the_fields_are_the_items() -> None:
    table = PAGE.partition("## The file")[2].partition("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(Item.model_fields)


def test_each_scorer_has_a_section_with_its_options() -> None:
    assert SECTIONS.keys() - {"By a judge"} == SCORERS.keys()
    for name, scorer in SCORERS.items():
        for option, info in scorer.model_fields.items():
            assert option == "name" or f"`{info.alias or option}`" in SECTIONS[name]


@pytest.mark.parametrize("section", SECTIONS)
def test_each_example_is_an_item_that_its_right_answer_satisfies(section: str) -> None:
    if section == "similarity":
        pytest.importorskip("wordllama", reason="the extra `similarity` is not installed")
    [item] = parse_golden([example(section)], name="example", categories=CATEGORIES).items
    if item.scorer is None:
        return
    assert item.scorer.name == section
    expected = item.expected[0] if section in ("exact", "token_f1") else item.expected
    right = item.references[0] if item.references else expected if isinstance(expected, str) else json.dumps(expected)
    right = f"Answer: {right}" if section == "regex" else right
    assert score(item, right).value == 1
    assert score(item, "no").value < 0.5


def test_the_kinds_of_public_data() -> None:
    table = PAGE.partition("## Public data")[2]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == get_args(Kind)


def test_the_sandboxes_limits() -> None:
    limits = PAGE.partition("## The sandbox")[2].partition("## ")[0]
    assert f"{sandbox.MEMORY_BYTES >> 30} GiB of address space" in limits
    assert f"{sandbox.FILE_BYTES >> 20} MiB each, {sandbox.OPEN_FILES} open" in limits
