"""A file of real questions, classified by a real model on the embedded fleet: the command is killed in the middle, and
its second half loses no row and asks nothing twice. How good the labels are is said, with its interval."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path

import pytest

from tests.acceptance.conftest import KEY, Running, running_locally
from tests.conftest import eventually, open_directory
from tieryard.cli.classify_state import place
from tieryard.ids import internal

BANKING = Path(__file__).parents[3] / "shared" / "data" / "golden" / "banking77" / "test.csv"
TICKETS = Path(__file__).parents[1] / "data" / "tickets.csv"
EACH = 8  # questions of each label
MOST_LABELS = 5


@pytest.fixture
def local_fleet() -> Iterator[Running]:
    with running_locally() as found:
        yield found


def questions() -> list[tuple[str, str]]:
    """(text, label): of Banking77 where that is here, else of the tickets that we ship. Some stand there twice."""
    source, column = (BANKING, "category") if BANKING.exists() else (TICKETS, "kind")
    by_label: dict[str, list[str]] = {}
    with source.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            by_label.setdefault(row[column], []).append(row["text"])
    found = [(text, label) for label, texts in islice(by_label.items(), MOST_LABELS) for text in texts[:EACH]]
    return found + found[::10]


def classify(fleet: Running, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TIERYARD_API_KEY": KEY, "TIERYARD_URL": fleet.fleet.url, "COLUMNS": "80"}
    command = [sys.executable, "-m", "tieryard", "classify", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.timeout(180)
def test_a_file_is_classified_though_the_command_is_killed(local_fleet: Running) -> None:
    asked = questions()
    labels = list(dict.fromkeys(label for _, label in asked))
    with open_directory() as folder:
        source, out, wrong = folder / "questions.csv", folder / "out.parquet", folder / "wrong.csv"
        with source.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("id", "text", "truth"), *((f"{n:03}", *row) for n, row in enumerate(asked))])
        words = (
            str(source), "--column", "text", "--labels", ",".join(labels), "--out", str(out), "--truth", "truth",
            "--errors", str(wrong), "--picture", str(folder / "confusion.svg"),
        )  # fmt: skip
        with classify(local_fleet, *words) as killed:
            eventually(lambda: answered(local_fleet, run_of(out)) >= 5, within_s=90, what="the first answers")
            killed.send_signal(signal.SIGKILL)
        run = run_of(out)
        assert not out.exists()
        with classify(local_fleet, *words, "--resume") as resumed:
            said, errors = resumed.communicate(timeout=120)
        assert resumed.returncode == 0, said + errors
        check_rows(asked, labels, out, wrong)
        assert not place(out).exists()
        assert (folder / "confusion.svg").exists()
    check_said(said, len(asked))
    check_asked_once(local_fleet, run, asked)


def run_of(out: Path) -> str | None:
    """The run that makes this file, as the command has written down."""
    kept = place(out)
    found: str | None = json.loads(kept.read_text())["run"] if kept.exists() else None
    return found


def jobs_of(run: str | None) -> str:
    number = internal("classification", run) if run is not None else 0
    return f"batch_id IN (SELECT batch_id FROM classification_part WHERE classification_id = {number})"


def answered(fleet: Running, run: str | None) -> int:
    """Questions that an engine has answered by now, collected or not."""
    [(n,)] = fleet.rows(f"SELECT count(*) FROM job WHERE finished_at IS NOT NULL AND {jobs_of(run)}")
    return int(n)


def check_rows(asked: list[tuple[str, str]], labels: list[str], out: Path, wrong: Path) -> None:
    """Every row is there, in its place, with one of the labels; what is wrong stands in the file of these."""
    import pyarrow.parquet as pq

    rows = pq.read_table(out).to_pylist()
    assert [(row["text"], row["truth"]) for row in rows] == asked
    assert [row["error"] for row in rows] == [None] * len(rows)
    assert {row["label"] for row in rows} <= set(labels)
    assert all(0 <= row["confidence"] <= 1 for row in rows)
    answers: dict[str, str] = {}
    for row in rows:
        assert answers.setdefault(row["text"], row["label"]) == row["label"]
    again = [row for n, row in enumerate(rows) if row["text"] in {text for text, _ in asked[:n]}]
    assert again
    assert all(row["cost_usd"] == Decimal(0) for row in again)
    with wrong.open(newline="", encoding="utf-8") as file:
        numbers = [int(row["row"]) for row in csv.DictReader(file)]
    assert numbers == [n for n, row in enumerate(rows, start=1) if row["label"] != row["truth"]]


def check_said(said: str, rows: int) -> None:
    text = " ".join(said.split())
    found = re.search(r"accuracy ([0-9.]+)% \(95 % interval ([0-9.]+)%–([0-9.]+)%\), ([0-9]+) of ([0-9]+) rows", text)
    assert found, said
    share, low, high = (float(found[n]) for n in (1, 2, 3))
    assert low <= share <= high
    assert int(found[5]) == rows
    assert share == pytest.approx(100 * int(found[4]) / rows, abs=0.06)
    assert "macro F1" in text
    print(found[0])


def check_asked_once(fleet: Running, name: str | None, asked: list[tuple[str, str]]) -> None:
    """One job a distinct text, whoever was killed; and what these cost is what the run says."""
    run = fleet.api.get(f"/v1/classifications/{name}").json()
    [(jobs,)] = fleet.rows(f"SELECT count(*) FROM job WHERE {jobs_of(name)}")
    unique = len({text for text, _ in asked})
    assert (jobs, run["counts"]["unique"], run["counts"]["rows"]) == (unique, unique, len(asked))
    [(cost,)] = fleet.rows(
        "SELECT sum(cost_usd) FROM ledger WHERE kind = 'inference' AND job_id IN "
        f"(SELECT id FROM job WHERE {jobs_of(name)})"
    )
    assert Decimal(run["cost_usd"]) == cost
