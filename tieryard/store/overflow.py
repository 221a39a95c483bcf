"""Routed jobs that their deployment will not start soon go back to be routed, when others could serve them."""

from __future__ import annotations

from tieryard.job import WAITING, Mover, State, sources
from tieryard.store.connection import Store

# Of a job that names the deployment there is no other. Rows are locked in id order, as everywhere; the decision is that
# of the job's present fence. Their nudge is on its way as soon as this is committed.
_RELEASE = """
WITH wanted AS (
    SELECT job.id
    FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS given (id, place)
    JOIN job ON job.id = given.id
    JOIN decision ON decision.job_id = job.id AND decision.fence = job.fence
    WHERE job.state = ANY(%(from)s) AND job.deployment = ANY(%(names)s)
      AND decision.features ->> 'model' <> job.deployment
    ORDER BY given.place LIMIT %(most)s
), locked AS (
    SELECT job.id FROM job WHERE job.id IN (SELECT id FROM wanted) ORDER BY job.id FOR UPDATE
)
UPDATE job SET state = 'queued', deployment = NULL, nudge_at = now() + %(patience)s * interval '1 second'
FROM locked
WHERE job.id = locked.id AND job.state = ANY(%(from)s) AND job.deployment = ANY(%(names)s)
RETURNING job.id, job.tier
"""


def release(store: Store, ids: list[int], names: list[str], *, most: int, patience_s: float) -> dict[int, str]:
    """Takes routed jobs of these deployments back, the first `most` of `ids` that do not name theirs: by id, their
    tiers. Whoever calls this publishes them to the classifier."""
    wanted = {
        "ids": ids,
        "names": names,
        "most": most,
        "patience": patience_s,
        "from": [state for state in sources(State.QUEUED, Mover.INFER) if state in WAITING],
    }
    with store.transaction() as connection:
        return dict(connection.execute(_RELEASE, wanted).fetchall())
