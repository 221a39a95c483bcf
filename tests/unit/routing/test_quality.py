"""The quality model's arithmetic and its file; training has its own tests in tests/unit/learning."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieryard.errors import UserError
from tieryard.hardness import DEFAULT_MODEL
from tieryard.routing.quality import Linear, Part, QualityModel, Tree, dump_quality_model, parse_quality_model
from tieryard.routing.text_signals import SIGNAL_NAMES, text_signals

WORDS = SIGNAL_NAMES.index("words")


def part() -> Part:
    """More than e² − 1 words: harder for the weak model. "ring" is hard for both."""
    many = len(SIGNAL_NAMES)
    return Part(
        models=("weak", "strong"),
        weak="weak",
        strong="strong",
        mean=[0.5, 0.8],
        trees=[Tree([WORDS, -1, -2], [2.0, 0.0, 0.0], [2, 0, 0], [[0.3, 0.1], [-0.3, 0.0]])],
        linear=Linear({"ring": (1.0, [-0.2, -0.2])}, [0.0] * many, [1.0] * many, [[0.0, 0.0]] * many, [0.0, 0.0]),
        linear_share=0.5,
        categories={"algebra": [-0.1, 0.1]},
    )


@pytest.fixture
def model() -> QualityModel:
    return parse_quality_model(dump_quality_model([part()], {"tables": []}))


def test_the_sum_of_forest_linear_part_and_category(model: QualityModel) -> None:
    assert model.predict("hello there").quality == pytest.approx({"weak": 0.65, "strong": 0.85})
    assert model.predict("a ring").quality == pytest.approx({"weak": 0.55, "strong": 0.75})
    found = model.predict("a ring", "algebra")
    assert found.quality == pytest.approx({"weak": 0.45, "strong": 0.85})
    assert found.need == pytest.approx(0.4)
    assert found.difficulty == pytest.approx(0.35)
    assert found.known == 0.5


def test_a_category_that_is_not_known_changes_nothing(model: QualityModel) -> None:
    assert model.predict("a ring", "cooking") == model.predict("a ring")


def test_parts_stand_side_by_side() -> None:
    other = replace(part(), models=("small", "large"), weak="small", strong="large", mean=[0.1, 0.2])
    model = parse_quality_model(dump_quality_model([part(), other], {}))
    assert model.models == ("weak", "strong", "small", "large")
    found = model.predict("hello there")
    assert found.quality["weak"] == pytest.approx(0.65)
    assert found.need == pytest.approx((0.2 + 0.0) / 2)


AWKWARD = st.one_of(
    st.text(max_size=300),
    st.sampled_from(
        ["", " ", "\n\n", "A.\nB.\nC.\n", "9" * 500, "1.2.3,4", "😀" * 50, "数学は難しい。" * 20, "\ud800"]
    ),
    st.text(max_size=20).map(lambda some: some * 500),
)


@settings(max_examples=200)
@given(text=AWKWARD, category=st.none() | st.text(max_size=10))
def test_any_text_has_bounded_and_repeatable_predictions(text: str, category: str | None) -> None:
    model = QualityModel((part(),), "", {})
    found = model.predict(text, category)
    assert found == model.predict(text, category)
    assert all(0 <= quality <= 1 for quality in found.quality.values())
    assert 0 <= found.difficulty <= 1
    assert 0 <= found.known <= 1
    assert -1 <= found.need <= 1


def test_only_head_and_tail_of_a_long_text_are_read() -> None:
    text = "start " + "x " * 100_000 + "end"
    assert text_signals(text).words.keys() == {"start", "x", "end"}
    assert sum(text_signals(text).words.values()) < 4000


def test_signals_always_have_the_same_names() -> None:
    assert len(set(SIGNAL_NAMES)) == len(SIGNAL_NAMES)
    read = dict(zip(SIGNAL_NAMES, text_signals("Is 3 > 2?\nA. yes\nB. no\nC. 7\n").values, strict=True))
    assert read["options"] == 3
    assert read["numeric options"] == pytest.approx(1 / 3)
    assert read["ends with ?"] == 1


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda packed: b"prompt,weak\n", "is not gzip"),
        (lambda packed: packed[:-20], "ends too early"),
        (lambda packed: gzip.compress(b"{}\n{}"), "is no quality model; make one"),
        (
            lambda packed: gzip.compress(gzip.decompress(packed).replace(b"0.65", b"0.66").replace(b"0.8", b"0.9")),
            "damaged",
        ),
        (lambda packed: gzip.compress(gzip.decompress(packed).replace(b'"version":1', b'"version":9')), "version 9"),
        (lambda packed: b"x" * 5_000_001, "5,000,000 at most"),
    ],
)
def test_a_damaged_file_is_refused(spoil: Callable[[bytes], bytes], says: str) -> None:
    packed = dump_quality_model([part()], {})
    with pytest.raises(UserError, match=says):
        parse_quality_model(spoil(packed), "m.json.gz")


def test_other_signals_are_refused() -> None:
    head, content = gzip.decompress(dump_quality_model([part()], {})).split(b"\n", 1)
    other = orjson.dumps({**orjson.loads(content), "signals": ["length"]})
    said = orjson.dumps({**orjson.loads(head), "sha256": hashlib.sha256(other).hexdigest()})
    with pytest.raises(UserError, match="other text signals"):
        parse_quality_model(gzip.compress(said + b"\n" + other))


def test_the_shipped_model_is_whole() -> None:
    packed = files("tieryard.routing").joinpath(DEFAULT_MODEL).read_bytes()
    model = parse_quality_model(packed)
    assert len(model.models) == 11
    assert sum(table["rows"] for table in model.about["tables"]) == 9362
    easy = model.predict("What is 2 + 2?")
    hard = model.predict(r"Let $f(x) = x^3 - 3x + 1$. Find the sum of the squares of its real roots.")
    assert hard.difficulty > easy.difficulty
