"""What is known of a deployment's speed and quality on one category, and how it is known.

A measurement is used while it is fresh, used and named when it is stale, borrowed from the deployment's other
categories when there is none for this one, and assumed from the size class when there is none at all. Each state but
the first is named in every decision that rests on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from tieryard.catalog import SizeClass

_EFFECTIVE = 144.0
"""Samples that an average with a half life of 50 stands on: (1 + k) / (1 - k) for k = 0.5^(1/50)."""
_LEAST_SAMPLES = 30  # before an error rate says anything; until then the circuit breaker watches
_Z = 1.645  # one-sided 95 %
_PRIOR_SCORES = 10  # scores that weigh as much as what was expected before there were any


class Known(StrEnum):
    """How a profile is known."""

    FRESH = "fresh"
    STALE = "stale"
    BORROWED = "borrowed"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Profile:
    """A deployment's measurements on one category; None was never measured. `ttft_ms` and `tpot_ms` (milliseconds an
    output token after the first) are means. `throughput_tps` is one replica's output tokens a second while it was full.
    `output_tokens` is an answer's mean length, `lengths` the same by tier, `error_rate` and `quality_score` are 0 to 1.
    `stale`: older than the catalog allows. `quality_samples` scores make up the quality, None where nobody counted;
    they have a time, and an age, of their own. `benchmark` is the run that measured it last, at `benchmark_timestamp`;
    live traffic has moved it since. `regressed` and `drifted` say that its quality has become worse, or that what
    answers is no longer what was measured."""

    samples: int
    timestamp: float
    ttft_ms: float | None = None
    ttft_p95_ms: float | None = None
    tpot_ms: float | None = None
    tpot_p95_ms: float | None = None
    throughput_tps: float | None = None
    output_tokens: float | None = None
    lengths: dict[str, float] = field(default_factory=dict)
    cost_per_1k: float | None = None
    error_rate: float | None = None
    quality_score: float | None = None
    stale: bool = False
    quality_samples: int | None = None
    quality_timestamp: float = 0.0
    quality_stale: bool = False
    benchmark: str = ""
    benchmark_timestamp: float = 0.0
    regressed: str = ""
    drifted: str = ""

    def surely_errs_above(self, ceiling: float) -> bool:
        """Whether the error rate is above the ceiling beyond chance: by the lower end of Wilson's interval (95 %,
        one-sided; Wilson 1927), over the samples that a decayed average still holds."""
        if self.error_rate is None or self.error_rate <= ceiling or self.samples < _LEAST_SAMPLES:
            return False
        n, p, z2 = min(float(self.samples), _EFFECTIVE), self.error_rate, _Z * _Z
        centre = p + z2 / (2 * n)
        spread = _Z * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
        return bool((centre - spread) / (1 + z2 / n) > ceiling)


@dataclass(frozen=True, slots=True)
class Assumption:
    """What is taken for granted of a size class until it is measured: the upper end of what it usually needs."""

    ttft_p95_ms: float
    tpot_p95_ms: float
    quality: float


ASSUMED: dict[SizeClass, Assumption] = {
    SizeClass.SMALL: Assumption(ttft_p95_ms=300, tpot_p95_ms=20, quality=0.55),
    SizeClass.MEDIUM: Assumption(ttft_p95_ms=1000, tpot_p95_ms=35, quality=0.70),
    SizeClass.LARGE: Assumption(ttft_p95_ms=3000, tpot_p95_ms=60, quality=0.85),
}


def pooled(profiles: Iterable[Profile]) -> Profile | None:
    """Averages over categories, weighted by their samples; None of nothing."""
    found = [p for p in profiles if p.samples > 0]
    if not found:
        return None

    def mean(name: str) -> float | None:
        pairs = [(value, p.samples) for p in found if (value := getattr(p, name)) is not None]
        return sum(v * n for v, n in pairs) / sum(n for _, n in pairs) if pairs else None

    newest = max(found, key=lambda p: p.timestamp)
    return Profile(
        samples=sum(p.samples for p in found),
        timestamp=newest.timestamp,
        ttft_ms=mean("ttft_ms"),
        ttft_p95_ms=mean("ttft_p95_ms"),
        tpot_ms=mean("tpot_ms"),
        tpot_p95_ms=mean("tpot_p95_ms"),
        throughput_tps=mean("throughput_tps"),
        output_tokens=mean("output_tokens"),
        cost_per_1k=mean("cost_per_1k"),
        error_rate=mean("error_rate"),
        stale=newest.stale,
    )


@dataclass(frozen=True, slots=True)
class Rating:
    """A quality, and how it is known: ASSUMED when nobody has scored an answer."""

    quality: float
    known: Known


def rating(own: Profile | None, others: Iterable[Profile], prior: float) -> Rating:
    """Of the scores on this category, else on the others. Few scores move the prior, what is expected without any, only
    so far: the mean of them and of as if `_PRIOR_SCORES` had been just that (an additive, or beta-binomial, prior)."""
    if own is not None and own.quality_score is not None:
        known = Known.STALE if own.quality_stale else Known.FRESH
        return Rating(_shrunk(own.quality_score, own.quality_samples, prior), known)
    rated = [p for p in others if p.quality_score is not None]
    if not rated:
        return Rating(prior, Known.ASSUMED)
    counts = [p.quality_samples or p.samples or 1 for p in rated]
    mean = sum((p.quality_score or 0.0) * n for p, n in zip(rated, counts, strict=True)) / sum(counts)
    counted = all(p.quality_samples is not None for p in rated)
    return Rating(_shrunk(mean, sum(counts) if counted else None, prior), Known.BORROWED)


def _shrunk(score: float, n: int | None, prior: float) -> float:
    return score if n is None else (score * n + prior * _PRIOR_SCORES) / (n + _PRIOR_SCORES)
