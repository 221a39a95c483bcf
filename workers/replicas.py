"""A deployment's replicas as one engine: each request goes to the one with the most room."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from tieryard.engines import Engine, Recording, Stream, Usage
from tieryard.engines.load import Load
from tieryard.engines.vetting import Expected
from tieryard.errors import EngineBusyError, RetryableError
from tieryard.metrics import Replica
from tieryard.quotas import Quota, Start, Taken, Ticket

_BACKOFF_S = 1.0  # after a refusal that does not say how long to wait


class Replicas:
    """For who only sends requests. `engines` are by URL, `quota` that of a hosted API. It counts what is in flight at
    each replica, and the tokens that all requests there have used, both by worker id. On the loop."""

    url = None

    def __init__(self, replicas: Sequence[Replica], engines: Mapping[str, Engine], quota: Quota | None = None) -> None:
        self.urls = {replica.worker_id: replica.url for replica in replicas}
        self.in_flight: Counter[int] = Counter()
        self.used: dict[int, Usage] = {}
        self.live = frozenset(self.urls)
        """Those to send to while there are any; a dead one is always the emptiest."""
        self._capacity = {replica.worker_id: max(1, replica.capacity) for replica in replicas}
        self._engines = engines
        self._quota = quota
        self._tickets: deque[Ticket] = deque()

    async def allow(self, tokens: int) -> Taken | None:
        """Takes a request of so many tokens from what a hosted API lets the fleet do: why not, None when it may be
        sent."""
        if self._quota is None:
            return None
        taken = await asyncio.to_thread(self._quota.take, [Start(tokens)])
        self._tickets += taken.granted
        return None if taken.granted else taken

    def settle(self) -> None:
        """Gives back what was taken and not used. Blocks for a moment."""
        if self._quota is not None:
            while self._tickets:
                self._quota.settle(self._tickets.popleft(), 0, sent=False)
            if self._quota.owes:
                self._quota.take()

    async def stream(self, body: dict[str, Any]) -> Stream:
        worker_id = self._emptiest()
        ticket = self._tickets.popleft() if self._tickets else None
        recording, sent = Recording(), True
        self.in_flight[worker_id] += 1
        try:
            async with contextlib.aclosing(self._engines[self.urls[worker_id]].stream(body)) as events:
                async for event in events:
                    recording.add(event)
                    yield event
        except RetryableError as error:
            sent = error.sent
            if isinstance(error, EngineBusyError) and self._quota is not None:
                self._quota.refused(_BACKOFF_S if error.retry_after_s is None else error.retry_after_s)
            raise
        finally:
            self.in_flight[worker_id] -= 1
            used = recording.usage
            self.used[worker_id] = self.used.get(worker_id, Usage(0, 0)) + used
            if ticket is not None and self._quota is not None:
                self._quota.settle(ticket, used.prompt_tokens + used.completion_tokens, sent=sent)

    def _emptiest(self) -> int:
        known = [n for n in self.urls if n in self.live] or list(self.urls)
        return min(known, key=lambda n: self.in_flight[n] / self._capacity[n])

    async def start(self) -> None:
        """They run already."""

    async def healthy(self) -> bool:
        return bool(self.live)

    async def faults(self, expected: Expected) -> list[str]:  # noqa: ARG002  # their own workers have asked
        return []

    async def load(self) -> Load | None:
        return None

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()
