"""Classification runs that wait, for room, for rows, or for a client that never comes back: what that costs others."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.desk import CATALOG, COST, LABELS, PATH, Desk, desk_of, numbered, plainly, rows_of
from tieryard.settings import Settings
from tieryard.store import Store
from tieryard.store.classification_parts import NewPart
from workers import classification_asking, classifying


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CATALOG)
    return path


@pytest.fixture
def desk(settings: Settings, store: Store, tenant: int) -> Iterator[Desk]:
    with desk_of(settings, store) as found:
        yield found


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts of each part of ten that is saved, or refused when it is."""
    put, sizes = classification_asking.parts.put_part, []

    def counted(store: Store, run: Any, new: NewPart, batch: Any) -> int | None:
        sizes.append(len(new.lines))
        return put(store, run, new, batch)

    monkeypatch.setattr(classification_asking, "_MOST", 10)
    monkeypatch.setattr(classification_asking.parts, "put_part", counted)
    return sizes


def stepped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs that the worker looks into, one after the other."""
    step, found = desk.worker._step, []

    def counted(run_id: int) -> bool:
        found.append(run_id)
        return step(run_id)

    monkeypatch.setattr(desk.worker, "_step", counted)
    return found


def test_a_part_that_has_no_room_is_not_written_again_each_second(desk: Desk, store: Store, saved: list[int]) -> None:
    store.fetch("UPDATE tenant SET max_enqueued_tokens = 2000 WHERE name = 'tests' RETURNING id")
    run = desk.create(rows=numbered(60))
    for _ in range(5):
        desk.tick()
    assert saved == [10, 10, 10], "two have room, and the third waits for them"
    assert "2,000 enqueued" in desk.get(run)["why"]
    desk.fleet()
    desk.tick()
    assert len(saved) > 3, "there is room again"
    assert desk.finish(run)["state"] == "completed"
    assert set(desk.asked.values()) == {1}


def test_room_that_others_had_is_found(
    desk: Desk, store: Store, saved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.fetch("UPDATE tenant SET max_enqueued_tokens = 900 WHERE name = 'tests' RETURNING id")
    before = desk.create(rows=numbered(10))
    desk.tick()
    run = desk.create(rows=numbered(10))
    desk.tick()
    assert (len(saved), desk.get(run)["counts"]["asked"]) == (2, 0)
    desk.fleet()
    assert desk.finish(before)["state"] == "completed"
    assert desk.get(run)["counts"]["asked"] == 0
    monkeypatch.setattr(classifying, "_IDLE_S", 0.0)
    monkeypatch.setattr(classification_asking, "_LOOK_AGAIN_S", 0.0)
    desk.restart()
    assert desk.finish(run)["state"] == "completed"


def test_a_run_that_nobody_touches_is_left_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    left = desk.create()
    desk.tick()
    looked = stepped(desk, monkeypatch)
    for _ in range(3):
        desk.tick()
    assert looked == []
    desk.send(left, numbered(3))
    desk.tick()
    assert looked, "rows have come"
    desk.fleet()
    desk.complete(left, 3)
    assert desk.finish(left)["state"] == "completed"


def test_a_run_that_nobody_touches_is_looked_at_now_and_then(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifying, "_IDLE_S", 0.0)
    desk.create()
    looked = stepped(desk, monkeypatch)
    desk.tick()
    desk.tick()
    assert len(looked) == 2


def test_a_cap_waits_for_what_was_asked_without_one(
    desk: Desk, saved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifying, "_HOPELESS", 10)
    desk.answers = lambda *_: (None, 0.0)
    run = desk.create(rows=numbered(100))
    desk.tick()
    desk.fleet(most=10)
    desk.tick()
    assert (desk.get(run)["ending"], desk.get(run)["counts"]["asked"]) == ("stopped", 40)
    desk.answers = plainly
    desk.client.post(f"{PATH}/{run}/resume", json={"max_cost_usd": 0.0003})
    desk.tick()
    assert "asked before there was a cap" in desk.get(run)["why"]
    done = desk.finish(run)
    assert (done["state"], done["counts"]["asked"]) == ("stopped", 40), "what could not be known is above the cap"
    assert Decimal(done["cost_usd"]) == 40 * COST["cheap"]


def test_a_text_may_be_the_whole_question_and_a_blank_one_fails_alone(desk: Desk, store: Store) -> None:
    for more in ({}, {"max_cost_usd": 1}):
        run = desk.create(template="{text}", rows=rows_of("bug 1", " ", "bug 2"), **more)
        desk.tick()
        found = desk.get(run)
        assert (found["state"], found["ending"], found["counts"]["asked"]) == ("running", None, 3)


def test_a_run_says_what_its_decision_waits_for_until_it_has_come(desk: Desk) -> None:
    run = desk.create(gate={"rows": 50, "judge": "truth", "min_agreement": 0.8, "otherwise": "stop"})
    desk.send(run, numbered(20, truth=True))
    desk.tick()
    desk.tick()
    assert desk.get(run)["why"] == "it waits for texts to decide by: of 50 that have a truth 20 are here"
    desk.complete(run, 20)
    done = desk.finish(run)
    assert (done["state"], done["gate"]["outcome"], done["why"]) == ("completed", "passed", None)


def test_a_calibration_by_truth_that_no_row_has_says_so(desk: Desk) -> None:
    calibrate = {"rows": 300, "max_drop": 0.05}
    run = desk.create(rows=numbered(9), escalate={"model": "dear", "calibrate": calibrate})
    said = desk.finish(run)["threshold"]["said"]
    assert said == "no row has a truth to calibrate by: every text is escalated"


def test_a_sample_of_long_texts_is_asked_in_parts(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification_asking, "_MOST_TEXT_BYTES", 200)
    rows = [{"text": f"bug {i}" + "." * 90, "truth": "bug"} for i in range(50)]
    run = desk.create(rows=rows, gate={"rows": 50, "judge": "truth", "min_agreement": 0.8, "otherwise": "stop"})
    assert desk.finish(run)["gate"]["outcome"] == "passed"
    assert [texts for _, texts in desk.parts(run)] == [2] * 25


def test_a_text_of_many_runs_is_found_by_the_one_that_asks(desk: Desk, store: Store) -> None:
    """A file that is classified again and again, with other labels, must not take longer each time."""
    for _ in range(3):
        answer = desk.client.post(PATH, json={"labels": LABELS, "model": "cheap", "rows": rows_of("bug 1")})
        assert answer.status_code == 201
    assert store.fetch("SELECT max(n) FROM (SELECT count(*) n FROM classification_text GROUP BY digest) of") == [(1,)]
