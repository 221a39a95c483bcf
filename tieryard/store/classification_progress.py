"""How far a classification run is: what it has decided, which rows have their last answer, its rate, its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from tieryard.store.classifications import ClassificationRun, RunState, hold
from tieryard.store.connection import Store

_PACE_S = 30.0  # a run's rate is an average over about so long


@dataclass(frozen=True, slots=True)
class Policy:
    """Which answer of a text is its last. `all_larger`: that of the larger model. `below`: that too, where the first
    model's confidence is less, or unknown; None where the first model's is taken always."""

    all_larger: bool = False
    below: float | None = None


def policy(run: ClassificationRun) -> Policy:
    """Which answers stand, of a run that has decided all it had to."""
    if run.gate_failed and not run.gate_stops:
        return Policy(all_larger=True)
    escalate = run.spec.escalate
    if escalate is None:
        return Policy()
    below = escalate.below if escalate.below is not None else run.threshold
    if below is not None and below > 1:  # above every confidence: nobody need ask the first model any more
        return Policy(all_larger=True)
    return Policy(below=below)


# How far texts have their last answers, from where that was known: the first without one ends the look. OFFSET 0 keeps
# each join to one index look a text, whatever the statistics say: those of a new run know nothing of it, and by them
# all answers of the run were read for each text (5,000 texts among 40,000 took 80 s). psycopg sends a small number as a
# smallint, so what is added to one is made an integer first.
_SETTLED = """
WITH ahead AS MATERIALIZED (
    SELECT t.text_no, f.labels IS NOT NULL OR l.labels IS NOT NULL OR j.labels IS NOT NULL AS labelled,
           l.text_no IS NOT NULL OR (f.text_no IS NOT NULL AND NOT %(all_larger)s AND (
               %(below)s::float8 IS NULL OR (f.labels IS NOT NULL AND coalesce(f.confidence >= %(below)s, false))))
           AS settled
    FROM classification_text t
    LEFT JOIN LATERAL (SELECT * FROM classification_answer a WHERE a.classification_id = %(id)s
        AND a.text_no = t.text_no AND a.stage = 'first' OFFSET 0) f ON true
    LEFT JOIN LATERAL (SELECT * FROM classification_answer a WHERE a.classification_id = %(id)s
        AND a.text_no = t.text_no AND a.stage = 'escalate' OFFSET 0) l ON true
    LEFT JOIN LATERAL (SELECT * FROM classification_answer a WHERE a.classification_id = %(id)s
        AND a.text_no = t.text_no AND a.stage = 'judge' OFFSET 0) j ON true
    WHERE t.classification_id = %(id)s AND t.text_no > %(after)s AND t.text_no <= %(after)s::int + %(most)s
)
SELECT count(*), count(*) FILTER (WHERE NOT labelled) FROM ahead
WHERE text_no < coalesce((SELECT min(text_no) FROM ahead WHERE NOT settled), %(after)s::int + %(most)s + 1)
"""

_FINAL_ROWS = """
UPDATE classification c SET settled_to = %(settled)s, failed = failed + %(failed)s, final_rows = coalesce(
    (SELECT first_row - 1 FROM classification_text t
     WHERE t.classification_id = c.id AND t.text_no = %(settled)s::int + 1),
    c.received)
WHERE id = %(id)s
"""


def paced(rate: float, n: int, since: datetime, now: datetime) -> float:
    """A running average of answers a second, `n` of which have come since then: 0 at first, so whoever shows it divides
    by `1 − exp(−age ÷ _PACE_S)`, as `steady` does."""
    elapsed_s = max((now - since).total_seconds(), 1e-3)
    kept = math.exp(-elapsed_s / _PACE_S)
    return rate * kept + n / elapsed_s * (1 - kept)


def steady(run: ClassificationRun, now: datetime) -> float:
    """Answers a second by now: what has not come for a while counts."""
    if run.paced_at is None or run.started_at is None:
        return 0.0
    age_s = max((now - run.started_at).total_seconds(), 1e-3)
    return paced(run.rate, 0, run.paced_at, now) / (1 - math.exp(-age_s / _PACE_S))


def decide(store: Store, run_id: int, *, gate: dict[str, Any] | None, calibration: dict[str, Any] | None) -> None:
    """Writes down what the sample has shown, where that is not None: once."""
    with store.transaction() as connection:
        connection.execute(
            "UPDATE classification SET gate = coalesce(gate, %(gate)s::jsonb), "
            "calibration = coalesce(calibration, %(found)s::jsonb), "
            "threshold = coalesce(threshold, (%(found)s::jsonb->>'threshold')::float8), "
            "why = CASE WHEN ending IS NOT NULL OR finished_at IS NOT NULL THEN why END "  # it waits no longer
            "WHERE id = %(id)s",
            {"id": run_id, "gate": _json(gate), "found": _json(calibration)},
        )


def settle(store: Store, run: ClassificationRun, policy: Policy, *, most: int = 5000) -> int:
    """Moves `settled_to` over texts that have their last answers, `most` at a time: how many it has passed."""
    passed = 0
    while True:
        with store.transaction() as connection:
            now = hold(connection, run.id)
            about = {"id": run.id, "after": now.settled_to, "most": most}
            how = {"all_larger": policy.all_larger, "below": policy.below}
            [[n, failed]] = connection.execute(_SETTLED, {**about, **how}).fetchall()
            if n or now.final_rows < now.received:  # rows of known texts may have come
                connection.execute(_FINAL_ROWS, {"id": run.id, "settled": now.settled_to + n, "failed": failed})
        passed += int(n)
        if n < most:
            return passed


def end(store: Store, run_id: int, ending: RunState, why: str | None) -> None:
    """Nothing more is asked; it is over when what is in flight has ended. What it already ends as stays."""
    with store.transaction() as connection:
        connection.execute(
            "UPDATE classification SET ending = coalesce(ending, %(ending)s), why = CASE WHEN ending IS NULL "
            "THEN %(why)s ELSE why END WHERE id = %(id)s AND finished_at IS NULL",
            {"id": run_id, "ending": ending, "why": why},
        )


def say(store: Store, run_id: int, why: str) -> None:
    """Why it waits, shown until it goes on."""
    with store.transaction() as connection:
        connection.execute(
            "UPDATE classification SET why = %s WHERE id = %s AND ending IS NULL AND finished_at IS NULL "
            "AND why IS DISTINCT FROM %s",
            [why, run_id, why],
        )


def close(store: Store, run_id: int) -> RunState | None:
    """Gives a run its last state, when nothing of it is under way and it ends, or all its rows have their answers: that
    state, None where it goes on."""
    with store.transaction() as connection:
        run = hold(connection, run_id)
        [[under_way]] = connection.execute(
            "SELECT EXISTS (SELECT FROM classification_part WHERE classification_id = %s AND collected < texts)",
            [run_id],
        ).fetchall()
        done = run.total is not None and run.total == run.received and run.settled_to == run.texts
        state = RunState.COMPLETED if done and run.ending in (None, RunState.STOPPED) else run.ending
        if state is None or under_way or run.finished_at is not None:
            return None
        connection.execute(
            "UPDATE classification SET state = %s, ending = NULL, finished_at = now() WHERE id = %s", [state, run_id]
        )
    return state


def _json(value: dict[str, Any] | None) -> str | None:
    return orjson.dumps(value).decode() if value is not None else None
