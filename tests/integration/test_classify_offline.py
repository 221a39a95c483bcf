"""`tieryard classify` where nothing is run: what a run would cost, and where jobs would go, by the real API."""

# ruff: noqa: F811  # fixtures that are imported

from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import factories as make
from tests.integration.test_cli import Run, run, url  # noqa: F401  # fixtures
from tests.integration.test_route import LONG, catalog_path, live  # noqa: F401  # fixtures
from tieryard.classification import survey
from tieryard.cli import classify_routes
from tieryard.store import Store

TICKETS = Path(__file__).parents[1] / "data" / "tickets.csv"
LABELS = ("--column", "text", "--labels", "billing,bug,feature", "--tier", "batch")


def asked(run: Run, url: str, *words: object, code: int = 0) -> str:
    found = run("classify", *map(str, words), "--url", url)
    assert found.code == code, found
    tables = [line for line in found.out.splitlines() if "──" in line]
    assert all(len(line) <= 80 for line in tables), found.out
    return found.out


def as_json(run: Run, url: str, *words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(asked(run, url, *words, "--json"))
    return found


# What a run would cost


def test_a_dry_run_prices_every_text_and_asks_nothing(run: Run, url: str, live: None, store: Store) -> None:
    found = as_json(run, url, TICKETS, *LABELS, "--dry-run", "--model", "short")
    assert (found["rows"], found["empty"], found["texts"], found["texts_counted"]) == (60, 0, 60, True)
    [first] = found["questions"]
    assert (first["model"], first["sampled"], first["prompt_tokens_error"]) == ("short", 60, 0)
    assert first["deployments"] == {"short": 60}
    ends = [Decimal(found["cost_usd"][end]) for end in ("low", "expected", "worst")]
    assert 0 < ends[0] <= ends[1] <= ends[2]
    assert {table: make.count(store, table) for table in ("job", "classification", "batch")} == {
        "job": 0, "classification": 0, "batch": 0,
    }  # fmt: skip
    text = asked(run, url, TICKETS, *LABELS, "--dry-run", "--model", "short")
    assert "60 rows, 60 distinct texts; nothing was asked" in text


def test_duplicates_are_priced_once(run: Run, url: str, live: None, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("text\n" + "The same.\n" * 500 + "Another.\n\n")
    found = as_json(run, url, source, *LABELS, "--dry-run")
    assert (found["rows"], found["texts"], found["questions"][0]["sampled"]) == (501, 2, 2)


def test_a_sample_stands_for_a_long_file(
    run: Run, url: str, live: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.csv"
    source.write_text("text\n" + "".join(f"Text {i % 3000} of many.\n" for i in range(6000)))
    whole = as_json(run, url, source, *LABELS, "--dry-run", "--model", "short")
    monkeypatch.setattr(survey, "MOST_DRAWN", 200)
    found = as_json(run, url, source, *LABELS, "--dry-run", "--model", "short")
    assert (found["texts_counted"], found["questions"][0]["sampled"]) == (False, 200)
    assert found["texts"] == pytest.approx(3000, rel=0.25)  # a standard error of 7 %
    assert found["questions"][0]["prompt_tokens_error"] > 0
    each = [Decimal(one["cost_usd"]["expected"]) / one["texts"] for one in (whole, found)]
    assert each[1] == pytest.approx(each[0], rel=Decimal("0.01"))
    text = asked(run, url, source, *LABELS, "--dry-run", "--model", "short")
    assert "about" in text
    assert "by a sample of 200 texts" in text


def test_a_cascade_is_priced_from_its_first_model_to_both(run: Run, url: str, live: None) -> None:
    words = (TICKETS, *LABELS, "--dry-run", "--model", "short")
    alone = as_json(run, url, *words)
    found = as_json(run, url, *words, "--escalate-to", "long", "--below", "0.5", "--max-cost", "0.0001")
    assert found["cost_usd"]["low"] == alone["cost_usd"]["low"]
    [_, larger] = found["questions"]
    assert (larger["model"], larger["texts"]) == ("long", {"low": 0, "worst": 60})
    worst = Decimal(alone["cost_usd"]["worst"]) + Decimal(larger["cost_usd"]["worst"])
    assert Decimal(found["cost_usd"]["worst"]) == worst
    text = asked(run, url, *words, "--escalate-to", "long", "--below", "0.5", "--max-cost", "0.000001")
    assert "worst: it is asked everything" in text
    assert "--max-cost 0.000001 will stop it" in text


def test_gate_and_calibration_are_asked_of_the_larger_model_in_any_case(run: Run, url: str, live: None) -> None:
    words = (TICKETS, *LABELS, "--dry-run", "--model", "short", "--escalate-to", "long")
    found = as_json(run, url, *words, "--calibrate", "30", "--gate", "40", "--min-agreement", "0.5")
    assert found["questions"][1]["texts"] == {"low": 40, "worst": 60}


# Where jobs would go


def jobs_file(tmp_path: Path, n: int = 6) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"id": i, "prompt": LONG if i % 3 == 0 else f"Say {i}.", "max_tokens": 10} for i in range(n)]
    path.write_text("".join(json.dumps({k: v for k, v in one.items() if k != "id"}) + "\n" for one in lines))
    return path


def test_each_job_is_told_where_it_would_go(run: Run, url: str, live: None, tmp_path: Path, store: Store) -> None:
    source, out = jobs_file(tmp_path), tmp_path / "routes.csv"
    found = as_json(run, url, "--routes", source, "--out", out)
    assert {name: one["jobs"] for name, one in found["deployments"].items()} == {"short": 4, "long": 2}
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["deployment"] for row in rows] == ["long", "short", "short"] * 2
    assert list(rows[0]) == [
        "prompt", "max_tokens", "deployment", "reason", "predicted_cost_usd", "predicted_latency_ms", "error",
    ]  # fmt: skip
    assert sum(Decimal(row["predicted_cost_usd"]) for row in rows) == Decimal(found["cost_usd"])
    assert all(float(row["predicted_latency_ms"]) > 0 for row in rows)
    assert found["quote"]["requests"] == 6
    assert make.count(store, "job") == 0
    text = asked(run, url, "--routes", source)
    assert "as one batch in bulk" not in text  # this catalog has no such tier
    assert "as one batch in batch: $" in text


def test_a_line_that_is_no_job_is_told(run: Run, url: str, live: None, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"prompt": "Hi."}\n{"prompt": "Hi.", "model": "none"}\n')
    out = tmp_path / "out.jsonl"
    found = as_json(run, url, "--routes", source, "--out", out)
    assert {name: one["jobs"] for name, one in found["deployments"].items()} == {"short": 1, "(no job)": 1}
    assert found["faults"][0].startswith("row 2: model: 'none' is not served")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["error"] is None
    assert lines[1]["error"].startswith("model: ")
    assert "row 2: model" in asked(run, url, "--routes", source)


def test_prompts_in_a_column(run: Run, url: str, live: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify_routes, "_MOST_LINES", 7)
    out = tmp_path / "out.parquet"
    found = as_json(run, url, "--routes", TICKETS, "--column", "text", "--model", "long", "--out", out)
    assert found["deployments"]["long"]["jobs"] == 60
    missing = run("classify", "--routes", str(TICKETS), "--url", url)
    assert missing.code == 2
    assert "say which column is the prompt: --column" in missing.err


def test_a_sample_of_jobs_is_quoted_for_the_whole(
    run: Run, url: str, live: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify_routes, "_DRAWN", 10)
    found = as_json(run, url, "--routes", jobs_file(tmp_path, 90))
    assert (found["quote"]["requests"], found["quote"]["lines"]["read"]) == (90, 10)
    assert sum(one["jobs"] for one in found["deployments"].values()) == 90
