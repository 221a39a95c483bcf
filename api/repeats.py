"""A call whose idempotency key has made a job already: wait until that job is final, and give its answer again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

from tieryard import telemetry
from tieryard.answers import Answer
from tieryard.engines import Delta, Usage
from tieryard.errors import JobFailedError, StoreError, UnavailableError
from tieryard.ids import public
from tieryard.job import State
from tieryard.requests import Endpoint
from tieryard.store import Store, calls, reads
from tieryard.telemetry import Event

_POLL_S = 0.1


class Finals:
    """Tells when jobs are final: one `look` for those of these ids, however many wait for however many jobs."""

    def __init__(self, look: Callable[[list[int]], Awaitable[set[int]]]) -> None:
        self._find = look
        self._awaited: dict[int, asyncio.Event] = {}
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, job_id: int) -> None:
        final = self._awaited.setdefault(job_id, asyncio.Event())
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        await final.wait()

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self) -> None:
        while self._awaited:
            try:
                found = await self._find(list(self._awaited))
            except StoreError as error:
                telemetry.logger().warning(Event.STORE_AWAY, error=str(error)[:200])
                found = set()
            for job_id in found:
                self._awaited.pop(job_id).set()
            await asyncio.sleep(_POLL_S)


def stored_answer(store: Store, job_id: int, endpoint: Endpoint, *, tenant_id: int) -> Answer:
    """The answer of a job that is final. Raises JobFailedError, and UnavailableError for a call that its caller has
    just given up. After that, as after a transient failure, its key is free again; other failures stand."""
    row = reads.get_job(store, job_id, tenant_id=tenant_id)
    result, timing = row.result, row.timing
    assert result is not None
    if row.job.state == State.CANCELLED:
        raise UnavailableError("the first call with this Idempotency-Key was given up; ask again", retry_after_s=1.0)
    if row.job.state != State.SUCCEEDED or timing is None:
        kind = result.error_kind or row.job.state
        raise JobFailedError(kind, result.error or "", retry_after_s=None if kind in calls.TRANSIENT else math.inf)
    return Answer(
        endpoint=endpoint,
        job=public("job", job_id),
        created=row.job.created_at,
        model=timing.deployment,
        text=result.output or "",
        finish_reason=result.finish_reason or "stop",
        usage=Usage(timing.prompt_tokens, timing.completion_tokens, timing.cached_tokens),
        extra=result.extra,
        fingerprint=timing.fingerprint,
    )


def as_piece(answer: Answer) -> Delta:
    """A whole answer as the one piece of a stream. Parts of tool calls have their number, whole ones do not."""
    extra: dict[str, Any] = dict(answer.extra or {})
    if "tool_calls" in extra:
        extra["tool_calls"] = [{"index": i, **call} for i, call in enumerate(extra["tool_calls"])]
    return Delta(answer.text, extra=extra or None)
