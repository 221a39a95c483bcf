"""`tieryard config` as a user meets it: what is wrong, what would change, what is in force, and the way back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import factories as make
from tests.conftest import CATALOGS
from tests.integration.test_cli import Run, here, run
from tieryard.catalog import load_catalog
from tieryard.store import Store, catalogs

__all__ = ["here", "run"]  # fixtures

INSTANT = CATALOGS / "instant.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A copy of the instant catalog, to edit."""
    path = tmp_path / "t.yaml"
    path.write_text(INSTANT.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_check_warns_and_refuses_nothing(run: Run, file: Path) -> None:
    ran = run("config", "check", str(file))
    assert (ran.code, ran.err) == (0, "")
    first, *advice = ran.out.splitlines()
    assert first == f"{file}: valid (4 tiers, 2 deployments), hash {load_catalog(file).hash()}"
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "context_limit: 512" in text)
    assert f"{file}:{line}: deployments.short.context_limit: 512 tokens is below" in "\n".join(advice)
    *advice, baseline = advice
    assert baseline == "- savings are counted against long, the large deployment with the dearest output (`baseline`)"
    numbers = [int(row.removeprefix(f"{file}:").split(":")[0]) for row in advice]
    assert numbers == sorted(numbers)


def test_what_cannot_be_read_is_refused(run: Run, tmp_path: Path) -> None:
    odd = tmp_path / "odd.yaml"
    odd.write_bytes(b"\xff\xfe")
    ran = run("config", "check", str(odd))
    assert (ran.code, ran.out) == (2, "")
    assert "not UTF-8" in ran.err


def test_a_catalog_is_applied_compared_and_rolled_back(run: Run, here: None, store: Store, file: Path) -> None:
    assert run("config", "diff", str(file)).out == f"no catalog is in force yet; {file} would be version 1\n"
    assert run("config", "apply", str(file)).out == "version 1 is in force\n"
    assert run("config", "diff", str(file)).out == "t.yaml says what version 1 says\n"
    edit(file, "output_usd_per_1m: 4.00", "output_usd_per_1m: 5.00")
    edit(file, "max_in_flight: 16", "max_in_flight: 32")
    shown = run("config", "diff", str(file)).out
    assert "deployments.long.price.output_usd_per_1m" in "".join(shown.split())
    assert "- long: its infer processes finish what they run, and start again\n" in shown
    assert max(len(line) for line in shown.splitlines() if not line.startswith("- ")) <= 80
    dry = run("config", "apply", str(file), "--dry-run")
    assert (dry.code, dry.out) == (0, shown)
    assert [v.number for v in catalogs.versions(store, limit=9)] == [1]
    applied = run("config", "apply", str(file), "--note", "[dearer]")
    assert applied.out == shown + "version 2 is in force\n"
    again = run("config", "apply", str(file))
    assert (again.code, again.out.splitlines()[-1]) == (0, "version 2 is this already: nothing to do")
    back = run("config", "rollback", "1", "--note", "too dear")
    assert (back.code, back.out.splitlines()[-1]) == (0, "version 3 is in force")
    found = catalogs.versions(store, limit=9)
    assert [(v.number, v.note, v.rolled_back_to) for v in found] == [
        (3, "too dear", 1),
        (2, "[dearer]", None),
        (1, None, None),
    ]
    assert (found[0].body, found[0].hash) == (found[2].body, found[2].hash)
    listed = run("config", "versions").out
    assert [line.split()[0] for line in listed.splitlines()[2:]] == ["3", "2", "1"]
    assert "[dearer]" in listed
    assert "says what version 2 says" in run("config", "diff", str(file), "--version", "2").out


def test_versions_and_differences_as_json(run: Run, here: None, store: Store, file: Path) -> None:
    nothing = {"version": None, "changes": [], "needs": [], "warnings": []}
    assert json.loads(run("config", "diff", str(file), "--json").out) == nothing
    run("config", "apply", str(file), "--note", "first")
    edit(file, "max_in_flight: 16", "max_in_flight: 32")
    file.write_text(file.read_text() + "routing: {policies: {acmee: {regions: [eu]}}}\n")
    found = json.loads(run("config", "diff", str(file), "--json").out)
    changed = {"field": "deployments.long.max_in_flight", "before": "16", "after": "32"}
    assert (found["version"], changed in found["changes"]) == (1, True)
    assert found["needs"] == ["long: its infer processes finish what they run, and start again"]
    assert found["warnings"] == ["policy acmee: there is no tenant of this name; it will hold once there is"]
    [version] = json.loads(run("config", "versions", "--json").out)
    assert version.keys() == {"number", "hash", "applied_at", "rolled_back_to", "note"}
    assert (version["number"], version["note"], version["applied_at"][-1]) == (1, "first", "Z")


def test_a_bad_catalog_is_not_applied(run: Run, here: None, store: Store, file: Path) -> None:
    edit(file, "context_limit: 512", "context_limit: many")
    for command in ("apply", "diff"):
        ran = run("config", command, str(file))
        assert (ran.code, ran.out) == (2, "")
        assert "deployments.short.context_limit" in ran.err
    assert catalogs.newest(store) is None


def test_versions_that_are_not_there(run: Run, here: None, file: Path) -> None:
    assert "there is no version 7" in run("config", "rollback", "7").err
    ran = run("config", "diff", str(file), "--version", "7")
    assert (ran.code, ran.out) == (2, "")
    assert "tieryard config versions" in ran.err


def test_a_policy_for_nobody_is_said(run: Run, here: None, store: Store, tenant: int, file: Path) -> None:
    [[known]] = store.fetch("SELECT name FROM tenant")
    policies = f"routing: {{policies: {{{known}: {{models: [short]}}, acmee: {{regions: [eu]}}}}}}\n"
    file.write_text(file.read_text() + policies)
    said = "- policy acmee: there is no tenant of this name; it will hold once there is\n"
    assert run("config", "apply", str(file), "--dry-run").out == said
    assert run("config", "apply", str(file)).out == f"{said}version 1 is in force\n"
    assert run("config", "diff", str(file)).out == f"t.yaml says what version 1 says\n{said}"


def test_a_quality_model_that_is_not_here_is_said(run: Run, here: None, store: Store, file: Path) -> None:
    file.write_text(file.read_text() + "routing: {quality_model: /nowhere.gz}\n")
    said = (
        "- routing.quality_model: there is no file /nowhere.gz here; a process that cannot read it goes by the rules\n"
    )
    assert run("config", "check", str(file)).out.endswith(said)
    assert run("config", "apply", str(file)).out == f"{said}version 1 is in force\n"


def test_a_tier_with_unfinished_jobs_stays(run: Run, here: None, store: Store, tenant: int, file: Path) -> None:
    run("config", "apply", str(file))
    [job] = make.save_jobs(store, tenant, tier="bulk")
    edit(file, "  bulk: {window: 24h}\n", "")
    refused = run("config", "apply", str(file))
    assert refused.code == 2
    assert "jobs of tier bulk are not final" in refused.err
    store.fetch("UPDATE job SET state = 'cancelled', finished_at = now() WHERE id = %(id)s RETURNING id", {"id": job})
    assert run("config", "apply", str(file)).out.endswith("version 2 is in force\n")


def test_what_is_in_force_and_not_readable_keeps_no_good_catalog_out(
    run: Run, here: None, store: Store, file: Path
) -> None:
    catalogs.apply(store, "version: 0\n", name="0" * 12, tiers=["realtime", "interactive", "batch", "bulk"])
    ran = run("config", "apply", str(file))
    assert ran.code == 0
    assert "version 1, in force, is not readable by this software" in ran.out
    refused = run("config", "rollback", "1")
    assert refused.code == 2
    assert "version 1:1: version:" in refused.err


def test_two_that_apply_at_once_come_one_after_the_other(store: Store) -> None:
    bodies = [f"# {number}\n" for number in range(8)]

    def apply(body: str) -> int:
        return catalogs.apply(store, body, name="0" * 12, tiers=[]).version.number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(apply, bodies))
    assert sorted(numbers) == list(range(1, 9))
    assert {v.number: v.body for v in catalogs.versions(store, limit=9)} == dict(zip(numbers, bodies, strict=True))
    with ThreadPoolExecutor(8) as pool:
        same = list(pool.map(apply, ["# the same\n"] * 8))
    assert set(same) == {9}


def test_the_first_of_two_that_start_at_once_is_the_first(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        first = list(pool.map(lambda n: catalogs.apply_first(store, f"# {n}\n", name="0" * 12), range(4)))
    assert {v.number for v in first} == {1}
    assert len({v.body for v in first}) == 1


def test_the_schema_is_json(run: Run) -> None:
    ran = run("config", "schema")
    assert (ran.code, ran.err) == (0, "")
    known = {
        "version",
        "tiers",
        "categories",
        "deployments",
        "routing",
        "benchmarks",
        "price_book",
        "overhead",
        "baseline",
    }
    assert json.loads(ran.out)["properties"].keys() == known
