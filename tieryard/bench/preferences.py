"""What a judge's preferences say: how often each of two models wins, and how far the judge can be trusted.

Each pair of answers is judged twice, in both orders. A win is what both orders agree on; where they do not, it is a tie
(Zheng et al. 2023, "Judging LLM-as-a-Judge", section 3.4): a judge that goes by the place then finds no winner at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tieryard.bench.stats import Interval, Preference, SwapConsistency, mcnemar_exact, swap_consistency, wilson

ALPHA = 0.05
TRUSTED = 0.7
"""Below this swap consistency the judge's verdicts hang more on the places than on the answers."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair: the winner with answer a shown first, and with b shown first; None where there was no verdict."""

    category: str
    forward: Preference | None
    swapped: Preference | None


@dataclass(frozen=True, slots=True)
class Tally:
    """Of `pairs`, `judged` have a verdict in both orders: the rest count nowhere. `a` and `b` are shares of wins among
    the judged with Wilson's 95 % intervals, `p` that of the exact two-sided sign test of wins; all None where nothing
    was judged."""

    pairs: int
    judged: int
    wins_a: int
    wins_b: int
    ties: int
    a: Interval | None
    b: Interval | None
    p: float | None
    swaps: SwapConsistency | None

    @property
    def better(self) -> Preference:
        """`a` or `b` where one is shown to win more often, else `tie`."""
        if self.p is None or self.p > ALPHA:
            return "tie"
        return "a" if self.wins_a > self.wins_b else "b"


def tally(pairs: Iterable[Judged]) -> Tally:
    given = list(pairs)
    both = [(pair.forward, pair.swapped) for pair in given if pair.forward is not None and pair.swapped is not None]
    wins_a, wins_b, n = both.count(("a", "a")), both.count(("b", "b")), len(both)
    if n == 0:
        return Tally(len(given), 0, 0, 0, 0, None, None, None, None)
    return Tally(
        pairs=len(given),
        judged=n,
        wins_a=wins_a,
        wins_b=wins_b,
        ties=n - wins_a - wins_b,
        a=wilson(wins_a, n),
        b=wilson(wins_b, n),
        p=mcnemar_exact(better=wins_b, worse=wins_a).two_sided,
        swaps=swap_consistency([forward for forward, _ in both], [swapped for _, swapped in both]),
    )


def by_category(pairs: Sequence[Judged]) -> dict[str, Tally]:
    """Sorted by category."""
    names = sorted({pair.category for pair in pairs})
    return {name: tally(pair for pair in pairs if pair.category == name) for name in names}


def sentences(found: Tally, a: str, b: str) -> list[str]:
    """What may be said of it; `a` and `b` are names for people."""
    if found.swaps is None:
        return [f"none of {found.pairs} pairs has a verdict in both orders: nothing can be said"]
    said = []
    if found.better == "tie":
        said.append(f"neither is shown to be better: {found.wins_a} to {found.wins_b} wins, p {found.p:.2g}")
    else:
        winner, wins, other = (
            (a, found.wins_a, found.wins_b) if found.better == "a" else (b, found.wins_b, found.wins_a)
        )
        said.append(f"{winner} is better: {wins} to {other} wins, p {found.p:.2g}")
    if (unread := found.pairs - found.judged) > 0:
        said.append(f"{unread} of {found.pairs} pairs have no verdict in both orders and count nowhere")
    swaps = found.swaps
    if swaps.consistent.value < TRUSTED:
        by_place = swaps.prefers_first + swaps.prefers_second
        said.append(
            f"the judge named the same winner in both orders for only {swaps.consistent.value:.0%} of the pairs, and "
            f"went by the place in {by_place} ({swaps.prefers_first} for the first): do not rest on it"
        )
    return said
