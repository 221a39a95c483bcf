"""Reviews: a sample tells nothing of whose the answers are, a file is taken whole or not at all, and kappa."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tieryard.bench.stats import cohen_kappa
from tieryard.errors import UserError
from tieryard.golden import Item
from tieryard.golden.reviews import Label, Rated, Reviewed, agreement, as_csv, as_jsonl, draw, read_labels, token

MADE = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def answers(n: int = 20, *, run: int = 12345, text: str = "The sky scatters light.") -> list[Reviewed]:
    items = (
        Item(
            id=f"item-{i}",
            category="code" if i % 4 == 0 else "chat",
            prompt=f"Why {i}?",
            criteria="Is kind.",
            references=["Kindly."],
        )
        for i in range(n)
    )
    return [Reviewed(run, MADE, item, text) for item in items]


def filled(*scores: Any, drawn: list[Reviewed] | None = None) -> bytes:
    rows = [json.loads(line) for line in as_jsonl(drawn or answers(len(scores))).splitlines()]
    return "\n".join(json.dumps(row | {"score": score}) for row, score in zip(rows, scores, strict=True)).encode()


KNOWN = {one.token: one for one in answers(50)}


def test_a_sample_is_stratified_by_run_and_category() -> None:
    drawn = draw([*answers(20), *answers(20, run=2)], sample=8, seed=1)
    assert len(drawn) == 8
    for run in (12345, 2):
        mine = [one.item.category for one in drawn if one.run_id == run]
        assert (mine.count("chat"), mine.count("code")) == (3, 1)


def test_a_sample_is_the_same_for_its_seed_and_shuffled() -> None:
    given = answers(40)
    assert draw(given, sample=30, seed=1) == draw(given, sample=30, seed=1)
    assert draw(given, sample=30, seed=1) != draw(given, sample=30, seed=2)
    assert draw(given, sample=99, seed=1) != given
    assert sorted(one.token for one in draw(given, sample=99, seed=1)) == sorted(one.token for one in given)


@pytest.mark.parametrize("write", [as_jsonl, as_csv])
def test_a_sample_tells_nothing_of_whose_the_answers_are(write: Any) -> None:
    text = write(answers(3)).decode()
    assert all(word in text for word in ("Why 1?", "Is kind.", "Kindly.", "The sky scatters light."))
    assert not any(word in text for word in ("12345", "item-", "2030", "model", "deployment"))


def test_tokens_differ_by_run_item_and_the_moment_a_run_was_made() -> None:
    other = datetime(2030, 1, 2, 3, 4, 5, 678902, tzinfo=UTC)
    made = {token(1, MADE, "a"), token(2, MADE, "a"), token(1, MADE, "b"), token(1, other, "a")}
    assert len(made) == 4
    assert all(one.startswith("r") and len(one) == 16 for one in made)


def test_a_sheet_holds_no_formulas() -> None:
    [row] = csv.DictReader(io.StringIO(as_csv(answers(1, text='=HYPERLINK("http://x")')).decode("utf-8-sig")))
    assert row["answer"] == '\'=HYPERLINK("http://x")'
    assert row["question"] == "user: Why 0?"


def test_labels_are_read_and_blanks_left_out() -> None:
    labels = read_labels(filled(1, None, 0.5, "", "0.25"), name="f", known=KNOWN)
    tokens = [one.token for one in answers(5)]
    assert labels == [Label(tokens[0], 1.0), Label(tokens[2], 0.5), Label(tokens[4], 0.25)]


def test_a_sheet_is_read_as_spreadsheets_save_it() -> None:
    first, second, _ = answers(3)
    text = as_csv(answers(3, text="two\nlines, and a comma")).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    for marks, score in ((",", "0.5"), (";", "0,5")):
        file = io.StringIO(newline="")
        out = csv.DictWriter(file, list(rows[0]), delimiter=marks)
        out.writeheader()
        out.writerows([rows[0] | {"score": score}, rows[1] | {"score": "1"}, rows[2]])
        data = file.getvalue().encode("utf-8-sig")
        assert read_labels(data, name="f", known=KNOWN) == [Label(first.token, 0.5), Label(second.token, 1.0)]


@pytest.mark.parametrize("score", [-0.1, 1.1, 7, "good", True, [1], "nan", {"a": 1}])
def test_what_is_no_score_is_refused_by_line(score: Any) -> None:
    with pytest.raises(UserError) as refused:
        read_labels(filled(1, score), name="f", known=KNOWN)
    assert (refused.value.line, refused.value.param) == (2, "score")


def test_every_bad_line_is_named_and_nothing_is_taken() -> None:
    lines = [*filled(1, 2).split(b"\n"), b"no json", b"[1]", b'{"token": "r0", "score": 1}', filled(0.5)]
    with pytest.raises(UserError) as refused:
        read_labels(b"\n".join(lines), name="labels.jsonl", known=KNOWN)
    message = str(refused.value)
    assert "labels.jsonl has 5 faults, and nothing of it was taken" in message
    for place in (
        "line 2, score",
        "line 3: no JSON",
        "line 4: no object",
        "line 5, token",
        "line 6, token: line 1 sco",
    ):
        assert place in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no such column"),
        (b"question,score\nx,1\n", "token: no such column"),
        (filled(None, None), "no answer is scored"),
        (b'{"token": "\xff"}', "not UTF-8"),
    ],
)
def test_a_file_without_scores_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_labels(data, name="f", known=KNOWN)


def test_agreement_is_of_who_passes_an_answer() -> None:
    rated = [
        *[Rated(0.9, [1.0])] * 40,
        *[Rated(0.8, [0.2, 0.6])] * 5,
        *[Rated(0.1, [0.6, 0.8])] * 10,  # a mean of 0.7 passes
        *[Rated(0.3, [0.0])] * 25,
        Rated(0.3, []),
    ]
    found = agreement(rated)
    assert (found.n, found.both_pass, found.judge_only, found.people_only, found.both_fail) == (80, 40, 5, 10, 25)
    assert found.agreed == 65 / 80
    judge = [True] * 45 + [False] * 35
    people = [True] * 40 + [False] * 5 + [True] * 10 + [False] * 25
    assert found.kappa == cohen_kappa(judge, people)
    [said] = found.says
    assert said.startswith("kappa 0.61 (95 %: ")


def test_too_few_labels_say_so() -> None:
    found = agreement([Rated(0.9, [1.0]), Rated(0.1, [0.0])])
    assert "2 labels are too few to rest a judge on: 50 at least, better 100" in found.says


def test_one_label_only_says_nothing_of_agreement() -> None:
    found = agreement([Rated(0.9, [1.0])] * 60)
    assert found.kappa is None
    assert "gave one label only" in found.says[0]


def test_no_labels_say_what_to_do() -> None:
    assert "tieryard golden review" in agreement([]).says[0]
