"""Whether a canary does worse than what it stands beside, looked at again and again while it runs.

Jobs are dealt to both sides by chance, so what differs is the model's doing. Four measures are compared: errors, misses
of the SLO, the 95th percentile of latency, and pass rates of scores; each by Fisher's exact test (1935), one-sided. A
breach is a difference that is shown *and* greater than what the catalog allows.

Looking often would sooner or later find something where there is nothing. So the chance of a false alarm, alpha, is
dealt out beforehand: look k may use alpha ÷ (k (k + 1)), which adds up to alpha over any number of looks, and its tests
share that alike (Bonferroni). A look is due when there is half as much again as at the last one, so a grave fault is
seen after a few jobs and a slight one after many, and no look is spent on what was seen already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

FEWEST = 10
"""Starts of each side before the first look."""

SLOWER = 1.2
"""So much slower, at the 95th percentile, a candidate may be."""

_GROWTH = 0.5
_MAY_MISS = 0.05  # a tier's SLO bounds the 95th percentile
_MEASURES = 4


@dataclass(frozen=True, slots=True)
class Side:
    """What became of one side's jobs. `latencies_ms` are of those that succeeded, `missed` of them missed their tier's
    SLO; of `scored` answers `passed` reached the pass mark."""

    n: int
    failed: int
    missed: int
    latencies_ms: list[float] = field(repr=False)
    scored: int = 0
    passed: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the catalog allows a candidate: an error rate, and a drop in pass rate. `alpha` is the chance of a false
    alarm over the whole canary."""

    max_error_rate: float
    allowed_drop: float
    alpha: float = 0.05


@dataclass(frozen=True, slots=True)
class Measure:
    """Bad ones of all, on each side; `p` that the candidate's are no more likely. `beyond`: more than is allowed."""

    name: str
    candidate: tuple[int, int]
    serving: tuple[int, int]
    p: float
    beyond: bool
    said: str = ""

    def breaches(self, alpha: float) -> bool:
        return self.beyond and self.p <= alpha


@dataclass(frozen=True, slots=True)
class Look:
    """The k-th look, from 1 on, at what each measure says. `alpha` is what each of them may use."""

    number: int
    alpha: float
    measures: tuple[Measure, ...]

    @property
    def breach(self) -> str:
        """Why it must not go on; empty when it may."""
        return "; ".join(m.said for m in self.measures if m.breaches(self.alpha))

    def report(self) -> dict[str, Any]:
        """As JSON."""
        measures = {
            m.name: {"candidate": list(m.candidate), "serving": list(m.serving), "p": m.p} for m in self.measures
        }
        return {"look": self.number, "alpha": self.alpha, "measures": measures}


def is_due(seen: int, new: int, other: int) -> bool:
    """Whether there is enough for another look: `seen` of the candidate's starts were there at the last one, `new` have
    come since, and of the other side there are `other`."""
    return min(seen + new, other) >= FEWEST and new >= max(1, _GROWTH * seen)


def look(number: int, candidate: Side, serving: Side, limits: Limits) -> Look:
    """The `number`-th one."""
    alpha = limits.alpha / (number * (number + 1) * _MEASURES)
    return Look(number, alpha, tuple(_measures(candidate, serving, limits)))


def _measures(candidate: Side, serving: Side, limits: Limits) -> Iterator[Measure]:
    errors = (candidate.failed, candidate.n), (serving.failed, serving.n)
    yield _measure("errors", *errors, "of its starts fail", limits.max_error_rate)
    ran = len(candidate.latencies_ms), len(serving.latencies_ms)
    misses = (candidate.missed, ran[0]), (serving.missed, ran[1])
    yield _measure("slo_misses", *misses, "of its answers miss their SLO", _MAY_MISS)
    yield _slower(candidate, serving)
    failing = (candidate.scored - candidate.passed, candidate.scored), (serving.scored - serving.passed, serving.scored)
    allowed = _share(failing[1]) + limits.allowed_drop
    yield _measure("scores", *failing, "of its scored answers do not pass", allowed)


def _measure(name: str, candidate: tuple[int, int], serving: tuple[int, int], what: str, allowed: float) -> Measure:
    p = worse_p(*candidate, *serving)
    shares = f"{_share(candidate):.1%} of {candidate[1]} {what}"
    against = f"{_share(serving):.1%} of {serving[1]} where it stands beside"
    return Measure(name, candidate, serving, p, _share(candidate) > allowed, f"{shares}, {against} (p {p:.2g})")


def _slower(candidate: Side, serving: Side) -> Measure:
    """Of all latencies together, the serving side's taken for as slow as is allowed, a twentieth is above their 95th
    percentile: too many of these must not be the candidate's."""
    ours, theirs = candidate.latencies_ms, [SLOWER * ms for ms in serving.latencies_ms]
    if not ours or not theirs:
        return Measure("latency_p95", (0, len(ours)), (0, len(theirs)), 1.0, beyond=False)
    bar, own, allowed = _p95([*ours, *theirs]), _p95(ours), _p95(theirs)
    above = (sum(ms > bar for ms in ours), len(ours)), (sum(ms > bar for ms in theirs), len(theirs))
    p = worse_p(*above[0], *above[1])
    said = f"its p95 of latency is {own:,.0f} ms, {allowed / SLOWER:,.0f} ms where it stands beside (p {p:.2g})"
    return Measure("latency_p95", *above, p, own > allowed, said)


def _p95(values: list[float]) -> float:
    """Interpolated, as `Spread` does."""
    ranked = sorted(values)
    rest, whole = math.modf(0.95 * (len(ranked) - 1))
    low, high = ranked[int(whole)], ranked[min(int(whole) + 1, len(ranked) - 1)]
    return low + rest * (high - low)


@lru_cache(maxsize=4096)
def worse_p(bad: int, n: int, other_bad: int, other_n: int) -> float:
    """p of the claim that `bad` of `n` is no more likely than `other_bad` of `other_n`: Fisher's exact test."""
    all_bad = bad + other_bad
    if not bad:
        return 1.0

    def chance(of_ours: int) -> float:
        """That so many of all bad ones are ours: hypergeometric."""
        ways = _ln_choose(n, of_ours) + _ln_choose(other_n, all_bad - of_ours)
        return math.exp(ways - _ln_choose(n + other_n, all_bad))

    return min(1.0, math.fsum(chance(k) for k in range(max(bad, all_bad - other_n), min(n, all_bad) + 1)))


def _ln_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _share(of: tuple[int, int]) -> float:
    return of[0] / of[1] if of[1] else 0.0
