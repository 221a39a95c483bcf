"""The question that a text is asked with."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.classification import prompts
from tieryard.errors import RequestError
from tieryard.requests import CHAT, parse_body
from tieryard.requests.classification import ClassificationSpec

PAGE = Path(__file__).parents[3] / "docs/explanation/classification.md"
LABELS = [{"name": "billing", "description": "Invoices and refunds."}, {"name": "bug"}, {"name": "Größe"}]
EXAMPLE = {"text": "I was charged twice.", "label": "billing"}


def spec_of(**fields) -> ClassificationSpec:
    return ClassificationSpec.model_validate({"labels": LABELS, **fields})


def messages(spec, text="It {labels} crashes."):
    return prompts.body(spec, text, model="auto", logprobs=False)["messages"]


def question(spec, text="It {labels} crashes."):
    return "\n".join(message["content"] for message in messages(spec, text))


def refused(**fields) -> RequestError:
    with pytest.raises(RequestError) as refusal:
        prompts.check(spec_of(**fields))
    return refusal.value


def test_the_question_shows_labels_descriptions_and_the_text():
    said = question(spec_of())
    assert "- billing: Invoices and refunds.\n- bug\n- Größe\n" in said
    assert said.count("It {labels} crashes.") == 1  # a text's own braces are no placeholder
    assert said.count("billing") == 1


def test_all_questions_of_a_run_begin_alike():
    spec = spec_of(examples=[EXAMPLE])
    one, other = question(spec, "first"), question(spec, "second")
    shared = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert one[:shared].count("- bug") == 1
    assert len(one) - shared < 40  # engines keep what comes before


def test_examples_are_earlier_turns():
    spec = spec_of(examples=[EXAMPLE, {"text": "Too {text} wide", "label": "Größe"}])
    prompts.check(spec)
    system, *turns, last = messages(spec, "A")
    assert system["role"] == "system"
    assert "- bug" in system["content"]
    assert turns == [
        {"role": "user", "content": "I was charged twice."},
        {"role": "assistant", "content": '{"label": "billing"}'},
        {"role": "user", "content": "Too {text} wide"},
        {"role": "assistant", "content": '{"label": "Größe"}'},
    ]
    assert last == {"role": "user", "content": "A"}


def test_examples_of_several_labels():
    examples = [{"text": "a", "labels": ["bug", "billing"]}, {"text": "b", "labels": []}]
    spec = spec_of(multi_label=True, examples=examples)
    prompts.check(spec)
    answers = [message["content"] for message in messages(spec) if message["role"] == "assistant"]
    assert answers == ['{"labels": ["bug", "billing"]}', '{"labels": []}']


def test_a_template_of_ones_own():
    template = 'Of {labels}:\n{examples}\n>>{text}<< {"label": 1} {{text}} {text} { text } {}'
    spec = spec_of(template=template, examples=[EXAMPLE])
    prompts.check(spec)
    [message] = messages(spec, "A")
    assert message["role"] == "user"
    assert message["content"].endswith('>>A<< {"label": 1} {text} A { text } {}')
    assert message["content"].startswith("Of - billing")
    assert 'Text: I was charged twice.\n{"label": "billing"}' in message["content"]


def test_a_template_with_a_line():
    spec = spec_of(template="Of\n{labels}\n---\nText: {text}\n---\nLabel:", examples=[EXAMPLE])
    prompts.check(spec)
    system, asked, answered, last = messages(spec, "A")
    assert system["content"].startswith("Of\n- billing")
    assert asked["content"] == "Text: I was charged twice.\n---\nLabel:"
    assert answered["content"] == '{"label": "billing"}'
    assert last["content"] == "Text: A\n---\nLabel:"
    placed = spec_of(template="Of {labels}\n\n{examples}\n---\n{text}", examples=[EXAMPLE])
    prompts.check(placed)
    assert [message["role"] for message in messages(placed)] == ["system", "user"]
    assert "charged twice" in messages(placed)[0]["content"]


def test_the_body_is_a_chat_that_the_api_takes():
    spec = spec_of()
    body = prompts.body(spec, "Hello", model="short", logprobs=True)
    request = parse_body(CHAT, json.dumps(body).encode()).request()
    assert (request.model, request.category) == ("short", "classification")
    assert request.needs == {"json_schema", "logprobs"}
    assert request.body["temperature"] == 0
    schema = request.body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == ["billing", "bug", "Größe"]
    assert schema["required"] == ["label"]
    assert not schema["additionalProperties"]
    bare = prompts.body(spec, "Hello", model="short", logprobs=False)
    assert not {"logprobs", "top_logprobs"} & bare.keys()


def test_several_labels_are_a_list():
    schema = prompts.body(spec_of(multi_label=True), "a", model="auto", logprobs=False)["response_format"]
    labels = schema["json_schema"]["schema"]["properties"]["labels"]
    assert labels == {"type": "array", "items": {"type": "string", "enum": ["billing", "bug", "Größe"]}, "maxItems": 3}
    assert "give all of these labels" in question(spec_of(multi_label=True))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100), min_size=2, unique=True))
def test_every_label_has_room(names):
    """No token is shorter than a byte."""
    spec = ClassificationSpec.model_construct(labels=[type("L", (), {"name": n, "description": None}) for n in names])
    most = prompts.body(spec, "a", model="auto", logprobs=False)["max_tokens"]
    assert all(len(prompts.answer_text([name], several=False).encode()) <= most for name in names)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"template": "Which?"}, "template", "{text} is missing"),
        ({"template": "{text} {Label}"}, "template", "{Label} is no placeholder"),
        ({"template": "{text}", "examples": [EXAMPLE]}, "template", "{examples} is missing"),
        ({"template": "{{text}}"}, "template", "{text} is missing"),
        ({"template": "{text}\n---\n{labels}"}, "template", "below the line"),
        ({"template": "{text}\n---\n{text}"}, "template", "below the line"),
        (
            {"labels": [{"name": "a"}, {"name": "b"}, {"name": "a"}]},
            "labels",
            "'a' stands twice: as label 1 and label 3",
        ),
        ({"labels": [{"name": "a"}, {"name": "b "}]}, "labels", "label 2, 'b ', begins or ends with a blank"),
        ({"labels": [{"name": f"{i:04}" + "x" * 96} for i in range(1000)]}, "labels", "at most 65536 bytes"),
        ({"examples": [EXAMPLE, {"text": "a", "label": "sales"}]}, "examples.1", "'sales' is none of the labels"),
        ({"examples": [{"text": "a", "labels": ["bug"]}]}, "examples.0", "give `label`"),
        ({"multi_label": True, "examples": [EXAMPLE]}, "examples.0", "give `labels`"),
        ({"multi_label": True, "examples": [{"text": "a", "labels": ["bug", "bug"]}]}, "examples.0", "stands twice"),
    ],
)
def test_what_no_question_can_be_made_of_is_refused(fields, param, says):
    refusal = refused(**fields)
    assert refusal.param == param
    assert says in refusal.message


def test_the_page_has_our_template():
    assert f"```\n{prompts.DEFAULT_TEMPLATE}\n```" in PAGE.read_text(encoding="utf-8")


def test_what_is_shared_is_made_once():
    spec = spec_of()
    one, other = (prompts.body(spec, text, model="auto", logprobs=False) for text in "ab")
    assert one["response_format"] is other["response_format"]
    assert prompts.body(spec_of(), "a", model="auto", logprobs=False) == one
