"""A golden set is taken whole, or refused with the line and the field of each fault."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.errors import UserError
from tieryard.golden import GoldenSet, Item, advice, parse_golden, score
from tieryard.golden.scorers import resemblance

CATEGORIES = ("chat", "code", "reasoning")


def line(**changes: Any) -> str:
    item = {
        "id": "a",
        "category": "chat",
        "prompt": "Capital of Peru?",
        "expected": "Lima",
        "scorer": "exact",
    } | changes
    return json.dumps({name: value for name, value in item.items() if value is not ...})


def parsed(*lines: str | bytes) -> GoldenSet:
    return parse_golden(lines, name="mine", categories=CATEGORIES)


def test_a_good_set_is_read_with_its_blank_lines_mark_and_line_ends() -> None:
    second = line(id="b", prompt=..., messages=[{"role": "user", "content": "Hi"}], scorer={"name": "exact"})
    golden = parsed(b"\xef\xbb\xbf" + line().encode() + b"\r\n", b"\r\n", second + "\r\n", "   ")
    assert [item.id for item in golden.items] == ["a", "b"]
    assert golden.items[0].conversation == [{"role": "user", "content": "Capital of Peru?"}]
    assert golden.counts == {"chat": 2}


def test_criteria_alone_are_for_a_judge() -> None:
    [item] = parsed(line(scorer=..., expected=..., criteria="It is polite.", references=["Thank you."])).items
    with pytest.raises(UserError, match="only a judge"):
        score(item, "Thanks")


@pytest.mark.parametrize(
    ("bad", "field", "says"),
    [
        ('{"id": "a",', None, "no JSON: .*; write one object a line"),
        ("[1]", None, "is no object; write {"),
        ('{"id": "a", "id": "b"}', None, "the field 'id' stands twice"),
        ('{"id": NaN}', None, "NaN is no JSON"),
        ("[" * 100_000, None, "too deeply nested; write it flatter"),
        (line(prompt="a\ud800"), None, "half a character"),
        (line(prompt="a\x00"), None, "NUL"),
        (line(expected=2**64), None, "more than 64 bits"),
        (line(expected=...)[:-1] + f', "expected": {"9" * 5000}}}', None, "more than 64 bits"),
        (line(expected=...)[:-1] + ', "expected": 1e999}', None, "larger than any"),
        (
            line(expected=...)[:-1] + f', "expected": {"[" * 300}{"]" * 300}}}',
            None,
            "too deeply nested; write it flatter",
        ),
        (line(id=...), "id", "it is missing; write it"),
        (line(id=7), "id", "expected text, not 7"),
        (line(id=" "), "id", "must not be empty"),
        (line(category="poetry"), "category", "'poetry' is none of the catalog's; write one of chat, code, reasoning"),
        (line(prompt=...), "prompt", "exactly one of"),
        (line(messages=[{"role": "user", "content": "a"}]), "prompt", "exactly one of"),
        (line(prompt=..., messages=[{"role": "user", "content": " "}]), "messages", "not all be empty"),
        (line(prompt=..., messages=[{"role": "boss", "content": "a"}]), "messages.0.role", "not 'boss'"),
        (line(answer="Lima"), "answer", "no such field; the fields are id, category, prompt"),
        (line(max_tokens=0), "max_tokens", "greater than or equal to 1"),
        (line(response_format={"type": "json_schema"}), "response_format.json_schema", "missing"),
        (line(scorer=...), "scorer", "write a scorer, or `criteria` for a judge"),
        (line(scorer="bleu"), "scorer", "'bleu' is no scorer; write one of exact, normalised, numeric"),
        (line(scorer={"tolerance": 1}), "scorer", "'None' is no scorer"),
        (line(scorer={"name": "exact", "case": 1}), "scorer.case", "exact has no such option; it has none"),
        (line(scorer={"name": "numeric", "tolerance": -1}), "scorer.tolerance", "greater than or equal to 0"),
        (line(expected=...), "expected", "write the right answer as a text"),
        (line(expected=[]), "expected", "write the right answer as a text"),
        (line(expected="the!", scorer="normalised"), "expected", "nothing is left of 'the!'"),
        (line(expected="?", scorer="token_f1"), "expected", "nothing is left of"),
        (line(scorer="numeric"), "expected", "'Lima' holds no number; write one"),
        (line(expected=True, scorer="numeric"), "expected", "'True' holds no number"),
        (line(expected=[], scorer="numeric"), "expected", "write a number"),
        (line(scorer="regex"), "scorer.pattern", "it is missing"),
        (line(scorer={"name": "regex", "pattern": "("}), "scorer.pattern", "no regular expression"),
        (line(scorer={"name": "regex", "pattern": "a"}), "scorer.pattern", "exactly one \\(group\\)"),
        (line(expected=..., scorer="json_schema"), "scorer.schema", "write a schema"),
        (line(scorer={"name": "json_schema", "schema": {"type": "nope"}}), "scorer.schema", "no JSON Schema"),
        (
            line(scorer={"name": "json_schema", "schema": {"$ref": "http://x.invalid/a"}}),
            "scorer.schema",
            "no JSON Sch",
        ),
        (line(scorer={"name": "json_schema", "schema": {"type": "number"}}), "expected", "item's own schema"),
        (line(scorer="entity_f1"), "expected", "write a list of entities"),
        (line(expected=[{"type": "a"}], scorer="entity_f1"), "expected", "another shape"),
        (line(scorer={"name": "unit_tests", "tests": "def check(", "entry_point": "f"}), "scorer.tests", "no Python"),
        (line(scorer={"name": "unit_tests", "tests": "1", "entry_point": "f"}), "scorer.tests", "defines check"),
        (line(scorer={"name": "unit_tests", "tests": "1", "entry_point": "f g"}), "scorer.entry_point", "the name of"),
        (line(scorer="rouge_l"), "references", "write the right answer as a text"),
        (line(scorer="rouge_l", references=["日本"]), "references", "use token_f1"),
    ],
)
def test_a_fault_is_refused_with_its_line_and_field(bad: str, field: str | None, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parsed("", line(id="first", prompt="Another?"), bad)
    assert (caught.value.line, caught.value.param) == (3, field)


def test_similarity_without_its_package_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resemblance, "EMBEDDER", "no_such_package")
    with pytest.raises(UserError, match="pip install 'tieryard\\[similarity\\]'") as caught:
        parsed(line(scorer="similarity", references=["Lima"]))
    assert (caught.value.line, caught.value.param) == (1, "scorer")


def test_bytes_in_another_encoding_are_refused_with_their_place() -> None:
    with pytest.raises(UserError, match="byte 16 is not UTF-8") as caught:
        parsed(line(), '{"prompt": "café"}'.encode("latin-1")[:16] + b"\xe9")
    assert caught.value.line == 2


def test_what_stands_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(UserError) as caught:
        parsed(line(), "", line(prompt="Else?"), line(id="c", prompt=..., messages=[json.loads(MESSAGE)]))
    assert "line 3, id: line 1 has 'a', too" in str(caught.value)
    assert "line 4, messages: line 1 asks the same" in str(caught.value)


MESSAGE = '{"role": "user", "content": "Capital of Peru?"}'


def test_twenty_faults_are_reported_together() -> None:
    with pytest.raises(UserError, match="mine has 25 faults, and nothing of it was taken; the first 20") as caught:
        parsed(*["no"] * 25)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[20].startswith("  line 20: no JSON")


def test_several_faults_of_one_line_are_all_told() -> None:
    with pytest.raises(UserError) as caught:
        parsed(line(id=7, max_tokens=0))
    assert "line 1, id: " in str(caught.value)
    assert "line 1, max_tokens: " in str(caught.value)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(UserError, match="the set has no items"):
        parsed("", "\n")


def test_the_hash_is_of_the_content() -> None:
    first, second = line(), line(id="b", prompt="Else?")
    whole = parsed(first, second)
    turned = json.dumps(dict(reversed(json.loads(second).items())))
    assert parse_golden([turned, "", first], name="other", categories=CATEGORIES).hash == whole.hash
    written_out = line(scorer={"name": "exact"}, references=[])
    assert parsed(written_out, second).hash == whole.hash
    for other in (
        line(expected="lima"),
        line(scorer="normalised"),
        line(category="code"),
        line(expected={"a": None}, scorer={"name": "json_schema"}),
    ):
        assert parsed(other, second).hash != whole.hash
    schema = {"name": "json_schema", "schema": {"type": "array"}}
    assert parsed(line(expected=[], scorer=schema)).hash != parsed(line(expected=..., scorer=schema)).hash
    null = parsed(line(expected={"a": None}, scorer="json_schema")).hash
    assert null != parsed(line(expected={}, scorer="json_schema")).hash


@given(st.lists(st.text() | st.binary(), max_size=5))
def test_any_lines_are_taken_or_refused(lines: list[str | bytes]) -> None:
    with pytest.raises(UserError):
        parsed(*lines)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["id", "name", "scorer", "prompt", "messages", "expected", "category", "pattern"]), x
            )
        ),
    )
)
def test_any_json_is_taken_or_refused(value: Any) -> None:
    with pytest.raises(UserError):
        parsed(json.dumps({"scorer": value, "messages": value, "expected": value, "response_format": value}))


def of_size(n: int) -> GoldenSet:
    items = tuple(Item(id=str(i), category="chat", prompt=str(i), criteria="Polite.") for i in range(n))
    return GoldenSet("mine", items)


def test_advice_says_what_a_small_set_cannot() -> None:
    assert advice(of_size(100)) == []
    assert advice(of_size(500)) == []
    assert advice(of_size(20)) == [
        "chat: 20 items; 100 to 500 is the advice. A measured pass rate of 50% would mean 30% to 70% (95 %, Wilson): "
        "smaller differences cannot be claimed"
    ]
    assert advice(of_size(1))[0].startswith("chat: 1 item; ")
    assert advice(of_size(501)) == ["chat: 501 items; 500 already tell a pass rate to within 4 points, more cost time"]
