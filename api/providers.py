"""What calls of this process ask of engines that are somebody's API, within its limits; and how their starts went, for
the circuit breakers."""

from __future__ import annotations

from collections import Counter, defaultdict

from tieryard.breakers import Breakers, StartKind
from tieryard.catalog import Catalog
from tieryard.endings import start_kind
from tieryard.engines.opening import missing_key
from tieryard.errors import EngineBusyError, EngineError, RetryableError
from tieryard.quotas import Quota, Quotas
from tieryard.store.finish import Ending
from tieryard.telemetry import Event, logger

_BACKOFF_S = 1.0  # after a refusal that does not say how long to wait

Counts = dict[str, Counter[StartKind]]


class Providers:
    """Made at start. On the loop, but for what says otherwise."""

    def __init__(self, redis_url: str, catalog: Catalog) -> None:
        self._quotas = Quotas(redis_url)
        self._breakers = Breakers(self._quotas.client)
        self._counts: Counts = defaultdict(Counter)
        self.lacking: dict[str, str] = {}
        """Deployments that this process has no key for, with that as the reason to pass them over."""
        self.take_over(catalog)

    def take_over(self, catalog: Catalog) -> None:
        """Goes by this catalog from now on. From any thread."""
        missing = {name: why for name in catalog.deployments if (why := missing_key(catalog, name))}
        for name, why in missing.items():
            if name not in self.lacking:
                logger(process="api").error(Event.ENGINE_DOWN, deployment=name, error=why)
        self.lacking = dict.fromkeys(missing, "the API has no key for it")
        self._catalog = catalog

    def quota(self, deployment: str) -> Quota | None:
        """None where calls need not ask."""
        known = deployment in self._catalog.deployments
        return self._quotas.of(self._catalog, deployment) if known else None

    def ended(self, ending: Ending) -> None:
        """After the last start of a call."""
        if (kind := start_kind(ending)) is not None:
            self._counts[ending.deployment][kind] += 1

    def refused(self, deployment: str, error: EngineError) -> None:
        """After a start that failed: where the provider answered 429, all of the fleet leaves it alone for a while."""
        if isinstance(error, EngineBusyError) and (quota := self.quota(deployment)) is not None:
            quota.refused(error.retry_after_s if error.retry_after_s is not None else _BACKOFF_S)

    def moved(self, deployment: str, error: RetryableError) -> None:
        """After a start that failed and has no ending: its call goes elsewhere."""
        self._counts[deployment]["refused" if isinstance(error, EngineBusyError) else "failed"] += 1

    def take(self) -> Counts:
        """How starts went since the last call, for `report`."""
        counts, self._counts = self._counts, defaultdict(Counter)
        return counts

    def report(self, counts: Counts) -> None:
        """In a thread. Raises redis.RedisError."""
        for deployment, kinds in counts.items():
            self._breakers.tell(deployment, self._catalog.routing.breaker, kinds)
        self._quotas.report()

    def close(self) -> None:
        self._quotas.close()
