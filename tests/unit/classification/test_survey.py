"""A table before its run: what is counted, what is drawn, and what is refused by its row."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.classification import survey as module
from tieryard.classification.survey import Reading, RowRead, Survey, survey, truth_of
from tieryard.classification.tables import open_table
from tieryard.errors import UserError

LABELS = ("bug", "billing")


def of(tmp_path: Path, texts: list[str], **reading: Any) -> Survey:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    return survey(open_table(path), Reading("text", **reading), LABELS)


def test_rows_texts_and_empty_ones_are_counted(tmp_path: Path) -> None:
    found = of(tmp_path, ["a", "b", "a", " ", "a"])
    assert (found.columns, found.rows, found.empty, found.asked) == (("text",), 5, 1, 4)
    assert (found.texts, found.counted, sorted(found.drawn)) == (2, True, ["a", "b"])


def test_many_texts_are_told_by_a_sample_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is right on the mean, and off by as much as is said."""
    monkeypatch.setattr(module, "MOST_DRAWN", 100)
    found = [of(tmp_path, [f"{n} {i % 2000}" for i in range(4000)]) for n in range(60)]
    assert not any(one.counted for one in found)
    assert {len(one.drawn) for one in found} == {100}
    ratios = [one.texts / 2000 for one in found]
    assert statistics.mean(ratios) == pytest.approx(1, abs=4 * 0.1 / 60**0.5)
    assert statistics.stdev(ratios) == pytest.approx(0.1, rel=0.4)


def test_there_are_never_more_texts_than_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_DRAWN", 50)
    assert max(of(tmp_path, [f"{n} {i}" for i in range(300)]).texts for n in range(20)) == 300


def test_texts_are_drawn_alike_however_often_they_stand_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_DRAWN", 20)
    often = Counter(
        text.split()[1] == "often"
        for n in range(100)
        for text in of(
            tmp_path, [f"{n} often {i % 50}" for i in range(500)] + [f"{n} once {i}" for i in range(50)]
        ).drawn
    )
    assert often[True] / often.total() == pytest.approx(0.5, abs=0.05)


def test_long_texts_are_held_in_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_DRAWN_CHARS", 10_000)
    found = of(tmp_path, [f"{i} {'x' * 200}" for i in range(400)])
    assert 30 <= len(found.drawn) <= 50
    assert found.texts == pytest.approx(400, rel=0.5)
    monkeypatch.setattr(module, "_MOST_DRAWN_CHARS", 10)
    assert len(of(tmp_path, [f"{i} {'x' * 200}" for i in range(400)]).drawn) == 30


def test_truths_are_held_against_the_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,truth\na,bug\nb,\nc,\n")
    assert survey(open_table(path), Reading("text", "truth"), LABELS).with_truth == 1
    path.write_text("text,truth\na,bug\nb,bugs\n")
    with pytest.raises(UserError, match="row 2, truth: 'bugs' is none of the labels"):
        survey(open_table(path), Reading("text", "truth"), LABELS)


@pytest.mark.parametrize(
    ("value", "several", "found"),
    [
        (None, False, None), ("", False, None), (" bug ", False, ("bug",)), (7, False, ("7",)),
        ("a|b", False, ("a|b",)), (None, True, None), ("", True, None), ("a|b", True, ("a", "b")),
        ("a | b|", True, ("a", "b")),
        ('["a", "b|c"]', True, ("a", "b|c")), (["a"], True, ("a",)), ([], True, ()), ("[]", True, ()),
        ("[a", True, ("[a",)), ("[1]", True, ("[1]",)),
    ],
)  # fmt: skip
def test_a_cell_as_labels(value: Any, several: bool, found: tuple[str, ...] | None) -> None:
    assert truth_of(value, several=several) == found


@given(text=st.text(min_size=1), truth=st.none() | st.lists(st.text(), max_size=3), several=st.booleans())
def test_a_row_is_sent_as_it_is(text: str, truth: list[str] | None, several: bool) -> None:
    import orjson

    try:
        text.encode()
        "".join(truth or ()).encode()
    except UnicodeEncodeError:
        return
    answer = tuple(truth) if truth is not None and (several or truth) else None
    said = orjson.loads(RowRead(text, answer).line(several=several))
    expected = {"text": text} if answer is None else {"text": text, "truth": list(answer) if several else answer[0]}
    assert said == expected


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no rows"):
        of(tmp_path, [])
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r"--column text: .* has no such column; it has a"):
        survey(open_table(path), Reading("text"), LABELS)
