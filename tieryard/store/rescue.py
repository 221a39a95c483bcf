"""What rescue asks of the store. It looks only at `in_yard`: jobs that were released and are not final.

That view (migration 0001) is bounded by the feeder's window (and single jobs), however long the backlog behind
it is. Its `released_before` is a time by which a job had certainly been released, where one is known.

Rescue never waits for a row: what another transaction holds is left for the next sweep (SKIP LOCKED). So whatever
order these statements meet rows in, they are part of no deadlock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tieryard.job import MAX_WORKER_DEATHS, WAITING, Mover, State, sources
from tieryard.store.connection import Connection
from tieryard.store.keys import SYSTEM_TENANTS
from tieryard.store.telling import job_is_told

# What a dead process rented is paid to the end of its lease.
_BURY = """
WITH dead AS (
    UPDATE worker SET stopped_at = now() WHERE stopped_at IS NULL AND lease_until < now()
    RETURNING id, kind, deployment, lease_until
), stopped AS (
    UPDATE rent_window w SET stopped_at = greatest(w.started_at, dead.lease_until) FROM dead
    WHERE w.worker_id = dead.id AND w.stopped_at IS NULL
)
SELECT id, kind, deployment FROM dead
"""

# A suspect that waits for its lone start has not been at risk since it became one.
_DEATHS = "(worker_deaths + (worker_deaths < %(most)s - 1 OR ran_alone)::int)"

# Running jobs of workers that have stopped, whoever noticed. A stop that was asked for is honoured here, since
# its worker cannot; a call, whose caller has lost its connection, and the third death fail the job; everything else
# goes back to the queue.
_ORPHANS = """
WITH orphan AS (
    SELECT id FROM job
    WHERE state = 'running' AND id IN (
        SELECT in_yard.id FROM in_yard JOIN worker ON worker.id = in_yard.worker_id
        WHERE in_yard.state = 'running' AND worker.stopped_at IS NOT NULL)
    FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE job SET
        worker_deaths = {deaths},
        state = CASE WHEN stop_requested IS NOT NULL THEN stop_requested
                     WHEN attended OR {deaths} >= %(most)s THEN 'failed' ELSE 'queued' END,
        finished_at = CASE WHEN stop_requested IS NOT NULL OR attended OR {deaths} >= %(most)s THEN now() END,
        nudge_at = now()
    FROM orphan
    WHERE job.id = orphan.id AND job.state = ANY(%(from)s)
    RETURNING job.id, job.tenant_id, job.fence, job.worker_id, job.deployment, job.claimed_at, job.state,
              job.wants_callback, job.worker_deaths, job.created_at, job.attended
), timed AS (
    INSERT INTO timing (job_id, fence, worker_id, deployment, outcome, claimed_at, wait_ms, error)
    SELECT id, fence, worker_id, deployment, 'worker_died', claimed_at,
           extract(epoch FROM claimed_at - created_at) * 1000, 'worker ' || worker_id || ' died' FROM moved
), why AS (
    INSERT INTO result (job_id, error_kind, error)
    SELECT id, CASE state WHEN 'failed' THEN 'worker_died' ELSE state END,
           CASE WHEN state <> 'failed' THEN state || ' while its worker was dead'
                WHEN attended THEN 'its caller''s connection ended with the API process'
                ELSE 'in flight at ' || worker_deaths || ' worker deaths' END
    FROM moved WHERE state <> 'queued'
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id)
    SELECT tenant_id, 'job.' || state, id FROM moved WHERE state <> 'queued' AND {told}
)
SELECT state, count(*) FROM moved GROUP BY state
""".replace("{deaths}", _DEATHS).replace("{told}", job_is_told("moved", "'job.' || state"))

# Deadlines and cancelled batches, of everything that waits: released or not. A chunk at a time, so none is long.
_STOP = """
WITH batched AS (
    SELECT job.id, CASE WHEN batch.cancelling_at IS NULL THEN 'expired' ELSE 'cancelled' END AS target
    FROM batch JOIN job ON job.batch_id = batch.id AND job.finished_at IS NULL
    WHERE batch.finished_at IS NULL AND (batch.deadline < now() OR batch.cancelling_at IS NOT NULL)
      AND job.stop_requested IS NULL
    LIMIT %(most)s FOR UPDATE OF job SKIP LOCKED
), single AS (
    SELECT id, 'expired' AS target FROM job
    WHERE batch_id IS NULL AND finished_at IS NULL AND deadline < now() AND stop_requested IS NULL
    LIMIT %(most)s FOR UPDATE SKIP LOCKED
), late AS (
    SELECT * FROM batched UNION ALL SELECT * FROM single
), stopped AS (
    UPDATE job SET state = late.target, finished_at = now() FROM late
    WHERE job.id = late.id AND job.state = ANY(%(from)s)
    RETURNING job.id, job.tenant_id, job.state, job.wants_callback, job.attended
), asked AS (
    UPDATE job SET stop_requested = late.target FROM late
    WHERE job.id = late.id AND job.state = 'running' AND job.stop_requested IS NULL
), why AS (
    INSERT INTO result (job_id, error_kind, error)
    SELECT id, state, CASE state WHEN 'expired' THEN 'not finished within its completion window'
                                 ELSE 'cancelled with its batch' END FROM stopped
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id)
    SELECT tenant_id, 'job.' || state, id FROM stopped WHERE {told}
)
SELECT (SELECT count(*) FROM stopped), (SELECT count(*) FROM late)
""".replace("{told}", job_is_told("stopped", "'job.' || state"))

# A catalog that has changed may have lost the deployment that a job was given: it is routed again. Only whoever knows
# the newest version may say so: an older one lacks what has just come, and classifiers may use that already.
_REROUTE = """
WITH stranded AS (
    SELECT job.id FROM job JOIN in_yard USING (id)
    WHERE in_yard.state = 'routed' AND NOT in_yard.deployment = ANY(%(known)s)
      AND %(version)s = (SELECT coalesce(max(id), 0) FROM catalog_version) ORDER BY id
    FOR UPDATE OF job SKIP LOCKED
)
UPDATE job SET state = 'queued', deployment = NULL, nudge_at = now() FROM stranded
WHERE job.id = stranded.id AND job.state = ANY(%(from)s) AND NOT job.deployment = ANY(%(known)s)
RETURNING job.id
"""

# A deployment that does not serve keeps what it was sent while it was taken to, or while no other was known to: that is
# routed once more, now that others are known to be better. What was sent there since, knowingly, waits there; so does
# what names it.
_STRANDED = """
WITH fallen AS (
    SELECT * FROM unnest(%(names)s::text[], %(ago_s)s::float8[]) AS fallen (deployment, ago_s)
), stranded AS (
    SELECT job.id FROM fallen
    JOIN in_yard ON in_yard.state = 'routed' AND in_yard.deployment = fallen.deployment
    JOIN job ON job.id = in_yard.id
    JOIN decision ON decision.job_id = job.id AND decision.fence = job.fence
    WHERE decision.decided_at < now() - fallen.ago_s * interval '1 second'
      AND decision.features ->> 'model' <> job.deployment
    ORDER BY job.id
    FOR UPDATE OF job SKIP LOCKED
)
UPDATE job SET state = 'queued', deployment = NULL, nudge_at = now() FROM stranded
WHERE job.id = stranded.id AND job.state = ANY(%(from)s) AND job.deployment = ANY(%(names)s)
RETURNING job.id
"""

# A batch that was stopped hands the rest of its lines to the yard's edge once they are all final. Before that it
# would fill the window with work that nobody does, and keep other batches out of it.
_RELEASE_STOPPED = """
UPDATE batch SET released_to = total
WHERE finished_at IS NULL AND (deadline < now() OR cancelling_at IS NOT NULL)
  AND expanded_to = total AND released_to < total
  AND NOT EXISTS (SELECT FROM job WHERE job.batch_id = batch.id AND job.finished_at IS NULL
                  AND job.id >= batch.first_job_id + batch.released_to)
"""

# Jobs whose nudge is due again: lost (or taken for lost), or their backoff is over. The next time is as far off as
# the job's release is past, so one that merely waits is nudged again only log2(its wait) times. Its creation says
# nothing: a batch's jobs may be released, and their nudges lost, many hours after it. They come in the order in which
# their nudges fell due, which is about that of their release.
_NUDGE = """
WITH due AS (
    SELECT id, released_before FROM in_yard
    WHERE state = ANY(%(waiting)s)
      AND (%(all)s OR nudge_at <= now() OR (state = 'routed' AND deployment = ANY(%(lost)s))
           OR (nudge_at IS NULL AND released_before < now() - %(patience)s * interval '1 second'))
    LIMIT %(most)s
), free AS (
    SELECT job.id, due.released_before, job.nudge_at AS was_due FROM job JOIN due USING (id)
    WHERE job.state = ANY(%(waiting)s) AND (job.not_before IS NULL OR job.not_before <= now())
    FOR UPDATE OF job SKIP LOCKED
), nudged AS (
    UPDATE job SET nudge_at = now() + greatest(%(patience)s * interval '1 second',
                                               now() - coalesce(free.released_before, now()))
    FROM free WHERE job.id = free.id
    RETURNING job.id, job.state, job.tier, job.deployment, coalesce(job.prefix_key, 0) AS prefix_key, job.tenant_id,
              free.was_due
)
SELECT id, state, tier, deployment, prefix_key,
       tenant_id = ANY (ARRAY(SELECT id FROM tenant WHERE name = ANY(%(system)s)))
FROM nudged ORDER BY was_due, id
"""

_MARK = """
WITH free AS (
    SELECT id FROM batch
    WHERE finished_at IS NULL AND released_to > mark_to
      AND (mark_at IS NULL OR mark_at < now() - %(patience)s * interval '1 second')
    FOR UPDATE SKIP LOCKED
)
UPDATE batch SET mark_to = released_to, mark_at = now() FROM free WHERE batch.id = free.id
"""

_MOST_STOPS = 5000
_MOST_NUDGES = 20_000  # a sweep's, so that none is long; all there are when Redis has lost its memory


@dataclass(frozen=True, slots=True)
class Nudge:
    """A job to publish again: to its tier's queue when queued, to its deployment's, or its home's, when routed.
    `behind`: it is the system's own, and waits behind everybody's."""

    id: int
    state: str
    tier: str
    deployment: str | None
    prefix_key: int
    behind: bool = False


def bury(connection: Connection) -> list[tuple[int, str, str | None]]:
    """Declares workers dead whose lease ran out: (id, kind, deployment)."""
    return [(row[0], row[1], row[2]) for row in connection.execute(_BURY)]


def living(connection: Connection, worker_ids: Collection[int]) -> set[int]:
    """Those of these workers that have neither stopped nor been declared dead."""
    rows = connection.execute(
        "SELECT id FROM worker WHERE id = ANY(%(ids)s) AND stopped_at IS NULL", {"ids": list(worker_ids)}
    )
    return {row[0] for row in rows}


def requeue_orphans(connection: Connection) -> dict[str, int]:
    """Takes running jobs from stopped workers: how many went to which state."""
    rows = connection.execute(
        _ORPHANS,
        {"most": MAX_WORKER_DEATHS, "from": [s for s in sources(State.QUEUED, Mover.RESCUE) if s not in WAITING]},
    )
    return {row[0]: row[1] for row in rows}


def reroute(connection: Connection, known: Collection[str], *, version: int) -> int:
    """Takes routed jobs back whose deployment is not among the `known` ones, which are those of this version of the
    catalog: how many. None where it is not the newest."""
    waiting = [s for s in sources(State.QUEUED, Mover.RESCUE) if s in WAITING]
    wanted = {"known": list(known), "version": version, "from": waiting}
    return len(connection.execute(_REROUTE, wanted).fetchall())


def reroute_stranded(connection: Connection, fallen: Mapping[str, float]) -> int:
    """Takes routed jobs back from deployments that serve no more, where the decision is older than `fallen` says
    (seconds ago, `Metrics.fallen`), and is not the job's own word: how many."""
    if not fallen:
        return 0
    waiting = [s for s in sources(State.QUEUED, Mover.RESCUE) if s in WAITING]
    wanted = {"names": list(fallen), "ago_s": list(fallen.values()), "from": waiting}
    return len(connection.execute(_STRANDED, wanted).fetchall())


def stop(connection: Connection) -> tuple[int, bool]:
    """Ends waiting jobs that are past their window or whose batch is cancelled, and asks running ones to stop: (how
    many it ended, whether there are more)."""
    waiting = [s for s in sources(State.EXPIRED, Mover.RESCUE) if s in WAITING]
    row = connection.execute(_STOP, {"from": waiting, "most": _MOST_STOPS}).fetchone()
    connection.execute(_RELEASE_STOPPED)
    return (int(row[0]), int(row[1]) >= _MOST_STOPS) if row else (0, False)


def due_nudges(
    connection: Connection, *, patience_s: float, everything: bool = False, lost: Sequence[str] = ()
) -> list[Nudge]:
    """Waiting jobs to publish (again). `everything`: the broker has lost its memory. `lost`: deployments of which
    a worker has died, with what was in its inbox."""
    waiting = sorted(WAITING)
    most = None if everything else _MOST_NUDGES
    wanted = {"waiting": waiting, "all": everything, "lost": list(lost), "patience": patience_s, "most": most}
    wanted["system"] = list(SYSTEM_TENANTS)
    rows = connection.execute(_NUDGE, wanted).fetchall()
    connection.execute(_MARK, {"patience": patience_s})
    return [Nudge(*row) for row in rows]
