"""The events that callbacks and webhooks tell of: the one table of their names."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from tieryard.errors import UserError


class Told(StrEnum):
    """What is told. The word before the dot is the kind of the id that comes with it."""

    JOB_COMPLETED = "job.completed"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_EXPIRED = "job.expired"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"
    BENCHMARK_COMPLETED = "benchmark.completed"
    BENCHMARK_REGRESSED = "benchmark.regressed"
    CANARY_ENDED = "canary.ended"
    BUDGET_THRESHOLD = "budget.threshold"
    WEBHOOK_DISABLED = "webhook.disabled"
    WEBHOOK_TEST = "webhook.test"


FLEET_WIDE = frozenset({Told.BENCHMARK_COMPLETED, Told.BENCHMARK_REGRESSED, Told.CANARY_ENDED})
"""No tenant's: only endpoints that were made with the scope `benchmark` hear of them."""

LISTED = tuple(event for event in Told if event is not Told.WEBHOOK_TEST)
"""What an endpoint may listen to. A test goes to the endpoint that is tested, whatever that listens to."""

LINKS = {
    "job": "/v1/jobs/{id}",
    "batch": "/v1/batches/{id}",
    "benchmark": "/v1/benchmarks/{id}",
    "webhook": "/v1/webhooks/{id}",
}
"""Where what an event is of can be read, by kind. A budget and a canary have no page of their own."""


def read_events(names: Iterable[str]) -> list[Told]:
    """These events, in the table's order and each once. Raises UserError that names the unknown one."""
    wanted = set(names)
    if unknown := sorted(wanted - set(LISTED)):
        raise UserError(f"'{unknown[0]}' is no event; expected any of {', '.join(LISTED)}", param="events")
    return [event for event in LISTED if event in wanted]
