"""Golden sets as users meet them: imported by command and by API, listed, shown, refused by line; and ranked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from tests import factories as make
from tests.conftest import CATALOGS
from tests.integration.test_cli import Run, here, run
from tieryard.errors import ConflictError, NotFoundError, UserError
from tieryard.golden import GoldenSet, Item, parse_golden
from tieryard.golden.saving import load, save
from tieryard.settings import Settings
from tieryard.store import Store, benchmarks, golden, keys
from tieryard.store.benchmarks import BENCHMARK_TENANT, NewRun, RunEnd, RunKind, RunState
from tieryard.store.golden import ItemScore
from tieryard.store.keys import Scope

__all__ = ["here", "run"]  # fixtures

OSLO = {"id": "city", "category": "extraction", "prompt": "The city? 'I live in Oslo.'", "expected": "Oslo",
        "scorer": "exact"}  # fmt: skip
SUM = {"id": "sum", "category": "reasoning", "prompt": "2 + 2?", "expected": "4", "scorer": "numeric"}
SCHEMA = {"type": "object", "properties": {"thoughts": {"type": "string"}, "city": {"type": "string"}}}


def line(of: dict[str, Any], **fields: Any) -> str:
    return json.dumps({**of, **fields})


def parsed(*lines: str, name: str = "mine") -> GoldenSet:
    return parse_golden(lines, name=name, categories=("extraction", "reasoning"))


@pytest.fixture
def in_force(run: Run, here: None) -> None:
    """The instant catalog."""
    assert run("config", "apply", str(CATALOGS / "instant.yaml")).code == 0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join([line(OSLO), line(SUM)]) + "\n")
    return path


def test_the_same_content_is_the_same_set_and_the_last_import_is_meant(store: Store) -> None:
    first, made = save(store, parsed(line(OSLO), line(SUM)))
    again, made_again = save(store, parsed(line(SUM), line(OSLO)))
    assert (made, made_again, again.id) == (True, False, first.id)
    assert make.count(store, "golden_item") == 2
    other, _ = save(store, parsed(line(OSLO)))
    elsewhere, _ = save(store, parsed(line(OSLO), name="yours"))
    assert len({first.id, other.id, elsewhere.id}) == 3
    assert golden.find_set(store, "mine").id == other.id
    save(store, parsed(line(OSLO), line(SUM)))
    assert golden.find_set(store, "mine") == golden.get_set(store, first.id)
    assert [(row.name, row.items) for row in golden.list_sets(store)] == [("mine", 2), ("yours", 1)]
    with pytest.raises(NotFoundError, match="golden list"):
        golden.find_set(store, "none")
    for name in ("", "a,b", "a/b", "x" * 65, "-a"):
        with pytest.raises(UserError, match="is no name of a set"):
            save(store, parsed(line(OSLO), name=name))


def test_items_come_back_as_they_were_given(store: Store) -> None:
    """Also the order of a schema's fields, in which a model writes them, and numbers in their own way."""
    constraint = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    scorer = {"name": "numeric", "relative_tolerance": 0.5}
    given = parsed(line(OSLO, response_format=constraint), line(SUM, expected=1e5, scorer=scorer))
    row, _ = save(store, given)
    found = load(store, row)
    assert found == given
    assert found.hash == row.hash == given.hash
    assert json.dumps(found.items[0].response_format) == json.dumps(constraint)


def quality_run(store: Store, deployment: str, set_id: int) -> benchmarks.BenchmarkRun:
    """One that is claimed."""
    benchmarks.create(store, [NewRun(RunKind.QUALITY, deployment, {}, golden_set_id=set_id)])
    claimed = benchmarks.claim(store, make.worker(store, kind="benchmark"), [RunKind.QUALITY])
    assert claimed is not None
    assert claimed.deployment == deployment
    return claimed


def scored(item: Item, score: float | None, **fields: Any) -> ItemScore:
    plain: dict[str, Any] = {"latency_ms": 10.0, "cost_usd": 0.5}
    return ItemScore(item.id, item.category, item.input_hash, 7, score, **{**plain, **fields})


def end(store: Store, one: benchmarks.BenchmarkRun, how: RunEnd) -> None:
    with store.transaction() as connection:
        assert benchmarks.finish(connection, one, how) is not None


def test_scores_are_kept_by_whoever_holds_the_run(store: Store) -> None:
    made, _ = save(store, parsed(line(OSLO), line(SUM)))
    items = load(store, made).items
    ours, other = quality_run(store, "short", made.id), quality_run(store, "long", made.id)
    golden.save_scores(store, ours, [scored(items[0], 1.0, counts=[1, 0, 2], why="a\x00b"), scored(items[1], None)])
    golden.save_scores(store, ours, [scored(items[1], 0.7, judge="long")])
    golden.save_scores(store, other, [scored(items[0], 0.5)])
    found = {one.item_id: one for one in golden.scores(store, ours.id)}
    assert (found["city"].counts, found["city"].why, found["sum"].score) == ([1, 0, 2], "a\ufffdb", 0.7)
    assert [(p.item_id, p.first, p.second) for p in golden.pairs(store, ours.id, other.id)] == [("city", 1.0, 0.5)]
    store.fetch("UPDATE benchmark SET fence = 9 WHERE id = %(id)s RETURNING id", {"id": ours.id})
    with pytest.raises(ConflictError):
        golden.save_scores(store, ours, [scored(items[0], 0.0)])
    with pytest.raises(ConflictError), store.transaction() as connection:
        benchmarks.note(connection, ours, {"judging": {}})
    assert found == {one.item_id: one for one in golden.scores(store, ours.id)}


def test_a_set_is_imported_listed_and_shown(run: Run, in_force: None, file: Path) -> None:
    ran = run("golden", "import", str(file))
    assert ran.code == 0
    first, *advice = ran.out.splitlines()
    assert first.startswith("mine: 2 items (extraction 1, reasoning 1), hash ")
    assert [said[:14] for said in advice] == ["- extraction: ", "- reasoning: 1"]
    assert "known already" in run("golden", "import", str(file)).out
    assert run("golden", "import", str(file), "--name", "other", "--limit", "1").code == 0
    listed = json.loads(run("golden", "list", "--json").out)
    assert [(row["name"], sum(row["counts"].values())) for row in listed] == [("mine", 2), ("other", 1)]
    assert "extraction 1, reasoning 1" in run("golden", "list").out.replace("\n", " ")
    assert run("golden", "show", "mine").out.startswith("mine: 2 items, hash ")
    shown = run("golden", "show", "mine", "--items").out.splitlines()
    assert parsed(*shown) == parsed(*file.read_text().splitlines())
    assert run("golden", "show", "none").code == 2


def test_a_bad_file_is_refused_by_line(run: Run, in_force: None, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([line(OSLO), "{", line(SUM, category="poetry"), line(SUM, scorer="guess")]))
    ran = run("golden", "import", str(path))
    assert ran.code == 2
    for fault in ("3 faults", "line 2: no JSON", "line 3, category: 'poetry'", "line 4, scorer: 'guess'"):
        assert fault in ran.err
    assert make.count(store, "golden_set") == 0
    assert "cannot be read" in run("golden", "import", str(tmp_path / "none.jsonl")).err
    assert "of no kind" in run("golden", "import", str(tmp_path)).err
    assert "no catalog is in force" not in ran.err


def test_public_data_is_known_by_its_folder(run: Run, in_force: None, tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    rows = [{"question": f"How many are {n} and 1?", "answer": f"Add.\n#### {n + 1}"} for n in range(9)]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("golden", "import", str(folder)).out.startswith("gsm8k-test: 9 items (reasoning 9)")
    assert run("golden", "import", str(folder / "test.jsonl"), "--limit", "4").out.startswith("gsm8k-test: 4 items")
    assert "no humaneval" not in run("golden", "import", str(folder), "--kind", "jsonl").out
    assert run("golden", "import", str(folder), "--kind", "humaneval").code == 2


def test_runs_are_made_for_each_set_and_model(run: Run, in_force: None, file: Path, store: Store) -> None:
    run("golden", "import", str(file))
    run("golden", "import", str(file), "--name", "other")
    ran = run("golden", "run", "mine,other", "--models", "short, long,short", "--no-wait")
    assert ran.code == 0
    made = store.fetch("SELECT kind, deployment, golden_set_id, state FROM benchmark ORDER BY id")
    assert [row[:2] for row in made] == [("quality", "short"), ("quality", "long")] * 2
    assert len({row[2] for row in made}) == 2
    assert ran.out.splitlines()[-1].startswith("later: tieryard golden rank benchmark_")
    refused = run("golden", "run", "mine", "--models", "tall", "--no-wait")
    assert (refused.code, "'tall' is not a deployment: short, long" in refused.err) == (2, True)
    assert run("golden", "run", "none", "--models", "short").code == 2
    assert make.count(store, "benchmark") == 4


def test_models_above_the_bar_are_ranked_and_drawn(
    run: Run, in_force: None, file: Path, store: Store, tmp_path: Path
) -> None:
    lines = [line(SUM, id=f"s{n}", prompt=f"{n} + 0?", expected=str(n)) for n in range(40)]
    made, _ = save(store, parsed(*lines, line(OSLO)))
    items = load(store, made).items
    names = []
    for model, right, cost_usd in (("short", 40, 0.001), ("long", 40, 0.01), ("weak", 20, 0.0001)):
        one = quality_run(store, model, made.id)
        rows = [scored(item, float(n < right), cost_usd=cost_usd) for n, item in enumerate(items[:40])]
        golden.save_scores(store, one, [*rows, scored(items[40], None, why="failed: no", latency_ms=None)])
        whole = {"n": 41, "scored": 40, "unscored": {"failed: no": 1}}
        worse = "worse than at its last run" if model == "weak" else None
        end(store, one, RunEnd(RunState.SUCCEEDED, report={"whole": whole, "advice": ["small"]}, regressed=worse))
        names.append(one.public_id)
    broken = quality_run(store, "broken", made.id)
    end(store, broken, RunEnd(RunState.FAILED, "none of 41 items has a score"))
    ranked = ("golden", "rank", ",".join([*names, broken.public_id]), "--out", str(tmp_path / "out"))
    ran = run(*ranked)
    assert ran.code == 1, "one run did not succeed"
    text = ran.out
    assert text.index("short") < text.index("long")
    assert "reasoning: short of 2 above the bar of 80%" in text
    assert "weak: passes 50.0%, below the bar of 80%" in text
    assert f"broken: not ranked: {broken.public_id} failed: none of 41 items has a score" in text
    assert "short: 1 of 41 items without a score: failed: no (1)" in text
    assert f"{names[2]}: weak has regressed: worse than at its last run" in text
    assert text.count("\nsmall\n") == 1
    pictures = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in pictures] == ["reasoning.png", "reasoning.svg"]
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    told = json.loads(run(*ranked, "--json", "--bar", "0.95").out)
    assert [one["sentence"] for one in told["rankings"]] == ["reasoning: no model is shown to reach the bar of 95%"]
    assert (told["not_ranked"].keys(), len(told["pictures"]), len(told["runs"])) == ({"broken"}, 2, 4)
    assert run("golden", "rank", names[0], "--out", str(tmp_path / "out")).code == 0
    twice = run("golden", "rank", f"{names[0]},{names[0]}", "--out", str(tmp_path))
    assert twice.code == 0, "the same run named twice is one"
    assert "no quality run that has ended" in run("golden", "rank", quality_run(store, "x", made.id).public_id).err


@pytest.fixture
def client(settings: Settings, store: Store, tenant: int) -> Iterator[TestClient]:
    keys.add_key(store, "ty_bench", tenant="tests", name="bench", scopes=[Scope.BENCHMARK])
    headers = {"authorization": "Bearer ty_bench"}
    with TestClient(create_app(settings), raise_server_exceptions=False, headers=headers) as client:
        yield client


def test_a_set_by_the_api(client: TestClient) -> None:
    body = f"{line(OSLO)}\r\n\n{line(SUM)}\n".encode()
    made = client.post("/v1/golden_sets", params={"name": "mine"}, content=body)
    assert made.status_code == 200
    assert (made.json()["items"], made.json()["counts"]) == (2, {"extraction": 1, "reasoning": 1})
    assert len(made.json()["advice"]) == 2
    again = client.post("/v1/golden_sets", params={"name": "mine"}, content=body)
    assert again.json()["hash"] == made.json()["hash"]
    assert [one["name"] for one in client.get("/v1/golden_sets").json()["data"]] == ["mine"]
    assert client.get("/v1/golden_sets/mine").json()["bodies"] is None
    bodies = client.get("/v1/golden_sets/mine", params={"items": True}).json()["bodies"]
    assert parsed(*map(json.dumps, bodies)) == parsed(line(OSLO), line(SUM))
    assert client.get("/v1/golden_sets/none").status_code == 404
    assert client.get("/v1/golden_sets/no%00ne").status_code == 404


def test_the_api_refuses_by_line_and_by_scope(client: TestClient, store: Store) -> None:
    bad = client.post("/v1/golden_sets", params={"name": "mine"}, content=line(OSLO) + "\n" + line(SUM, id=""))
    assert bad.status_code == 400
    assert (bad.json()["error"]["line"], bad.json()["error"]["param"]) == (2, "id")
    assert client.post("/v1/golden_sets", params={"name": "a b"}, content=line(OSLO)).status_code == 400
    assert client.post("/v1/golden_sets", params={"name": "none"}, content=b"").status_code == 400
    assert client.post("/v1/golden_sets", content=line(OSLO)).status_code == 400
    stranger = {"authorization": "Bearer ty_test"}
    assert client.get("/v1/golden_sets", headers=stranger).status_code == 403
    assert client.post("/v1/golden_sets", params={"name": "x"}, content=b"", headers=stranger).status_code == 403
    assert make.count(store, "golden_set") == 0
    with pytest.raises(UserError, match="has no keys"):
        keys.add_key(store, "ty_spy", tenant=BENCHMARK_TENANT, name="spy")
