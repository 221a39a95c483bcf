"""Receives nudges that something is owed. Makes deliveries of what happened, takes of what is due a few from each lane,
signs and sends them, many at once, and writes down how each attempt went.
Next: a delivered one is settled; a failed one waits until it is due again, and so do those of a lane that rests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence

import psycopg
import redis

from tieryard import telemetry
from tieryard.errors import StoreError
from tieryard.ids import public
from tieryard.store import deliveries, endpoints, lanes, outbox
from tieryard.store.deliveries import Due, Tried
from tieryard.store.lanes import LaneRow
from tieryard.telemetry import Event
from tieryard.webhooks.addresses import ForbiddenAddressError, read_url
from tieryard.webhooks.backoff import DISABLED_AFTER_S, GIVEN_UP_AFTER_S, TRIED_FOR_S
from tieryard.webhooks.fairness import Slots, Waiting
from tieryard.webhooks.sending import Sender
from workers.delivering import Desk, deliver
from workers.yard import Yard

_LOOK_S = 0.5  # where no nudge came: rescue and budgets send none
_LEAST_PAUSE_S = 0.005
_AGAIN_S = 1.0  # after a failure of ours
_TELL_S = 5.0
_FORGET_S = 30.0
_FORGOTTEN_AT_ONCE = 2000
_GIVE_UP_S = 300.0  # and so long after the start: a receiver that is well again by then is told
_FANNED_AT_ONCE = 4  # parts of what happened, between two looks at what is due
_NO_LANE = "invalid"  # what callback addresses that cannot be read are kept apart as


class Callbacks:
    """Of one process. Its loop has a thread of its own; what it asks of the store is asked from another, one question
    after the other, so that `_round` and what it touches need no lock."""

    def __init__(self, yard: Yard, *, sender: Sender | None = None) -> None:
        self._yard = yard
        self._desk = Desk.of(yard.settings)
        self._sender = sender or Sender(
            allow_private=yard.settings.webhook_allow_private, timeout_s=yard.settings.webhook_timeout_s
        )
        self._hold_s = 2 * yard.settings.webhook_timeout_s + 15
        self._slots = Slots()
        self._done: deque[Tried] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        self._tell_at = self._forget_at = 0.0
        self._give_up_at = time.monotonic() + _GIVE_UP_S
        self._loop: asyncio.AbstractEventLoop | None = None
        self._awake = asyncio.Event()
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="callbacks")

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something is owed. From any thread."""
        if self._loop is not None and not self._stopping:
            self._loop.call_soon_threadsafe(self._awake.set)

    def stop(self) -> None:
        """Takes no more, and lets what is on its way end."""
        self.wake()
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._stopping:
            began = time.monotonic()
            due, pause_s = await asyncio.to_thread(self._guarded_round)
            for one in due:
                task = asyncio.create_task(self._send(one))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)
            # However many lanes there are, some of the time is for sending. Attempts that end meanwhile are written
            # down together.
            await asyncio.sleep(max(_LEAST_PAUSE_S, (time.monotonic() - began) / 2))
            await self._sleep(pause_s)
        if self._sending:
            await asyncio.wait(self._sending)
        await asyncio.to_thread(self._write_down)
        await self._sender.close()

    async def _sleep(self, pause_s: float) -> None:
        """Until something is owed, due, or done."""
        try:
            async with asyncio.timeout(pause_s):
                await self._awake.wait()
        except TimeoutError:
            pass
        self._awake.clear()

    async def _send(self, due: Due) -> None:
        self._done.append(await deliver(due, self._sender, self._desk))
        self._awake.set()

    def _guarded_round(self) -> tuple[list[Due], float]:
        try:
            return self._round()
        except StoreError as error:
            self._yard.log.warning(Event.STORE_AWAY, error=str(error)[:200])
        except Exception as error:
            self._yard.log.error(Event.TASK_FAILED, task="callbacks", **telemetry.fault(error))
        return [], _AGAIN_S

    def _round(self) -> tuple[list[Due], float]:
        """What is to be sent now, and for how long there will be nothing more unless something happens."""
        self._write_down()
        self._look_after()
        more = self._fan_out()
        with self._yard.store.transaction() as connection:
            waiting = lanes.waiting(connection)
            shares = self._slots.share_out(_turns(waiting))
            due = deliveries.take(connection, shares, hold_s=self._hold_s)
        for one in due:
            self._slots.took(one.lane_id)
        self._slots.forget(lane.lane_id for lane in waiting)
        later = [lane.due_in_s for lane in waiting if lane.due_in_s > 0]
        return due, 0.0 if more else min([*later, _LOOK_S])

    def _write_down(self) -> None:
        """Attempts that have ended. Each gives its slot back once it is written: until then its lane is not asked."""
        tried = [self._done[n] for n in range(len(self._done))]
        if not tried:
            return
        self._record(tried)
        for one in tried:
            self._done.popleft()
            self._slots.gave_back(one.due.lane_id)
            self._log(one)
        self._disable(tried)

    def _record(self, tried: Sequence[Tried]) -> None:
        """In one transaction; where one of them cannot be written, one by one, and that one is tried again later."""
        try:
            with self._yard.store.transaction() as connection:
                deliveries.record(connection, tried)
        except psycopg.Error as error:
            if len(tried) == 1:
                self._yard.log.error(Event.TASK_FAILED, task="callbacks", **telemetry.fault(error))
                return
            for one in tried:
                self._record([one])

    def _disable(self, tried: Sequence[Tried]) -> None:
        """Endpoints that said they are gone, and those that have failed for days."""
        failed = [one for one in tried if one.due.endpoint_id is not None and one.error is not None and one.counts]
        if not failed:
            return
        gone = {one.due.endpoint_id for one in failed if one.status == 410}
        with self._yard.store.transaction() as connection:
            long_tried = [one.due.endpoint_id for one in failed if one.due.due_for_s > TRIED_FOR_S]
            hopeless = deliveries.hopeless(connection, long_tried, after_s=DISABLED_AFTER_S)
            for endpoint_id in sorted({*hopeless, *(n for n in gone if n is not None)}):
                days = round(DISABLED_AFTER_S / 86_400)
                why = "it answered 410 (gone)" if endpoint_id in gone else f"it failed for {days} days"
                if endpoints.disable(connection, endpoint_id, why):
                    self._yard.log.warning(Event.WEBHOOK_DISABLED, endpoint=public("webhook", endpoint_id), why=why)

    def _fan_out(self) -> bool:
        """Whether there is more: of a million events at once, the first are delivered while the last wait for this."""
        for _ in range(_FANNED_AT_ONCE):
            with self._yard.store.transaction() as connection:
                _, more = outbox.fan_out(connection, _origin)
            if not more:
                return False
        return True

    def _look_after(self) -> None:
        """Now and then: operators are told what is owed, and what is old is let go."""
        now = time.monotonic()
        if now > self._tell_at:
            with self._yard.store.transaction() as connection:
                owing = lanes.owing(connection)
            took_s = time.monotonic() - now
            self._tell_at = now + max(_TELL_S, 50 * took_s)  # it counts all that is owed
            try:
                self._yard.metrics.publish_owing(owing)
            except redis.RedisError as error:
                self._yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
        if now > self._forget_at:
            self._forget_at = now + _FORGET_S
            kept_days = self._yard.settings.deliveries_kept_days
            with self._yard.store.transaction() as connection:
                n = outbox.forget(connection, kept_days=kept_days, most=_FORGOTTEN_AT_ONCE)
            if n == _FORGOTTEN_AT_ONCE:  # no slower than events come, or they would be kept for ever longer
                self._forget_at = now + 4 * (time.monotonic() - now)
        if now > self._give_up_at:
            self._give_up_at = now + _GIVE_UP_S
            began = time.monotonic()
            with self._yard.store.transaction() as connection:
                more = deliveries.give_up_late(connection, after_s=GIVEN_UP_AFTER_S)
            took_s = time.monotonic() - began  # it looks through all that is owed
            self._give_up_at = now + (4 * took_s if more else max(_GIVE_UP_S, 50 * took_s))

    def _log(self, one: Tried) -> None:
        due = one.due
        fields = {
            "delivery": public("delivery", due.id),
            "event_type": due.event,
            "attempt": due.attempt,
            "status": one.status,
            "latency_ms": None if one.latency_ms is None else round(one.latency_ms),
        }
        if due.endpoint_id is not None:
            fields["endpoint"] = public("webhook", due.endpoint_id)
        if one.error is None:
            self._yard.log.info(Event.CALLBACK_SENT, **fields)
        else:
            again_in_s = None if one.retry_in_s is None else round(one.retry_in_s, 1)
            self._yard.log.warning(Event.CALLBACK_FAILED, **fields, error=one.error[:200], again_in_s=again_in_s)


def _turns(waiting: Sequence[LaneRow]) -> list[Waiting]:
    """Lanes that may be sent something now."""
    return [Waiting(lane.lane_id, lane.tenant_id, lane.failures, lane.steady) for lane in waiting if lane.due_in_s <= 0]


def _origin(url: str) -> str:
    """The server that a callback address is at."""
    try:
        return read_url(url).origin
    except ForbiddenAddressError:
        return _NO_LANE
