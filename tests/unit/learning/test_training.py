"""Training finds a rule that is there, the same way each time, and its figures are those of the definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.learning import outcomes as made_up
from tieryard.errors import UserError
from tieryard.learning import Table, read_table
from tieryard.learning.curves import curve, trade
from tieryard.learning.evaluation import evaluate
from tieryard.learning.training import Outcomes, train
from tieryard.routing.quality import QualityModel, dump_quality_model, parse_quality_model

PAIR = {"weak": "weak", "strong": "strong"}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    return read_table(made_up.write(path, made_up.rows()), PAIR, category="task")


@pytest.fixture(scope="module")
def model(table: Table) -> QualityModel:
    part = train(Outcomes.of(table), weak="weak", strong="strong")
    return parse_quality_model(dump_quality_model([part], {}))


def test_it_finds_the_rule(model: QualityModel) -> None:
    short, long = "Case: apple river stone?", "Case: " + " ".join(made_up.WORDS * 2) + "?"
    easy, hard = model.predict(short, "short"), model.predict(long, "long")
    assert easy.quality["weak"] > hard.quality["weak"] + 0.3
    assert hard.need > easy.need + 0.3
    assert hard.difficulty > easy.difficulty


def test_training_is_deterministic(table: Table) -> None:
    some = Outcomes.of(table).take(range(60))
    first, second = (dump_quality_model([train(some, weak="weak", strong="strong")], {}) for _ in range(2))
    assert first == second


def test_inference_is_what_scikit_learn_learned(table: Table, model: QualityModel) -> None:
    """Mean predictions over the training rows are the mean scores: nothing was lost on the way into the file."""
    mean = np.mean([list(model.predict(prompt).quality.values()) for prompt in table.prompts], axis=0)
    assert mean == pytest.approx([np.mean(table.scores["weak"]), np.mean(table.scores["strong"])], abs=0.03)


def test_too_few_rows_are_refused(table: Table) -> None:
    with pytest.raises(UserError, match="too few"):
        train(Outcomes.of(table).take(range(10)), weak="weak", strong="strong")


def test_evaluation_holds_out(table: Table) -> None:
    told: list[tuple[int, int]] = []
    made = evaluate(
        table, weak="weak", strong="strong", many_folds=3, prices=[1, 10], tell=lambda *step: told.append(step)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    apgr = {name: one.apgr.value for name, one in made.curves.items()}
    assert apgr["random"] == pytest.approx(0.5, abs=1e-4)
    assert apgr["oracle"] > apgr["learned"] > 0.6
    learned = made.curves["learned"]
    assert learned.apgr.low <= learned.apgr.value <= learned.apgr.high
    assert learned.quality[0] == made.weak_quality
    assert learned.quality[-1] == pytest.approx(made.strong_quality, abs=1e-4)
    assert made.trade is not None
    assert made.trade.best == "strong"


def test_labels_without_a_rule_earn_nothing(table: Table) -> None:
    """Leakage would show here: scores that the prompts do not explain must not be predicted."""
    random = np.random.default_rng(0)
    noise = {"weak": list(random.integers(0, 2, 240) * 0.8), "strong": list(random.integers(0, 2, 240) * 0.8 + 0.2)}
    made = evaluate(Table("noise", table.prompts, noise), weak="weak", strong="strong", many_folds=4)
    assert made.curves["learned"].apgr.low < 0.5 < made.curves["learned"].apgr.high + 0.2


def test_the_measures_by_hand() -> None:
    # gains 1, 0, 1, 0 in the order sent: PGR 0, .5, .5, 1, 1
    made = curve([0, 0, 0, 0], [1, 0, 1, 0], [4, 3, 2, 1])
    assert made.apgr.value == pytest.approx((0.25 + 0.5 + 0.75 + 1) / 4)
    assert made.cpt50.value == 0.25
    assert made.cpt80.value == 0.75
    assert curve([0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]).apgr.value == pytest.approx(0.5), "ties are random"
    with pytest.raises(UserError, match="nothing to gain"):
        curve([1, 1], [0, 1], [1, 2])


def test_a_trade_among_three() -> None:
    scores = {"small": [1.0, 0.0, 0.0], "medium": [1.0, 1.0, 0.0], "large": [1.0, 1.0, 1.0]}
    made = trade(scores, [1, 3, 10], np.array(list(scores.values())).T)
    assert made.best == "large"
    assert made.cost_at_100 == pytest.approx(14 / 30, abs=1e-4)
    assert made.points[0][1] == 1.0


def test_groups_of_one_kind_only_are_refused(table: Table) -> None:
    one = Table(table.source, table.prompts, table.scores, None, ["a"] * len(table))
    with pytest.raises(UserError, match="one group"):
        evaluate(one, weak="weak", strong="strong", many_folds=3)


def test_a_near_duplicate_in_another_group_is_not_learned_from(table: Table) -> None:
    rows = len(table)
    prompts = [*table.prompts, *(f"{prompt.upper()}!" for prompt in table.prompts)]
    scores = {name: [*column, *column] for name, column in table.scores.items()}
    twice = Table(table.source, prompts, scores, None, ["first"] * rows + ["again"] * rows)
    with pytest.raises(UserError, match="0 rows are too few"):
        evaluate(twice, weak="weak", strong="strong", many_folds=2)


def test_categories_take_more_than_one_prompt() -> None:
    same = Table("t.csv", ["The same?", "the SAME"] * 20, {"weak": [0.0, 1.0] * 20, "strong": [1.0] * 40}, ["a"] * 40)
    with pytest.raises(UserError, match="all rows have one prompt"):
        train(Outcomes.of(same), weak="weak", strong="strong")


def test_a_picture_is_drawn(table: Table, tmp_path: Path) -> None:
    from tieryard.learning import pictures

    made = evaluate(table, weak="weak", strong="strong", many_folds=2)
    pictures.draw(made, tmp_path / "c.svg")
    pictures.draw(made, tmp_path / "c.png")
    assert "<svg" in (tmp_path / "c.svg").read_text()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"not '\.gif'"):
        pictures.draw(made, tmp_path / "c.gif")
