"""The newest snapshot for routing: read from the live metrics often enough, stored once for however many decisions."""

from __future__ import annotations

import time

import redis
from structlog.typing import FilteringBoundLogger

from tieryard.catalog import Catalog
from tieryard.metrics import Live, Metrics
from tieryard.routing import Snapshot
from tieryard.telemetry import Event

FRESH_S = 0.25


class Snapshots:
    """What one process knows of the fleet's load. `live` and `last` are as of the last read."""

    def __init__(self, metrics: Metrics, catalog: Catalog, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._catalog = catalog
        self._log = log
        self._read_at = float("-inf")
        self._stored: tuple[bytes, int] | None = None
        self.live = Live({}, {}, {})
        self.last = Snapshot.of(catalog)

    def newest(self) -> Snapshot:
        """At most a quarter second old."""
        if time.monotonic() - self._read_at > FRESH_S:
            self.read()
        return self.last

    def read(self) -> None:
        """Without Redis the last one stands: measurements are then stale, and decisions still sound."""
        try:
            live = self._metrics.read(self._catalog)
            self.live, self.last = live, Snapshot.of(self._catalog, gauges=live.gauges, profiles=live.profiles)
        except redis.RedisError as error:
            self._log.warning(Event.BROKER_AWAY, error=str(error)[:200])
        self._read_at = time.monotonic()

    def stored_as(self, body: bytes) -> int | None:
        """The id under which this very snapshot was stored last, if it was."""
        return self._stored[1] if self._stored is not None and self._stored[0] == body else None

    def remember(self, body: bytes, snapshot_id: int) -> None:
        """After the commit that stored it."""
        self._stored = (body, snapshot_id)
