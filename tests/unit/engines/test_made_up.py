"""Answers that no model made, for engines that have none."""

import json
import math

import pytest

from tieryard.engines.made_up import doubted, first_of, how_sure, instance, make_up

LABEL = {"type": "object", "properties": {"label": {"enum": ["billing", "bug", 'böse "x"']}}, "required": ["label"]}
SEVERAL = {
    "type": "object",
    "properties": {"labels": {"type": "array", "items": {"enum": ["a", "b"]}}},
    "required": ["labels"],
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"enum": ["b", "a"]}, "b"),
        ({"const": 3}, 3),
        ({"type": "integer", "minimum": 2}, 2),
        ({"type": ["string", "null"], "minLength": 2}, "aa"),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [False, False]),
        (
            {
                "type": "object",
                "properties": {"label": {"$ref": "#/$defs/label"}, "more": {"type": "string"}},
                "required": ["label"],
                "$defs": {"label": {"enum": ["yes", "no"]}},
            },
            {"label": "yes"},
        ),
    ],
)
def test_an_instance_of_a_schema(schema, value):
    assert instance(schema, first_of) == value


def test_a_prompt_decides_the_answer():
    answers = {json.loads(make_up(LABEL, f"row {i}").text)["label"] for i in range(50)}
    assert answers == {"billing", "bug", 'böse "x"'}
    assert make_up(LABEL, "row 1") == make_up(LABEL, "row 1")
    assert json.loads(make_up(SEVERAL, "row 1").text)["labels"][0] in ("a", "b")


def test_a_mark_names_the_label_and_how_sure_it_is():
    made = make_up(LABEL, "like [[label:billing]] but [[label:bug:0.3]]")
    assert json.loads(made.text) == {"label": "bug"}
    [doubtful] = [ranks for ranks in made.ranked if len(ranks) > 1]
    assert math.exp(min(logprob for _, logprob in doubtful)) == pytest.approx(0.3)
    assert how_sure("[[label:bug:0.3]]") == 0.3
    assert all(0.5 <= how_sure(f"row {i}") <= 1 for i in range(50))
    assert json.loads(make_up(LABEL, "[[label:none of them]]").text)["label"] in ("billing", "bug", 'böse "x"')


def test_logprobs_are_a_chats():
    made = make_up(LABEL, "[[label:billing:0.8]]")
    content = made.logprobs(2)["content"]
    assert "".join(item["token"] for item in content) == made.text
    assert sum(len(item["top_logprobs"]) == 2 for item in content) == 1
    assert all(item["bytes"] == list(item["token"].encode()) for item in content)
    assert {len(item["top_logprobs"]) for item in made.logprobs(0)["content"]} == {0}


def test_what_is_certain_or_no_label_has_no_doubts():
    assert all(len(ranks) == 1 for ranks in doubted("words", LABEL, 0.5).ranked)
    assert all(len(ranks) == 1 for ranks in doubted('{"label":"a"}', {"enum": ["a"]}, 0.5).ranked)
    certain = [ranks for ranks in doubted('{"label":"bug"}', LABEL, 1.0).ranked if len(ranks) > 1]
    assert certain[0][0][1] == 0.0
    assert certain[0][1][1] == -9999.0


def test_an_answer_that_is_cut_short():
    made = make_up(LABEL, "row")
    assert made.shortened(None) == made.shortened(100) == made
    assert made.shortened(2).pieces == made.pieces[:2]
    assert made.shortened(2).cut
