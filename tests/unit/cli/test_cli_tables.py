"""Tables on a narrow terminal: no wider than it, figures whole, and names folded where one reads on."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tieryard.cli.tables import table

NAMES = (
    "qwen2.5-7b-instruct-awq",
    "an-analytics-department",
    "TIERYARD_API_KEY",
    "deployments.smol-short.max_in_flight",
    "org/model@0123abcd",
)
FIGURES = ("job_1234567", "succeeded", "interactive", "0.00000074", "11-23 07:19:39")


def shown(width: int, headers: tuple[str, ...], rows: list[tuple[str | Text, ...]], **options: object) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(headers, rows, **options))  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    return lines


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [80, 90, 100, 200])
def test_names_fold_between_their_parts_and_figures_do_not(name: str, width: int) -> None:
    headers = ("job", "state", "tier", "cost USD", "created (UTC)", "deployment")
    lines = shown(width, headers, [(*FIGURES, name)], right=("cost USD",), folds=("deployment",))
    body = lines[next(i for i, line in enumerate(lines) if line.startswith("─")) + 1 :]
    assert all(figure in body[0] for figure in FIGURES)
    pieces = [line.split()[-1] for line in body if line.strip()]
    assert "".join(pieces) == name
    assert all(piece[-1] in "-_/.@" or name[name.index(piece) + len(piece)] == "." for piece in pieces[:-1])
    assert (len(pieces) == 1) == (len(" ".join(FIGURES)) + 1 + len(name) <= width)


def test_headers_fold_and_columns_draw_closer_before_names_fold() -> None:
    headers, row = ("deployment", "predicted quality"), ("a-name-of-twenty-one-", "0.50")
    assert "a-name-of-twenty-one-  " in shown(40, headers, [row], folds=("deployment",))[-1]
    folded = shown(32, headers, [row], folds=("deployment",))
    assert (folded[0].split(), folded[1].split()) == (["predicted"], ["deployment", "quality"])
    close = shown(31, headers, [row], folds=("deployment",))
    assert "a-name-of-twenty-one- 0.50" in close[-1]
    narrow = shown(30, headers, [row], folds=("deployment",))
    assert [line.split()[0] for line in narrow[-2:]] == ["a-name-of-twenty-", "one-"]


def test_what_has_no_parts_is_broken_only_where_it_must_be() -> None:
    lines = shown(20, ("name", "n"), [("x" * 30, "12,345")], folds=("name",))
    assert [line.split()[0] for line in lines[-3:]] == ["x" * 13, "x" * 13, "xxxx"]
    wide = shown(20, ("name", "n"), [("日" * 10, "12,345")], folds=("name",))
    assert [line.split()[0] for line in wide[-2:]] == ["日" * 6, "日" * 4]


def test_lines_styles_and_escapes_of_a_cell() -> None:
    lines = shown(40, ("limits", "why"), [("600 req\n100,000 tok", Text("good", "green")), ("\x1b[2J", "")])
    assert [line.split() for line in lines[-3:]] == [["600", "req", "good"], ["100,000", "tok"], ["␛[2J"]]
    assert shown(40, ("a", "b"), [])[0].split() == ["a", "b"]
