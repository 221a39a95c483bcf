"""docs/journey.md tells what the code does: its states, its files, its functions and its statements."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tieryard.job import TRANSITIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "journey.md").read_text(encoding="utf-8")
PIPELINE = [
    "api/jobs.py",
    *(
        f"workers/{n}.py"
        for n in ("expand", "feed", "classify", "infer", "callback", "rescue", "benchmark", "classifying")
    ),
]

STEP = re.compile(r"^## .*: `(\S+\.py)`$", re.MULTILINE)
FILE = re.compile(r"(?<![\w/.])((?:api|workers|tieryard|tests)/[\w/]+\.py)\b")
NAMED = re.compile(r"^\| `([\w.]+)` \| `([\w/]+\.py)` \|", re.MULTILINE)
MOVE = re.compile(r"^\| `(\w+)` \| `(\w+)` \| ([\w, ]+) \|$", re.MULTILINE)
EDGE = re.compile(r"^ +(\w+) --> (\w+): ([\w, ]+)$", re.MULTILINE)
STATEMENT = re.compile(r"`(_[A-Z_]+)`")

Moves = dict[tuple[str, str], frozenset[str]]


def moves(pattern: re.Pattern[str]) -> Moves:
    found = [(a, b, frozenset(who.split(", "))) for a, b, who in pattern.findall(PAGE)]
    assert len({(a, b) for a, b, _ in found}) == len(found)
    return {(a, b): who for a, b, who in found}


@cache
def defined(path: str) -> frozenset[str]:
    """Functions, classes, methods (`Class.method`) and constants of a file."""
    names: set[str] = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            if isinstance(node, ast.ClassDef):
                inner = (m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef))
                names |= {f"{node.name}.{m.name}" for m in inner}
    return frozenset(names)


@pytest.mark.parametrize("drawn", [MOVE, EDGE], ids=["table", "diagram"])
def test_the_states_are_the_codes(drawn: re.Pattern[str]) -> None:
    expected: Moves = {(str(a), str(b)): frozenset(map(str, who)) for (a, b), who in TRANSITIONS.items()}
    assert moves(drawn) == expected


def test_the_steps_are_the_pipeline_in_order() -> None:
    assert STEP.findall(PAGE) == [*PIPELINE[:5], "tieryard/store/finish.py", *PIPELINE[5:]]


def test_every_file_named_exists() -> None:
    assert [path for path in FILE.findall(PAGE) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize(("name", "path"), NAMED.findall(PAGE))
def test_everything_named_is_there(name: str, path: str) -> None:
    assert name in defined(path)


def test_every_statement_in_the_text_is_in_a_table() -> None:
    named = {name for name, _ in NAMED.findall(PAGE)}
    assert set(STATEMENT.findall(PAGE)) <= named


@pytest.mark.parametrize("path", PIPELINE)
def test_a_pipeline_file_opens_with_three_lines(path: str) -> None:
    doc = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")), clean=False)
    assert doc is not None
    lines = doc.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("Receives ")
    assert lines[2].startswith("Next: ")
