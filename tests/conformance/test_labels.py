"""The question of a classification run over every engine: what comes back is always a label, and says how sure."""

import json

import pytest

from tests.conformance.conftest import recorded
from tieryard.classification import answers, prompts
from tieryard.requests import CHAT, parse_body
from tieryard.requests.classification import ClassificationSpec

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXTS = ["Where is my parcel?", 'I want my money back, and "now"!', "I love it.\n\n{labels} }", "日本へ送れますか"]
LABELS = {
    "plain": ["refund", "delivery", "praise"],
    "one begins another": ["card", "card payment", "card payment fee"],
    "odd": ['the "rest"', "Größe", "a/b\\c", "日本"],
    "many": [f"label number {i}" for i in range(100)],
}


def spec_of(names, **fields):
    spec = ClassificationSpec.model_validate({"labels": [{"name": name} for name in names], **fields})
    prompts.check(spec)
    return spec


async def asked(subject, spec, text, *, logprobs=True):
    """The answer, read as a run reads it, and the recording."""
    body = json.dumps(prompts.body(spec, text, model="auto", logprobs=logprobs)).encode()
    recording = await recorded(subject, parse_body(CHAT, body).request().body)
    choice = {"message": {"content": recording.text}, "logprobs": (recording.extra or {}).get("logprobs")}
    return answers.read(spec, {"choices": [choice]}), recording


@pytest.mark.parametrize("kind", LABELS)
async def test_an_answer_is_a_label_and_says_how_sure(subject, kind):
    spec = spec_of(LABELS[kind])
    for text in TEXTS:
        answer, recording = await asked(subject, spec, text)
        assert len(answer.labels) == 1
        assert answer.labels[0] in LABELS[kind]
        assert json.loads(recording.text) == {"label": answer.labels[0]}
        assert recording.done.finish_reason == "stop"
        if kind == "odd" and answer.confidence is None:
            continue  # llama.cpp gives no logprobs of parts of a character
        assert answer.confidence is not None
        assert 0 < answer.confidence <= 1


async def test_several_labels_are_distinct(subject):
    spec = spec_of(LABELS["plain"], multi_label=True)
    for text in TEXTS:
        answer, recording = await asked(subject, spec, text)
        assert len(set(answer.labels)) == len(answer.labels) <= 3
        assert set(answer.labels) <= set(LABELS["plain"])
        assert set(json.loads(recording.text)["labels"]) == set(answer.labels)
        assert answer.confidence is not None
        assert 0 < answer.confidence <= 1


async def test_examples_and_descriptions_are_taken(subject):
    spec = ClassificationSpec.model_validate(
        {
            "labels": [{"name": "refund", "description": "Money back."}, {"name": "other"}],
            "examples": [{"text": "Pay me back!", "label": "refund"}, {"text": "Hello", "label": "other"}],
        }
    )
    answer, _ = await asked(subject, spec, TEXTS[1])
    assert answer.labels[0] in ("refund", "other")


async def test_without_logprobs_there_is_no_confidence(subject):
    answer, recording = await asked(subject, spec_of(LABELS["plain"]), TEXTS[0], logprobs=False)
    assert recording.extra is None
    assert answer.confidence is None
    assert answer.labels[0] in LABELS["plain"]


async def test_the_same_question_has_the_same_answer(subject):
    """With other questions in flight, or none; temperature is 0. Confidences may differ in their last digits, since
    engines add up in another order."""
    spec = spec_of(LABELS["plain"])
    one, _ = await asked(subject, spec, TEXTS[0])
    other, _ = await asked(subject, spec, TEXTS[0])
    assert one.labels == other.labels
    assert one.confidence == pytest.approx(other.confidence, abs=0.05)
