"""`tieryard router` as a user meets it: train, eval and score on a table, and one sentence for what is wrong."""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.unit.learning import outcomes as made_up
from tieryard.cli.main import cli
from tieryard.errors import UserError
from tieryard.learning.saving import load_model


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["router", *map(str, words)], env={"COLUMNS": "80"})


def refused(result: Result) -> str:
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.write(tmp_path_factory.mktemp("tables") / "t.csv", made_up.rows())


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    out = data.parent / "m.json.gz"
    result = run("train", "--data", data, "--weak", "weak", "--strong", "strong", "--category", "task", "--out", out)
    assert result.exit_code == 0, result.output
    assert "2 models, 240 rows" in result.output
    return out


def scores(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["score"] for row in csv.DictReader(file)]


def test_score_writes_one_number_a_prompt_in_their_order(data: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    assert run("score", "--model", model, "--data", data, "--category", "task", "--out", out).exit_code == 0
    found = [float(score) for score in scores(out)]
    assert len(found) == 240
    assert sum(found[::2]) > sum(found[1::2]) + 30, "the long ones need the strong model"


def test_score_reads_prompt_and_category_only(data: Path, model: Path, tmp_path: Path) -> None:
    """The scores shuffled, dropped or spoilt, and the columns in another order: nothing changes."""
    rows = made_up.rows()
    weak = [row["weak"] for row in rows]
    random.Random(1).shuffle(weak)
    shuffled = [
        {"strong": "oops", "task": row["task"], "weak": w, "prompt": row["prompt"]}
        for row, w in zip(rows, weak, strict=True)
    ]
    bare = [{"task": row["task"], "prompt": row["prompt"]} for row in rows]
    files = [data, made_up.write(tmp_path / "shuffled.csv", shuffled), made_up.write(tmp_path / "bare.csv", bare)]
    written = []
    for number, file in enumerate(files):
        out = tmp_path / f"{number}.csv"
        run("score", "--model", model, "--data", file, "--category", "task", "--out", out)
        written.append(scores(out))
    assert written[0] == written[1] == written[2]


def test_a_category_that_was_not_seen_falls_back(data: Path, model: Path, tmp_path: Path) -> None:
    strange = made_up.write(tmp_path / "strange.csv", [{**row, "task": "unheard of"} for row in made_up.rows()])
    with_it, without = tmp_path / "a.csv", tmp_path / "b.csv"
    assert run("score", "--model", model, "--data", strange, "--category", "task", "--out", with_it).exit_code == 0
    assert run("score", "--model", model, "--data", strange, "--out", without).exit_code == 0
    assert scores(with_it) == scores(without)


def test_many_models_and_a_joined_one(data: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.json.gz"
    words = ("train", "--data", data, "--models", "weak=a,middle=b", "--models", "strong=c", "--out", out)
    assert run(*words).exit_code == 0
    assert load_model(out).models == ("a", "b", "c")
    assert run(*words, "--join", model).exit_code == 0
    joined = load_model(out)
    assert joined.models == ("weak", "strong", "a", "b", "c")
    assert [one["source"] for one in joined.about["tables"]] == ["t.csv", "t.csv"]
    assert "both models know a, b, c" in refused(run(*words, "--join", out))


def test_eval_writes_figures_and_a_picture(data: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "e.json", tmp_path / "e.svg"
    result = run(
        "eval", "--data", data, "--models", "weak,middle,strong", "--prices", "1,3,10", "--category", "task",
        "--folds", "2", "--json", out, "--picture", picture,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    made = json.loads(out.read_text())
    assert set(made["curves"]) == {"learned", "keyword rules", "length", "random", "oracle"}
    assert made["curves"]["random"]["apgr"]["value"] == pytest.approx(0.5, abs=1e-4)
    assert set(made["trade"]) >= {"cost_at_95", "cost_at_100"}
    assert picture.exists()
    assert "APGR" in result.output
    assert all(len(line) <= 80 for line in result.output.splitlines() if "always" not in line)


def test_eval_holds_out_whole_groups(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    words = ("--data", data, "--weak", "weak", "--strong", "strong", "--json", out)
    assert run("eval", *words, "--unseen", "task", "--folds", "5").exit_code == 0
    assert json.loads(out.read_text())["folds"] == 2, "as many as there are groups"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--weak", "weak"), "give --weak and --strong, or --models"),
        (("--weak", "weak", "--models", "weak,strong"), "either --models"),
        (("--models", "weak"), "two models at least"),
        (("--weak", "weak", "--strong", "weak"), "two models at least"),
        (("--weak", "weak", "--strong", "stronk"), "line 1, column 'stronk': there is no such column"),
        (("--models", "weak,strong", "--prices", "1"), "2 models take 2 prices"),
        (("--models", "weak,strong", "--prices", "1,x"), "no numbers"),
        (("--models", "weak,strong", "--picture", "x.gif"), "a picture ends in .svg or .png"),
    ],
)
def test_eval_refuses(data: Path, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    assert says in refused(run("eval", "--data", data, "--json", tmp_path / "e.json", *words))


def test_a_missing_extra_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tieryard.learning.training", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    said = refused(
        run("train", "--data", data, "--weak", "weak", "--strong", "strong", "--out", tmp_path / "m.json.gz")
    )
    assert "pip install 'tieryard[train]'" in said


def test_a_file_that_is_no_model_is_refused(data: Path, tmp_path: Path) -> None:
    assert "is no quality model" in refused(run("score", "--model", data, "--data", data, "--out", tmp_path / "s.csv"))
    said = refused(run("score", "--model", tmp_path / "none", "--data", data, "--out", tmp_path / "s.csv"))
    assert "cannot be read" in said
