"""What a deployment's replicas have to spare for a benchmark, by their gauges, and what the benchmark tells of itself
there: as API processes tell of their calls, so that infer processes leave room for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tieryard.errors import UserError
from tieryard.metrics import EngineState, Gauge, Metrics, Replica


class Spare:
    """Of one deployment, for the benchmark process with worker id `ours`. `reserve` is what each replica keeps for
    realtime jobs. Methods raise redis.RedisError."""

    def __init__(self, metrics: Metrics, deployment: str, *, ours: int, reserve: int) -> None:
        self._metrics, self._deployment, self._ours, self._reserve = metrics, deployment, ours, reserve
        self._told: dict[int, str] = {}
        self._heard: list[Replica] = []

    def look(self) -> list[Replica]:
        """All that are heard of."""
        self._heard = self._metrics.replicas(self._deployment)
        return self._heard

    @property
    def live(self) -> frozenset[int]:
        """Worker ids of those that served at the last look."""
        return frozenset(replica.worker_id for replica in self._heard if replica.serves)

    def room(self, replicas: Sequence[Replica], *, usual: int) -> int:
        """What these take at once beside what is kept for realtime jobs; `usual` is what one takes that is down."""
        return sum(max(1, (replica.capacity or usual) - self._reserve) for replica in replicas)

    def taken_by(self, wanted: int) -> str:
        """Why there is not room for `wanted` requests of ours beside everybody else's, by the last look; empty when
        there is. Where an engine is down nobody is kept waiting by us."""
        up = [replica for replica in self._heard if replica.state is EngineState.SERVING]
        if held := next((replica.held for replica in up if replica.held), ""):
            return held
        if any(not replica.serves for replica in up):
            return "an engine takes nothing now: one job needs it alone, or its worker stops"
        if waiting := sum(replica.backlog for replica in up):
            return f"{waiting} jobs wait for it"
        others = sum(replica.in_flight - replica.calls.get(self._ours, 0) for replica in up)
        capacity = sum(replica.capacity for replica in up)
        if up and others + wanted > capacity:
            return f"{others} requests of others leave no room for {wanted}: it takes {capacity} at once"
        return ""

    def tell(self, in_flight: Mapping[int, int], urls: Mapping[int, str]) -> None:
        """How many requests of ours are in flight at each replica; one that has none any more is told once more."""
        for worker_id in {*self._told, *(n for n, count in in_flight.items() if count)}:
            count, url = in_flight.get(worker_id, 0), urls[worker_id]
            gauge = Gauge(capacity=0, in_flight=count, backlog=0, url=url)
            self._metrics.publish_calls(self._deployment, worker_id, gauge, api=self._ours)
            self._told[worker_id] = url

    def withdraw(self) -> None:
        for worker_id in self._told:
            self._metrics.withdraw_calls(self._deployment, worker_id, api=self._ours)
        self._told.clear()


class NotYetError(Exception):
    """Its replicas take nothing now, and will again."""


def measurable(deployment: str, replicas: Sequence[Replica]) -> list[Replica]:
    """Those to send requests to: what serves, else what is down, which is a finding too. Raises UserError, or
    NotYetError."""
    if not replicas:
        raise UserError(f"no replica of '{deployment}' is heard of: there is nothing to measure")
    if serving := [replica for replica in replicas if replica.serves]:
        if reached := [replica for replica in serving if replica.url]:
            return reached
        raise UserError(f"'{deployment}' answers inside its worker: it has no server that could be measured")
    states = {replica.state for replica in replicas}
    if EngineState.SERVING in states:
        raise NotYetError("its engine takes nothing now: one job needs it alone, or its worker stops")
    if EngineState.STARTING in states:
        raise NotYetError("its engine is starting")
    if down := [replica for replica in replicas if replica.state is EngineState.DOWN and replica.url]:
        return down
    raise UserError(f"no engine of '{deployment}' may serve: `tieryard deployments` says why")
