"""Receives a nudge that a batch waits. Validates its lines and makes them jobs, a chunk a transaction.
Restartable at any chunk, so 50,000 lines never stall the API and a crash repeats nothing.
Next: `workers/feed.py` releases the jobs to their tier's queue."""

from __future__ import annotations

from tieryard.admission import Admission
from tieryard.errors import RequestError
from tieryard.requests import parse_job
from tieryard.store import batches
from tieryard.store.batches import Verdict
from tieryard.telemetry import Event
from workers.yard import Yard


def expand_all(yard: Yard, admission: Admission) -> int:
    """Expands until no batch waits: how many lines became jobs."""
    signed = yard.settings.webhook_secret is not None
    lines = 0
    while (chunk := batches.expand_chunk(yard.store, lambda line: judge(admission, line, signed))) is not None:
        batch_id, done = chunk
        yard.log.info(Event.BATCH_EXPANDED, batch=batch_id, lines=done)
        lines += done
    return lines


def judge(admission: Admission, line: str, signed: bool) -> Verdict:
    """One line: a job, or the reason why not."""
    try:
        request = parse_job(line)
        admission.check(request, callbacks=signed)
    except RequestError as error:
        return Verdict(error=str(error))
    return Verdict(wants_callback=request.callback_url is not None)
