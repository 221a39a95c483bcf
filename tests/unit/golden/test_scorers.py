"""Scorers: known values, and what holds for every answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tieryard.golden import Item, Score, micro_f1, score
from tieryard.golden.scorers import SCORERS
from tieryard.golden.scorers.code import UnitTests
from tieryard.golden.scorers.numbers import last_number, numbers

ADA = {"type": "person", "text": "Ada Lovelace"}
PARIS = {"type": "location", "text": "Paris"}
NAMES = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SQUARE = "def square(x):\n"
CHECK = "def check(candidate):\n    assert candidate(3) == 9\n"


def item(scorer: Any, expected: Any = None, references: list[str] | None = None) -> Item:
    return Item(id="a", category="chat", prompt="?", scorer=scorer, expected=expected, references=references or [])


def value(scorer: Any, answer: str, expected: Any = None, references: list[str] | None = None) -> float:
    return score(item(scorer, expected, references), answer).value


@pytest.mark.parametrize(
    ("scorer", "expected", "answer", "wanted"),
    [
        ("exact", "Lima", " Lima\n", 1),
        ("exact", "Lima", "lima", 0),
        ("exact", ["Lima", "LIM"], "LIM", 1),
        ("exact", "Lima", "Lima.", 0),
        ("normalised", "The Beatles", "beatles!", 1),
        ("normalised", "reverted_card_payment?", '"reverted_card_payment?"', 1),
        ("normalised", "ﬁle", "FILE", 1),
        ("normalised", "Straße", "STRASSE", 1),
        ("normalised", "Lima", "Lima, Peru", 0),
        ("normalised", ["yes", "no"], "No.", 1),
        ("normalised", "A-team", "ateam", 1),
        ("token_f1", "the cat sat", "cat sat", 1),
        ("token_f1", "cat sat", "cat ran", 0.5),
        ("token_f1", "cat cat", "cat", pytest.approx(2 / 3)),
        ("token_f1", ["a dog", "one red cat"], "red cat", pytest.approx(0.8)),
        ("token_f1", "cat", "", 0),
        ({"name": "regex", "pattern": r"\bLima\b"}, None, "It is Lima.", 1),
        ({"name": "regex", "pattern": r"\bLima\b"}, None, "It is Limassol.", 0),
        ({"name": "regex", "pattern": r"answer: ([A-D])", "ignore_case": True}, "B", "Answer: A. No, answer: B", 1),
        ({"name": "regex", "pattern": r"answer: ([A-D])"}, ["A", "B"], "answer: C", 0),
        ({"name": "regex", "pattern": r"answer:( [A-D])?"}, "B", "answer:", 0),
        ({"name": "regex", "pattern": r"(a+)+$"}, None, "a" * 5000 + "b", 0),
        ({"name": "regex", "pattern": r"^(a|aa|a?)+$"}, None, "a" * 5000 + "b", 0),
        ({"name": "json_schema", "schema": NAMES}, None, '{"n": 1}', 1),
        ({"name": "json_schema", "schema": NAMES}, None, 'Here:\n```json\n{"n": 1}\n```\nDone.', 1),
        ({"name": "json_schema", "schema": NAMES}, None, '{"n": "1"}', 0),
        ({"name": "json_schema", "schema": NAMES}, None, "n is 1", 0),
        ({"name": "json_schema", "schema": NAMES}, {"n": 1}, '{"n": 1.0}', 1),
        ({"name": "json_schema", "schema": NAMES}, {"n": 1}, '{"n": 2}', 0),
        ("json_schema", {"a": 1, "b": [True]}, '{"b": [true], "a": 1}', 1),
        ("json_schema", {"a": 1}, '{"a": true}', 0),
        ({"name": "json_schema", "schema": {"pattern": "^(a+)+$"}}, None, json.dumps("a" * 5000 + "b"), 0),
        ("entity_f1", [ADA, PARIS], json.dumps([PARIS, ADA]), 1),
        ("entity_f1", [ADA, PARIS], json.dumps([ADA]), pytest.approx(2 / 3)),
        ("entity_f1", [ADA, PARIS], json.dumps({"entities": [ADA, {"type": "person", "text": "Paris"}]}), 0.5),
        ("entity_f1", [ADA], '```json\n{"person": ["ada  lovelace", "Ada Lovelace"]}\n```', 1),
        ("entity_f1", [{"type": "creative-work", "text": "It"}], '[{"type": "Creative_Work", "text": "it"}]', 1),
        ("entity_f1", {"person": ["Ada"]}, '[{"type": "person", "text": "Ada", "start": 3}]', 1),
        ("entity_f1", [], "[]", 1),
        ("entity_f1", [], json.dumps([ADA]), 0),
        ("entity_f1", [ADA], "[]", 0),
        ("entity_f1", [ADA], "Ada Lovelace", 0),
        ("entity_f1", [ADA], '[{"type": "person", "text": 3}]', 0),
        ("entity_f1", [ADA], "[" * 100_000, 0),
    ],
)
def test_known_values(scorer: Any, expected: Any, answer: str, wanted: float) -> None:
    assert value(scorer, answer, expected) == wanted


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("She has 18.", "18", 1),
        ("First 3, then 18", 18, 1),
        ("#### 18\nThat is 7 more.", "#### 18", 1),
        ("So it is #### none, 18", 18, 1),
        ("$1,234.50", 1234.5, 1),
        ("1'234'567", 1234567, 1),
        ("-$5", -5, 1),
        ("$-5", -5, 1),
        ("−5", -5, 1),
        ("10-5", 5, 1),
        ("12 €", 12, 1),
        ("US$5", 5, 1),
        ("15%", 15, 1),
        ("15%", 0.15, 1),
        ("0.15", "15 %", 1),
        ("15", "15%", 1),
        ("1500%", "15%", 0),
        ("3/4", 0.75, 1),
        ("1 1/2 cups", 1.5, 1),
        ("1½", "3/2", 1),
        ("5/0", 0, 1),
        ("6.02e23", 6.02e23, 1),
        (".5", "1/2", 1),
        ("v1.2.3", 3, 0),
        ("H2O", 2, 0),
        ("٣", 3, 1),
        ("5kg", 5, 1),
        ("0.1", 0.1, 1),
        ("0.30000000000000004", 0.3, 0),
        ("none", 3, 0),
        ("", 3, 0),
        ("1e999999999", 1, 0),
        ("1.5e1000", 1.5, 0),
        ("9" * 5000, 3, 0),
        ("18", [17, 18], 1),
    ],
)
def test_numbers_are_read_however_they_are_written(answer: str, expected: Any, wanted: float) -> None:
    assert value("numeric", answer, expected) == wanted


def test_tolerances_are_exact() -> None:
    assert value({"name": "numeric", "tolerance": 0.5}, "10.5", 10) == 1
    assert value({"name": "numeric", "tolerance": 0.5}, "10.51", 10) == 0
    assert value({"name": "numeric", "relative_tolerance": 0.01}, "-101", -100) == 1
    assert value({"name": "numeric", "relative_tolerance": 0.01}, "-102", -100) == 0


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3))
def test_a_number_is_read_back_from_any_of_its_spellings(number: Any) -> None:
    for text in (f"{number}", f"{number:,}", f"so ${number:,}!", f"#### {number}\n12"):
        found = last_number(text)
        assert found is not None
        assert found.value == number


def test_rouge_l_takes_the_reference_that_is_most_like_it() -> None:
    # LCS of "police kill the gunman" and "police killed the gunman" is 3 words of 4 and 4, 4 once stemmed (Lin 2004).
    references = ["nothing like it", "police killed the gunman"]
    assert value({"name": "rouge_l", "stemmer": False}, "police kill the gunman", references=references) == 0.75
    assert value("rouge_l", "Police kill the gunman!", references=references) == 1
    assert value({"name": "rouge_l", "stemmer": False}, "the gunman kill police", references=references) == 0.5
    assert value("rouge_l", "", references=references) == 0


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_rouge_l_is_its_formula(reference: list[str], answer: list[str]) -> None:
    row = [0] * (len(answer) + 1)
    for word in reference:
        above = row
        row = [0]
        for at, other in enumerate(answer):
            row.append(above[at] + 1 if word == other else max(above[at + 1], row[at]))
    wanted = 2 * row[-1] / (len(reference) + len(answer))
    scorer = {"name": "rouge_l", "stemmer": False}
    assert value(scorer, " ".join(answer), references=[" ".join(reference)]) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "answer",
    [
        SQUARE + "    return x * x\n",
        "    return x * x\n",
        "return x * x",
        "if x:\n    return x * x\nreturn 0",
        "y = x\n    return x * y",
        "if x:\n        return x * x",
        "    return x * x\n\n\nprint(square('no'))\n",
        "Here it is:\n```python\n" + SQUARE + "    return x * x\n```\nIt multiplies.\n```\n>>> square(3)\n9\n```",
        "```python\n    return x * x\n```",
        "square = lambda x: x * x",
    ],
)
def test_code_is_found_in_an_answer(answer: str) -> None:
    scorer = {"name": "unit_tests", "tests": CHECK, "entry_point": "square", "prefix": SQUARE + '    """x²"""\n'}
    given = score(item(scorer), answer)
    assert given == Score(1.0, "pass: 1 calls, all tests hold")


def test_code_that_is_wrong_says_why() -> None:
    scorer = {"name": "unit_tests", "tests": CHECK, "entry_point": "square"}
    assert score(item(scorer), SQUARE + "    return x").why == "fail: AssertionError (line 2 of the tests):"
    assert value(scorer, "I cannot do that.") == 0


def test_micro_f1_adds_up_what_each_item_counts() -> None:
    scores = [score(item("entity_f1", [ADA, PARIS]), json.dumps(found)) for found in ([ADA, PARIS], [ADA], [])]
    assert micro_f1([*scores, Score(1.0, "no counts")]) == pytest.approx(2 * 3 / (2 * 3 + 0 + 3))
    assert micro_f1([]) == 1


def test_similarity_where_it_is_installed() -> None:
    pytest.importorskip("wordllama", reason="the extra `similarity` is not installed")
    references = ["The cat sat on the mat."]
    near, far = (value("similarity", text, references=references) for text in ("A cat on a mat.", "Taxes rose in May."))
    assert 0 <= far < near < 1
    assert value("similarity", references[0], references=references) == 1
    assert value("similarity", "", references=references) == 0


ITEMS = [
    item("exact", "Lima"),
    item("normalised", ["Lima", "LIM"]),
    item("token_f1", "the capital of Peru"),
    item("numeric", 42),
    item({"name": "regex", "pattern": r"(\w+)\W*$"}, "Lima"),
    item({"name": "json_schema", "schema": NAMES}, {"n": 1}),
    item("entity_f1", [ADA, PARIS]),
    item("rouge_l", references=["the capital of Peru", "Lima"]),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["type", "text", "entities", "n", "person"]), inner)
    ),
)
ANSWERS = (
    st.text()
    | st.text(st.sampled_from('0123456789.,-+/%$e# \n`[]{}":\ud800\x00'))
    | JSON.map(json.dumps)
    | st.sampled_from(["Lima", "42", "```\n```", "```json\n{\n```"])
)


@pytest.mark.parametrize("one", ITEMS, ids=lambda one: one.scorer.name)
@given(answer=ANSWERS)
def test_any_answer_has_a_score_from_0_to_1_and_always_the_same(one: Item, answer: str) -> None:
    first = score(one, answer)
    assert 0 <= first.value <= 1
    assert first.why
    assert score(one, answer) == first


def test_every_scorer_is_tried() -> None:
    tried = {one.scorer.name for one in ITEMS if one.scorer}
    assert tried | {"unit_tests", "similarity"} == SCORERS.keys()


TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "\x00" not in text)


@given(text=TEXT)
def test_the_expected_text_itself_scores_1(text: str) -> None:
    assert value("exact", text, text) == 1
    for scorer in ("normalised", "token_f1"):
        try:
            one = item(scorer, text)
        except ValueError:
            continue  # nothing is left of it
        assert score(one, text).value == pytest.approx(1)


@given(text=TEXT)
def test_a_reference_itself_scores_1(text: str) -> None:
    assume(any(c.isascii() and c.isalnum() for c in text))
    assert value("rouge_l", text, references=["else", text]) == pytest.approx(1)


ENTITIES = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["person", "group"]), "text": TEXT}), max_size=6)


@given(entities=ENTITIES, data=st.data())
def test_the_order_of_entities_means_nothing(entities: list[dict[str, str]], data: st.DataObject) -> None:
    one = item("entity_f1", entities)
    turned = data.draw(st.permutations(entities))
    assert score(one, json.dumps(turned)).value == 1
    some = data.draw(st.lists(st.sampled_from(entities))) if entities else []
    assert score(one, json.dumps(some)) == score(one, json.dumps(some[::-1]))


@given(value_=st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT, st.lists))
def test_the_expected_json_itself_scores_1(value_: Any) -> None:
    assume(value_ is not None)
    assert value("json_schema", json.dumps(value_), value_) == 1


@given(answer=st.text())
def test_reading_code_and_numbers_never_fails(answer: str) -> None:
    scorer = UnitTests(tests=CHECK, entry_point="square", prefix=SQUARE + "    pass\n")
    assert isinstance(scorer.program(answer), str)
    assert isinstance(numbers(answer), list)
