"""The real files: each becomes a set, and what is known to be right scores 1."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tieryard.golden import GoldenSet, Item, Kind, Score, import_set, score

DATA = Path(__file__).parents[4] / "shared" / "data" / "golden"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the public data is not here: {DATA.name} of ../shared/data")


def right(item: Item) -> str:
    if item.references:
        return item.references[0]
    return item.expected if isinstance(item.expected, str) else json.dumps(item.expected)


def scored(golden: GoldenSet, at_once: int = 1) -> dict[str, Score]:
    with ThreadPoolExecutor(at_once) as pool:
        scores = pool.map(lambda item: score(item, right(item)), golden.items)
        return {item.id: given for item, given in zip(golden.items, scores, strict=True)}


@pytest.mark.parametrize(
    ("kind", "split", "n"),
    [
        ("banking77", "test", 3079),
        ("banking77", "train", 9999),
        ("gsm8k", "test", 1319),
        ("scitldr", "test", 618),
        ("scitldr", "dev", 618),
        ("wnut17", "test", 1280),
        ("wnut17", "train", 3291),
    ],
)
def test_a_right_answer_scores_1(kind: Kind, split: str, n: int) -> None:
    golden = import_set(kind, DATA / kind, split=split)
    assert len(golden.items) == n
    assert {given for given in scored(golden).values() if given.value < 1} == set()


def test_all_canonical_solutions_of_humaneval_pass() -> None:
    golden = import_set("humaneval", DATA / "humaneval")
    assert len(golden.items) == 164
    assert {name: given.why for name, given in scored(golden, at_once=2).items() if given.value < 1} == {}


def test_no_stub_of_humaneval_passes() -> None:
    golden = import_set("humaneval", DATA / "humaneval", limit=20)
    for item in golden.items:
        assert score(item, "    return None\n").value == 0, item.id
