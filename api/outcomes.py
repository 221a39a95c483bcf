"""Receives how good a job's answer was, by its owner's word. Keeps it, and moves the deployment's live quality."""

from __future__ import annotations

from typing import Annotated

import redis
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.shapes import ERRORS, OutcomePublic
from api.state import InferDep, StateDep
from tieryard import telemetry
from tieryard.ids import internal, public
from tieryard.outcomes import score_job, tell_quality
from tieryard.telemetry import Event

router = APIRouter(prefix="/v1", tags=["jobs"], responses=ERRORS)


class OutcomeCreate(BaseModel):
    """How good an answer was."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={"examples": [{"score": 0.8}, {"score": 0, "source": "unit-tests"}]},
    )

    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="0 is useless, 1 is perfect.")]
    source: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$", description="Who says so; each has one word on a job.")
    ] = "caller"


@router.post("/jobs/{job_id}/outcome")
def score(state: StateDep, holder: InferDep, job_id: str, outcome: OutcomeCreate) -> OutcomePublic:
    """Takes a score of one of your jobs' answers. A later one of the same source replaces it."""
    number = internal("job", job_id)
    told = score_job(state.store, number, outcome.score, source=outcome.source, tenant_id=holder.tenant_id)
    try:
        tell_quality(state.metrics, told, outcome.score)
    except redis.RedisError as error:  # what is kept is told again when Redis has lost its memory
        telemetry.logger().warning(Event.BROKER_AWAY, error=str(error)[:200])
    return OutcomePublic(
        job=public("job", number),
        source=outcome.source,
        score=outcome.score,
        deployment=told.deployment,
        category=told.category,
        predicted=told.predicted,
        scored_at=told.scored_at,
    )
