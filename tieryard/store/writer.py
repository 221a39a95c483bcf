"""One thread that writes endings: everything that waits goes into one transaction.

The asyncio loop hands over an ending and goes on; the queue is bounded, so a slow database slows the intake
and not the memory. A flush that fails on one row's data is bisected until that row stands alone, and that
job is failed with the reason; a database that is away is waited for, since the answers exist nowhere else.
"""

from __future__ import annotations

import dataclasses
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import psycopg

from tieryard.errors import StoreError
from tieryard.job import State
from tieryard.store.connection import TOO_MUCH, Store
from tieryard.store.finish import Ending, Finished, finish
from tieryard.telemetry import Event, fault, logger

Flushed = Callable[[Finished], None]
"""Called in the writer's thread after each commit."""

POSTING_TIMEOUT_S = 60.0
"""After which a statement of a writer's connection ends, and a transaction that does nothing: well below the grace that
a rent window has before it is closed, so that hardly any ending comes after that."""

_MOST = 512  # endings a transaction
_MOST_BYTES = 32 * 2**20  # of answers a transaction, and one more: a statement's JSON may not reach 256 MB
_NUMBER_BYTES = 20  # as vectors have them


class Writer:
    """Takes endings from any thread with `put`; `close` returns when all of them are written."""

    def __init__(self, store: Store, *, flushed: Flushed, capacity: int = 4096) -> None:
        self._store = store
        self._flushed = flushed
        self._queue: queue.Queue[Ending | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._log = logger()
        self.pending: set[int] = set()
        """Jobs whose ending is put and not yet written."""
        self.failure: BaseException | None = None
        """Set when the thread has died of a fault of ours; its worker must stop, and rescue takes over."""

    def start(self) -> None:
        self._thread.start()

    def put(self, ending: Ending) -> None:
        """Blocks only while `capacity` endings wait: callers on a loop check `full` first.

        Raises the thread's `failure` when it has died: nobody would take the ending.
        """
        self.pending.add(ending.job_id)
        self._put(ending)

    @property
    def full(self) -> bool:
        """Whether the intake should pause: three quarters of the capacity wait to be written."""
        return self.would_fill(0)

    def would_fill(self, coming: int) -> bool:
        """The same, were `coming` more endings put: for who may not block when they come."""
        return self._queue.qsize() + coming > self._queue.maxsize * 3 // 4

    def close(self) -> None:
        """Returns when everything put is written. Raises the thread's `failure` when it is not."""
        self._put(None)
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _put(self, item: Ending | None) -> None:
        while self.failure is None:
            try:
                self._queue.put(item, timeout=1.0)
            except queue.Full:
                continue
            return
        raise self.failure

    def _run(self) -> None:
        try:
            self._drain()
        except BaseException as error:
            self.failure = error
            self._log.error(Event.WRITER_FAILED, **fault(error))

    def _drain(self) -> None:
        open_ = True
        while open_:
            waiting = [self._queue.get()]
            size = _size(waiting[0])
            while len(waiting) < _MOST and size < _MOST_BYTES:
                try:
                    waiting.append(self._queue.get_nowait())
                except queue.Empty:
                    break
                size += _size(waiting[-1])
            open_ = None not in waiting
            endings = [e for e in waiting if e is not None]
            if endings:
                self._flush(endings)

    def _flush(self, endings: list[Ending]) -> None:
        """Writes these endings, however often it takes."""
        pause_s = 0.1
        while True:
            try:
                with self._store.transaction() as connection:
                    done = finish(connection, endings)
                break
            except StoreError as error:
                self._log.warning(Event.STORE_AWAY, waiting=len(endings), error=str(error)[:200])
                time.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
                pause_s = min(pause_s * 2, 5)
            except (psycopg.DataError, psycopg.IntegrityError, *TOO_MUCH, orjson.JSONEncodeError) as error:
                self._bisect(endings, error)
                return
        self.pending.difference_update(e.job_id for e in endings)
        self._flushed(done)

    def _bisect(self, endings: list[Ending], error: Exception) -> None:
        """One row's data spoils the flush: halve until it stands alone, then fail that job and say why."""
        self._log.warning(Event.FLUSH_BISECTED, endings=len(endings), **fault(error))
        if len(endings) > 1:
            middle = len(endings) // 2
            self._flush(endings[:middle])
            self._flush(endings[middle:])
            return
        [spoilt] = endings
        self._flush([_plainer(spoilt, error)])


def _size(ending: Ending | None) -> int:
    """About how many bytes an ending is: of its answer, which alone can be long."""
    return len(ending.output or "") + _json_size(ending.extra) if ending is not None else 0


def _json_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(name) + _json_size(item) for name, item in value.items())
    if isinstance(value, list):
        if value and isinstance(value[0], int | float):  # a vector: millions of them are not looked at one by one
            return len(value) * _NUMBER_BYTES
        return sum(map(_json_size, value))
    return _NUMBER_BYTES


def _plainer(spoilt: Ending, error: Exception) -> Ending:
    """The same job failed without the answer's words; if that is refused too, without its figures, which come from
    the engine as well. If even that does not fit it is a fault of ours, not of the data."""
    if spoilt.error_kind == "unstorable":
        raise error
    plain = dataclasses.replace(
        spoilt,
        state=State.FAILED,
        hand_back=None,
        output=None,
        extra=None,
        finish_reason=None,
        fingerprint=None,
        error_kind="unstorable_answer",
        error=f"the answer could not be stored: {type(error).__name__}",
    )
    if spoilt.error_kind != "unstorable_answer":
        return plain
    return dataclasses.replace(
        plain,
        error_kind="unstorable",
        ttft_ms=None,
        latency_ms=None,
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=0,
        cost_usd=None,
        large_usd=None,
        hosted_usd=None,
    )
