"""Holds what was posted against what was rented: each closed window to its rent, and all of them to the bill.

The rent is computed here, not by the statement that closed the window, so that a fault of either shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from tieryard.costs.windows import Kind, rent_usd

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class WindowSum:
    """A rent window and what was posted to it, by kind, as of a moment."""

    id: int
    deployment: str | None
    place: str
    started_at: datetime
    stopped_at: datetime | None
    closed_at: datetime | None
    usd_per_hour: Decimal
    as_of: datetime
    by_kind: dict[Kind, Decimal] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        return self.closed_at is not None

    @property
    def rent_usd(self) -> Decimal:
        """Until it stopped, or by now."""
        return rent_usd(self.usd_per_hour, self.started_at, max(self.stopped_at or self.as_of, self.started_at))

    @property
    def posted_usd(self) -> Decimal:
        return sum(self.by_kind.values(), _NOTHING)

    @property
    def difference_usd(self) -> Decimal:
        """Posted − rent: 0 once it is closed, and else what is still to be posted, below zero."""
        return self.posted_usd - self.rent_usd


@dataclass(frozen=True, slots=True)
class Unheard:
    """Work of a rented deployment that was posted without a window while one stood: charged by the token, though its
    time is in the window's idle share."""

    deployment: str
    postings: int
    cost_usd: Decimal


@dataclass(frozen=True, slots=True)
class Books:
    """What reconciling needs, all of one moment: windows, what has none, jobs that were charged twice, windows that
    rows name and that do not exist, and what was posted beside windows."""

    windows: list[WindowSum]
    windowless: dict[Kind, Decimal]
    charged_twice: list[int]
    strays: list[int]
    unheard: list[Unheard] = field(default_factory=list)

    @property
    def closed(self) -> list[WindowSum]:
        return [window for window in self.windows if window.closed]

    @property
    def open(self) -> list[WindowSum]:
        return [window for window in self.windows if not window.closed]

    @property
    def differing(self) -> list[WindowSum]:
        return [window for window in self.closed if window.difference_usd]

    @property
    def rents_usd(self) -> Decimal:
        """Of closed windows."""
        return sum((window.rent_usd for window in self.closed), _NOTHING)

    @property
    def by_token_usd(self) -> Decimal:
        """Charges that have no window: hosted APIs, deployments that nothing is rented for, and the unheard."""
        return sum(self.windowless.values(), _NOTHING) - self.by_hand_usd

    @property
    def by_hand_usd(self) -> Decimal:
        """Adjustments that balance no window."""
        return self.windowless.get(Kind.ADJUSTMENT, _NOTHING)

    @property
    def bill_usd(self) -> Decimal:
        return self.rents_usd + self.by_token_usd + self.by_hand_usd

    @property
    def by_kind(self) -> dict[Kind, Decimal]:
        """Everything that is posted to closed windows or to none."""
        sums = dict.fromkeys(Kind, _NOTHING)
        for posted in (self.windowless, *(window.by_kind for window in self.closed)):
            for kind, usd in posted.items():
                sums[kind] += usd
        return sums

    @property
    def posted_usd(self) -> Decimal:
        return sum(self.by_kind.values(), _NOTHING)

    @property
    def difference_usd(self) -> Decimal:
        return self.posted_usd - self.bill_usd

    @property
    def balanced(self) -> bool:
        return not (self.differing or self.difference_usd or self.charged_twice or self.strays)
