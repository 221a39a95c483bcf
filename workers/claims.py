"""What one replica claims, also where the answer to a claim was lost on its way."""

from __future__ import annotations

import asyncio
import contextlib

from tieryard.errors import StoreError
from tieryard.store import jobs
from tieryard.store.jobs import Claimed
from workers.yard import Yard

_ASK_AGAIN_S = 1.0


class Claims:
    """For the deployments whose jobs this worker runs. On its loop; what blocks is done in threads."""

    def __init__(self, yard: Yard, names: list[str]) -> None:
        self._yard, self._names = yard, names
        self.under_way = 0
        """Jobs whose claim has not been answered."""

    async def make(self, ids: list[int]) -> list[Claimed]:
        """Those that were to be had. Raises StoreError, after which some may be ours all the same: see `settle`."""
        self.under_way += len(ids)
        try:
            return await asyncio.to_thread(self._make, ids)
        finally:
            self.under_way -= len(ids)

    def _make(self, ids: list[int]) -> list[Claimed]:
        with self._yard.store.transaction() as connection:
            return jobs.claim(connection, ids, worker_id=self._yard.worker_id, deployments=self._names)

    async def settle(self, ids: list[int]) -> list[Claimed]:
        """After a claim whose answer was lost, for it may have been committed: what is ours, when Postgres answers
        again. The nudges of the rest are lost with this, and rescue sends them again."""
        while True:
            await asyncio.sleep(_ASK_AGAIN_S)
            with contextlib.suppress(StoreError):
                return await asyncio.to_thread(jobs.claimed_by, self._yard.store, ids, self._yard.worker_id)
