"""The catalog that a process works by: the newest version in Postgres, taken over while the process runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from tieryard import telemetry
from tieryard.catalog import Catalog, load_catalog, parse_catalog
from tieryard.catalog.reading import read_text
from tieryard.errors import CatalogError, StoreError, TieryardError, UserError
from tieryard.settings import Settings
from tieryard.store import Store, catalogs
from tieryard.store.catalogs import Version
from tieryard.store.workers import Taken
from tieryard.telemetry import Event

_TRY_AGAIN_S = 60.0  # what keeps a version from being used here may have been mended

Prepare = Callable[[Catalog, Catalog], Callable[[], None]]
"""Makes what a process needs of the second catalog in the place of the first, and returns what puts it there, at once
and without fail. Raises UserError when this process cannot work by it, and NotYetError when it shall later."""


class NotYetError(TieryardError):
    """Another process is to go before this one: what is in force here stays so until a later heartbeat."""


class InForce:
    """`catalog` and `number` (of its version) are those that the process works by now.

    Made at start: the newest version; the file's catalog, which becomes the first version, where there is none. Without
    Postgres it is the file's, as number 0, until the store is heard of. Raises CatalogError.
    """

    def __init__(self, settings: Settings, store: Store, log: FilteringBoundLogger) -> None:
        self._store, self._log = store, log
        self.number, self.catalog, self.applied_at = self._at_start(settings)
        self._prepare: Prepare | None = None
        self._fault: str | None = None
        self._newest = self._refused = self._awaited = self.number
        self._again_at = 0.0
        self._asked, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalog", daemon=True)

    def follow(self, prepare: Prepare) -> None:
        """Takes newer versions over from now on, in a thread of its own: tokenizers may have to be loaded."""
        self._prepare = prepare
        self._thread.start()

    @property
    def taken(self) -> Taken:
        """What the fleet is told: nothing by a process that does not follow, for it has no use for the catalog."""
        return Taken(self.number, self._fault) if self._prepare is not None else Taken()

    @property
    def known(self) -> int:
        """The newest version that this process has looked at: what it refuses by the one in force stays refused, unless
        there is a newer one, which may have what this one lacks."""
        return max(self.number, self._refused)

    def seen(self, newest: int) -> None:
        """The newest version's number, as a heartbeat has found it (0: none)."""
        if newest in (0, self.number) or (newest == self._refused and time.monotonic() < self._again_at):
            return
        self._newest = newest
        self._asked.set()

    def close(self) -> None:
        self._stopping.set()
        self._asked.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._stopping.is_set():
                return
            self._take_over(self._newest)

    def _take_over(self, number: int) -> None:
        """The version of this number; what is in force here stays so when it cannot be used."""
        if number == self.number or self._prepare is None:
            return
        try:
            version = catalogs.version(self._store, number)
            catalog = parse_catalog(version.body, name=f"version {number}")
            put = self._prepare(self.catalog, catalog)
        except StoreError as error:  # the next heartbeat asks again
            self._log.warning(Event.STORE_AWAY, error=str(error)[:200])
        except NotYetError as error:  # and so it does here
            if self._awaited != number:
                self._log.info(Event.CATALOG_AWAITED, version=number, in_force=self.number, why=str(error))
            self._awaited, self._fault = number, None
        except UserError as error:
            self._refuse(number, str(error)[:500], error=str(error)[:500])
        except Exception as error:  # a fault of ours must not leave the process half changed
            self._refuse(number, f"a fault of ours ({type(error).__name__}), see its log", **telemetry.fault(error))
        else:
            self.number, self.catalog, self.applied_at = number, catalog, version.applied_at.timestamp()
            put()
            self._fault = None
            self._log.info(Event.CATALOG_TAKEN, version=number, hash=catalog.hash())

    def _refuse(self, number: int, fault: str, **why: str) -> None:
        self._fault = fault
        self._refused, self._again_at = number, time.monotonic() + _TRY_AGAIN_S
        todo = "mend what it says, or `tieryard config rollback` to a version that works"
        self._log.error(Event.CATALOG_UNUSABLE, version=number, in_force=self.number, todo=todo, **why)

    def _at_start(self, settings: Settings) -> tuple[int, Catalog, float]:
        try:
            version = catalogs.newest(self._store)
            if version is None:
                text = read_text(settings.catalog)
                catalog = parse_catalog(text, name=str(settings.catalog))
                version = catalogs.apply_first(self._store, text, name=catalog.hash(), catalog=catalog)
        except StoreError as error:
            self._log.warning(Event.STORE_AWAY, error=str(error)[:200])
            return 0, load_catalog(settings.catalog), settings.catalog.stat().st_mtime
        catalog = parse(version)
        self._compare(settings, version, catalog)
        return version.number, catalog, version.applied_at.timestamp()

    def _compare(self, settings: Settings, version: Version, catalog: Catalog) -> None:
        """Whoever edits the file and starts processes again may think that this is all there is to do."""
        found: dict[str, str] = {}
        try:
            text = read_text(settings.catalog)
            same = text == version.body or parse_catalog(text, name=str(settings.catalog)).hash() == catalog.hash()
        except CatalogError as error:
            same, found = False, {"error": str(error)[:200]}
        if not same:
            found |= {"file": str(settings.catalog), "todo": f"tieryard config apply {settings.catalog}"}
            self._log.warning(Event.CATALOG_DIFFERS, version=version.number, **found)


def parse(version: Version) -> Catalog:
    """Raises CatalogError, for software that no longer reads what was applied."""
    try:
        return parse_catalog(version.body, name=f"version {version.number}")
    except CatalogError as error:
        todo = "put in force what this software reads: `tieryard config apply FILE`, or `tieryard up --catalog FILE`"
        raise CatalogError(f"{error.message}\n{todo}", param=error.param, line=error.line) from None
