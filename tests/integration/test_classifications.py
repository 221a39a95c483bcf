"""Classification runs from their rows to their results: nothing is asked twice, lost, or paid past its cap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import factories as make
from tests.integration.desk import CATALOG, COST, LABELS, PATH, Desk, desk_of, ndjson, numbered, plainly, rows_of
from tests.integration.test_api import error_of
from tieryard.settings import Settings
from tieryard.store import Store, keys
from workers import classification_asking, classifying

NAMES = [label["name"] for label in LABELS]


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
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification_asking, "_MOST", 10)
    monkeypatch.setattr(classifying, "_CHUNK", 4)


def text_of(row: int) -> str:
    return f"{NAMES[row % 3]} {row}"


# --- rows ---------------------------------------------------------------------------------------------------


def test_a_small_run_is_made_whole_and_answered(desk: Desk) -> None:
    run = desk.create(rows=[*rows_of("bug 1", "billing 2"), {"text": "bug 1", "truth": "bug"}], metadata={"by": "me"})
    made = desk.get(run)
    assert (made["state"], made["received"], made["total"], made["metadata"]) == ("running", 3, 3, {"by": "me"})
    done = desk.finish(run)
    assert done["state"] == "completed"
    assert done["counts"] == {
        "rows": 3, "unique": 2, "asked": 2, "answered": 2, "failed": 0, "escalated": 0, "final_rows": 3,
    }  # fmt: skip
    first, second, third = desk.results(run)
    assert (first["label"], first["labels"], first["model"], first["escalated"]) == ("bug", ["bug"], "cheap", False)
    assert first["confidence"] == pytest.approx(0.9)
    assert (second["label"], second["duplicate_of"]) == ("billing", None)
    assert (third["label"], third["duplicate_of"], third["cost_usd"]) == ("bug", 1, "0")


def test_rows_sent_twice_are_there_once_and_a_gap_is_refused(desk: Desk) -> None:
    run = desk.create()
    assert desk.get(run)["state"] == "receiving"
    assert desk.send(run, numbered(4)).json() == {"received": 4}
    assert desk.send(run, numbered(4)).json() == {"received": 4}
    assert desk.send(run, numbered(6)[2:], first=3).json() == {"received": 6}
    refused = error_of(desk.send(run, numbered(9)[7:], first=8), 409)
    assert (refused["param"], refused["message"].split(",")[0]) == ("first", "first: row 7 comes next")
    assert error_of(desk.complete(run, 7), 409)["message"] == "rows: it has received 6 rows, not 7"
    assert desk.complete(run, 6).json()["state"] == "running"
    assert desk.complete(run, 6).status_code == 200
    assert desk.send(run, numbered(6)[5:], first=6).json() == {"received": 6}, "all of it is here already"
    assert error_of(desk.send(run, numbered(7)[6:], first=7), 409)["param"] == "first"
    assert desk.finish(run)["state"] == "completed"
    assert desk.labels(run) == [NAMES[i % 3] for i in range(6)]


def test_each_text_is_asked_once(desk: Desk) -> None:
    run = desk.create()
    texts = [text_of(i % 7) for i in range(50)]
    desk.send(run, rows_of(*texts[:20]))
    desk.tick()
    desk.send(run, rows_of(*texts[20:]), first=21)
    desk.complete(run, 50)
    done = desk.finish(run)
    assert (done["counts"]["unique"], done["counts"]["asked"]) == (7, 7)
    assert set(desk.asked.values()) == {1}
    assert make.count(desk.store, "job") == 7
    found = desk.results(run)
    assert [row["label"] for row in found] == [text.split()[0] for text in texts]
    assert [row["duplicate_of"] for row in found[:8]] == [None] * 7 + [1]
    assert (
        sum(Decimal(row["cost_usd"]) for row in found)
        == desk.charged()
        == Decimal(done["cost_usd"])
        == 7 * COST["cheap"]
    )


def test_only_what_is_exactly_equal_is_the_same_text(desk: Desk) -> None:
    run = desk.create(rows=rows_of("bug", "bug ", "Bug", "bu\u0301g", "bug"))
    assert desk.get(run)["counts"]["unique"] == 4


def test_an_empty_text_is_a_row_like_any_other(desk: Desk) -> None:
    desk.answers = lambda *_: ("bug", 0.9)
    run = desk.create(rows=rows_of("", "bug", ""))
    assert desk.finish(run)["counts"]["unique"] == 2
    assert desk.labels(run) == ["bug"] * 3


def test_a_run_without_rows_is_completed(desk: Desk) -> None:
    run = desk.create()
    desk.complete(run, 0)
    assert desk.finish(run)["state"] == "completed"
    assert desk.results(run) == []


def test_results_come_in_order_as_far_as_they_are_final(desk: Desk, small_parts: None) -> None:
    run = desk.create()
    desk.send(run, [*numbered(25), *numbered(5)])
    desk.complete(run, 30)
    desk.tick()
    assert desk.results(run) == []
    desk.fleet(most=17)
    desk.tick()
    assert [row["row"] for row in desk.results(run)] == list(range(1, 18))
    assert [row["row"] for row in desk.results(run, after=3, limit=5)] == [4, 5, 6, 7, 8]
    desk.finish(run)
    assert [row["row"] for row in desk.results(run, after=17)] == list(range(18, 31))
    assert desk.labels(run)[25:] == [NAMES[i % 3] for i in range(5)]


def test_what_failed_says_why_and_costs_what_it_cost(desk: Desk) -> None:
    desk.answers = lambda *about: (None, 0.0) if about[1].endswith("2") else plainly(*about)
    run = desk.create(rows=numbered(4))
    done = desk.finish(run)
    assert (done["state"], done["counts"]["answered"], done["counts"]["failed"]) == ("completed", 3, 1)
    failed = desk.results(run)[2]
    assert (failed["label"], failed["labels"], failed["error"]) == (None, None, "failed: no")
    assert done["models"] == {"cheap": {"labelled": 3, "failed": 1, "cost_usd": "0.00004"}}
    assert sum(Decimal(row["cost_usd"]) for row in desk.results(run)) == desk.charged()


def test_a_text_that_is_too_long_fails_alone(desk: Desk) -> None:
    run = desk.create(rows=rows_of("bug 1", "bug " + "x" * 3000))
    assert desk.finish(run)["counts"]["failed"] == 1
    assert "2000" in desk.results(run)[1]["error"]


def test_an_answer_that_is_no_label_is_an_error(desk: Desk) -> None:
    desk.answers = lambda *_: ("nonsense", 0.9)
    run = desk.create(rows=rows_of("bug 1"))
    desk.finish(run)
    [row] = desk.results(run)
    assert row["labels"] is None
    assert row["error"]


def test_several_labels_a_row(desk: Desk) -> None:
    desk.answers = lambda _, text: (text.split()[0], 0.8)
    run = desk.create(multi_label=True, rows=[{"text": "bug+feature 1", "truth": ["bug", "feature"]}])
    desk.finish(run)
    [row] = desk.results(run)
    assert (row["label"], row["labels"]) == (None, ["bug", "feature"])


def test_a_run_that_nobody_answers_stops_and_can_be_tried_again(
    desk: Desk, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifying, "_HOPELESS", 20)
    desk.answers = lambda *_: (None, 0.0)
    run = desk.create(rows=numbered(200))
    stopped = desk.finish(run)
    assert stopped["state"] == "stopped"
    assert "was answered with a label" in stopped["why"]
    assert stopped["counts"]["asked"] <= 60
    desk.answers = plainly
    assert desk.client.post(f"{PATH}/{run}/resume").status_code == 200
    done = desk.finish(run)
    assert (done["state"], done["counts"]["answered"]) == ("completed", 200 - done["counts"]["failed"])
    assert set(desk.asked.values()) == {1}


# --- restarts, caps, ends -----------------------------------------------------------------------------------


def test_another_worker_goes_on_where_one_has_ended(desk: Desk, small_parts: None) -> None:
    run = desk.create(rows=numbered(60))
    for turn in range(40):
        desk.restart()
        desk.tick()
        desk.fleet(most=3 + turn % 5)
        if desk.get(run)["finished_at"]:
            break
    assert desk.get(run)["state"] == "completed"
    assert make.count(desk.store, "job") == 60
    assert set(desk.asked.values()) == {1}
    assert desk.labels(run) == [NAMES[i % 3] for i in range(60)]


def test_two_that_would_ask_the_same_ask_it_once(desk: Desk, small_parts: None) -> None:
    """As when a leader has lost its lock, and does not know: the other is quicker while this one, which has read its
    texts, writes the questions."""
    run = desk.create(rows=numbered(30))
    other = classifying.Classifying(desk.yard, desk.yard.admission())
    write, met = classification_asking.Asking._questions, []

    def meanwhile(self: Any, *about: Any) -> Any:
        if not met:
            met.append(about)
            other._round()
        return write(self, *about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification_asking.Asking, "_questions", meanwhile)
        desk.tick()
    assert desk.finish(run)["state"] == "completed"
    assert (len(desk.asked), set(desk.asked.values())) == (30, {1})


def test_a_cap_stops_cleanly_and_a_higher_one_goes_on(desk: Desk, small_parts: None) -> None:
    run = desk.create(rows=numbered(100), max_cost_usd=0.0006)
    stopped = desk.finish(run)
    assert stopped["state"] == "stopped"
    assert "resume it with a higher max_cost_usd" in stopped["why"]
    assert 0 < stopped["counts"]["asked"] < 100
    assert Decimal(stopped["cost_usd"]) == desk.charged() <= Decimal("0.0006")
    asked = stopped["counts"]["asked"]
    found = desk.results(run)
    assert [row["label"] is not None for row in found] == [True] * asked + [False] * (100 - asked)
    assert found[-1]["error"].startswith("not asked: the run is stopped, it has cost")
    too_low = desk.client.post(f"{PATH}/{run}/resume", json={"max_cost_usd": 0.000001})
    assert error_of(too_low, 409)["param"] == "max_cost_usd"
    resumed = desk.client.post(f"{PATH}/{run}/resume", json={"max_cost_usd": None}).json()
    assert (resumed["state"], resumed["why"], resumed["max_cost_usd"]) == ("running", None, None)
    done = desk.finish(run)
    assert (done["state"], done["counts"]["asked"]) == ("completed", 100)
    assert set(desk.asked.values()) == {1}


def test_a_capped_run_takes_rows_all_the_while(desk: Desk, small_parts: None) -> None:
    run = desk.create(max_cost_usd=0)
    desk.send(run, numbered(5))
    assert desk.finish(run)["state"] == "stopped"
    assert desk.send(run, numbered(9)[5:], first=6).json() == {"received": 9}
    assert desk.complete(run, 9).json()["state"] == "stopped"
    desk.client.post(f"{PATH}/{run}/resume", json={"max_cost_usd": 1})
    assert desk.finish(run)["state"] == "completed"
    assert len(desk.labels(run)) == 9


def test_a_hard_budget_stops_a_run(desk: Desk, small_parts: None, store: Store) -> None:
    store.fetch(
        "INSERT INTO budget (tenant_id, period, limit_usd, hard) SELECT id, 'day', 0.0004, true FROM tenant "
        "WHERE name = 'tests' RETURNING id"
    )
    run = desk.create(rows=numbered(100))
    stopped = desk.finish(run)
    assert stopped["state"] == "stopped"
    assert "budget" in stopped["why"]
    assert 0 < stopped["counts"]["asked"] < 100


def test_a_cancelled_run_asks_nothing_more_and_is_billed_for_what_it_has_used(desk: Desk, small_parts: None) -> None:
    run = desk.create(rows=numbered(100))
    desk.tick()
    desk.fleet(most=15)
    cancelled = desk.client.post(f"{PATH}/{run}/cancel").json()
    assert (cancelled["state"], cancelled["ending"]) == ("running", "cancelled")
    done = desk.finish(run)
    assert (done["state"], done["why"]) == ("cancelled", "cancelled by its owner")
    assert desk.charged() == Decimal(done["cost_usd"]) == 15 * COST["cheap"]
    assert [row["label"] is not None for row in desk.results(run)] == [True] * 15 + [False] * 85
    assert desk.client.post(f"{PATH}/{run}/cancel").status_code == 200
    assert error_of(desk.client.post(f"{PATH}/{run}/resume", json={}), 409)["param"] == "classification"
    assert error_of(desk.send(run, numbered(101)[100:], first=101), 409)["param"] == "first"


def test_a_run_that_is_over_as_cancelled_takes_no_rows(desk: Desk, small_parts: None) -> None:
    run = desk.create()
    desk.send(run, numbered(30))
    desk.tick()
    desk.client.post(f"{PATH}/{run}/cancel")
    assert error_of(desk.send(run, numbered(31)[30:], first=31), 409)["param"] == "classification"
    assert desk.finish(run)["state"] == "cancelled"
    assert error_of(desk.send(run, numbered(31)[30:], first=31), 409)["param"] == "classification"


def test_a_run_with_nothing_under_way_is_cancelled_at_once(desk: Desk) -> None:
    run = desk.create()
    desk.send(run, numbered(3))
    cancelled = desk.client.post(f"{PATH}/{run}/cancel").json()
    assert (cancelled["state"], cancelled["ending"]) == ("cancelled", None)
    assert error_of(desk.send(run, numbered(4)[3:], first=4), 409)["param"] == "classification"


def test_a_run_that_is_cancelled_while_its_questions_are_written_asks_none(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = desk.create(rows=numbered(3))
    write = classification_asking.Asking._questions

    def meanwhile(self: Any, *about: Any) -> Any:
        desk.client.post(f"{PATH}/{run}/cancel")
        return write(self, *about)

    monkeypatch.setattr(classification_asking.Asking, "_questions", meanwhile)
    desk.tick()
    done = desk.get(run)
    assert (done["state"], done["why"], done["counts"]["asked"]) == ("cancelled", "cancelled by its owner", 0)
    assert make.count(desk.store, "batch") == 0


def test_a_run_that_is_cancelled_while_it_waits_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    run = desk.create(gate=GATE)
    desk.send(run, numbered(1))
    ask = desk.worker._ask_sample

    def meanwhile(*about: Any) -> Any:
        desk.client.post(f"{PATH}/{run}/cancel")
        return ask(*about)

    monkeypatch.setattr(desk.worker, "_ask_sample", meanwhile)
    desk.tick()
    assert (desk.get(run)["state"], desk.get(run)["why"]) == ("cancelled", "cancelled by its owner")


def test_a_completed_run_cannot_be_cancelled_nor_resumed(desk: Desk) -> None:
    run = desk.create(rows=numbered(3))
    desk.finish(run)
    assert error_of(desk.client.post(f"{PATH}/{run}/cancel"), 409)["param"] == "classification"
    assert error_of(desk.client.post(f"{PATH}/{run}/resume", json={}), 409)["param"] == "classification"


# --- gates --------------------------------------------------------------------------------------------------


def by_model(**wrong: int) -> Any:
    """Answers that are right but for every n-th text of a deployment."""

    def answers(deployment: str, text: str) -> tuple[str, float]:
        label, number = text.split()
        n = wrong.get(deployment)
        if n is not None and int(number) % n == 0:
            return NAMES[(NAMES.index(label) + 1) % 3], 0.6
        return label, 0.95

    return answers


GATE = {"rows": 50, "judge": "truth", "min_agreement": 0.8, "otherwise": "stop"}


def test_a_gate_by_truth_lets_a_good_model_take_the_rest(desk: Desk, small_parts: None) -> None:
    run = desk.create(rows=numbered(80, truth=True), gate=GATE)
    done = desk.finish(run)
    assert done["state"] == "completed"
    assert (done["gate"]["outcome"], done["gate"]["texts"], done["gate"]["agreed"]) == ("passed", 50, 50)
    assert Counter(deployment for deployment, _ in desk.asked) == {"cheap": 80}


def test_a_gate_by_truth_stops_a_bad_model(desk: Desk, small_parts: None) -> None:
    desk.answers = by_model(cheap=2)
    run = desk.create(rows=numbered(80, truth=True), gate=GATE)
    done = desk.finish(run)
    assert (done["state"], done["gate"]["outcome"]) == ("stopped", "failed")
    assert done["why"].startswith("its gate: 25 of 50 agree")
    assert sum(desk.asked.values()) == 50
    assert len(desk.results(run)) == 80
    assert error_of(desk.client.post(f"{PATH}/{run}/resume", json={}), 409)["message"].startswith(
        "classification: its gate has not"
    )


def test_a_gate_looks_at_rows_that_have_a_truth_wherever_they_are(desk: Desk, small_parts: None) -> None:
    rows = [{"text": row["text"]} for row in numbered(40)] + numbered(90, truth=True)[40:]
    run = desk.create(gate=GATE)
    desk.send(run, rows[:60])
    desk.tick()
    desk.fleet()
    desk.tick()
    assert sum(desk.asked.values()) == 20, "it waits for the rest of its sample"
    desk.send(run, rows[60:], first=61)
    desk.complete(run, 90)
    desk.tick()
    desk.fleet()
    assert {int(text.split()[1]) >= 40 for _, text in desk.asked} == {True}
    assert desk.finish(run)["gate"]["texts"] == 50
    assert set(desk.asked.values()) == {1}
    assert desk.labels(run) == [NAMES[i % 3] for i in range(90)]


def test_a_gate_without_enough_truths_does_not_pass(desk: Desk) -> None:
    run = desk.create(rows=[*numbered(10, truth=True), *numbered(80)[10:]], gate=GATE)
    done = desk.finish(run)
    assert (done["state"], done["gate"]["outcome"], done["gate"]["texts"]) == ("stopped", "too_few", 10)


JUDGED = {"rows": 50, "judge": "dear", "min_agreement": 0.8}


def test_a_judge_lets_a_good_model_take_the_rest(desk: Desk, small_parts: None) -> None:
    run = desk.create(rows=numbered(120), gate=JUDGED)
    done = desk.finish(run)
    assert (done["state"], done["gate"]["outcome"]) == ("completed", "passed")
    assert Counter(deployment for deployment, _ in desk.asked) == {"cheap": 120, "dear": 50}
    found = desk.results(run)
    assert [row["model"] for row in found] == ["dear"] * 50 + ["cheap"] * 70
    assert [row["escalated"] for row in found] == [True] * 50 + [False] * 70
    assert sum(Decimal(row["cost_usd"]) for row in found) == desk.charged() == Decimal(done["cost_usd"])


def test_where_a_judge_differs_the_larger_model_takes_the_rest(desk: Desk, small_parts: None) -> None:
    desk.answers = by_model(cheap=3)
    run = desk.create(rows=numbered(120), gate=JUDGED)
    done = desk.finish(run)
    assert (done["state"], done["gate"]["outcome"]) == ("completed", "failed")
    assert Counter(deployment for deployment, _ in desk.asked) == {"cheap": 50, "dear": 120}
    assert set(desk.asked.values()) == {1}
    assert desk.labels(run) == [NAMES[i % 3] for i in range(120)]
    assert done["counts"]["escalated"] == 120


def test_a_gate_by_truth_that_fails_has_its_sample_asked_again(desk: Desk, small_parts: None) -> None:
    desk.answers = by_model(cheap=2)
    gate = {**GATE, "otherwise": "escalate"}
    run = desk.create(rows=numbered(70, truth=True), gate=gate, escalate={"model": "dear", "below": 0.5})
    assert desk.finish(run)["gate"]["outcome"] == "failed"
    assert Counter(deployment for deployment, _ in desk.asked) == {"cheap": 50, "dear": 70}
    assert desk.labels(run) == [NAMES[i % 3] for i in range(70)]


def test_a_judge_beside_the_larger_model(desk: Desk, small_parts: None) -> None:
    run = desk.create(rows=numbered(60), gate={**JUDGED, "judge": "mute"}, escalate={"model": "dear", "below": 0.5})
    assert desk.finish(run)["gate"]["outcome"] == "passed"
    assert Counter(deployment for deployment, _ in desk.asked) == {"cheap": 60, "mute": 50}


# --- cascades -----------------------------------------------------------------------------------------------


def test_a_cascade_asks_the_larger_model_where_the_first_is_not_sure(desk: Desk, small_parts: None) -> None:
    desk.answers = by_model(cheap=4)  # and not sure of those
    run = desk.create(rows=numbered(60), escalate={"model": "dear", "below": 0.7})
    done = desk.finish(run)
    assert (done["state"], done["threshold"]["below"], done["threshold"]["basis"]) == ("completed", 0.7, "given")
    assert Counter(deployment for deployment, _ in desk.asked) == {"cheap": 60, "dear": 15}
    assert set(desk.asked.values()) == {1}
    found = desk.results(run)
    assert [row["label"] for row in found] == [NAMES[i % 3] for i in range(60)]
    assert [row["row"] for row in found if row["escalated"]] == [i + 1 for i in range(60) if i % 4 == 0]
    assert sum(Decimal(row["cost_usd"]) for row in found) == desk.charged()


def test_what_the_first_model_fails_is_escalated_and_what_both_fail_is_an_error(desk: Desk) -> None:
    def answers(deployment: str, text: str) -> tuple[str | None, float]:
        failing = text.endswith(" 1") or (deployment == "cheap" and text.endswith(" 2"))
        return (None, 0.0) if failing else plainly(deployment, text)

    desk.answers = answers
    run = desk.create(rows=numbered(4), escalate={"model": "dear", "below": 0.5})
    assert desk.finish(run)["counts"]["failed"] == 1
    found = desk.results(run)
    assert [row["model"] for row in found] == ["cheap", "dear", "dear", "cheap"]
    assert [row["error"] for row in found] == [None, "failed: no", None, None]


def test_where_the_larger_model_fails_the_first_ones_label_stands_and_it_is_said(desk: Desk) -> None:
    desk.answers = lambda deployment, text: (None, 0.0) if deployment == "dear" else (text.split()[0], 0.4)
    run = desk.create(rows=rows_of("bug 1"), escalate={"model": "dear", "below": 0.5})
    desk.finish(run)
    [row] = desk.results(run)
    assert (row["label"], row["model"], row["escalated"], row["error"]) == ("bug", "cheap", False, "failed: no")


def test_a_threshold_is_calibrated_on_truths(desk: Desk, small_parts: None) -> None:
    desk.answers = by_model(cheap=5)
    calibrate = {"rows": 300, "max_drop": 0.05}
    run = desk.create(rows=numbered(500, truth=True), escalate={"model": "dear", "calibrate": calibrate})
    done = desk.finish(run, turns=200)
    assert done["state"] == "completed"
    threshold = done["threshold"]
    assert (threshold["basis"], threshold["texts"]) == ("truth", 300)
    assert 0.6 < threshold["below"] <= 0.96
    assert threshold["expected_share_escalated"] == pytest.approx(0.2)
    assert Counter(deployment for deployment, _ in desk.asked) == {"cheap": 500, "dear": 300 + 40}
    assert desk.labels(run) == [NAMES[i % 3] for i in range(500)]


def test_where_no_threshold_holds_the_first_model_is_asked_no_more(desk: Desk, small_parts: None) -> None:
    """It is sure of what it gets wrong."""
    desk.answers = lambda deployment, text: (NAMES[0], 0.99) if deployment == "cheap" else (text.split()[0], 0.9)
    calibrate = {"rows": 300, "max_drop": 0.05, "by": "model"}
    run = desk.create(rows=numbered(400), escalate={"model": "dear", "calibrate": calibrate})
    done = desk.finish(run, turns=200)
    assert (done["threshold"]["basis"], done["threshold"]["below"] > 1) == ("model", True)
    assert Counter(deployment for deployment, _ in desk.asked) == {"cheap": 300, "dear": 400}
    assert desk.labels(run) == [NAMES[i % 3] for i in range(400)]


def test_a_cap_holds_in_a_cascade(desk: Desk, small_parts: None) -> None:
    """Of what one part would escalate only some can be paid; the rest is not forgotten, and nothing is asked twice."""
    desk.answers = lambda deployment, text: (text.split()[0], 0.4 if deployment == "cheap" else 0.9)
    run = desk.create(rows=numbered(40), escalate={"model": "dear", "below": 0.5}, max_cost_usd=0.0012)
    stopped = desk.finish(run)
    assert stopped["state"] == "stopped"
    assert 0 < Counter(deployment for deployment, _ in desk.asked)["dear"] < 40
    assert Decimal(stopped["cost_usd"]) == desk.charged() <= Decimal("0.0012")
    for row in desk.results(run):  # none looks like an answer for good that is not one
        assert (row["label"], row["escalated"]) == (NAMES[(row["row"] - 1) % 3], row["error"] is None)
        assert row["escalated"] or row["error"].startswith("not asked of the larger model: the run is stopped, it has")
    desk.client.post(f"{PATH}/{run}/resume", json={"max_cost_usd": None})
    assert desk.finish(run)["state"] == "completed"
    assert {row["error"] for row in desk.results(run)} == {None}
    assert Counter(deployment for deployment, _ in desk.asked) == {"cheap": 40, "dear": 40}
    assert set(desk.asked.values()) == {1}


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"labels": [{"name": "one"}]}, "labels"),
        ({"labels": [{"name": "a"}, {"name": "a"}]}, "labels"),
        ({"template": "no place for it"}, "template"),
        ({"model": "nobody"}, "model"),
        ({"tier": "nothing"}, "tier"),
        ({"escalate": {"model": "auto", "below": 0.5}}, "escalate.model"),
        ({"escalate": {"model": "dear"}}, "escalate"),
        ({"escalate": {"model": "dear", "below": 0.5}, "model": "mute"}, "model"),
        ({"escalate": {"model": "dear", "calibrate": {"rows": 30, "max_drop": 0.01}}}, "escalate.calibrate.rows"),
        ({"gate": {"rows": 30, "judge": "dear", "min_agreement": 0.99}}, "gate.rows"),
        ({"gate": {"rows": 50, "judge": "nobody"}}, "gate.judge"),
        ({"gate": {"rows": 50, "judge": "truth"}}, "gate"),
        ({"gate": {"rows": 50, "judge": "cheap"}}, "gate.judge"),
        ({"escalate": {"model": "cheap", "below": 0.5}}, "escalate.model"),
        ({"rows": [{"text": "a", "truth": "other"}]}, "truth"),
        ({"rows": [{"text": "a", "truth": ["bug", "feature"]}]}, "truth"),
        ({"rows": [{"text": "a\x00"}]}, None),
        ({"rows": []}, "rows"),
        ({"more": 1}, "more"),
    ],
)
def test_what_could_not_be_run_is_refused_when_it_is_asked_for(desk: Desk, fields: dict[str, Any], param: str) -> None:
    answer = desk.client.post(PATH, json={"labels": LABELS, "model": "cheap", **fields})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param, answer.text
    assert make.count(desk.store, "classification") == 0


def test_rows_that_cannot_be_taken_are_refused_by_their_line(desk: Desk) -> None:
    run = desk.create()
    bad = desk.client.post(f"{PATH}/{run}/rows?first=1", content=b'{"text": "a"}\n\n{"text": 4}\n')
    assert (error_of(bad, 400)["line"], error_of(bad, 400)["param"]) == (3, "text")
    wrong = desk.send(run, [{"text": "a"}, {"text": "b", "truth": "other"}])
    assert (error_of(wrong, 400)["line"], error_of(wrong, 400)["param"]) == (2, "truth")
    assert error_of(desk.send(run, []), 400)
    assert desk.get(run)["received"] == 0


def test_the_same_key_makes_one_run(desk: Desk) -> None:
    asked = {"labels": LABELS, "model": "cheap", "rows": numbered(2)}
    ids = [desk.client.post(PATH, json=asked, headers={"idempotency-key": "k"}).json()["id"] for _ in range(2)]
    assert ids[0] == ids[1]
    assert make.count(desk.store, "classification") == 1
    other = desk.client.post(PATH, json={**asked, "tier": "batch"}, headers={"idempotency-key": "k"})
    assert error_of(other, 409)["param"] == "Idempotency-Key"


def test_another_tenant_sees_nothing_of_it(desk: Desk, store: Store) -> None:
    run = desk.create(rows=numbered(3))
    keys.add_key(store, "ty_other", tenant="others", name="other")
    theirs = {"authorization": "Bearer ty_other"}
    asked = [
        desk.client.get(f"{PATH}/{run}", headers=theirs),
        desk.client.get(f"{PATH}/{run}/results", headers=theirs),
        desk.client.post(f"{PATH}/{run}/rows?first=1", content=ndjson(numbered(1)), headers=theirs),
        desk.client.post(f"{PATH}/{run}/complete", json={"rows": 3}, headers=theirs),
        desk.client.post(f"{PATH}/{run}/cancel", headers=theirs),
        desk.client.post(f"{PATH}/{run}/resume", json={}, headers=theirs),
    ]
    assert {answer.status_code for answer in asked} == {404}
    assert desk.client.get(PATH, headers=theirs).json()["data"] == []
    assert [one["id"] for one in desk.client.get(PATH).json()["data"]] == [run]
    assert desk.finish(run)["state"] == "completed"


def test_runs_are_listed_newest_first_in_pages(desk: Desk) -> None:
    runs = [desk.create() for _ in range(3)]
    page = desk.client.get(PATH, params={"limit": 2}).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([runs[2], runs[1]], True)
    rest = desk.client.get(PATH, params={"limit": 2, "after": runs[1]}).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == ([runs[0]], False)


def test_a_model_that_is_served_no_more_fails_the_run_and_nothing_else(desk: Desk, settings: Settings) -> None:
    gone, fine = desk.create(), desk.create(rows=numbered(3), model="dear")
    settings.catalog.write_text(CATALOG.replace("  cheap: &cheap", "  renamed: &cheap"))
    from tieryard.catalog import load_catalog

    desk.worker.prepare(desk.yard.catalog, load_catalog(settings.catalog))()
    desk.send(gone, numbered(3))
    desk.complete(gone, 3)
    failed = desk.finish(gone)
    assert failed["state"] == "failed"
    assert "'cheap' is not served" in failed["why"]
    assert desk.finish(fine)["state"] == "completed"


def test_probabilities_of_tokens_are_not_kept(desk: Desk) -> None:
    run = desk.create(rows=numbered(3))
    desk.tick()
    desk.fleet()
    assert make.count(desk.store, "result", "extra ? 'logprobs'") == 3
    assert desk.finish(run)["state"] == "completed"
    assert make.count(desk.store, "result", "extra IS NOT NULL") == 0
    assert desk.results(run)[0]["confidence"] == pytest.approx(0.9)


def test_the_parts_are_batches_of_the_owner(desk: Desk, small_parts: None) -> None:
    run = desk.create(rows=numbered(15))
    desk.finish(run)
    found = desk.client.get("/v1/batches").json()["data"]
    assert [one["metadata"] for one in reversed(found)] == [
        {"classification": run, "stage": "first", "part": str(part)} for part in (1, 2)
    ]
    assert desk.parts(run) == [("first", 10), ("first", 5)]
