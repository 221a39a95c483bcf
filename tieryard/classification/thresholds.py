"""The threshold of a cascade: the confidence below which a text is asked again, of the larger model.

The lowest-cost one is the lowest that is *shown* to lose no more than is allowed beside asking the larger model always.
Thresholds are tried from the highest down, one for each twentieth of the sample, and the first that is not shown to
hold ends the search. Tested in an order that was fixed beforehand, each at 5 %, all that held hold together at 5 %
(Wiens 2003, Pharm Stat 2:211): no correction is due for how many were tried. Each test is `drop_p`, Tango's score
test of a paired drop, over the whole sample: rows that are escalated cannot have lost anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tieryard.bench.stats import drop_p
from tieryard.errors import RequestError, UserError

ESCALATE_ALL = 2.0
"""A threshold above every confidence."""
ALPHA = 0.05
_STEPS = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One text that both models answered. Without a confidence it is always escalated."""

    confidence: float | None
    cheap_right: bool
    large_right: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """Texts whose confidence is below `threshold`, or unknown, are escalated: none at 0, all at ESCALATE_ALL.
    `accuracy` is the cascade's in the sample; `said` is a sentence for people."""

    threshold: float
    expected_share_escalated: float
    accuracy: float
    said: str


def calibrate(samples: Sequence[Sample], max_drop: float) -> Calibration:
    """The lowest threshold that keeps the cascade's accuracy within `max_drop` (0–1) of the larger model's. Where the
    sample is too small to show it, or no threshold holds, everything is escalated, and `said` says why.
    Raises UserError for no samples, and for a drop that is not between 0 and 1."""
    if not samples:
        raise UserError("there is no text that both models have answered", param="calibrate")
    if not 0 < max_drop < 1:
        raise UserError(f"is {max_drop:g}, which must lie between 0 and 1", param="max_drop")
    n = len(samples)
    large = sum(sample.large_right for sample in samples) / n
    if drop_p(0, 0, n, max_drop) > ALPHA:
        needed = texts_needed(max_drop)
        said = (
            f"a sample of {n} cannot show a drop of less than {max_drop:.1%}, even where no answer differs: take"
            f" {needed} or more; every text is escalated"
        )
        return Calibration(ESCALATE_ALL, 1.0, large, said)
    found = _lowest(samples, max_drop)
    if found is None:
        said = (
            f"no threshold is shown to keep within {max_drop:.1%} of the larger model's {large:.1%} on {n} texts:"
            " every text is escalated"
        )
        return Calibration(ESCALATE_ALL, 1.0, large, said)
    escalated = [sample.confidence is None or sample.confidence < found for sample in samples]
    right = sum(s.large_right if up else s.cheap_right for s, up in zip(samples, escalated, strict=True))
    share = sum(escalated) / n
    said = (
        f"below {found:.4g}, {share:.1%} of {n} texts, the larger model is asked: {right / n:.1%} right, beside"
        f" {large:.1%} of the larger model alone; a drop of {max_drop:.1%} is ruled out at {ALPHA:.0%}"
    )
    return Calibration(found, share, right / n, said)


@lru_cache(maxsize=64)
def texts_needed(max_drop: float) -> int:
    """The fewest texts that can show so small a drop, where no answer differs."""
    low, high = 1, 2
    while drop_p(0, 0, high, max_drop) > ALPHA:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if drop_p(0, 0, middle, max_drop) <= ALPHA else (middle, high)
    return high


def check_texts(texts: int, max_drop: float) -> None:
    """Raises RequestError where so few could never show so small a drop."""
    if texts < (needed := texts_needed(max_drop)):
        raise RequestError(
            f"{texts} texts cannot show a drop of less than {max_drop:g}, even if no answer differs; take {needed} or"
            " more",
            param="escalate.calibrate.rows",
        )


def _lowest(samples: Sequence[Sample], max_drop: float) -> float | None:
    known = sorted((s for s in samples if s.confidence is not None), key=lambda s: -(s.confidence or 0.0))
    if not known:
        return None
    # By kept texts, surest first: how many of them only one of both has right.
    better = np.cumsum([s.cheap_right and not s.large_right for s in known])
    worse = np.cumsum([s.large_right and not s.cheap_right for s in known])
    found = None
    for step in range(1, _STEPS + 1):
        kept = _whole_ties(known, math.ceil(len(known) * step / _STEPS))
        if drop_p(int(better[kept - 1]), int(worse[kept - 1]), len(samples), max_drop) > ALPHA:
            break
        found = known[kept - 1].confidence if kept < len(known) else 0.0
    return found


def _whole_ties(known: Sequence[Sample], kept: int) -> int:
    """As many as are kept with a threshold that keeps these: equals go together."""
    while kept < len(known) and known[kept].confidence == known[kept - 1].confidence:
        kept += 1
    return kept
