"""People and a judge, by `tieryard golden`: a blind sample out, labels in, how far they agree; two runs compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import factories as make
from tests.integration.judged import ITEMS, Judged, judging
from tests.integration.test_cli import Run, here, run
from tieryard.cli import review
from tieryard.settings import Settings
from tieryard.store import Store, benchmarks
from tieryard.store.benchmarks import BenchmarkRun, RunEnd, RunState
from workers import pairwise

__all__ = ["here", "run"]  # fixtures

ANSWERS = {f"q{n}": f"answer {n}" for n in range(4)}


@pytest.fixture
def judged(settings: Settings, store: Store, tenant: int, tmp_path: Path) -> Iterator[Judged]:
    with judging(settings, store, tenant, tmp_path) as found:
        yield found


def scored(judged: Judged, scores: dict[str, float], name: str = "one") -> BenchmarkRun:
    """A run with these scores by the judge."""
    found = judged.quality_run(name, ANSWERS)
    for item, score in scores.items():
        judged.store.fetch(
            "UPDATE golden_score SET score = %(score)s, judge = 'judge' WHERE benchmark_id = %(run)s "
            "AND item_id = %(item)s RETURNING item_id",
            {"score": score, "run": found.id, "item": item},
        )
    return found


def drawn(run: Run, out: Path, *runs: BenchmarkRun, sheet: bool = False) -> list[dict[str, object]]:
    ids = ",".join(one.public_id for one in runs)
    ran = run("golden", "review", ids, "--sample", "100", "--out", str(out), *(["--csv"] if sheet else []))
    assert (ran.code, ran.err) == (0, "")
    return [] if sheet else [json.loads(line) for line in out.read_text().splitlines()]


def test_a_sample_goes_out_blind_and_comes_back_as_labels(run: Run, here: None, judged: Judged, tmp_path: Path) -> None:
    runs = [scored(judged, {"q0": 0.9, "q1": 0.1}), scored(judged, {"q0": 0.9}, "two")]
    out = tmp_path / "sample.jsonl"
    rows = drawn(run, out, *runs)
    assert sorted(str(row["answer"]) for row in rows) == sorted(2 * [*ANSWERS.values()])
    assert all(row["score"] is None and row["criteria"] == "Is kind." for row in rows)
    for told in ("one", "two", "judge", "0.9", "benchmark", "q0"):
        assert told not in out.read_text()
    filled = [row | {"score": 1.0 if row["answer"] == "answer 0" else 0.0} for row in rows]
    out.write_text("\n".join(map(json.dumps, filled)))
    ran = run("golden", "review", "--labels", str(out), "--reviewer", "ann")
    ids = ",".join(one.public_id for one in runs)
    assert ran.out == f"8 labels taken. How far the judge agrees: tieryard golden agreement {ids}\n"
    kept = judged.store.fetch("SELECT benchmark_id, item_id, reviewer, score FROM human_label ORDER BY 1, 2")
    assert kept == [(one.id, f"q{n}", "ann", 1.0 if n == 0 else 0.0) for one in runs for n in range(4)]


def test_a_later_word_of_the_same_reviewer_replaces(run: Run, here: None, judged: Judged, tmp_path: Path) -> None:
    found, out = scored(judged, {}), tmp_path / "sample.jsonl"
    rows = drawn(run, out, found)
    for reviewer, score in (("ann", 0.2), ("bob", 0.4), ("ann", 0.6)):
        out.write_text(json.dumps(rows[0] | {"score": score}))
        assert run("golden", "review", "--labels", str(out), "--reviewer", reviewer).code == 0
    kept = judged.store.fetch("SELECT reviewer, round(score::numeric, 2)::float FROM human_label ORDER BY 1")
    assert kept == [("ann", 0.6), ("bob", 0.4)]


def test_a_bad_line_leaves_nothing(run: Run, here: None, judged: Judged, tmp_path: Path) -> None:
    found, out = scored(judged, {}), tmp_path / "sample.jsonl"
    rows = drawn(run, out, found)
    out.write_text("\n".join([json.dumps(rows[0] | {"score": 1}), json.dumps(rows[1] | {"score": 3})]))
    ran = run("golden", "review", "--labels", str(out), "--reviewer", "ann")
    assert ran.code == 2
    assert "line 2, score" in ran.err
    assert make.count(judged.store, "human_label") == 0


def test_a_sheet_goes_out_and_comes_back(run: Run, here: None, judged: Judged, tmp_path: Path) -> None:
    found, out = scored(judged, {}), tmp_path / "sample.csv"
    drawn(run, out, found, sheet=True)
    head, *rows = out.read_text(encoding="utf-8-sig").splitlines()
    out.write_text("\n".join([head, *(row + "0.8" for row in rows)]), encoding="utf-8")
    assert run("golden", "review", "--labels", str(out), "--reviewer", "ann").code == 0
    assert make.count(judged.store, "human_label", "score > 0.79") == 4


def test_agreement_is_told_with_its_interval_and_its_size(run: Run, here: None, judged: Judged, tmp_path: Path) -> None:
    found, out = scored(judged, {"q0": 0.9, "q1": 0.9, "q2": 0.1, "q3": 0.1}), tmp_path / "sample.jsonl"
    rows = drawn(run, out, found)
    said = {"answer 0": 1.0, "answer 1": 0.0, "answer 2": 0.0, "answer 3": 0.0}
    out.write_text("\n".join(json.dumps(row | {"score": said[str(row["answer"])]}) for row in rows))
    assert run("golden", "agreement", found.public_id).out.startswith("no answer of these runs has a label")
    run("golden", "review", "--labels", str(out), "--reviewer", "ann")
    ran = run("golden", "agreement", found.public_id)
    assert ran.code == 0
    assert [line.split() for line in ran.out.splitlines() if line.startswith("judge: ")] == [
        ["judge:", "pass", "1", "1"],
        ["judge:", "fail", "0", "2"],
    ]
    assert "kappa 0.50" in ran.out
    assert "4 labels are too few" in ran.out
    [as_json] = json.loads(run("golden", "agreement", found.public_id, "--json").out)
    assert (as_json["judge"], as_json["n"], as_json["kappa"]["value"]) == ("judge", 4, pytest.approx(0.5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name the runs to draw from"),
        (("benchmark_1", "--labels", "x"), "name the runs to draw from"),
        (("--labels", "x"), "--reviewer"),
        (("benchmark_1",), "--out FILE"),
        (("benchmark_1", "--out", "x"), "no benchmark 'benchmark_1'"),
        (("job_1", "--out", "x"), "no benchmark 'job_1'"),
        (("--labels", "/no/such", "--reviewer", "ann"), "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Run, here: None, arguments: tuple[str, ...], said: str) -> None:
    ran = run("golden", "review", *arguments)
    assert ran.code == 2
    assert said in " ".join(ran.err.split())


def test_two_runs_are_compared_by_command(
    run: Run, here: None, judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = scored(judged, {}), scored(judged, {}, "two")
    assert run("config", "apply", str(judged.yard.settings.catalog)).code == 0
    judged.says(lambda _: '{"reason": "", "better": "tie"}')

    def ends(store: Store, ids: list[int]) -> list[BenchmarkRun]:
        """As the benchmark worker ends it."""
        [number] = ids
        mine = judged.claimed(number)
        assert pairwise.advance(judged.yard, mine) is None
        judged.answer(benchmarks.get(store, number).batch_id or 0)
        end = pairwise.advance(judged.yard, benchmarks.get(store, number))
        assert isinstance(end, RunEnd)
        judged.finish(mine, end)
        return [benchmarks.get(store, number)]

    monkeypatch.setattr(review, "watch", ends)
    ran = run("golden", "compare", a.public_id, b.public_id)
    assert ran.code == 0
    assert "a is one" in ran.out
    assert "neither is shown to be better: 0 to 0 wins" in ran.out
    rows = {
        line.split()[0]: line.split()[1:] for line in ran.out.splitlines() if line.startswith(("chat", "code", "all"))
    }
    assert rows["all"][:2] == ["4", "4"]
    assert rows["chat"][-2:] == ["2", "100%"]
    assert benchmarks.listing(judged.store, kind="pairwise")[0].state == RunState.SUCCEEDED
    assert len(ITEMS.items) == 4
