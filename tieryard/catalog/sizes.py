"""The three size classes, by which deployments and hosted models are compared."""

from __future__ import annotations

from enum import StrEnum


class SizeClass(StrEnum):
    """≤ 8B, > 8B and < 70B, ≥ 70B parameters. A property of a deployment, never of a job."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"

    @property
    def at_least(self) -> tuple[SizeClass, ...]:
        """Itself and what is larger."""
        return tuple(SizeClass)[tuple(SizeClass).index(self) :]
