"""Public data becomes golden sets, or is refused with what is missing or malformed."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tieryard.errors import UserError
from tieryard.golden import GoldenSet, Kind, import_set, parse_golden, score

LABELS = ["card_arrival", "lost_card", "top_up"]
PROBLEM = {"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"}
FUNCTION = {
    "task_id": "HumanEval/0",
    "prompt": 'def square(x):\n    """x²"""\n',
    "entry_point": "square",
    "canonical_solution": "    return x * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 9\n",
}
PAPER = {"source": ["We measure.", "It is fast."], "target": ["A fast one.", "Measured."]}
TWEET = "Ada\tB-person\nLovelace\tI-person\nin\tO\nParis\tB-location\n\t\nHi\tO\n"
FILES: dict[Kind, dict[str, str]] = {
    "banking77": {
        "test.csv": 'text,category\n"Where, oh where?",card_arrival\nLost it,lost_card\nLost it,lost_card\n',
        "categories.json": json.dumps(LABELS),
    },
    "gsm8k": {"test.jsonl": json.dumps(PROBLEM) + "\n"},
    "humaneval": {"HumanEval.jsonl.gz": json.dumps(FUNCTION) + "\n"},
    "scitldr": {"test.jsonl": json.dumps(PAPER) + "\n"},
    "wnut17": {"emerging.test.annotated": TWEET},
}


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def imported(folder: Path, kind: Kind, **options: Any) -> GoldenSet:
    return import_set(kind, written(folder, FILES[kind]), **options)


def test_banking77(tmp_path: Path) -> None:
    golden = imported(tmp_path, "banking77")
    assert [(item.id, item.expected) for item in golden.items] == [
        ("banking77-test-2", "card_arrival"),
        ("banking77-test-3", "lost_card"),
    ]
    first = golden.items[0]
    assert first.prompt is not None
    assert all(label in first.prompt for label in LABELS)
    assert first.prompt.endswith("Message: Where, oh where?")
    assert first.response_format is not None
    assert first.response_format["json_schema"]["schema"] == {"type": "string", "enum": LABELS}
    assert [score(first, text).value for text in ('"card_arrival"', "card_arrival", "lost_card")] == [1, 1, 0]


def test_gsm8k(tmp_path: Path) -> None:
    [item] = imported(tmp_path, "gsm8k").items
    assert (item.category, item.expected) == ("reasoning", "4")
    assert [score(item, text).value for text in (PROBLEM["answer"], "It is $4.00.", "#### 5")] == [1, 1, 0]


def test_humaneval(tmp_path: Path) -> None:
    [item] = imported(tmp_path, "humaneval").items
    assert (item.id, item.category) == ("HumanEval/0", "code")
    for answer in (item.references[0], FUNCTION["canonical_solution"]):
        assert score(item, answer).value == 1
    assert score(item, "    return x + x\n").value == 0


def test_scitldr(tmp_path: Path) -> None:
    [item] = imported(tmp_path, "scitldr").items
    assert item.references == PAPER["target"]
    assert score(item, "Measured").value == 1


def test_wnut17(tmp_path: Path) -> None:
    first, second = imported(tmp_path, "wnut17").items
    assert first.expected == [{"type": "person", "text": "Ada Lovelace"}, {"type": "location", "text": "Paris"}]
    assert first.prompt is not None
    assert first.prompt.endswith("Text: Ada Lovelace in Paris")
    assert (second.id, second.expected) == ("wnut17-test-6", [])


@pytest.mark.parametrize("kind", FILES)
def test_a_folder_without_the_data_is_refused_by_what_is_missing(tmp_path: Path, kind: Kind) -> None:
    *_, last = FILES[kind]
    written(tmp_path, {name: text for name, text in FILES[kind].items() if name != last})
    with pytest.raises(UserError, match=rf"has no {last}; {kind}'s test split is "):
        import_set(kind, tmp_path)


@pytest.mark.parametrize(
    ("kind", "file", "text", "line", "says"),
    [
        ("banking77", "test.csv", "a,b\n1,2\n", 1, "the header is not text,category"),
        ("banking77", "test.csv", "text,category\nHi,top_up\nHi there,other\n", 3, "'other' is not in categories.json"),
        ("banking77", "test.csv", 'text,category\n"a\nb",top_up\nHi\n', 4, "a row is a text and a category"),
        ("banking77", "test.csv", 'text,category\n"Hi,top_up\n', 2, "no CSV"),
        ("banking77", "test.csv", "", 1, "the file has no rows"),
        ("banking77", "categories.json", "{}", None, "no list of labels"),
        ("banking77", "categories.json", "nope", None, "no JSON"),
        ("gsm8k", "test.jsonl", json.dumps(PROBLEM) + "\n{\n", 2, "no JSON"),
        ("gsm8k", "test.jsonl", json.dumps(PAPER), 1, "it needs question and answer"),
        ("gsm8k", "test.jsonl", '{"question": "a", "answer": "b"}', 1, "does not end in `#### `"),
        ("gsm8k", "test.jsonl", '{"question": "a", "answer": "#### b"}', 1, "holds no number"),
        ("humaneval", "HumanEval.jsonl.gz", json.dumps(PROBLEM), 1, "it needs task_id and prompt"),
        ("humaneval", "HumanEval.jsonl.gz", json.dumps(FUNCTION | {"test": "x ="}), 1, "no Python"),
        ("scitldr", "test.jsonl", '{"source": ["a"], "target": [1]}', 1, "lists of sentences"),
        ("scitldr", "test.jsonl", '{"source": ["a"], "target": []}', 1, "write the right answer"),
        ("wnut17", "emerging.test.annotated", "Ada\tB-person\nin O\n", 2, "a token, a tab"),
        ("wnut17", "emerging.test.annotated", "Ada\tB-ship\n", 1, "WNUT's types"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(
    tmp_path: Path, kind: Kind, file: str, text: str, line: int | None, says: str
) -> None:
    written(tmp_path, FILES[kind] | {file: text})
    with pytest.raises(UserError, match=says) as caught:
        import_set(kind, tmp_path)
    assert caught.value.line == line


def test_malformed_rows_are_told_together(tmp_path: Path) -> None:
    written(tmp_path, {"test.jsonl": "{\n" * 30})
    with pytest.raises(UserError, match=r"test\.jsonl has 30 faults, .* the first 20"):
        import_set("gsm8k", tmp_path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match="no whole gzip file"):
        import_set("humaneval", tmp_path)
    (tmp_path / "test.jsonl").write_bytes(b"{}\n\xff\n")
    with pytest.raises(UserError, match="not UTF-8") as caught:
        import_set("gsm8k", tmp_path)
    assert caught.value.line == 2


@pytest.mark.parametrize(
    ("options", "param"),
    [({"kind": "mmlu"}, "kind"), ({"split": "train"}, "split"), ({"limit": 0}, "limit")],
)
def test_options_that_are_none_are_refused(tmp_path: Path, options: dict[str, Any], param: str) -> None:
    with pytest.raises(UserError) as caught:
        import_set(**({"kind": "gsm8k", "folder": tmp_path} | options))
    assert caught.value.param == param


def test_a_limited_sample_keeps_the_shares_and_is_the_same_for_a_seed(tmp_path: Path) -> None:
    rows = [f"{label} {n},{label}" for label, many in zip(LABELS, (60, 30, 10), strict=True) for n in range(many)]
    written(tmp_path, {"test.csv": "\n".join(["text,category", *rows]), "categories.json": json.dumps(LABELS)})
    golden = import_set("banking77", tmp_path, limit=20, seed=3)
    assert Counter(item.expected for item in golden.items) == {"card_arrival": 12, "lost_card": 6, "top_up": 2}
    assert import_set("banking77", tmp_path, limit=20, seed=3).hash == golden.hash
    assert import_set("banking77", tmp_path, limit=20, seed=4).hash != golden.hash
    assert len(import_set("banking77", tmp_path, limit=7).items) == 7
    assert len(import_set("banking77", tmp_path, limit=1000).items) == 100


@pytest.mark.parametrize("kind", FILES)
def test_an_imported_set_can_be_written_and_read_again(tmp_path: Path, kind: Kind) -> None:
    golden = imported(tmp_path, kind)
    lines = [json.dumps(item.canonical()) for item in golden.items]
    again = parse_golden(lines, name=golden.name, categories=golden.counts)
    assert again == golden
    assert again.hash == golden.hash
