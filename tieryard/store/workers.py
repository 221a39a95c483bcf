"""Worker leases: one row and one heartbeat a process, however many jobs it holds. An infer process's rent begins and
ends with its lease."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from tieryard.catalog import Catalog, Price
from tieryard.costs.windows import WindowPrice
from tieryard.errors import LeaseLostError
from tieryard.store import prices, windows
from tieryard.store.connection import Connection, Store

# Who left is known by its last heartbeat: one that was declared dead may have been replaced long before that.
_REPLICAS = """
WITH replica AS (
    SELECT id, started_at, stopped_at, lease_until - %(lease)s * interval '1 second' AS seen_at
    FROM worker WHERE kind = 'infer' AND deployment = %(deployment)s
), gone AS (
    SELECT max(seen_at) AS at FROM replica WHERE stopped_at > now() - %(within)s * interval '1 second'
)
SELECT id, gone.at IS NULL OR started_at > gone.at FROM replica, gone WHERE stopped_at IS NULL
"""

_BEAT = """
WITH alive AS (
    UPDATE worker SET lease_until = now() + %(lease)s * interval '1 second', catalog_version = %(version)s,
                      catalog_fault = %(fault)s
    WHERE id = %(id)s AND stopped_at IS NULL RETURNING id
), served AS (
    UPDATE rent_window SET served_at = greatest(started_at, now() - %(served_ago)s::float8 * interval '1 second')
    FROM alive WHERE worker_id = alive.id AND rent_window.stopped_at IS NULL AND served_at IS NULL
                 AND %(served_ago)s::float8 IS NOT NULL
)
SELECT (SELECT coalesce(max(id), 0) FROM catalog_version), w.id, w.input_usd_per_1m, w.output_usd_per_1m
FROM alive LEFT JOIN rent_window w ON w.worker_id = alive.id AND w.stopped_at IS NULL
"""

_RETIRE = """
WITH gone AS (
    UPDATE worker SET stopped_at = now() WHERE id = %(id)s AND stopped_at IS NULL RETURNING id
), stopped AS (
    UPDATE rent_window SET stopped_at = greatest(rent_window.started_at, now()) FROM gone
    WHERE worker_id = gone.id AND rent_window.stopped_at IS NULL
)
SELECT id FROM gone
"""

_REGISTER = """
INSERT INTO worker (kind, deployment, host, pid, place, lease_until)
VALUES (%(kind)s, %(deployment)s, %(host)s, %(pid)s, %(place)s, now() + %(lease)s * interval '1 second') RETURNING id
"""

_FOLLOWING = """
SELECT kind, deployment, host, pid, worker.catalog_version, catalog_fault FROM worker
WHERE stopped_at IS NULL AND lease_until > now() AND worker.catalog_version IS NOT NULL ORDER BY kind, deployment, id
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """The catalog version that a process goes by, 0 for its file's; `fault` is what keeps it from the newest. Both None
    for a process that follows no catalog."""

    version: int | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Following:
    """A live process that follows the catalog, as it told with its last heartbeat."""

    kind: str
    deployment: str | None
    host: str
    pid: int
    taken: Taken

    @property
    def name(self) -> str:
        return f"{self.kind} {self.deployment}" if self.deployment else self.kind


@dataclass(frozen=True, slots=True)
class Followers:
    """The newest catalog version, 0 where there is none, and every process that follows it."""

    newest: int
    processes: tuple[Following, ...]

    @property
    def behind(self) -> tuple[Following, ...]:
        """Those that go by another, be it that they have yet to take the newest over."""
        return tuple(p for p in self.processes if p.taken.version != self.newest)

    @property
    def unable(self) -> bool:
        """Whether one of them has said that it cannot."""
        return any(p.taken.fault for p in self.behind)

    def summary(self) -> str:
        """How many do, and of what kind those are that do not: nothing that a stranger may not read."""
        return "; ".join([self._counted(), *sorted({f"{p.name} still by {_version(p)}" for p in self.behind})])

    def told(self) -> str:
        """How many do, and each process that does not, with why: for operators."""
        return "; ".join([self._counted(), *(_why(p) for p in self.behind)])

    def _counted(self) -> str:
        going, whole = len(self.processes) - len(self.behind), len(self.processes)
        return f"{going} of {whole} processes go by version {self.newest} of the catalog"


def _why(process: Following) -> str:
    fault = process.taken.fault or "it has yet to take the newest over"
    return f"{process.name} ({process.host}, pid {process.pid}) still by {_version(process)}: {fault}"


def _version(process: Following) -> str:
    return f"version {process.taken.version}" if process.taken.version else "its file"


def place_of(deployment: str, replica: int) -> str:
    """Where an infer process of this host stands: what it rents is rented once, whoever comes back there."""
    return f"{socket.gethostname()}/{deployment}/{replica}"


def register(
    store: Store,
    kind: str,
    *,
    deployment: str | None,
    lease_s: float,
    replica: int = 1,
    catalog: Catalog | None = None,
) -> int:
    """Adds this process to the fleet: its worker id. For an infer process, the `replica`-th of its deployment on this
    host, it opens the rent window, where this catalog has a rent for it."""
    place = None if deployment is None else place_of(deployment, replica)
    wanted = {
        "kind": kind,
        "deployment": deployment,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "place": place,
        "lease": lease_s,
    }
    window_id = store.next_id() if catalog is not None else 0  # not in the transaction: see `open_window`
    with store.transaction() as connection:
        row = connection.execute(_REGISTER, wanted).fetchone()
        assert row is not None
        worker_id = int(row[0])
        if catalog is not None and deployment is not None and place is not None:
            terms = prices.terms_of(connection, catalog, deployment)
            if terms is not None:
                windows.open_window(
                    connection, window_id, place=place, worker_id=worker_id, deployment=deployment, terms=terms
                )
    return worker_id


@dataclass(frozen=True, slots=True)
class Heard:
    """What a heartbeat brings: the number of the newest catalog version, 0 where there is none, and the window that
    stands for the process, with its standard price."""

    newest: int
    window: WindowPrice | None


def beat(
    store: Store, worker_id: int, *, lease_s: float, taken: Taken = Taken(), served_ago_s: float | None = None
) -> Heard:
    """Renews the lease, and tells which catalog the process goes by, and since when its engine has served. Raises
    LeaseLostError when the worker has been declared dead."""
    told = {"version": taken.version, "fault": taken.fault, "served_ago": served_ago_s}
    rows = store.fetch(_BEAT, {"id": worker_id, "lease": lease_s, **told})
    if not rows:
        raise LeaseLostError(f"worker {worker_id} was silent for more than {lease_s:g} s and declared dead")
    newest, window_id, input_usd, output_usd = rows[0]
    price = Price(input_usd_per_1m=input_usd, output_usd_per_1m=output_usd) if window_id is not None else None
    return Heard(int(newest), WindowPrice(window_id, price) if price is not None else None)


def retire(store: Store, worker_id: int) -> None:
    """Leaves the fleet, and stops its rent. Jobs it still runs, if any, are rescue's to requeue."""
    store.fetch(_RETIRE, {"id": worker_id})


def replicas(connection: Connection, deployment: str, *, lease_s: float, within_s: float) -> dict[int, bool]:
    """Infer processes of this deployment that have neither stopped nor been declared dead, by worker id: whether each
    came after the last that did, which is true of all where none has within that time."""
    rows = connection.execute(_REPLICAS, {"deployment": deployment, "lease": lease_s, "within": within_s})
    return {row[0]: row[1] for row in rows}


def followers(store: Store) -> Followers:
    """Whether every live process goes by the newest catalog."""
    with store.transaction() as connection:
        rows = connection.execute(_FOLLOWING).fetchall()
        [[newest]] = connection.execute("SELECT coalesce(max(id), 0) FROM catalog_version").fetchall()
    found = (
        Following(kind, deployment, host, pid, Taken(version, fault))
        for kind, deployment, host, pid, version, fault in rows
    )
    return Followers(newest, tuple(found))


def fresh_on(store: Store, *, host: str) -> bool:
    """Whether a worker on this host holds a live lease: a container's health check."""
    rows = store.fetch(
        "SELECT EXISTS (SELECT FROM worker WHERE host = %(host)s AND stopped_at IS NULL AND lease_until > now())",
        {"host": host},
    )
    return bool(rows[0][0])


def any_lives(connection: Connection, kind: str) -> bool:
    """Whether a worker of this kind has a live lease."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM worker WHERE kind = %(kind)s AND stopped_at IS NULL AND lease_until > now())",
        {"kind": kind},
    ).fetchone()
    return bool(row and row[0])
