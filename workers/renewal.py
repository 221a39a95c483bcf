"""What becomes of an infer process when another catalog comes in force: it takes it over while it runs, or, where its
engine would be another, makes room for a new process, one replica of its deployment after the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial

import redis

from tieryard.catalog import Catalog, VllmEngine
from tieryard.catalog.changes import same_footing
from tieryard.in_force import NotYetError
from tieryard.metrics import EngineState, Replica
from tieryard.store import Connection, workers
from tieryard.store.leader import lead
from tieryard.tokens import load_counter
from workers.infer import Inference
from workers.yard import Yard

_PATIENCE_S = 120.0  # beyond what an engine of our own may take to start


class Renewal:
    """Of the infer process of one deployment."""

    def __init__(self, yard: Yard, name: str, inference: Inference) -> None:
        self._yard, self._name, self._inference = yard, name, inference
        self._waits_since: float | None = None
        self._turn = contextlib.ExitStack()  # never closed: the lock goes with the process

    def prepare(self, old: Catalog, new: Catalog) -> Callable[[], None]:
        """Raises UserError where a new process could not start, and NotYetError while another replica's turn lasts."""
        if self._name not in new.hosts:
            return self._yard.start_again
        if same_footing(old, new, self._name):
            self._waits_since = None
            return partial(self._inference.take_over, new)
        spec = new.deployments[self._name]
        load_counter(spec.tokenizer, cache_dir=self._yard.settings.cache_dir)
        starts_s = spec.engine.start_within.total_seconds() if isinstance(spec.engine, VllmEngine) else 0.0
        self._take_turn(patience_s=_PATIENCE_S + starts_s)
        return self._yard.start_again

    def _take_turn(self, *, patience_s: float) -> None:
        """Holds the deployment's lock from here until this process is gone. Raises NotYetError."""
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        with contextlib.ExitStack() as held:
            connection = held.enter_context(lead(self._yard.store, f"renewal.{self._name}"))
            if connection is None:
                raise NotYetError("another replica makes room")
            if why := self._hurdle(connection, patience_s):
                raise NotYetError(why)
            self._turn = held.pop_all()

    def _hurdle(self, connection: Connection, patience_s: float) -> str:
        """What speaks against leaving now: whoever left last must be back, and all others serve. Empty when nothing
        does, and for one that does not serve: nobody would miss it."""
        me, heard = self._yard.worker_id, self._heard()
        if any(r.worker_id == me and r.state is not EngineState.SERVING for r in heard):
            return ""
        lease_s = self._yard.settings.lease_s
        came_since = workers.replicas(connection, self._name, lease_s=lease_s, within_s=patience_s)
        serving = {r.worker_id for r in heard if r.serves} & came_since.keys()
        if not all(came_since.values()) and not any(came_since[worker_id] for worker_id in serving):
            return "the replica that left last has no successor that serves"
        waited_s = time.monotonic() - (self._waits_since or 0.0)
        if (others := came_since.keys() - serving - {me}) and waited_s < patience_s:
            return f"{len(others)} of the other replicas do not serve"
        return ""

    def _heard(self) -> list[Replica]:
        """None are heard of without Redis."""
        try:
            return self._yard.metrics.replicas(self._name)
        except redis.RedisError:
            return []
