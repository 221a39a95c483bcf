"""What becomes of a score: it is kept beside what was predicted, and moves the deployment's live quality."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tieryard.metrics import Metrics
from tieryard.profiles import Observed
from tieryard.routing import JobFeatures, Snapshot
from tieryard.routing.outcomes import Predicted, predicted_for
from tieryard.store import Store, outcomes
from tieryard.store.outcomes import Answered


@dataclass(frozen=True, slots=True)
class Told:
    """A score as it was taken. `first`: it is the job's first, so the live quality has yet to hear of it."""

    deployment: str | None
    category: str | None
    predicted: float | None
    scored_at: datetime
    first: bool


def score_job(store: Store, job_id: int, score: float, *, source: str, tenant_id: int) -> Told:
    """Keeps a score, 0 to 1, of a job's answer. Raises NotFoundError, or ConflictError when it has no answer."""
    job = outcomes.answered(store, job_id, tenant_id=tenant_id)
    kept = outcomes.save_outcome(
        store,
        job_id,
        source=source,
        score=score,
        job=job,
        expected=_expected(job),
    )
    predicted = kept.rules_predicted if kept.predicted is None else kept.predicted
    return Told(job.deployment, job.category, predicted, kept.scored_at, kept.first)


def tell_quality(metrics: Metrics, told: Told, score: float) -> None:
    """Once for each job, so that neither a request that is sent again nor many sources count twice. Raises
    redis.RedisError."""
    if told.first and told.deployment is not None and told.category is not None:
        metrics.observe(told.deployment, told.category, Observed(n=1, quality_score=score))


def _expected(job: Answered) -> Predicted | None:
    """Worked out again from what the decision was made on; None where software of another time has stored that."""
    if job.deployment is None or not job.features or not job.snapshot:
        return None
    try:
        features, snapshot = JobFeatures.from_dict(job.features), Snapshot.from_json(job.snapshot)
    except (KeyError, TypeError, ValueError):
        return None
    return predicted_for(job.deployment, features, snapshot)
