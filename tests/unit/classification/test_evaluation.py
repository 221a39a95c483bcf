"""Scores of a run: the same as scikit-learn's, whatever way the rows came in; and the picture of its confusions."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from tieryard.classification import picture
from tieryard.classification.evaluation import Counts
from tieryard.errors import UserError

LABELS = ["a", "b", "c", "d"]
ROWS = st.lists(st.tuples(st.sampled_from(LABELS), st.none() | st.sampled_from(LABELS)), min_size=1, max_size=60)


def counted(rows, *, labels=LABELS, several=False):
    counts = Counts(labels, several=several)
    for truth, answer in rows:
        counts.add(truth, answer)
    return counts.evaluation()


def one_each(rows):
    return [((truth,), None if answer is None else (answer,)) for truth, answer in rows]


@given(ROWS)
def test_scores_are_scikit_learns(rows):
    made = counted(one_each(rows))
    truth, answers = [t for t, _ in rows], [a or "none" for _, a in rows]
    seen = [name for name in LABELS if name in truth or name in answers]
    assert made.accuracy.value == pytest.approx(accuracy_score(truth, answers))
    assert made.macro_f1 == pytest.approx(f1_score(truth, answers, average="macro", labels=seen, zero_division=0))
    each = precision_recall_fscore_support(truth, answers, labels=seen, zero_division=0)
    for score, precision, recall, f1, support in zip(made.labels, *each, strict=True):
        assert score.f1 == pytest.approx(f1)
        assert score.rows == support
        assert (score.precision.value if score.precision else 0) == pytest.approx(precision)
        assert (score.recall.value if score.recall else 0) == pytest.approx(recall)
    assert made.unanswered == sum(answer is None for _, answer in rows)


@given(st.lists(st.tuples(st.sets(st.sampled_from(LABELS)), st.sets(st.sampled_from(LABELS))), min_size=1, max_size=40))
def test_several_labels_are_scikit_learns(rows):
    made = counted(rows, several=True)
    truth, answers = (
        np.array([[name in side for name in LABELS] for side in sides], int) for sides in zip(*rows, strict=True)
    )
    seen = [at for at, name in enumerate(LABELS) if truth[:, at].any() or answers[:, at].any()]
    assert made.accuracy.value == pytest.approx(accuracy_score(truth, answers))
    assert [score.name for score in made.labels] == [LABELS[at] for at in seen]
    if seen:
        assert made.macro_f1 == pytest.approx(f1_score(truth, answers, average="macro", labels=seen, zero_division=0))
    assert (made.confusion, made.macro_f1_interval) == ({}, None)


@given(ROWS, st.randoms())
def test_the_order_of_rows_does_not_matter(rows, chance):
    """Counts that take rows one by one come to what the whole comes to."""
    shuffled = rows.copy()
    chance.shuffle(shuffled)
    one, other = counted(one_each(rows)), counted(one_each(shuffled))
    assert one.labels == other.labels
    assert one.confusion == other.confusion
    assert (one.accuracy, one.macro_f1) == (other.accuracy, other.macro_f1)


def test_no_rows_are_no_evaluation():
    assert Counts(LABELS).evaluation() is None


def test_each_model_has_its_share():
    counts = Counts(LABELS)
    said = [("a", "a", "small"), ("a", "b", "small"), ("b", "b", "large"), ("b", "b", "small"), ("c", None, None)]
    rights = [counts.add((truth,), None if answer is None else (answer,), model) for truth, answer, model in said]
    assert rights == [True, False, True, True, False]
    made = counts.evaluation()
    assert [(one.model, one.rows, one.right) for one in made.models] == [("small", 3, 2), ("large", 1, 1)]
    assert made.accuracy.low < made.accuracy.value == 0.6 < made.accuracy.high
    assert counts.rows == 5
    assert made.confusion["c", None] == 1


def test_the_interval_of_macro_f1_holds_it_and_narrows():
    rng = np.random.default_rng(0)

    def of(n):
        truth = rng.choice(LABELS, n)
        answers = np.where(rng.random(n) < 0.7, truth, rng.choice(LABELS, n))
        return counted(one_each(zip(truth.tolist(), answers.tolist(), strict=True))).macro_f1_interval

    few, many = of(100), of(5000)
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 4
    # 70 % are kept, a quarter of the others is right by chance
    assert many.low < 0.775 < many.high


def test_memory_does_not_grow_with_rows():
    counts = Counts(LABELS)
    for _ in range(20_000):
        counts.add(("a",), ("b",), "m")
    assert len(counts.evaluation().confusion) == 1


def many_labels(n):
    names = [f"label {i:03}" for i in range(n)]
    rows = [((name,), (name,)) for name in names for _ in range(5)]
    rows += [((names[i],), (names[i + 1],)) for i in range(10)] + [((names[3],), None)]
    return counted(rows, labels=names)


def test_the_picture_shows_the_worst_of_many_labels():
    made = many_labels(60)
    shown = picture.shown(made)
    assert len(shown) == picture.MOST_LABELS
    assert shown == sorted(shown)
    assert {f"label {i:03}" for i in range(11)} <= set(shown)
    rows, columns, counts = picture.matrix(made)
    assert columns[-2:] == [picture.OTHERS, picture.NO_ANSWER]
    assert counts.sum() == sum(n for (truth, _), n in made.confusion.items() if truth in rows)
    assert counts[3].tolist()[3:5] == [5, 1]
    assert counts[3, -1] == 1


@pytest.mark.parametrize("labels", [4, 60])
def test_the_picture_is_a_file(tmp_path: Path, labels):
    made = many_labels(max(labels, 12))
    paths = [tmp_path / name for name in ("one.svg", "two.svg", "three.png")]
    for path in paths:
        picture.draw(made, path)
    assert ElementTree.parse(paths[0]).getroot().tag.endswith("svg")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_odd_names_is_drawn(tmp_path: Path):
    odd = ["$a$ $b", "_hidden", "日本", "x" * 100]
    picture.draw(counted(one_each([(name, name) for name in odd]), labels=odd), tmp_path / "odd.svg")


def test_what_cannot_be_drawn_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"\.svg or \.png"):
        picture.draw(many_labels(12), tmp_path / "a.pdf")
    with pytest.raises(UserError, match="only where a text has one"):
        picture.draw(counted([({"a"}, {"b"})], several=True), tmp_path / "a.svg")
