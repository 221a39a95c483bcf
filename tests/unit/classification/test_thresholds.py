"""The threshold of a cascade. How often it is wrong: tests/scale/test_threshold_simulations.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.classification.thresholds import ESCALATE_ALL, Sample, calibrate, check_texts, texts_needed
from tieryard.errors import RequestError, UserError

RIGHT, WRONG = True, False
SAMPLES = st.lists(
    st.builds(Sample, st.none() | st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=300
)


def sure_above(cut, n=1000):
    """Right in all texts above a confidence, and in none below."""
    return [Sample(i / n, i / n >= cut, large_right=True) for i in range(n)]


def escalated(samples, found):
    return [s.confidence is None or s.confidence < found.threshold for s in samples]


def test_what_the_cheap_model_knows_is_kept():
    found = calibrate(sure_above(0.4), 0.02)
    assert 0.38 < found.threshold <= 0.45
    assert found.expected_share_escalated == pytest.approx(found.threshold, abs=0.01)
    assert found.accuracy >= 0.98
    assert "a drop of 2.0% is ruled out at 5%" in found.said


def test_a_cheap_model_that_is_always_right_keeps_everything():
    found = calibrate([Sample(0.5, RIGHT, RIGHT)] * 200, 0.02)
    assert (found.threshold, found.expected_share_escalated, found.accuracy) == (0.0, 0.0, 1.0)


def test_one_that_never_is_keeps_nothing():
    found = calibrate([Sample(i / 500, WRONG, RIGHT) for i in range(500)], 0.02)
    assert (found.threshold, found.expected_share_escalated, found.accuracy) == (ESCALATE_ALL, 1.0, 1.0)
    assert "no threshold is shown" in found.said


def test_too_small_a_sample_says_so():
    found = calibrate([Sample(0.9, RIGHT, RIGHT)] * 179, 0.02)
    assert found.threshold == ESCALATE_ALL
    assert "take 180 or more" in found.said
    assert calibrate([Sample(0.9, RIGHT, RIGHT)] * 180, 0.02).threshold == 0
    with pytest.raises(RequestError, match="take 180 or more"):
        check_texts(179, 0.02)
    check_texts(180, 0.02)
    assert texts_needed(0.05) == 70


def test_without_a_confidence_a_text_is_escalated():
    found = calibrate([Sample(None, RIGHT, RIGHT)] * 300, 0.02)
    assert found.expected_share_escalated == 1.0
    half = calibrate([Sample(None, RIGHT, RIGHT)] * 150 + [Sample(0.7, RIGHT, RIGHT)] * 150, 0.02)
    assert (half.threshold, half.expected_share_escalated) == (0.0, 0.5)


def test_texts_that_are_equally_sure_go_together():
    samples = [Sample(0.9, RIGHT, RIGHT)] * 100 + [Sample(0.5, WRONG, RIGHT)] * 100
    found = calibrate(samples, 0.05)
    assert found.threshold == 0.9
    assert found.expected_share_escalated == 0.5


@pytest.mark.parametrize("drop", [0, 1, -0.1, float("nan")])
def test_a_drop_that_is_none(drop):
    with pytest.raises(UserError, match="max_drop"):
        calibrate([Sample(0.5, RIGHT, RIGHT)], drop)


def test_nothing_to_go_by():
    with pytest.raises(UserError, match="no text"):
        calibrate([], 0.02)


@given(SAMPLES, st.floats(0.01, 0.5))
def test_a_calibration_is_what_it_says(samples, drop):
    found = calibrate(samples, drop)
    ups = escalated(samples, found)
    assert found.expected_share_escalated == pytest.approx(sum(ups) / len(samples))
    right = sum(s.large_right if up else s.cheap_right for s, up in zip(samples, ups, strict=True))
    assert found.accuracy == pytest.approx(right / len(samples))
    large = sum(s.large_right for s in samples)
    assert right >= large - drop * len(samples) - 1e-9


@given(SAMPLES, st.randoms())
def test_the_order_of_texts_does_not_matter(samples, chance):
    shuffled = samples.copy()
    chance.shuffle(shuffled)
    assert calibrate(samples, 0.1) == calibrate(shuffled, 0.1)
