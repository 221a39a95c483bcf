"""An engine inside the worker's own process that answers at once: it measures everything around the engine."""

from __future__ import annotations

import asyncio
from typing import Any

from tieryard.engines import Delta, Done, Stream, Usage


class InstantEngine:
    """Answers every request with one word after `delay_ms`. Its prompt token count is the prompt's words."""

    def __init__(self, *, delay_ms: float = 0) -> None:
        self._delay_s = delay_ms / 1000

    async def start(self) -> None:
        pass

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None:
        pass

    async def stream(self, body: dict[str, Any]) -> Stream:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        words = sum(len(message["content"].split()) for message in body["messages"])
        yield Delta("done", Usage(words, 1))
        yield Done("stop", Usage(prompt_tokens=words, completion_tokens=1), "instant")
