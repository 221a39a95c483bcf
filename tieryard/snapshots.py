"""The newest snapshot for routing: read from the live metrics often enough, stored once for however many decisions.

What exploring costs is counted here too. All processes add to one sum of the day, and a process hears the new sum when
it adds: so once the money is used up each of them explores with at most the parcel that it has at hand.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import replace
from decimal import Decimal

import redis
from structlog.typing import FilteringBoundLogger

from tieryard.catalog import Catalog, Price
from tieryard.hardness import Loaded
from tieryard.metrics import Live, Metrics
from tieryard.routing import Snapshot
from tieryard.telemetry import Event

FRESH_S = 0.25
NO_MODEL = Loaded()
_REMEMBERED = 16  # snapshots that are stored, of some 30 kB each
_REMEMBERED_S = 3600.0  # far less than they are kept for


class Snapshots:
    """What one process knows of the fleet's load. `live` and `last` are as of the last read. `learned` is the model
    that it goes by, or why it cannot."""

    def __init__(
        self, metrics: Metrics, catalog: Catalog, log: FilteringBoundLogger, *, learned: Loaded = NO_MODEL
    ) -> None:
        self._metrics = metrics
        self._catalog = catalog
        self._learned = learned
        self._log = log
        self._read_at = float("-inf")
        self._stored: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # id, and when
        self._reading, self._money, self._storing = threading.Lock(), threading.Lock(), threading.Lock()
        self._owed_usd = Decimal(0)
        self.live = Live({}, {}, {})
        self.last = self._unmeasured()

    def newest(self) -> Snapshot:
        """At most a quarter second old."""
        if time.monotonic() - self._read_at > FRESH_S:
            self.read()
        return self.last

    def read(self) -> None:
        """Without Redis the last one stands: measurements are then stale, and decisions still sound. But nothing is
        explored, for nobody could count what it costs."""
        with self._reading:
            self._read()

    def take_over(self, catalog: Catalog, *, learned: Loaded = NO_MODEL) -> None:
        """From its return on, snapshots are of this catalog; without Redis, of nothing else."""
        with self._reading:
            self._catalog, self._learned = catalog, learned
            if not self._read():
                self.last = self._unmeasured()

    def _read(self) -> bool:
        """Whether Redis answered."""
        self._read_at = time.monotonic()
        try:
            self._pay()
            live = self._metrics.read(self._catalog)
            self.live, self.last = live, self._snapshot(live)
        except redis.RedisError as error:
            self._stop_exploring()
            self._log.warning(Event.BROKER_AWAY, error=str(error)[:200])
            return False
        return True

    def explored(self, usd: Decimal) -> None:
        """What the decisions of a parcel cost above the choice, told at once."""
        self.owe(usd)
        try:
            self._pay()
        except redis.RedisError as error:  # told with the next read that succeeds; until then nothing is explored
            self._stop_exploring()
            self._log.warning(Event.BROKER_AWAY, error=str(error)[:200])

    def owe(self, usd: Decimal) -> None:
        """The same, told at the next read: no I/O."""
        with self._money:
            self._owed_usd += usd
            if self.live.explored_usd + float(self._owed_usd) >= self._limit_usd:
                self._stop_exploring()

    def _pay(self) -> None:
        """Raises redis.RedisError, and what is owed stays so."""
        with self._money:
            usd, self._owed_usd = self._owed_usd, Decimal(0)
        if not usd:
            return
        try:
            total = self._metrics.spend_exploring(float(usd))
        except redis.RedisError:  # perhaps it was counted and the answer lost: twice is better than never
            with self._money:
                self._owed_usd += usd
            raise
        self.live = replace(self.live, explored_usd=total)
        if total >= self._limit_usd:
            self._stop_exploring()

    @property
    def _limit_usd(self) -> Decimal:
        return self._catalog.routing.exploration.max_usd_per_day

    def _stop_exploring(self) -> None:
        if self.last.rules.explore_share:
            self.last = replace(self.last, rules=replace(self.last.rules, explore_share=0.0))

    def _unmeasured(self) -> Snapshot:
        """Of the catalog alone."""
        learned = self._learned
        return Snapshot.of(self._catalog, exploring=False, step_back=learned.fault, quality_model=learned.quality_model)

    def _snapshot(self, live: Live) -> Snapshot:
        return Snapshot.of(
            self._catalog,
            gauges=live.gauges,
            profiles=live.profiles,
            needed_tps=live.needed_tps,
            exploring=live.explored_usd < self._limit_usd,
            step_back=step_back(self._learned, live),
            quality_model=self._learned.quality_model,
            trials=live.trials,
            prices=_standard_prices(live),
        )

    def stored_as(self, body: bytes) -> int | None:
        """The id under which this very snapshot was stored lately, if it was."""
        snapshot_id, at = self._stored.get(body, (None, 0.0))
        return snapshot_id if time.monotonic() - at < _REMEMBERED_S else None

    def remember(self, body: bytes, snapshot_id: int) -> None:
        """After the commit that stored it. Calls take turns between a few: with what is full or has failed them passed
        over, and without."""
        with self._storing:
            self._stored[body] = snapshot_id, time.monotonic()
            self._stored.move_to_end(body)
            if len(self._stored) > _REMEMBERED:
                self._stored.popitem(last=False)


def _standard_prices(live: Live) -> dict[str, Price]:
    """What is charged where something is rented: the price of a window that stands there."""
    return {
        name: replica.window.price
        for name, replicas in live.replicas.items()
        for replica in reversed(replicas)
        if replica.window is not None
    }


def step_back(learned: Loaded, live: Live) -> str:
    """Why the router goes by its rules though the catalog wants the learned model; empty where it does not."""
    return learned.fault or live.step_back.get(learned.quality_model, "")
