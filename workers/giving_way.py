"""A benchmark's load, sent only while nobody else needs the engines: it pauses, or ends, when work of users comes, and
ends at once when it is stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Mapping
from typing import TypeVar

import redis

from workers.replicas import Replicas
from workers.spare import Spare

_LOOK_S = 0.25
_PATIENCE_S = 30.0
"""So long may a pause be, before the load is put off."""

_T = TypeVar("_T")


class StoppedError(Exception):
    """Its run is cancelled, or this process stops."""


class GivingWay:
    """One load. `wanted` requests of it may be in flight; `pauses`: it waits until users' work is done, otherwise it
    ends. With `anyway` it does neither. `most_tokens` is what its longest request may use. On the loop."""

    def __init__(
        self, spare: Spare, replicas: Replicas, *, wanted: int, most_tokens: int, pauses: bool, anyway: bool
    ) -> None:
        self._spare, self._replicas = spare, replicas
        self._wanted, self._most_tokens = wanted, most_tokens
        self._pauses, self._anyway = pauses, anyway
        self._free = asyncio.Event()
        self._free.set()
        self._why = ""
        self.gave_way = ""
        """Why it ended."""
        self.wait_s = 0.0
        """How long a hosted API wants to be left alone then."""
        self.pauses = 0

    async def yield_to(self) -> bool:
        """Before each request: waits while others need the engines. True ends the load."""
        if not self._free.is_set():
            if not self._pauses:
                return self._give_way(self._why)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self._free.wait()
            except TimeoutError:
                return self._give_way(f"{self._why}, for {_PATIENCE_S:g} s and more")
        waited_s = 0.0
        while (refused := await self._replicas.allow(self._most_tokens)) is not None:
            if not self._pauses or waited_s + refused.wait_s > 2 * _PATIENCE_S:
                self.wait_s = refused.wait_s
                return self._give_way(refused.why)
            await asyncio.sleep(refused.wait_s)
            waited_s += refused.wait_s
        return False

    async def guard(self, load: Awaitable[_T], stop: threading.Event) -> _T:
        """Runs it, looking at the engines meanwhile. Raises StoppedError once `stop` is set: what was under way is
        aborted."""
        loading = asyncio.ensure_future(load)
        watch = asyncio.create_task(self._watch(stop))
        watch.add_done_callback(lambda _: loading.cancel())
        try:
            return await loading
        except asyncio.CancelledError:
            if watch.done():
                await watch  # says why
            raise
        finally:
            watch.cancel()

    async def _watch(self, stop: threading.Event) -> None:
        """Each look is in a thread: nothing keeps the loop from sending and receiving."""
        while not await asyncio.to_thread(stop.wait, _LOOK_S):
            self._why = await asyncio.to_thread(self._exchange, dict(self._replicas.in_flight))
            self._replicas.live = self._spare.live
            if not self._why or self._anyway:
                self._free.set()
            elif self._free.is_set():
                self._free.clear()
                self.pauses += self._pauses
        raise StoppedError

    def _exchange(self, in_flight: Mapping[int, int]) -> str:
        try:
            self._spare.tell(in_flight, self._replicas.urls)
            self._spare.look()
        except redis.RedisError:
            return "Redis is away, and nobody knows who else needs the engines"
        return self._spare.taken_by(self._wanted)

    def _give_way(self, why: str) -> bool:
        self.gave_way = self.gave_way or why
        return True
