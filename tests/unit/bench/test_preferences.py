"""Preferences: who wins, that a judge who goes by the place finds no winner, and what is said of it."""

from __future__ import annotations

from tieryard.bench.preferences import Judged, by_category, sentences, tally
from tieryard.bench.stats import Preference, wilson


def judged(forward: Preference | None, swapped: Preference | None, n: int = 1, category: str = "chat") -> list[Judged]:
    return [Judged(category, forward, swapped)] * n


def test_a_win_is_what_both_orders_agree_on() -> None:
    found = tally(
        [*judged("a", "a", 8), *judged("b", "b", 2), *judged("tie", "tie"), *judged("a", "tie"), *judged("a", "b")]
    )
    assert (found.pairs, found.judged, found.wins_a, found.wins_b, found.ties) == (13, 13, 8, 2, 3)
    assert found.a == wilson(8, 13)
    assert found.b == wilson(2, 13)
    assert found.swaps is not None
    assert found.swaps.consistent.value == 11 / 13


def test_one_that_wins_often_enough_is_better() -> None:
    assert tally([*judged("a", "a", 8), *judged("b", "b", 2)]).better == "tie"  # p 0.11
    assert tally([*judged("a", "a", 18), *judged("b", "b", 5)]).better == "a"
    assert tally([*judged("a", "a", 5), *judged("b", "b", 18)]).better == "b"


def test_a_judge_that_goes_by_the_place_finds_no_winner() -> None:
    found = tally(judged("a", "b", 40))
    assert (found.wins_a, found.wins_b, found.ties, found.better) == (0, 0, 40, "tie")
    assert found.swaps is not None
    assert found.swaps.consistent.value == 0
    assert found.swaps.prefers_first == 40
    assert "only 0% of the pairs, and went by the place in 40 (40 for the first)" in sentences(found, "a", "b")[-1]


def test_pairs_without_both_verdicts_count_nowhere() -> None:
    found = tally([*judged("a", "a", 3), *judged(None, "a"), *judged("b", None)])
    assert (found.pairs, found.judged, found.wins_a, found.wins_b) == (5, 3, 3, 0)
    assert "2 of 5 pairs have no verdict in both orders" in " ".join(sentences(found, "a", "b"))


def test_nothing_judged_says_nothing() -> None:
    found = tally(judged(None, "a", 4))
    assert (found.pairs, found.judged, found.a, found.p, found.swaps, found.better) == (4, 0, None, None, None, "tie")
    assert sentences(found, "a", "b") == ["none of 4 pairs has a verdict in both orders: nothing can be said"]


def test_categories_stand_apart() -> None:
    found = by_category([*judged("b", "b", 2, "code"), *judged("a", "a", 3, "chat")])
    assert list(found) == ["chat", "code"]
    assert (found["chat"].wins_a, found["code"].wins_b) == (3, 2)


def test_a_winner_is_named() -> None:
    said = sentences(tally([*judged("b", "b", 18), *judged("a", "a", 2)]), "one", "two")
    assert said == ["two is better: 18 to 2 wins, p 0.0004"]
