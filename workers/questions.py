"""How benchmarks ask: as one batch of their own tenant, pinned to one deployment, behind everybody's jobs.

The batch is made in the transaction that notes its id where it belongs: so a process that dies between the two leaves
neither, and asks nothing twice. Answers are read by `tieryard.store.questions.answers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from tieryard.catalog import Catalog
from tieryard.queues import EXPAND, BrokerError
from tieryard.store import Connection, benchmarks
from tieryard.store.batches import NewBatch, put_batch
from tieryard.telemetry import Event
from workers.shadowing import least_urgent
from workers.yard import Yard


def ask(connection: Connection, yard: Yard, to: str, bodies: Sequence[Mapping[str, Any]]) -> int:
    """Makes a batch of these native requests for the deployment `to`, in the caller's transaction: its id. Job of body
    n, from 1, has the batch's id + n. What a body says of `model` or `tier` is not looked at."""
    catalog = yard.catalog
    tier = least_urgent(catalog)
    lines = [orjson.dumps({**body, "model": to, "tier": tier}).decode() for body in bodies]
    batch_id = yard.store.reserve_ids(len(lines) + 1)
    deadline = datetime.now(tz=UTC) + catalog.tiers[tier].window
    put_batch(connection, batch_id, NewBatch(benchmarks.tenant(connection), tier, deadline), lines)
    return batch_id


def self_judged(catalog: Catalog, judge: str, subject: str, pinned: str | None = None) -> bool:
    """Whether the judge is the subject: the same deployment, or the same model at the same revision. `pinned` is what
    the subject was when it answered, where that is known."""
    if judge == subject:
        return True
    model = catalog.deployments[judge].pinned
    known = catalog.deployments.get(subject)
    return (known is not None and known.pinned == model) or (pinned is not None and pinned.partition("#")[0] == model)


def hurry(yard: Yard) -> None:
    """After the commit: the batch is expanded now. Beat sees to it too, so a lost nudge only delays."""
    try:
        yard.publisher.nudge(EXPAND)
    except BrokerError as error:
        yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
