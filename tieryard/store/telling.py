"""Who listens, as parts of the statements that write down what happened.

An event goes to the outbox when its own caller asked to be told, or an endpoint listens to it. The latter is looked up
in the index of enabled endpoints by tenant, which has no rows for most tenants.
"""

from __future__ import annotations

_ENABLED = "e.disabled_at IS NULL AND e.deleted_at IS NULL"


def hears(event: str) -> str:
    """Whether endpoint `e` listens to this event (SQL). An empty list is all."""
    return f"(cardinality(e.events) = 0 OR {event} = ANY(e.events))"


def is_told(event: str, *, tenant: str) -> str:
    """Whether an endpoint of this tenant listens to this event (both SQL)."""
    return f"EXISTS (SELECT FROM webhook_endpoint e WHERE e.tenant_id = {tenant} AND {_ENABLED} AND {hears(event)})"


def is_told_fleetwide(event: str) -> str:
    """The same of an event that is no tenant's."""
    return f"EXISTS (SELECT FROM webhook_endpoint e WHERE e.fleet AND {_ENABLED} AND {hears(event)})"


def job_is_told(job: str, event: str) -> str:
    """Whether the end of `job`, a row with `tenant_id`, `wants_callback` and `attended`, is told (SQL). An endpoint
    hears of no calls: their callers have the answer already, on the connection that they wait on."""
    return f"({job}.wants_callback OR (NOT {job}.attended AND {is_told(event, tenant=f'{job}.tenant_id')}))"
