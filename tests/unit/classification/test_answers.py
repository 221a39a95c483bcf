"""Reading answers: labels, and confidences from logprobs."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.classification import answers
from tieryard.engines.made_up import doubted, make_up
from tieryard.errors import UnreadableError
from tieryard.requests.classification import ClassificationSpec

NAMES = ["billing", "bug", "bug report", "Größe", 'the "rest"']


def spec_of(*names, several=False) -> ClassificationSpec:
    labels = [{"name": name} for name in names or NAMES]
    return ClassificationSpec.model_validate({"labels": labels, "multi_label": several})


def item(token, p, **tops):
    """A token of probability p, with alternatives by keyword; `_` in a name is a quote."""
    others = [{"token": other.replace("_", '"'), "logprob": math.log(q)} for other, q in tops.items()]
    own = {"token": token, "logprob": math.log(p), "bytes": list(token.encode())}
    return {**own, "top_logprobs": [own, *others] if others else []}


def response(text, content=None):
    return {"choices": [{"message": {"content": text}, "logprobs": content and {"content": content}}]}


def answered(*tokens, several=False, names=()):
    text = "".join(token["token"] for token in tokens)
    return answers.read(spec_of(*names, several=several), response(text, list(tokens)))


HEAD = (item('{"', 0.3), item("label", 0.2), item('":', 0.4), item(' "', 0.5))
TAIL = (item("}", 0.6),)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('{"label":"billing"}', "billing"),
        ('{\n  "label": "bug"\n}', "bug"),
        ('{"label": "Größe"}', "Größe"),
        (r'{"label": "Gr\u00f6\u00dfe"}', "Größe"),
        (json.dumps({"label": 'the "rest"'}), 'the "rest"'),
        ('{"label": "bil', "billing"),  # cut short, and nothing else begins so
        ('{"label": "bug r', "bug report"),
        ('{"label": "bug"', "bug"),
    ],
)
def test_one_label(text, label):
    assert answers.read(spec_of(), response(text)) == answers.Answer((label,), None)


@pytest.mark.parametrize(
    "text",
    ['{"label": "Billing"}', "billing", "", '{"label": "b', '{"label": "bug', '{"label": ', "{}", '{"label": 3}',
     '{"label": null}', '{"label": ["bug"]}', '{"label": "bug\\', '{"label": "bug x"}'],
)  # fmt: skip
def test_what_is_no_label(text):
    with pytest.raises(UnreadableError):
        answers.read(spec_of(), response(text))


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{}]}, response(None), {"choices": None}], ids=str)
def test_no_answer_at_all(body):
    with pytest.raises(UnreadableError, match="no answer"):
        answers.read(spec_of(), body)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('{"labels": ["bug", "billing"]}', ("bug", "billing")),
        ('{"labels":[]}', ()),
        ('{"labels": ["bug", "bug", "billing", "bug"]}', ("bug", "billing")),
        ('{"labels": ["bug", "bug", "bug"', ("bug",)),  # who repeats itself to the end has still said something
        ('{"labels": ["bug", "bil', ("bug", "billing")),
        ('{"labels": ["bug", "b', ("bug",)),
        ('{ "labels" : [\n "bug" ,\n"billing"\n] }', ("bug", "billing")),
    ],
)
def test_several_labels(text, labels):
    assert answers.read(spec_of(several=True), response(text)).labels == labels


@pytest.mark.parametrize(
    "text",
    ['{"labels": "bug"}', '{"labels": ["x"]}', '{"labels": [', '{"labels": ["bug" "bug"]}', '{"labels": ["bug",]}'],
)
def test_what_is_no_list_of_labels(text):
    with pytest.raises(UnreadableError):
        answers.read(spec_of(several=True), response(text))


def test_alternatives_that_are_no_label_do_not_count():
    """As llama.cpp gives them, from before the constraint: `I` is likelier than all, and no label begins so."""
    first = item("b", 0.03, I=0.6, bug=0.02, Größe=0.01)
    found = answered(*HEAD, first, item("illing", 0.9, ooking=0.1), item('"', 0.05), *TAIL)
    # `b` may become either label with b, `bug` leads elsewhere.
    assert found.labels == ("billing",)
    assert found.confidence == pytest.approx(0.03 / 0.06)


def test_other_spellings_of_the_same_label_agree():
    first = item("b", 0.5, bill=0.2, billing=0.1, bug=0.2)
    closing = item('"', 0.6, **{"_}": 0.4})
    found = answered(*HEAD, first, item("illing", 1.0, ug=1e-9), closing, *TAIL)
    assert found.confidence == pytest.approx(0.8, abs=1e-6)


def test_a_label_that_goes_on_is_another():
    closing = item('"', 0.7, **{" report": 0.3, "_}": 0.1, "s": 0.9})
    found = answered(*HEAD, item("bug", 1.0, x=1e-9), closing, *TAIL)
    assert found.labels == ("bug",)
    assert found.confidence == pytest.approx(0.8 / 1.1)


def test_structure_does_not_count():
    head = (item('{"', 0.01, x=0.9), item("label", 0.01, y=0.9), item('": "', 0.01, z=0.9))
    found = answered(*head, item("billing", 0.8, bug=0.2), item('"', 1.0, x=1e-9), item("\n}", 0.01, x=0.9))
    assert found.confidence == pytest.approx(0.8)


def test_a_token_across_the_quote():
    found = answered(
        *HEAD[:3], item(' "bill', 0.6, **{' "bug': 0.2, '"bug': 0.2, " x": 0.3}), item('ing"}', 1.0, x=0.1)
    )
    assert found.confidence == pytest.approx(0.6)


def test_without_alternatives_the_tokens_own_probabilities_count():
    assert answered(*HEAD, item("bill", 0.5), item("ing", 0.9), item('"}', 0.8)).confidence == pytest.approx(
        0.5 * 0.9 * 0.8
    )


def test_a_character_of_several_tokens():
    raw = [b'{"label": "Gr', b"\xc3", b"\xb6\xc3\x9fe", b'"}']
    content = [{"token": "?", "bytes": list(part), "logprob": math.log(0.9), "top_logprobs": []} for part in raw]
    assert answers.read(spec_of(), response('{"label": "Größe"}', content)).confidence == pytest.approx(0.9**4)


def raw(*parts, **tops):
    others = [{"token": other, "logprob": math.log(q)} for other, q in tops.items()]
    return [{"token": "?", "bytes": list(part), "logprob": math.log(0.5), "top_logprobs": others} for part in parts]


def test_tokens_that_an_engine_holds_back():
    """llama.cpp leaves out parts of a character, and a backslash. That does no harm where they decided nothing."""
    spec = spec_of("日本", "a\\b", "ac")
    second = response(r'{"label": "a\\b"}', raw(b'{"label": "a', b"\\", b'b"', b"}", c=0.5))
    assert answers.read(spec, second).confidence == pytest.approx(0.5)  # `ac` was as probable as the first backslash
    undecided = response('{"label": "日本"}', raw(b'{"label": "', b"\xa5", b"\xac", b'"}', c=0.5))
    assert answers.read(spec, undecided) == answers.Answer(("日本",), None)
    known = response('{"label": "日本"}', raw(b'{"label": "', "日".encode()[:2], b"\xac", b'"}', a=0.5))
    assert answers.read(spec, known).confidence == pytest.approx(0.5)


def test_tokens_around_the_text():
    around = [item("```", 0.1, x=0.9), *HEAD, item("bug", 0.8, bill=0.2), item('"', 1.0), *TAIL, item("<|end|>", 0.2)]
    found = answers.read(spec_of("bug", "billing"), response('{"label": "bug"}', around))
    assert found.confidence == pytest.approx(0.8)


def test_a_blank_before_the_text_that_stands_in_it_too():
    """llama.cpp takes the blanks around an answer away, and leaves their tokens."""
    laid_out = [item(token, 0.1) for token in ("\n", "{", "\n", '"label"', ":", "\n")]
    content = [*laid_out, item('"bug', 0.8, **{'"bill': 0.2}), item('"', 1.0), item("\n}\n", 0.1)]
    found = answers.read(spec_of("bug", "billing"), response('{\n"label":\n"bug"\n}', content))
    assert found.confidence == pytest.approx(0.8)


def test_several_labels_are_as_sure_as_the_whole_list():
    head = (item('{"labels": [', 1.0, x=1e-9),)
    found = answered(
        *head, item('"bug', 0.8, **{'"bill': 0.2, "]": 0.25}), item('",', 0.5, **{"_]": 0.5}),
        item(' "billing"', 1.0, x=0.1), item("]", 0.9, **{',"bug"': 0.1}), item("}", 0.1), several=True,
    )  # fmt: skip
    assert found.labels == ("bug", "billing")
    assert found.confidence == pytest.approx(0.8 / 1.25 * 0.5 * 0.9)


@pytest.mark.parametrize(
    "content",
    [
        [item('{"label": "', 0.5)],  # the rest is not there, and decides
        [item('{"label": "bug"}', 0.5)],  # another answer than the text
        [{"token": '{"label": "billing"}'}],
        [{"token": '{"label": "billing"}', "logprob": "x"}],
        [{"token": '{"label": "billing"}', "logprob": float("nan")}],
        [{"token": '{"label": "billing"}', "logprob": None, "top_logprobs": [{"token": "x", "logprob": None}]}],
        ["x"],
        "x",
        [],
        None,
    ],
    ids=str,
)
def test_logprobs_that_tell_nothing(content):
    assert answers.read(spec_of(), response('{"label": "billing"}', content)) == answers.Answer(("billing",), None)


def test_what_the_constraint_forced_has_no_part_in_it():
    """vLLM writes −9999 for what the constraint ruled out, and a chosen token may be improbable before it."""
    first = {"token": "billing", "logprob": -40.0, "top_logprobs": [{"token": "I", "logprob": -0.1}]}
    assert answered(*HEAD, first, item('"', 1.0), *TAIL).confidence == pytest.approx(1.0)


NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
SPECS = st.builds(
    lambda names, several: ClassificationSpec.model_validate(
        {"labels": [{"name": name} for name in names], "multi_label": several}
    ),
    st.lists(NAME.filter(str.strip), min_size=2, max_size=8, unique=True),
    st.booleans(),
)


@given(SPECS, st.data())
def test_an_answer_is_always_labels_and_its_confidence_a_probability(spec, data):
    names = [label.name for label in spec.labels]
    said = data.draw(st.lists(st.sampled_from(names), min_size=0 if spec.multi_label else 1, max_size=4))
    written = {"labels": said} if spec.multi_label else {"label": said[0]}
    text = json.dumps(written, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 2])))
    text = text[: data.draw(st.integers(0, len(text)))]
    tokens = data.draw(st.lists(st.text(max_size=6), max_size=6))
    content = []
    for i in range(0, len(text), 3):
        tops = [{"token": t, "logprob": -data.draw(st.floats(0, 50))} for t in tokens + names[:2]]
        content.append({"token": text[i : i + 3], "logprob": -data.draw(st.floats(0, 50)), "top_logprobs": tops})
    try:
        found = answers.read(spec, response(text, content))
    except UnreadableError:
        return
    assert set(found.labels) <= set(said)
    assert len(found.labels) == len(set(found.labels))
    assert spec.multi_label or len(found.labels) == 1
    assert found.confidence is None or 0 <= found.confidence <= 1


@given(SPECS, st.text(), st.floats(0.01, 1.0))
def test_a_made_up_answer_is_as_sure_as_it_was_told(spec, prompt, sure):
    names = [label.name for label in spec.labels]
    kind = {"labels": {"type": "array", "items": {"enum": names}}} if spec.multi_label else {"label": {"enum": names}}
    schema = {"type": "object", "properties": kind, "required": list(kind)}
    made = doubted(make_up(schema, prompt).text, schema, sure)
    found = answers.read(spec, response(made.text, made.logprobs(2)["content"]))
    assert found.confidence == pytest.approx(sure, abs=1e-6)


def test_probabilities_of_all_labels_add_up_to_one():
    """Of a model with a distribution over strings, tokenised in letters, each label has the share that is its own."""
    weights = {"a": 0.1, "ab": 0.25, "abc": 0.15, "b": 0.3, "bc": 0.2}
    total = 0.0
    for label, weight in weights.items():
        content = [*HEAD]
        for at, letter in enumerate(label + '"'):
            before = label[:at]
            under = {w: p for w, p in weights.items() if (w + '"').startswith(before)}
            whole = sum(under.values())
            shares = {}
            for w, p in under.items():
                following = (w + '"')[at]
                shares[following] = shares.get(following, 0) + p / whole / 2  # the other half is no label
            content.append(
                item(letter, shares.pop(letter), **{k.replace('"', "_"): v for k, v in shares.items()}, X=0.5)
            )
        found = answered(*content, *TAIL, names=weights)
        assert found.confidence == pytest.approx(weight)
        total += found.confidence
    assert total == pytest.approx(1)
