"""A table that cannot be trusted is refused with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from tieryard.errors import UserError
from tieryard.learning import read_prompts, read_table
from tieryard.learning.folds import folds, prompt_groups

PAIR = {"weak": "small", "strong": "large"}


def test_a_good_table_is_read(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b'\xef\xbb\xbfstrong,task,prompt,weak\r\n1,a,"two\nlines",0\r\n\r\n0.5,b,"say ""hi""",.25\r\n')
    table = read_table(file, PAIR, category="task")
    assert table.prompts == ["two\nlines", 'say "hi"']
    assert table.scores == {"small": [0.0, 0.25], "large": [1.0, 0.5]}
    assert table.categories == ["a", "b"]
    assert len(table) == 2


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("", 1, None, "is empty"),
        ("\n\n", 1, None, "is empty"),
        ("prompt,weak,strong\n", 2, None, "no rows"),
        ("prompt,weak\na,1\n", 1, "strong", "no such column; there are prompt, weak"),
        ("prompt;weak;strong\na;1;1\n", 1, "prompt", "separated by ';': save it with commas"),
        ("prompt\tweak\tstrong\na\t1\t1\n", 1, "prompt", "separated by tabs: save it with commas"),
        ("prompt,weak,weak,strong\na,1,1,1\n", 1, "weak", "more than once"),
        ("prompt,weak,strong\na,1,1\nb,yes,1\n", 3, "weak", "'yes' is no number"),
        ("prompt,weak,strong\na,1,\n", 2, "strong", "'' is no number"),
        ("prompt,weak,strong\na,1,1.5\n", 2, "strong", "1.5 is outside 0 to 1"),
        ("prompt,weak,strong\na,1,-0.1\n", 2, "strong", "-0.1 is outside 0 to 1"),
        ("prompt,weak,strong\na,nan,1\n", 2, "weak", "nan is outside 0 to 1"),
        ("prompt,weak,strong\na,inf,1\n", 2, "weak", "inf is outside 0 to 1"),
        ('prompt,weak,strong\n"two\nlines",1,1\n" ",1,1\n', 4, "prompt", "the prompt is empty"),
        ("prompt,weak,strong\na,1,1\nb,1\n", 3, "strong", "ends too early: 2 of 3"),
        ("prompt,weak,strong\na,b,1,1\n", 2, "strong", "has 4 columns, the header 3"),
        ('prompt,weak,strong\na,1,1\n"b,1,1\n', 3, None, "no CSV"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, text: str, line: int, column: str | None, says: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        read_table(file, PAIR)
    assert caught.value.line == line
    assert caught.value.param == (f"column '{column}'" if column else None)


def test_a_table_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes("prompt,weak,strong\na,1,1\ncafé,1,1\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 4 of the line\)") as caught:
        read_table(file, PAIR)
    assert caught.value.line == 3


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "none.csv")


def test_prompts_are_read_without_a_look_at_the_scores(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("prompt,weak\na,no score\n")
    assert read_prompts(file).prompts == ["a"]


def test_a_group_is_never_on_both_sides() -> None:
    groups = prompt_groups(["What is it?", "what  is IT", "other", "another", "third"])
    assert groups[0] == groups[1]
    split = folds(groups, 3, seed=1)
    assert sorted(row for _, held in split for row in held) == [0, 1, 2, 3, 4]
    for inner, held in split:
        assert sorted(inner + held) == [0, 1, 2, 3, 4]
        assert not {groups[row] for row in inner} & {groups[row] for row in held}
    assert split == folds(groups, 3, seed=1)
    assert len(folds(["a", "a", "b"], 5)) == 2, "no more folds than groups"
