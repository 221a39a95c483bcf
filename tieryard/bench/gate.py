"""The gate: may a candidate take the place of what serves? Scores of both on the same items in, a verdict out.

Per category, one of three outcomes:

- *accepted*: shown not worse than the allowed drop, in pass rate (`drop_p`) and in mean score (bootstrap), each at
  alpha; both must hold, so no correction is due. Where a floor is set, the mean score is shown to be above it too.
- *worse*: shown to be worse at all, in pass rate (McNemar's exact test) or in mean score (bootstrap, which thrown
  signs must bear out), or to be below its floor; at alpha for all tests of all categories together (Holm). What is
  shown to stay within the allowed drop is accepted even so.
- *unproven*: neither.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from tieryard.bench import PASS_MARK as PASS_MARK
from tieryard.bench.stats import (
    Floats,
    Interval,
    Resampled,
    drop_p,
    holm,
    items_to_accept,
    mcnemar_exact,
    rate_difference,
    resample,
    sign_flip,
    wilson,
)
from tieryard.errors import UserError

FEWEST = 30  # below so many items, nothing is concluded from scores


class Outcome(StrEnum):
    """Of a category, and of a whole comparison."""

    ACCEPTED = "accepted"
    WORSE = "worse"
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class Paired:
    """One item, answered by both. A score, 0 to 1, is None where that side gave no answer, and then it is refused."""

    item_id: str
    category: str
    serving_score: float | None
    candidate_score: float | None


class Scores(NamedTuple):
    """Scores of the same items, in the same order: both (n,)."""

    serving: Floats
    candidate: Floats


@dataclass(frozen=True, slots=True)
class Rule:
    """What a gate asks for. `allowed_drop` is of pass rates and of mean scores (0.05: five points); `floors` are mean
    scores by category; `power` is that with which `items_needed` items show that an equal candidate is as good.
    """

    allowed_drop: float
    pass_mark: float = PASS_MARK
    alpha: float = 0.05
    power: float = 0.8
    floors: Mapping[str, float] = field(default_factory=dict)
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("allowed_drop", 0, 1), ("pass_mark", 0, 1), ("alpha", 0, 0.5), ("power", 0, 1)):
            given = getattr(self, name)
            if not (low < given < high or (given == 0 and name == "allowed_drop")):
                raise UserError(f"is {given:g}, which must lie between {low:g} and {high:g}", param=name)
        for category, floor in self.floors.items():
            if not 0 <= floor <= 1:
                raise UserError(f"is {floor:g}, which is not from 0 to 1", param=f"floor of {category}")


@dataclass(frozen=True, slots=True)
class CategoryVerdict:
    """Of one category. Differences are candidate − serving, their intervals two-sided at 1 − alpha; `*_at_least` are
    the one-sided bounds on which acceptance rests. `p_mcnemar` is two-sided; `p_worse` is the smallest of the p-values
    of being worse, corrected for all tests of all categories. `items_needed`: so many accept an equal candidate, in all
    categories together, with the rule's power; None where no number would do.
    """

    category: str
    outcome: Outcome
    n: int
    better: int
    worse: int
    serving_rate: Interval
    candidate_rate: Interval
    rate_difference: Interval
    rate_at_least: float
    serving_score: float
    candidate_score: float
    score_difference: Interval
    score_at_least: float
    floor: float | None
    p_mcnemar: float
    p_worse: float
    items_needed: int | None
    sentence: str = ""

    @property
    def more_needed(self) -> int | None:
        return None if self.items_needed is None else max(0, self.items_needed - self.n)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accepted if every category is, worse if any category is, else unproven."""

    outcome: Outcome
    categories: tuple[CategoryVerdict, ...]
    rule: Rule
    sentence: str


def judge_gate(
    pairs: Iterable[Paired],
    *,
    allowed_drop: float,
    pass_mark: float = PASS_MARK,
    alpha: float = 0.05,
    power: float = 0.8,
    floors: Mapping[str, float] | None = None,
    categories: Collection[str] = (),
) -> Verdict:
    """Compares a candidate with what serves, item by item. `categories` are those that must be among the items.

    Raises UserError, with the item or the category, for a missing score, one that is no number from 0 to 1, an item
    that stands twice, and a category without items.
    """
    rule = Rule(allowed_drop, pass_mark, alpha, power, dict(floors or {}))
    return judge_scores(_by_category(pairs, {*categories, *rule.floors}), rule)


def judge_scores(scores: Mapping[str, Scores], rule: Rule) -> Verdict:
    """`judge_gate` for scores that are checked and in columns already. The same scores give the same verdict."""
    measured = [_measure(category, scores[category], rule) for category in sorted(scores)]
    adjusted = iter(holm([p for one in measured for p in one.p_values]))
    p_worse = [min([next(adjusted) for _ in one.p_values]) for one in measured]
    # All categories are to be accepted together with the stated power.
    each = rule.power ** (1 / len(measured))
    verdicts = tuple(_conclude(one, p, rule, each) for one, p in zip(measured, p_worse, strict=True))
    outcome = _overall([one.outcome for one in verdicts])
    return Verdict(outcome, verdicts, rule, _overall_sentence(outcome, verdicts))


def _by_category(pairs: Iterable[Paired], expected: Collection[str]) -> dict[str, Scores]:
    found: dict[str, list[tuple[float, float]]] = {}
    seen: set[str] = set()
    for pair in pairs:
        if pair.item_id in seen:
            raise UserError("stands twice: one score of each side for one item", param=f"item {pair.item_id}")
        seen.add(pair.item_id)
        if not pair.category.strip():
            raise UserError("has no category", param=f"item {pair.item_id}")
        both = _checked(pair, "serving", pair.serving_score), _checked(pair, "candidate", pair.candidate_score)
        found.setdefault(pair.category, []).append(both)
    empty = sorted(set(expected) - found.keys())
    if empty or not found:
        raise UserError("has no items", param=f"category {empty[0]}" if empty else "pairs")
    return {category: Scores(*np.array(both, dtype=np.float64).T) for category, both in found.items()}


def _checked(pair: Paired, side: str, score: float | None) -> float:
    if score is None:
        raise UserError(f"has no score of the {side} one: run it on the same items", param=f"item {pair.item_id}")
    if not 0 <= score <= 1:  # NaN too
        raise UserError(f"has a {side} score of {score:g}, which is not from 0 to 1", param=f"item {pair.item_id}")
    return score


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the items of a category say, before anything is concluded."""

    category: str
    scores: Scores
    serving_passes: int
    candidate_passes: int
    better: int
    worse: int
    difference: Resampled
    p_values: list[float]  # of being worse: in pass rate, in mean score, and against the floor if there is one
    floor_p: float  # of being above the floor: 0 where there is none

    @property
    def n(self) -> int:
        return len(self.scores.serving)


def _measure(category: str, scores: Scores, rule: Rule) -> _Measured:
    before, after = (side >= rule.pass_mark for side in scores)
    better, worse = int((after & ~before).sum()), int((before & ~after).sum())
    n = len(before)
    if n < 2:
        raise UserError("has one item only", param=f"category {category}")
    differences = scores.candidate - scores.serving
    difference = resample(differences, resamples=rule.resamples, seed=rule.seed)
    enough = n >= FEWEST
    score_p = difference.p_below(0) if enough else 1.0
    if score_p <= rule.alpha:
        score_p = max(score_p, sign_flip(differences, resamples=rule.resamples, seed=rule.seed))
    p_values = [mcnemar_exact(better, worse).worse, score_p]
    floor, floor_p = rule.floors.get(category), 0.0
    if floor is not None:
        level = resample(scores.candidate, resamples=rule.resamples, seed=rule.seed)
        p_values.append(level.p_below(floor) if enough else 1.0)
        floor_p = level.p_above(floor) if enough else 1.0
    passes = int(before.sum()), int(after.sum())
    return _Measured(category, scores, *passes, better, worse, difference, p_values, floor_p)


def _accepted(one: _Measured, rule: Rule) -> bool:
    if rule.allowed_drop == 0:
        rate_p = mcnemar_exact(one.worse, one.better).worse  # nothing may be lost: the candidate must be shown better
    else:
        rate_p = drop_p(one.better, one.worse, one.n, rule.allowed_drop)
    score_p = one.difference.p_above(-rule.allowed_drop)
    return one.n >= FEWEST and max(rate_p, score_p, one.floor_p) <= rule.alpha


def rate_power(power: float) -> float:
    """The power to ask of pass rates so that the whole has `power`: seldom, mean scores do not hold where they do."""
    return 1 - 0.98 * (1 - power)


def _items_needed(one: _Measured, rule: Rule, power: float) -> int | None:
    """How many items accept an equal candidate, at the discordance and the spread of scores seen here."""
    if rule.allowed_drop == 0:
        return None
    rates = items_to_accept(rule.allowed_drop, (one.better + one.worse) / one.n, rate_power(power), rule.alpha)
    spread = float((one.scores.candidate - one.scores.serving).std(ddof=1))
    reach = float(ndtri(1 - rule.alpha) + ndtri(power))
    return max(FEWEST, rates, math.ceil((reach * spread / rule.allowed_drop) ** 2))


def _conclude(one: _Measured, p_worse: float, rule: Rule, power: float) -> CategoryVerdict:
    short_of = Outcome.WORSE if p_worse <= rule.alpha else Outcome.UNPROVEN
    outcome = Outcome.ACCEPTED if _accepted(one, rule) else short_of
    concluded = CategoryVerdict(
        category=one.category,
        outcome=outcome,
        n=one.n,
        better=one.better,
        worse=one.worse,
        serving_rate=wilson(one.serving_passes, one.n),
        candidate_rate=wilson(one.candidate_passes, one.n),
        rate_difference=rate_difference(one.better, one.worse, one.n, 1 - rule.alpha),
        rate_at_least=rate_difference(one.better, one.worse, one.n, 1 - 2 * rule.alpha).low,
        serving_score=float(one.scores.serving.mean()),
        candidate_score=float(one.scores.candidate.mean()),
        score_difference=one.difference.interval(1 - rule.alpha),
        score_at_least=one.difference.bound(rule.alpha),
        floor=rule.floors.get(one.category),
        p_mcnemar=mcnemar_exact(one.better, one.worse).two_sided,
        p_worse=p_worse,
        items_needed=_items_needed(one, rule, power),
    )
    return replace(concluded, sentence=_sentence(concluded, rule))


def _overall(outcomes: Sequence[Outcome]) -> Outcome:
    if Outcome.WORSE in outcomes:
        return Outcome.WORSE
    return Outcome.UNPROVEN if Outcome.UNPROVEN in outcomes else Outcome.ACCEPTED


def _sentence(of: CategoryVerdict, rule: Rule) -> str:
    rates = f"{of.candidate_rate.value:.1%} pass against {of.serving_rate.value:.1%} of {of.n} items"
    told = f"{of.category}: {of.outcome}: {rates}; "
    match of.outcome:
        case Outcome.ACCEPTED:
            told += f"a drop of {_points(rule.allowed_drop)} points is ruled out: at most {_drops(of)}"
            return told + (", which is shown to be a drop, and an allowed one" if of.p_worse <= rule.alpha else "")
        case Outcome.WORSE:
            rate, score = _span(of.rate_difference), _span(of.score_difference)
            told += f"pass rate {rate} points, mean score {score} points, p {of.p_worse:.2g} with all tests counted"
            return told + _floor(of, "is below")
        case Outcome.UNPROVEN:
            told += f"it may have dropped by {_drops(of)}, where less than {_points(rule.allowed_drop)} is allowed"
            return told + _floor(of, "is not shown to be above") + _more(of, rule)


def _more(of: CategoryVerdict, rule: Rule) -> str:
    if of.items_needed is None:
        return "; as nothing may be lost, only a candidate that is shown to be better is accepted"
    if of.more_needed:
        return f"; an equal candidate needs {of.items_needed} items to be accepted, {of.more_needed} more"
    return f"; an equal candidate is accepted on {of.items_needed} items with a power of {rule.power:.0%}"


def _floor(of: CategoryVerdict, stands: str) -> str:
    if of.floor is None:
        return ""
    return f"; the mean score of {of.candidate_score:.3f} {stands} the floor of {of.floor:g}"


def _drops(of: CategoryVerdict) -> str:
    return f"{_points(-of.rate_at_least)} points of pass rate and {_points(-of.score_at_least)} of mean score"


def _points(share: float) -> str:
    return f"{100 * max(share, 0.0) + 0.0:.1f}".removesuffix(".0")  # a negative zero would be written as one


def _span(of: Interval) -> str:
    return f"{100 * of.value:+.1f} ({100 * of.low:+.1f} to {100 * of.high:+.1f})"


def _overall_sentence(outcome: Outcome, verdicts: Sequence[CategoryVerdict]) -> str:
    of = [one.category for one in verdicts if one.outcome is outcome]
    match outcome:
        case Outcome.ACCEPTED:
            return f"accepted: shown not worse than allowed in every category ({', '.join(of)})"
        case Outcome.WORSE:
            return f"worse: shown to be worse in {', '.join(of)}"
        case Outcome.UNPROVEN:
            return f"unproven: not shown to be as good in {', '.join(of)}, nor to be worse in any category"
