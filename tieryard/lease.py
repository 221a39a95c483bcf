"""A process's place in the fleet: one row, kept alive from a thread of its own. Who has lost it must stop."""

from __future__ import annotations

import os
import threading
import time

from structlog.typing import FilteringBoundLogger

from tieryard import telemetry
from tieryard.costs.windows import WindowPrice
from tieryard.errors import LeaseLostError, StoreError
from tieryard.in_force import InForce
from tieryard.settings import Settings
from tieryard.store import Store, workers
from tieryard.store.workers import Heard
from tieryard.telemetry import Event

API = "api"
"""The kind of an API process; workers have their own."""

_LEASE_LOST_EXIT = 3
_FAULT_EXIT = 4
OUTDATED_EXIT = 5
"""The code of a process that has stopped so that a new one can work by the catalog in force."""


def end_process(code: int) -> None:
    """At once, with nothing tidied up: rescue does that."""
    os._exit(code)


class Lease:
    """`worker_id` is 0 until `join`. Its connection is its own: however busy a process is, it must not seem dead. Each
    heartbeat tells which catalog the process goes by, and brings the number of the newest version, which `in_force` is
    told in the lease's thread.

    An infer process is the `replica`-th of its deployment on its host; `window` is the rent window that stands for it,
    as of the last heartbeat, None where it is not rented.
    """

    def __init__(
        self,
        kind: str,
        settings: Settings,
        log: FilteringBoundLogger,
        in_force: InForce,
        *,
        deployment: str | None = None,
        replica: int = 1,
    ) -> None:
        self.worker_id = 0
        self.window: WindowPrice | None = None
        self._kind = kind
        self._deployment = deployment
        self._replica = replica
        self._served_at: float | None = None
        self._in_force = in_force
        self._settings = settings
        self._store = Store(settings.database_url.get_secret_value(), pool_size=1, overflow=0)
        self._log = log
        self._stop = threading.Event()
        self._due = threading.Event()  # a heartbeat that is not to wait
        self._beating: threading.Thread | None = None

    def join(self) -> None:
        """Registers this process and keeps its lease alive."""
        self.worker_id = workers.register(
            self._store,
            self._kind,
            deployment=self._deployment,
            lease_s=self._settings.lease_s,
            replica=self._replica,
            catalog=self._in_force.catalog,
        )
        if self._deployment is not None:  # nothing may end here before its window is known
            self.window = self._renew().window
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beating.start()
        self._log.info(Event.PROCESS_STARTED, worker=self.worker_id)

    def serves(self) -> None:
        """Its engine serves. That it first did is told at once; from then on nothing changes. From any thread."""
        if self._served_at is None:
            self._served_at = time.monotonic()
            self._due.set()

    def leave(self) -> None:
        """Gives the lease back."""
        self._stop.set()
        self._due.set()
        if self._beating is not None:
            self._beating.join()
            try:
                if self._served_at is not None:  # which may not have been told yet
                    self._renew()
                workers.retire(self._store, self.worker_id)
            except StoreError as error:
                self._log.warning(Event.STORE_AWAY, error=str(error)[:200])
        self._store.close()
        self._log.info(Event.PROCESS_STOPPED, worker=self.worker_id)

    def die(self, error: BaseException) -> None:
        """Ends this process at once after a fault of ours: its lease runs out and rescue takes its jobs."""
        self._log.error(Event.PROCESS_FAILED, **telemetry.fault(error))
        end_process(_FAULT_EXIT)

    def _renew(self) -> Heard:
        ago_s = time.monotonic() - self._served_at if self._served_at is not None else None
        taken, lease_s = self._in_force.taken, self._settings.lease_s
        return workers.beat(self._store, self.worker_id, lease_s=lease_s, taken=taken, served_ago_s=ago_s)

    def _beat(self) -> None:
        try:
            self._keep()
        except Exception as error:
            self.die(error)  # without its lease it would take work that it may not claim

    def _keep(self) -> None:
        while not self._stop.is_set():
            self._due.wait(self._settings.heartbeat_s)
            self._due.clear()
            if self._stop.is_set():
                return
            try:
                heard = self._renew()
                self.window = heard.window
                self._in_force.seen(heard.newest)
            except StoreError as error:
                if isinstance(error, LeaseLostError):
                    # Whatever it holds is no longer its own. The fence protects the data; leaving at once
                    # frees the engine for whoever is started in its place.
                    self._log.error(Event.LEASE_LOST, error=str(error))
                    end_process(_LEASE_LOST_EXIT)
                    return
                self._log.warning(Event.STORE_AWAY, error=str(error)[:200])
