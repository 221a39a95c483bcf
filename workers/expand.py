"""Receives a nudge that a batch waits. Validates its lines and makes them jobs, a chunk a transaction.
Restartable at any chunk, so 50,000 lines never stall the API and a crash repeats nothing.
Next: `workers/feed.py` releases the jobs to their tier's queue."""

from __future__ import annotations

import threading

from tieryard import telemetry
from tieryard.admission import Admission
from tieryard.errors import RequestError
from tieryard.requests import parse_job
from tieryard.store import batches
from tieryard.store.batches import Verdict
from tieryard.telemetry import Event
from workers.yard import Yard


class Expander:
    """Runs `expand_all` in one thread at a time: the process's other threads are for rescue."""

    def __init__(self, yard: Yard, admission: Admission) -> None:
        self._yard = yard
        self._admission = admission
        self._busy = threading.Lock()
        self._asked = threading.Event()

    def run(self) -> None:
        """A nudge that comes while another is worked on makes that one look again."""
        self._asked.set()
        while self._asked.is_set() and self._busy.acquire(blocking=False):
            try:
                self._asked.clear()
                expand_all(self._yard, self._admission)
            finally:
                self._busy.release()


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
    except Exception as fault:  # a fault of ours must not hold every batch behind this line
        telemetry.logger().error(Event.TASK_FAILED, task="judge", **telemetry.fault(fault))
        return Verdict(error="it could not be checked, by a fault of the fleet")
    return Verdict(wants_callback=request.callback_url is not None)
