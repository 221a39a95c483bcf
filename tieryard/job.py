"""A job's states, and the one table of the moves between them.

    queued ──▶ routed ──▶ running ──▶ succeeded | failed | cancelled | expired

A call whose caller waits is born `running`, under the API process that answers it; that process ends it as `infer`
does, and never puts it back to `queued`.

Every statement in `tieryard/store` that changes a state asks `sources(target, by)` for the states it may
start from, so a move that is not in TRANSITIONS cannot happen. docs/journey.md draws this table.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    QUEUED = "queued"
    """Saved. `classify` routes it; `rescue` expires it, or cancels it with its batch; a caller cancels it."""
    ROUTED = "routed"
    """Given a deployment. `infer` claims it, or takes it back when others would serve it sooner; `rescue` expires or
    cancels it, or takes it back when the catalog has lost the deployment; a caller cancels it."""
    RUNNING = "running"
    """Claimed under a fence, or born so. The claiming `infer` ends it or hands it back; `rescue` when that worker
    died."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})
"""Nobody moves a job out of these. final ⇔ finished_at is set (a CHECK in the schema)."""

WAITING = frozenset({State.QUEUED, State.ROUTED})
"""A nudge on its way, or lost, stands for each of these."""


class Mover(StrEnum):
    """Who moves a job: the file in `workers/` that does it, or the caller's request."""

    CLASSIFY = "classify"
    INFER = "infer"
    RESCUE = "rescue"
    CALLER = "caller"


TRANSITIONS: dict[tuple[State, State], frozenset[Mover]] = {
    (State.QUEUED, State.ROUTED): frozenset({Mover.CLASSIFY}),
    (State.QUEUED, State.FAILED): frozenset({Mover.CLASSIFY}),
    (State.QUEUED, State.CANCELLED): frozenset({Mover.CALLER, Mover.RESCUE}),
    (State.QUEUED, State.EXPIRED): frozenset({Mover.RESCUE}),
    (State.ROUTED, State.QUEUED): frozenset({Mover.INFER, Mover.RESCUE}),
    (State.ROUTED, State.RUNNING): frozenset({Mover.INFER}),
    (State.ROUTED, State.CANCELLED): frozenset({Mover.CALLER, Mover.RESCUE}),
    (State.ROUTED, State.EXPIRED): frozenset({Mover.RESCUE}),
    (State.RUNNING, State.SUCCEEDED): frozenset({Mover.INFER}),
    (State.RUNNING, State.FAILED): frozenset({Mover.INFER, Mover.RESCUE}),
    (State.RUNNING, State.CANCELLED): frozenset({Mover.INFER, Mover.RESCUE}),
    (State.RUNNING, State.EXPIRED): frozenset({Mover.INFER, Mover.RESCUE}),
    (State.RUNNING, State.QUEUED): frozenset({Mover.INFER, Mover.RESCUE}),
}

MAX_ATTEMPTS = 3
"""Starts that may fail by the job's own fault before it is failed for good."""

MAX_WORKER_DEATHS = 3
"""Worker deaths a job may be in flight at. From the one before the last on, it starts alone."""


def sources(target: State, by: Mover) -> list[str]:
    """The states from which `by` may move a job to `target`, for use in a guarded UPDATE."""
    found = [str(a) for (a, b), movers in TRANSITIONS.items() if b is target and by in movers]
    if not found:
        raise ValueError(f"{by} may not move a job to {target}")
    return found
