"""What the router is told of candidates: where they are promoted, and which share of the serving one's jobs they take.

Both hold for just the build that was measured. Whoever decides by another one decides as if there were none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from tieryard.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Promotion:
    """Categories in which a candidate takes jobs beside the serving deployment; `build` is `Deployment.build`."""

    candidate: str
    serving: str
    build: str
    categories: frozenset[str]

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        return cls(**{**stored, "categories": frozenset(stored["categories"])})


@dataclass(frozen=True, slots=True)
class Canary:
    """A candidate that takes a share (0 to 1) of the serving deployment's jobs; `categories` None: in all."""

    candidate: str
    serving: str
    build: str
    share: float
    categories: frozenset[str] | None = None

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        categories = stored["categories"]
        return cls(**{**stored, "categories": None if categories is None else frozenset(categories)})

    @property
    def watched(self) -> float:
        """The share of the jobs that count: the candidate's, and as many of the serving one's to compare them with."""
        return min(1.0, 2 * self.share)


@dataclass(frozen=True, slots=True)
class Trials:
    """All that is in force."""

    promotions: tuple[Promotion, ...] = ()
    canaries: tuple[Canary, ...] = ()

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        return cls(
            tuple(map(Promotion.from_dict, stored["promotions"])), tuple(map(Canary.from_dict, stored["canaries"]))
        )

    def holding(self, catalog: Catalog) -> Trials:
        """Those that hold under this catalog: it has the candidate as it was measured, beside the same deployment."""

        def holds(trial: Promotion | Canary) -> bool:
            known = catalog.deployments.get(trial.candidate)
            return known is not None and known.candidate_of == trial.serving and known.build == trial.build

        return Trials(tuple(filter(holds, self.promotions)), tuple(filter(holds, self.canaries)))

    def promoted(self, candidate: str, category: str) -> bool:
        return any(p.candidate == candidate and category in p.categories for p in self.promotions)

    def share(self, candidate: str, category: str) -> float:
        """Of the serving deployment's jobs of this category, what canaries give the candidate."""
        mine = (c for c in self.canaries if c.candidate == candidate)
        return sum(c.share for c in mine if c.categories is None or category in c.categories)


NO_TRIALS = Trials()


def drawn(canaries: Iterable[Canary], serving: str, category: str, chance: float) -> tuple[Canary, bool] | None:
    """The canary that a job of the serving deployment counts for, by its own chance (0 to 1), and whether its candidate
    takes it; None where it counts for none. Several share the jobs out between them."""
    for canary in canaries:
        if canary.serving == serving and (canary.categories is None or category in canary.categories):
            if chance < canary.watched:
                return canary, chance < canary.share
            chance -= canary.watched
    return None
