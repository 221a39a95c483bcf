"""What one replica tells the fleet of itself, and hears: calls of API processes in its engine, and other replicas."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tieryard.metrics import Gauge
from tieryard.observe import Observer, Tallies
from tieryard.store.finish import Ending
from tieryard.store.jobs import Claimed
from workers.yard import Yard


class Standing:
    """Of the deployments whose jobs this worker runs: its own, then the LoRA adapters in its engine."""

    def __init__(self, yard: Yard, names: list[str]) -> None:
        self._yard, self._names = yard, names
        self._kept = yard.catalog.deployments[names[0]].realtime_reserve
        self._observers = {name: Observer(yard.metrics, name) for name in names}
        self._calls: Counter[str] = Counter()
        self.others_serve = False
        """Whether another replica could take what this one cannot."""

    @property
    def calls(self) -> int:
        """Of API processes, in the same engine."""
        return self._calls.total()

    def add(self, job: Claimed, ending: Ending) -> None:
        self._observers[job.deployment].add(job, ending)

    def take(self) -> dict[str, Tallies]:
        """What was observed since the last call, for `publish`. On the loop, as `add` is."""
        return {name: observer.take() for name, observer in self._observers.items()}

    def publish(self, gauge: Gauge, seen: dict[str, Tallies]) -> None:
        """In a thread. Deployments that share the engine each see the others' calls as jobs of this worker. Raises
        redis.RedisError."""
        metrics, worker_id = self._yard.metrics, self._yard.worker_id
        full = gauge.backlog > 0 and gauge.capacity > 0 and gauge.in_flight >= gauge.capacity - self._kept
        for name in self._names:
            elsewhere = self._calls.total() - self._calls[name]
            metrics.publish_gauge(name, worker_id, replace(gauge, in_flight=gauge.in_flight + elsewhere))
            self._observers[name].publish(seen[name], full=full)
        self._calls = Counter({name: metrics.calls_at(name, worker_id, gauge.url) for name in self._names})
        replicas = metrics.replicas(self._names[0])
        self.others_serve = any(r.serves and r.worker_id != worker_id for r in replicas)

    def unheard(self) -> None:
        """Redis is away: calls end unseen, and their gauges would be too old anyway."""
        self._calls.clear()
        self.others_serve = False

    def withdraw(self) -> None:
        """Raises redis.RedisError."""
        for name in self._names:
            self._yard.metrics.withdraw_gauge(name, self._yard.worker_id)
