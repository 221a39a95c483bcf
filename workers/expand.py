"""Receives a nudge that a batch waits. Validates its lines and makes them jobs, a chunk a transaction: restartable at
any chunk, so 50,000 lines never stall the API and a crash repeats nothing. Closes batches whose jobs are all final.
Next: `workers/feed.py` releases the jobs to their tier's queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from tieryard import outputs, telemetry
from tieryard.admission import Admission
from tieryard.catalog import Catalog
from tieryard.errors import RequestError, StoreError
from tieryard.requests import parse_batch_line, parse_job
from tieryard.store import batches, expansion, reads
from tieryard.store.expansion import Verdict
from tieryard.telemetry import Event
from workers.yard import Yard


class Expander:
    """Expands and closes in one thread at a time: the process's other threads are for rescue."""

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
                admission = self._admission
                expand_all(self._yard, admission, overtaken=partial(self._is_overtaken, admission))
            finally:
                self._busy.release()

    def prepare(self, _: Catalog, catalog: Catalog) -> Callable[[], None]:
        """Lines are checked against this catalog from the next chunk on. Raises UserError."""
        return partial(self._take_over, self._yard.admission(catalog))

    def _is_overtaken(self, admission: Admission) -> bool:
        return self._admission is not admission

    def _take_over(self, admission: Admission) -> None:
        self._admission = admission
        self._asked.set()  # whoever is at work stops at the next chunk, and goes on by this


def expand_all(yard: Yard, admission: Admission, *, overtaken: Callable[[], bool] = lambda: False) -> int:
    """Expands until no batch waits, or the admission is `overtaken`, or there is a catalog that this process has yet to
    hear of; between two chunks closes what is done: how many lines became jobs."""
    signed = yard.settings.webhook_secret is not None
    revisions = {name: d.pinned for name, d in admission.catalog.deployments.items()}
    version, lines = yard.in_force.known, 0

    def judged(line: str, endpoint: str | None, tier: str, tenant: str) -> Verdict:
        return judge(admission, line, signed=signed, endpoint=endpoint, tier=tier, tenant=tenant)

    while not overtaken():
        close_all(yard)
        chunk = expansion.expand_chunk(yard.store, judged, revisions=revisions, version=version)
        if chunk is None:
            return lines
        batch_id, done = chunk
        yard.log.info(Event.BATCH_EXPANDED, batch=batch_id, lines=done)
        lines += done
    return lines


def judge(
    admission: Admission, line: str, *, signed: bool, endpoint: str | None, tier: str, tenant: str = ""
) -> Verdict:
    """One line: a job, or the reason why not."""
    wants_callback = False
    try:
        request = parse_job(line) if endpoint is None else parse_batch_line(line, endpoint=endpoint)
        wants_callback = request.callback_url is not None
        admission.check(request, callbacks=signed, tenant=tenant)
        if request.tier not in (None, tier):
            raise RequestError(f"the batch is of tier '{tier}', not '{request.tier}'", param="tier")
    except RequestError as error:
        return Verdict(error=str(error), wants_callback=wants_callback)
    except Exception as fault:  # a fault of ours must not hold every batch behind this line
        telemetry.logger().error(Event.TASK_FAILED, task="judge", **telemetry.fault(fault))
        return Verdict(error="it could not be checked, by a fault of the fleet", wants_callback=wants_callback)
    return Verdict(wants_callback=wants_callback)


def close_all(yard: Yard) -> None:
    """Measures the output of batches that are done, which finishes them."""
    for batch_id, tenant_id in batches.to_close(yard.store):
        batch = reads.get_batch(yard.store, batch_id, tenant_id=tenant_id).batch
        try:
            output_bytes = sum(map(len, outputs.read_output(yard.store, batch, "output")))
            error_bytes = sum(map(len, outputs.read_output(yard.store, batch, "errors")))
        except StoreError:
            raise
        except Exception as fault:  # nor must one batch hold all others
            yard.log.error(Event.TASK_FAILED, task="close", batch=batch_id, **telemetry.fault(fault))
            continue
        if batches.close(yard.store, batch_id, output_bytes=output_bytes, error_bytes=error_bytes):
            yard.log.info(Event.BATCH_FINISHED, batch=batch_id)
            yard.nudge_callbacks()
