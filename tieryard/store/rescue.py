"""What rescue asks of the store. It looks only at `in_yard`: jobs that were released and are not final.

That view (migration 0001) is bounded by the feeder's window (and single jobs), however long the backlog behind
it is. Its `released_before` is a time by which a job had certainly been released, where one is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tieryard.job import MAX_WORKER_DEATHS, WAITING, Mover, State, sources
from tieryard.store.connection import Connection

_BURY = "UPDATE worker SET stopped_at = now() WHERE stopped_at IS NULL AND lease_until < now() RETURNING id, kind"

# Running jobs of workers that have stopped, whoever noticed. A stop that was asked for is honoured here, since
# its worker cannot; the third death fails the job; everything else goes back to the queue.
_ORPHANS = """
WITH orphan AS (
    SELECT in_yard.id FROM in_yard JOIN worker ON worker.id = in_yard.worker_id
    WHERE in_yard.state = 'running' AND worker.stopped_at IS NOT NULL
), moved AS (
    UPDATE job SET
        worker_deaths = worker_deaths + 1,
        state = CASE WHEN stop_requested IS NOT NULL THEN stop_requested
                     WHEN worker_deaths + 1 >= %(most)s THEN 'failed' ELSE 'queued' END,
        finished_at = CASE WHEN stop_requested IS NOT NULL OR worker_deaths + 1 >= %(most)s THEN now() END,
        nudge_at = now()
    FROM orphan
    WHERE job.id = orphan.id AND job.state = ANY(%(from)s)
    RETURNING job.id, job.tenant_id, job.fence, job.worker_id, job.deployment, job.claimed_at, job.state,
              job.wants_callback, job.source_id, job.line_no, job.worker_deaths, job.created_at
), timed AS (
    INSERT INTO timing (job_id, fence, worker_id, deployment, outcome, claimed_at, wait_ms, error)
    SELECT id, fence, worker_id, deployment, 'worker_died', claimed_at,
           extract(epoch FROM claimed_at - created_at) * 1000, 'worker ' || worker_id || ' died' FROM moved
), why AS (
    INSERT INTO result (job_id, error_kind, error)
    SELECT id, CASE state WHEN 'failed' THEN 'worker_died' ELSE state END,
           CASE state WHEN 'failed' THEN 'in flight at ' || worker_deaths || ' worker deaths'
                      ELSE state || ' while its worker was dead' END
    FROM moved WHERE state <> 'queued'
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, url)
    SELECT moved.tenant_id, 'job.' || moved.state, moved.id, line.body::jsonb ->> 'callback_url'
    FROM moved JOIN line USING (source_id, line_no) WHERE moved.state <> 'queued' AND moved.wants_callback
)
SELECT state, count(*) FROM moved GROUP BY state
"""

# Deadlines, of everything that waits: released or not. A chunk a sweep, so that no sweep is long.
_EXPIRE = """
WITH late AS (
    (SELECT job.id FROM batch JOIN job ON job.batch_id = batch.id AND job.finished_at IS NULL
     WHERE batch.finished_at IS NULL AND batch.deadline < now() LIMIT 5000)
    UNION ALL
    (SELECT id FROM job WHERE batch_id IS NULL AND finished_at IS NULL AND deadline < now() LIMIT 5000)
), expired AS (
    UPDATE job SET state = 'expired', finished_at = now() FROM late
    WHERE job.id = late.id AND job.state = ANY(%(from)s)
    RETURNING job.id, job.tenant_id, job.wants_callback, job.source_id, job.line_no
), asked AS (
    UPDATE job SET stop_requested = 'expired' FROM late
    WHERE job.id = late.id AND job.state = 'running' AND job.stop_requested IS NULL
), why AS (
    INSERT INTO result (job_id, error_kind, error)
    SELECT id, 'expired', 'not finished within its completion window' FROM expired
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, url)
    SELECT expired.tenant_id, 'job.expired', expired.id, line.body::jsonb ->> 'callback_url'
    FROM expired JOIN line USING (source_id, line_no) WHERE wants_callback
)
SELECT count(*) FROM expired
"""

# A batch whose window has passed hands the rest of its lines to the yard's edge at once: they are all final.
_CLOSE_EXPIRED = """
UPDATE batch SET released_to = total
WHERE finished_at IS NULL AND deadline < now() AND expanded_to = total AND released_to < total
"""

# Jobs whose nudge is due again: lost (or taken for lost), or their backoff is over. The next time is as far off as
# the job is old, so a job that merely waits is nudged again only log2(its age) times.
_NUDGE = """
WITH due AS (
    SELECT id FROM in_yard
    WHERE state = ANY(%(waiting)s)
      AND (%(all)s OR nudge_at <= now()
           OR (nudge_at IS NULL AND released_before < now() - %(patience)s * interval '1 second'))
    LIMIT 20000
), nudged AS (
    UPDATE job SET nudge_at = now() + greatest(%(patience)s * interval '1 second', now() - job.created_at)
    FROM due
    WHERE job.id = due.id AND job.state = ANY(%(waiting)s) AND (job.not_before IS NULL OR job.not_before <= now())
    RETURNING job.id, job.state, job.tier, job.deployment, job.deadline
)
SELECT * FROM nudged
"""

_MARK = """
UPDATE batch SET mark_to = released_to, mark_at = now()
WHERE finished_at IS NULL AND released_to > mark_to
  AND (mark_at IS NULL OR mark_at < now() - %(patience)s * interval '1 second')
"""


@dataclass(frozen=True, slots=True)
class Nudge:
    """A job to publish again: to its tier's queue when queued, to its deployment's when routed."""

    id: int
    state: str
    tier: str
    deployment: str | None
    deadline: datetime


def bury(connection: Connection) -> list[tuple[int, str]]:
    """Declares workers dead whose lease ran out: (id, kind)."""
    return [(row[0], row[1]) for row in connection.execute(_BURY)]


def requeue_orphans(connection: Connection) -> dict[str, int]:
    """Takes running jobs from stopped workers: how many went to which state."""
    rows = connection.execute(_ORPHANS, {"most": MAX_WORKER_DEATHS, "from": sources(State.QUEUED, Mover.RESCUE)})
    return {row[0]: row[1] for row in rows}


def expire(connection: Connection) -> int:
    """Ends jobs past their window: how many. Running ones are asked to stop."""
    row = connection.execute(
        _EXPIRE, {"from": [s for s in sources(State.EXPIRED, Mover.RESCUE) if s in WAITING]}
    ).fetchone()
    connection.execute(_CLOSE_EXPIRED)
    return int(row[0]) if row else 0


def due_nudges(connection: Connection, *, patience_s: float, everything: bool) -> list[Nudge]:
    """Waiting jobs to publish (again). `everything`: the broker has lost its memory."""
    waiting = sorted(WAITING)
    rows = connection.execute(_NUDGE, {"waiting": waiting, "all": everything, "patience": patience_s}).fetchall()
    connection.execute(_MARK, {"patience": patience_s})
    return [Nudge(*row) for row in rows]
