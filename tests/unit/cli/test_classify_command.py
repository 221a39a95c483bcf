"""`tieryard classify`: what it refuses before it asks anything, how rows and answers are joined, and what it does when
the fleet is away, when it is stopped, and when it is started again."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.conftest import eventually
from tests.unit.cli.classify_server import RUN, FakeRuns, serving
from tieryard.cli import classify as classify_module
from tieryard.cli import classify_run
from tieryard.cli.classify_spec import read_labels
from tieryard.cli.classify_state import place
from tieryard.cli.main import cli
from tieryard.errors import TieryardError, UserError

LABELS = ("--labels", "bug,billing")
ROWS = [
    ("1", "bug one", "bug"),
    ("2", "billing two", "bug"),
    ("3", "bug one", "bug"),
    ("4", "", "bug"),
    ("5", "else", "billing"),
]
CONTENT = "id,text,truth\n" + "".join(",".join(row) + "\n" for row in ROWS)


@pytest.fixture
def runs() -> FakeRuns:
    return FakeRuns()


@pytest.fixture
def url(runs: FakeRuns, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TIERYARD_API_KEY", "ty_x")
    monkeypatch.setenv("COLUMNS", "80")
    with serving(runs) as found:
        monkeypatch.setenv("TIERYARD_URL", found)
        yield found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    path.write_text(CONTENT)
    return path


def classify(*words: object) -> Result:
    return CliRunner().invoke(cli, ["classify", *map(str, words)])


def done(*words: object, code: int = 0) -> Result:
    result = classify(*words)
    assert result.exit_code == code, f"{result.output}{result.exception!r}"
    return result


def refused(*words: object) -> str:
    result = classify(*words)
    assert isinstance(result.exception, UserError), f"{result.output}{result.exception!r}"
    return str(result.exception)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# What comes out


def test_rows_come_back_in_their_order_with_what_was_found(url: str, runs: FakeRuns, source: Path) -> None:
    out = source.with_name("out.csv")
    result = done(source, "--column", "text", *LABELS, "--out", out, "--truth", "truth")
    assert out.read_text() == (
        "id,text,truth,label,confidence,model,cost_usd,error\n"
        "1,bug one,bug,bug,0.75,tiny,0.000001,\n"
        "2,billing two,bug,billing,0.75,tiny,0.000001,\n"
        "3,bug one,bug,bug,0.75,tiny,0,\n"
        "4,,bug,,,,,no text\n"
        "5,else,billing,,,,0.000001,the engine failed\n"
    )
    assert runs.rows == [{"text": row[1], "truth": row[2]} for row in ROWS if row[1]]
    text = " ".join(result.stdout.split())
    assert f"{RUN} is completed" in text
    assert "5 rows, 3 distinct texts, 1 without an answer, 1 without a text" in text
    assert "accuracy 50.0% (95 % interval 15.0%–85.0%), 2 of 4 rows right; 1 without an answer count as wrong" in text
    assert "1 without an answer: the engine failed" in text
    assert max(map(len, result.stdout.splitlines())) <= 120
    assert not place(out).exists()


def test_parquet_out_and_wrong_rows_beside_it(url: str, source: Path) -> None:
    out, wrong, picture = (source.with_name(name) for name in ("out.parquet", "wrong.jsonl", "confusion.svg"))
    done(source, "--column", "text", *LABELS, "--out", out, "--truth", "truth", "--errors", wrong, "--picture", picture)
    found = pq.read_table(out)
    assert found.column_names == ["id", "text", "truth", "label", "confidence", "model", "cost_usd", "error"]
    assert found.column("confidence").to_pylist() == [0.75, 0.75, 0.75, None, None]
    lines = [json.loads(line) for line in wrong.read_text().splitlines()]
    assert [(one["row"], one["id"], one["label"], one["truth"]) for one in lines] == [
        (2, "2", "billing", "bug"), (5, "5", None, "billing"),
    ]  # fmt: skip
    assert picture.read_text().startswith("<?xml")


def test_json_has_every_figure(url: str, source: Path) -> None:
    out = source.with_name("out.csv")
    found = json.loads(done(source, "--column", "text", *LABELS, "--out", out, "--truth", "truth", "--json").stdout)
    assert (found["rows"], found["answered"], found["failed"], found["empty"]) == (5, 3, 1, 1)
    assert found["sum_of_row_costs_usd"] == found["run"]["cost_usd"] == "0.000003"
    assert found["evaluation"]["accuracy"]["value"] == 0.5
    assert found["evaluation"]["models"][0]["rows"] == 3
    assert found["models"] == {"tiny": {"rows": 3, "mean_confidence": 0.75}}
    assert found["files"] == {"out": str(out), "errors": None, "picture": None}


def test_several_labels_a_row(url: str, runs: FakeRuns, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text('text,truth\nbug,bug|billing\nbilling,"[""billing""]"\nbug again,\n')
    out = tmp_path / "out.csv"
    done(source, "--column", "text", *LABELS, "--out", out, "--truth", "truth", "--multi-label")
    assert [row["truth"] for row in runs.rows if "truth" in row] == [["bug", "billing"], ["billing"]]
    assert [row["labels"] for row in rows_of(out)] == ["bug", "billing", "bug"]


def test_columns_get_other_names_where_theirs_are_taken(url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "a.csv", tmp_path / "out.csv"
    source.write_text("text,label,error\nbug,bug,\n")
    words = (source, "--column", "text", *LABELS, "--out", out)
    assert "has a column 'label' already" in refused(*words)
    done(*words, "--prefix", "predicted_")
    assert list(rows_of(out)[0]) == [
        "text", "label", "error",
        *(f"predicted_{name}" for name in ("label", "confidence", "model", "cost_usd", "error")),
    ]  # fmt: skip


def test_many_rows_go_up_in_pieces(url: str, runs: FakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify_run, "_SENT_ROWS", 100)
    monkeypatch.setattr(classify_run, "_PAGE", 70)
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"n": i, "text": f"bug {i}"}) + "\n" for i in range(2345)))
    done(source, "--column", "text", *LABELS, "--out", out)
    assert [row["text"] for row in runs.rows] == [f"bug {i}" for i in range(2345)]
    assert sum(path.endswith("/rows") for _, path in runs.requests) == 24
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["n"] for one in found] == list(range(2345))
    assert {one["label"] for one in found} == {"bug"}


# Trouble on the way


@pytest.mark.parametrize("fault", ["reset", 429, 503])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("path", ["/rows", "/complete", "/results", RUN, "/classifications"])
def test_what_fails_for_now_is_tried_again(
    url: str, runs: FakeRuns, source: Path, path: str, when: str, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tieryard.cli.patience._FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("tieryard.cli.patience._asked_wait_s", lambda _: 0.02)
    runs.faults[when, path] = [fault, fault]
    out = source.with_name("out.csv")
    done(source, "--column", "text", *LABELS, "--out", out)
    assert len(rows_of(out)) == 5
    assert (len(runs.rows), runs.made) == (4, 1)
    assert len(runs.faults[when, path]) < 2  # once all rows are answered nobody waits for `complete` any more


def test_a_fleet_that_stays_away_ends_the_command_and_says_how_to_go_on(
    url: str, runs: FakeRuns, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tieryard.cli.patience._FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("tieryard.cli.patience._LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(
        "tieryard.cli.patience.PatientClient.__init__.__kwdefaults__", {"told": lambda _: None, "patience_s": 0.2}
    )
    runs.faults["before", "/results"] = [503] * 1000
    out = source.with_name("out.csv")
    result = classify(source, "--column", "text", *LABELS, "--out", out)
    assert isinstance(result.exception, TieryardError)
    assert "answered 503" in str(result.exception)
    assert f"{RUN} goes on with the rows it has; the same command with --resume" in str(result.exception)
    assert not out.exists()
    runs.faults.clear()
    done(source, "--column", "text", *LABELS, "--out", out, "--resume")
    assert (len(rows_of(out)), runs.made, place(out).exists()) == (5, 1, False)


def test_what_the_fleet_refuses_leaves_nothing_behind(url: str, runs: FakeRuns, source: Path) -> None:
    runs.faults["before", "/classifications"] = [400]
    out = source.with_name("out.csv")
    assert refused(source, "--column", "text", *LABELS, "--out", out) == "try again"
    assert sorted(path.name for path in source.parent.iterdir()) == ["tickets.csv"]


def test_rows_that_the_fleet_refuses_end_the_command(url: str, runs: FakeRuns, source: Path) -> None:
    runs.faults["before", "/rows"] = [400]
    assert refused(source, "--column", "text", *LABELS, "--out", source.with_name("out.csv")) == "try again"


# Stopping and going on


@pytest.mark.parametrize("signal", ["SIGINT", "SIGKILL"])
def test_a_killed_command_goes_on_where_it_was(
    url: str, runs: FakeRuns, source: Path, signal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.hold = True
    out = source.with_name("out.csv")
    words = ["classify", str(source), "--column", "text", *LABELS, "--out", str(out)]
    command = [sys.executable, "-m", "tieryard", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: runs.total == 4, what="all rows")
        process.send_signal(getattr(__import__("signal"), signal))
        _, said = process.communicate(timeout=20)
    if signal == "SIGINT":
        assert process.returncode == 130
        assert f"{RUN} goes on with the rows it has; the same command with --resume" in said
    assert place(out).exists()
    assert not out.exists()
    assert f"{RUN} makes {out} already; go on with it by --resume" in refused(*words[1:])
    runs.hold = False
    done(*words[1:], "--resume")
    assert (len(rows_of(out)), len(runs.rows), runs.made, place(out).exists()) == (5, 4, 1, False)


def test_rows_that_were_not_sent_go_up_on_resume(url: str, runs: FakeRuns, source: Path) -> None:
    out = source.with_name("out.csv")
    runs.faults["before", "/rows"] = [400]
    refused(source, "--column", "text", *LABELS, "--out", out)
    runs.rows = [{"text": "bug one"}, {"text": "billing two"}]  # as if some had come
    done(source, "--column", "text", *LABELS, "--out", out, "--resume")
    assert [row["text"] for row in runs.rows] == ["bug one", "billing two", "bug one", "else"]


def test_a_run_that_is_asked_for_again_is_the_same(url: str, runs: FakeRuns, source: Path) -> None:
    """The command died after it had asked, and before it knew the run."""
    out = source.with_name("out.csv")
    runs.faults["before", "/rows"] = [400]
    refused(source, "--column", "text", *LABELS, "--out", out)
    kept = json.loads(place(out).read_text())
    place(out).write_text(json.dumps({**kept, "run": None}))
    done(source, "--column", "text", *LABELS, "--out", out, "--resume")
    assert runs.made == 1


def test_a_run_that_reached_its_cap_is_written_as_far_as_it_came(url: str, runs: FakeRuns, source: Path) -> None:
    runs.stop_at = 4
    out = source.with_name("out.csv")
    words = (source, "--column", "text", *LABELS, "--out", out)
    result = done(*words, "--max-cost", "0.000002", code=1)
    assert runs.spec is not None
    assert runs.spec["max_cost_usd"] == "0.000002"
    assert "stopped (its next part could pass max_cost_usd)" in " ".join(result.stdout.split())
    assert [row["error"] for row in rows_of(out)] == [
        "",
        "",
        "not asked: the run is stopped",
        "no text",
        "not asked: the run is stopped",
    ]
    assert place(out).exists()
    done(*words, "--max-cost", "1", "--resume")
    assert runs.resumed == [{"max_cost_usd": "1"}]
    assert [row["error"] for row in rows_of(out)] == ["", "", "", "no text", "the engine failed"]


def test_another_cap_for_a_run_that_has_not_stopped_is_told_to_have_no_effect(
    url: str, runs: FakeRuns, source: Path
) -> None:
    out = source.with_name("out.csv")
    words = (source, "--column", "text", *LABELS, "--out", out)
    runs.faults["before", "/rows"] = [400]
    refused(*words, "--max-cost", "1")
    result = done(*words, "--max-cost", "2", "--resume")
    assert "--max-cost: the cap stays 1; it can change when the run has stopped" in result.stderr
    assert runs.resumed == []


def test_a_gate_that_stopped_a_run_is_not_gone_on_with(url: str, runs: FakeRuns, source: Path) -> None:
    runs.stop_at = 4
    runs.gate = {"outcome": "failed", "said": "3 of 30 agree"}
    out = source.with_name("out.csv")
    words = ("--truth", "truth", "--gate", "30", "--otherwise", "stop")
    result = done(source, "--column", "text", *LABELS, "--out", out, *words, code=1)
    assert "gate: 3 of 30 agree" in result.stdout
    assert not place(out).exists()


def test_a_changed_file_or_question_is_not_gone_on_with(url: str, runs: FakeRuns, source: Path) -> None:
    out = source.with_name("out.csv")
    words = (source, "--column", "text", "--out", out)
    assert "nothing to go on with" in refused(*words, *LABELS, "--resume")
    runs.faults["before", "/rows"] = [400]
    refused(*words, *LABELS)
    assert "labels, models or another option" in refused(*words, "--labels", "bug,billing,other", "--resume")
    runs.cancelled = True
    assert f"{RUN} was cancelled" in refused(*words, *LABELS, "--resume")
    source.write_text(CONTENT + "6,more,bug\n")
    assert "the file is not what it was" in refused(*words, *LABELS, "--resume")
    place(out).write_text("{}")
    assert "is no run's" in refused(*words, *LABELS, "--resume")


def test_a_file_that_changes_under_way_is_noticed(
    url: str, runs: FakeRuns, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = classify_module._begin

    def changed(*given: Any) -> Any:
        source.write_text(CONTENT[: CONTENT.index("5,else")])
        return begin(*given)

    monkeypatch.setattr(classify_module, "_begin", changed)
    runs.total = 4
    out = source.with_name("out.csv")
    said = refused(source, "--column", "text", *LABELS, "--out", out)
    assert "had 5 rows and now 4; it was changed" in said
    assert not out.exists()


# What is refused before anything is asked


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--column", "text"), "--labels is missing"),
        ((*LABELS,), "--column is missing"),
        (("--column", "body", *LABELS), "--column body: {source} has no such column; it has id, text, truth"),
        (("--column", "text", *LABELS, "--truth", "none"), "--truth none: {source} has no such column"),
        (("--column", "text", *LABELS), "--out is missing"),
        (("--column", "text", "--labels", "bug"), "--labels: "),
        (("--column", "text", "--labels", "bug,bug", "--out", "o.csv"), "--labels: 'bug' stands twice"),
        (
            ("--column", "text", "--labels", "bug,other", "--truth", "truth"),
            "row 5, truth: 'billing' is none of the labels",
        ),
        (("--column", "text", *LABELS, "--below", "0.5"), "--below: needs --escalate-to"),
        (("--column", "text", *LABELS, "--escalate-to", "big"), "give either --below or --calibrate"),
        (("--column", "text", *LABELS, "--escalate-to", "big", "--below", "0.5", "--calibrate", "99"), "give either"),
        (("--column", "text", *LABELS, "--escalate-to", "big", "--calibrate", "5"), "--calibrate: "),
        (("--column", "text", *LABELS, "--judge", "big"), "--judge: needs --gate"),
        (("--column", "text", *LABELS, "--gate", "100"), "--gate: say who judges"),
        (("--column", "text", *LABELS, "--gate", "100", "--judge", "truth"), "--judge truth: needs --truth"),
        (("--column", "text", *LABELS, "--max-cost", "much"), "--max-cost much: expected dollars"),
        (("--column", "text", *LABELS, "--max-cost", "nan"), "--max-cost nan: expected dollars"),
        (("--column", "text", *LABELS, "--template", "none.txt"), "none.txt: cannot be read"),
        (("--column", "text", *LABELS, "--out", "o.csv", "--picture", "p.svg"), "--picture: needs --truth"),
        (("--column", "text", *LABELS, "--out", "o.csv", "--errors", "o.csv"), "give each another name"),
        (("--column", "text", *LABELS, "--out", "o.xlsx"), "its name says not what it is"),
        (("--column", "text", *LABELS, "--routes", "x.jsonl"), "takes the place of FILE"),
    ],
)
def test_what_is_refused_before_anything_is_asked(
    url: str, runs: FakeRuns, source: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    assert said.format(source=source) in refused(source, *words)
    assert runs.requests == []
    assert [path.name for path in source.parent.iterdir()] == ["tickets.csv"]


@pytest.mark.parametrize("text", ["../jobs", "", "classification_", "batch_7", f"{RUN}/.."])
def test_what_is_no_runs_id_is_not_asked_for(url: str, runs: FakeRuns, text: str) -> None:
    for command in ("show", "cancel"):
        assert "no classification" in refused(command, text)
    assert runs.requests == []


def test_a_column_of_empty_texts_is_refused(url: str, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("text\n \n")
    assert "no row of" in refused(source, "--column", "text", *LABELS, "--out", tmp_path / "o.csv")
    source.write_text("id,text\n1,a\x00b\n")
    assert "row 1, text: holds a NUL" in refused(source, "--column", "text", *LABELS, "--out", tmp_path / "o.csv")


# Labels, templates and examples


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("l.json", '["a", "b"]', [("a", None), ("b", None)]),
        ("l.json", '[{"name": "a", "description": "about a"}, "b"]', [("a", "about a"), ("b", None)]),
        ("l.json", '{"a": "about a", "b": null}', [("a", "about a"), ("b", None)]),
        ("l.yaml", "- a\n- name: b\n  description: about b\n", [("a", None), ("b", "about b")]),
        ("l.yml", "a: about a\nb:\n", [("a", "about a"), ("b", None)]),
        ("l.csv", 'name,description\na,"about, a"\nb,\n', [("a", "about, a"), ("b", None)]),
        ("l.jsonl", '{"name": "a"}\n{"name": "b"}\n', [("a", None), ("b", None)]),
    ],
)
def test_labels_from_a_file(tmp_path: Path, name: str, content: str, found: list[tuple[str, str | None]]) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert [(one["name"], one.get("description")) for one in read_labels(str(path))] == found


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.json", "{"),
        ("l.json", "7"),
        ("l.json", "[1]"),
        ("l.yaml", "a: [b"),
        ("l.csv", "label\na\n"),
        ("l.yaml", "- no\n"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    if content == "- no\n":  # a text in YAML 1.2
        assert read_labels(str(path)) == [{"name": "no"}]
        return
    with pytest.raises(UserError) as error:
        read_labels(str(path))
    assert str(path) in str(error.value)


def test_examples_and_template_are_part_of_the_question(url: str, runs: FakeRuns, source: Path, tmp_path: Path) -> None:
    golden = tmp_path / "golden.jsonl"
    items = [("billing", "pay 1"), ("bug", "crash 1"), ("billing", "pay 2"), ("billing", "pay 1"), ("billing", "pay 3")]
    golden.write_text("".join(json.dumps({"prompt": text, "expected": label}) + "\n" for label, text in items))
    template = tmp_path / "template.txt"
    template.write_text("{examples} {labels} {text}")
    out = source.with_name("out.csv")
    done(source, "--column", "text", *LABELS, "--out", out, "--examples", golden, "--template", template)
    assert runs.spec is not None
    assert [(one["text"], one["label"]) for one in runs.spec["examples"]] == [
        ("crash 1", "bug"), ("pay 1", "billing"), ("pay 2", "billing"),
    ]  # fmt: skip
    assert runs.spec["template"] == "{examples} {labels} {text}"


def test_rows_that_are_examples_themselves_are_told(url: str, source: Path) -> None:
    words = (source, "--column", "text", *LABELS, "--out", source.with_name("out.csv"), "--truth", "truth")
    result = done(*words, "--examples", source, "--per-label", "1")
    assert "3 of the rows are examples themselves: the model was shown their labels" in result.stdout


def test_a_cascade_and_a_gate_as_they_are_asked_for(url: str, runs: FakeRuns, source: Path) -> None:
    out = source.with_name("out.csv")
    words = (source, "--column", "text", *LABELS, "--out", out, "--escalate-to", "big")
    done(*words, "--calibrate", "200", "--max-drop", "0.05", "--gate", "50")
    assert runs.spec is not None
    assert runs.spec["escalate"] == {
        "model": "big", "below": None, "calibrate": {"rows": 200, "max_drop": 0.05, "by": "model"},
    }  # fmt: skip
    assert runs.spec["gate"] == {"rows": 50, "judge": "big", "min_agreement": 0.9, "otherwise": "escalate"}
    runs.spec, runs.rows, runs.total = None, [], None
    done(*words, "--truth", "truth", "--below", "0.6", "--gate", "50")
    assert runs.spec is not None
    assert (runs.spec["escalate"]["below"], runs.spec["gate"]["judge"]) == (0.6, "truth")


def test_lines_for_who_has_no_terminal(url: str, runs: FakeRuns, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_LINE_S", "_LINE_EVERY_S"):
        monkeypatch.setattr(f"tieryard.cli.classify_progress.{name}", 0.0)
    runs.hold = True

    def free(seconds: float) -> None:
        time.sleep(min(seconds, 0.01))
        runs.hold = runs.total is None

    monkeypatch.setattr("tieryard.cli.patience.PatientClient.wait", lambda _, seconds: free(seconds))
    result = done(source, "--column", "text", *LABELS, "--out", source.with_name("out.csv"))
    assert "of 4 rows, 10/s · 5s left · 0" in result.stderr
