"""Worker leases: one row and one heartbeat a process, however many jobs it holds."""

from __future__ import annotations

import os
import socket

from tieryard.errors import LeaseLostError
from tieryard.store.connection import Store


def register(store: Store, kind: str, *, deployment: str | None, lease_s: float) -> int:
    """Adds this process to the fleet: its worker id."""
    rows = store.fetch(
        "INSERT INTO worker (kind, deployment, host, pid, lease_until) "
        "VALUES (%(kind)s, %(deployment)s, %(host)s, %(pid)s, now() + %(lease)s * interval '1 second') RETURNING id",
        {
            "kind": kind,
            "deployment": deployment,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "lease": lease_s,
        },
    )
    return int(rows[0][0])


def beat(store: Store, worker_id: int, *, lease_s: float) -> int:
    """Renews the lease: the number of the catalog's newest version, 0 where there is none. Raises LeaseLostError when
    the worker has been declared dead."""
    rows = store.fetch(
        "UPDATE worker SET lease_until = now() + %(lease)s * interval '1 second' "
        "WHERE id = %(id)s AND stopped_at IS NULL RETURNING (SELECT coalesce(max(id), 0) FROM catalog_version)",
        {"id": worker_id, "lease": lease_s},
    )
    if not rows:
        raise LeaseLostError(f"worker {worker_id} was silent for more than {lease_s:g} s and declared dead")
    return int(rows[0][0])


def retire(store: Store, worker_id: int) -> None:
    """Leaves the fleet. Jobs it still runs, if any, are rescue's to requeue."""
    store.fetch(
        "UPDATE worker SET stopped_at = now() WHERE id = %(id)s AND stopped_at IS NULL RETURNING id",
        {"id": worker_id},
    )


def fresh_on(store: Store, *, host: str) -> bool:
    """Whether a worker on this host holds a live lease: a container's health check."""
    rows = store.fetch(
        "SELECT EXISTS (SELECT FROM worker WHERE host = %(host)s AND stopped_at IS NULL AND lease_until > now())",
        {"host": host},
    )
    return bool(rows[0][0])
