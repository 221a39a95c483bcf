"""How the router chooses: floors, weights, what it may try out, and whom it serves differently."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tieryard.catalog.base import CategoryName, DeploymentName, Strict, TierName
from tieryard.requests import Duration, Usd

Share = Annotated[float, Field(ge=0, le=1)]


class Weights(Strict):
    """Of the score that orders what was not chosen: each term is scaled over the candidates to 0..1 first."""

    quality: float = Field(default=0.5, ge=0, description="Of predicted quality.")
    cost: float = Field(default=0.3, ge=0, description="Of expected cost.")
    latency: float = Field(default=0.2, ge=0, description="Of predicted latency.")

    @model_validator(mode="after")
    def _not_all_zero(self) -> Self:
        if not self.quality + self.cost + self.latency:
            raise ValueError("one of quality, cost and latency must be above 0")
        return self


class Breaker(Strict):
    """When a deployment that fails is left alone for a while."""

    failures: int = Field(default=5, ge=1, description="Failed starts that open it, …")
    share: float = Field(default=0.5, gt=0, le=1, description="… if they are this share of all, …")
    within: Duration = Field(default=timedelta(seconds=30), description="… within this time.")
    open_for: Duration = Field(default=timedelta(seconds=15), description="Then one job in ten tries it again.")


class Exploration(Strict):
    """Jobs that are sent where they were not to go, so that what is never chosen stays measured."""

    share: float = Field(default=0.0, ge=0, le=0.2, description="Of the jobs that `auto` and classes route.")
    max_usd_per_day: Usd = Field(default=Decimal(1), description="Most that these may cost above the choice.")
    tiers: list[TierName] = Field(default=["batch", "bulk"], description="Where it happens.")


class Shadow(Strict):
    """A copy of some jobs goes to a candidate too; its answer is kept and never returned."""

    of: DeploymentName = Field(description="Whose jobs are copied.")
    to: DeploymentName = Field(description="Where the copies go.")
    share: Share = Field(description="Of those jobs.")


class Policy(Strict):
    """What holds for one tenant beside what its jobs ask."""

    models: list[DeploymentName] | None = Field(default=None, min_length=1, description="The only ones it may use.")
    regions: list[str] | None = Field(default=None, min_length=1, description="The only regions it may use.")
    min_quality: Share | None = Field(default=None, description="A floor under the quality of all its jobs.")
    max_cost_usd: Usd | None = Field(default=None, description="Most that one of its jobs may cost.")
    sticky: bool = Field(default=True, description="Whether jobs that begin alike stay with one deployment.")

    def allows(self, deployment: str, region: str | None) -> bool:
        """Whether the tenant's jobs may go to this deployment, which runs in this region."""
        used = self.models is None or deployment in self.models
        return used and (self.regions is None or region in self.regions)


class Routing(Strict):
    """The whole section; each part has a default."""

    weights: Weights = Field(default=Weights(), description="Of the score that orders what was not chosen.")
    floors: dict[CategoryName, Share] = Field(default={}, description="Least predicted quality by category.")
    quality_worth: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="How much better (0 to 1) the dearest candidate's answer must be to be worth its price, "
        "where no floor is asked.",
    )
    classifier: Literal["learned", "rules"] = Field(default="learned", description="What tells how much a job needs.")
    quality_model: str | None = Field(default=None, description="File of a learned model. Default: the one shipped.")
    max_error_rate: Share = Field(default=0.01, description="A deployment surely above this gets one job in fifty.")
    stale_after: Duration = Field(default=timedelta(hours=24), description="An older profile is stale, and said to be.")
    wait_for: Duration = Field(
        default=timedelta(minutes=15),
        description="A cheaper deployment that served within this time is waited for by jobs that can.",
    )
    breaker: Breaker = Field(default=Breaker(), description="When a deployment that fails is left alone.")
    exploration: Exploration = Field(default=Exploration(), description="What is tried where it was not to go.")
    shadows: list[Shadow] = Field(default=[], description="Copies of jobs to candidates.")
    policies: dict[Annotated[str, Field(min_length=1, max_length=64)], Policy] = Field(
        default={}, description="By the tenant's name."
    )
