"""What measured outcomes say of the learned model: what it had predicted, and whether the rules would have done better.

A prediction is held against the score that the answer got, by squared error (Brier 1950). Both sides are judged on the
same answers, of the deployment that was chosen: learned is its quality on this very prompt, the rules' is its quality
on the category, whatever the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

from tieryard.routing.hurdles import Prospect
from tieryard.routing.job import JobFeatures
from tieryard.routing.outlook import outlooks
from tieryard.routing.snapshot import Snapshot

LEAST_OUTCOMES, MOST_OUTCOMES = 50, 2000
"""How many a verdict stands on."""
SURE = 0.05
"""The learned model is called worse below this p-value."""

_FLIPS = 1999
_BITS = bytes.maketrans(b"01", b"\x00\x01")


class Predicted(NamedTuple):
    """A quality, 0 to 1; `learned` is None where the model had no word on the prompt. `quality_model` is that model's
    hash, None where it is not known."""

    learned: float | None
    rules: float
    quality_model: str | None = None


def predicted_for(deployment: str, job: JobFeatures, snapshot: Snapshot) -> Predicted | None:
    """What was expected of this deployment's answer when the job was decided; None when it was no candidate. Also what
    the learned model expected at a time when the router went by its rules."""
    found = next((o for o in outlooks(snapshot, job.text.category) if o.candidate.name == deployment), None)
    if found is None or found.candidate.tokenizer not in job.prompt_tokens:
        return None
    if job.hardness is None:
        return Predicted(None, found.quality)
    learned = Prospect.of(job, found, learned=True).quality
    return Predicted(learned, found.quality, snapshot.quality_model or None)


class Scored(NamedTuple):
    """An answer's score beside what was expected, all 0 to 1."""

    score: float
    learned: float
    rules: float

    @property
    def loss(self) -> float:
        """How much worse the learned model's squared error is."""
        return (self.learned - self.score) ** 2 - (self.rules - self.score) ** 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of `n` outcomes. Errors are mean squared ones, and `p` is how likely a difference like this, or a larger one, is
    if the learned model is no worse."""

    n: int
    learned_error: float
    rules_error: float
    p: float

    @property
    def contradicts(self) -> bool:
        """Whether the outcomes say that the rules do better."""
        return self.n >= LEAST_OUTCOMES and self.p < SURE

    @property
    def agrees(self) -> bool:
        """Whether there is enough to say that the learned model is no worse."""
        return self.n >= LEAST_OUTCOMES and self.learned_error <= self.rules_error

    def __str__(self) -> str:
        return (
            f"on {self.n:,} outcomes its squared error is {self.learned_error:.3f}, "
            f"the rules' {self.rules_error:.3f} (p = {self.p:.3f})"
        )


def verdict(scored: Sequence[Scored]) -> Verdict:
    """Paired, one-sided test by random sign flips (Fisher 1935): if neither is better, each answer's difference could
    as well have had the other sign. The same outcomes always give the same verdict."""
    n = len(scored)
    if not n:
        return Verdict(0, 0.0, 0.0, 1.0)
    losses = [s.loss for s in scored]
    whole = sum(losses)
    rng = random.Random(n)  # noqa: S311
    # Flipping some signs takes twice their sum away: the flipped total reaches the whole when that sum is at most 0.
    reached = sum(sum(compress(losses, _flips(rng, n))) <= 0 for _ in range(_FLIPS)) if whole > 0 else _FLIPS
    return Verdict(
        n,
        sum((s.learned - s.score) ** 2 for s in scored) / n,
        sum((s.rules - s.score) ** 2 for s in scored) / n,
        (1 + reached) / (1 + _FLIPS),
    )


def _flips(rng: random.Random, n: int) -> bytes:
    """Which signs are flipped: n bytes of 0 or 1."""
    return f"{rng.getrandbits(n):0{n}b}".encode().translate(_BITS)
