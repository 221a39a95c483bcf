"""Work that comes to its end though the call that waits for it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from tieryard.errors import StoreError

T = TypeVar("T")


async def uninterrupted(work: Awaitable[T]) -> T:
    """Lets `work` in a thread come to its end, also when the call is stopped meanwhile: what it saves must be ended. A
    StoreError goes before the stop, since it leaves in doubt what was saved."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if isinstance(task.exception(), StoreError):
            task.result()
        raise
