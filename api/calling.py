"""One call that waits: from a slot in an engine, over its answer, to its ending. Other engines are tried until the
first token; from then on the answer is what this one gives."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

from api.places import Place, Wish, best, take_place
from api.refusals import Refusal, internal_error
from api.repeats import as_piece, stored_answer
from api.replies import GONE, CallerGoneError, Reply
from api.switchboard import SHUTDOWN, Switchboard
from api.uninterrupted import uninterrupted
from tieryard.answers import Answer, Chunks
from tieryard.endings import said
from tieryard.engines import Delta, Recording, Usage
from tieryard.errors import (
    BudgetError,
    ConflictError,
    EngineBusyError,
    EngineError,
    EngineTimeoutError,
    JobFailedError,
    RetryableError,
    StoreError,
    TieryardError,
    UnavailableError,
)
from tieryard.ids import public
from tieryard.job import State
from tieryard.metrics import Replica
from tieryard.requests import Request
from tieryard.store import calls
from tieryard.store.calls import FIRST_FENCE, Choice, FailedStart, NewCall, Started
from tieryard.store.finish import Ending
from tieryard.store.idempotency import AlreadyMadeError, Mark
from tieryard.store.jobs import Claimed
from tieryard.telemetry import Event, fault

_STOPPED = {
    GONE: (State.CANCELLED, "cancelled", "its caller went away"),
    SHUTDOWN: (State.FAILED, "worker_stopped", "the API process was stopped"),
    "cancelled": (State.CANCELLED, "cancelled", "cancelled while it ran"),
    "expired": (State.EXPIRED, "expired", "expired while it ran"),
}


@dataclass(frozen=True, slots=True)
class Ask:
    """A call as admitted, to become job `job_id`. `body` is the line to store. `made` is the job that its idempotency
    key has made before; where there is none there is a choice. `reserved` tokens are counted already, `charge` counts
    more; `worst_usd` is to be reserved of its caller's budgets. A call waits `patience_s` for a slot, and `first_s` for
    an engine's first event while another is free. `accepted` is on the monotonic clock."""

    job_id: int
    tenant_id: int
    request: Request
    tier: str
    body: str
    mark: Mark | None
    made: int | None
    choice: Choice | None
    with_usage: bool
    reserved: int
    charge: Callable[[int], None]
    patience_s: float
    first_s: float
    window_s: float
    routing_ms: float
    accepted: float
    api_key_id: int | None = None
    worst_usd: Decimal | None = None

    @property
    def waited_ms(self) -> float:
        return (time.monotonic() - self.accepted) * 1000

    @property
    def prefix_key(self) -> int:
        return self.request.prefix_key(self.tenant_id)


class Call:
    """Runs in a task of its own, which `stop` ends. `note` puts headers on the answer, whatever it will be."""

    def __init__(self, board: Switchboard, ask: Ask, note: Callable[[dict[str, str]], None]) -> None:
        self._board = board
        self._ask = ask
        self._note = note
        self._task: asyncio.Task[None] | None = None
        self._stopping: str | None = None
        self._tried: dict[str, str] = {}
        self._job: Claimed | None = None
        self._created = datetime.now(tz=UTC)
        self._on = ""  # the deployment of its start
        self._server = ""
        self._replica: Replica | None = None  # of the recording
        self._place: Place | None = None
        self._begun: Recording | None = None  # of the start at this place
        self._recording = Recording()
        self._late: asyncio.TimerHandle | None = None

    def begin(self, reply: Reply) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._run(reply))
        self._board.track(self._task, self)
        return self._task

    def stop(self, reason: str) -> None:
        """Aborts the engine's request; the first reason stands."""
        if self._stopping is None and self._task is not None:
            self._stopping = reason
            self._task.cancel()

    def hang_up(self) -> None:
        self.stop(GONE)

    async def _run(self, reply: Reply) -> None:
        try:
            await self._answer(reply)
        except CallerGoneError:
            self._end(*_STOPPED[GONE])
        except asyncio.CancelledError:
            reason = self._stopping or SHUTDOWN
            state, kind, message = _STOPPED[reason]
            self._end(state, kind, message)
            if reason != GONE:
                await _tell(reply, JobFailedError(kind, message))
        except TieryardError as error:
            self._fail(error)
            await _tell(reply, self._told(error))
        except Exception as error:  # a fault of ours costs this call, and no other
            self._board.log.error(Event.REQUEST_FAILED, path=self._ask.request.endpoint, **fault(error))
            self._end(State.FAILED, "internal_error", f"{type(error).__name__} in the API")
            await _tell(reply, internal_error())
        finally:
            self._release()
            try:
                await self._settle()
            finally:
                await reply.close()

    async def _answer(self, reply: Reply) -> None:
        if self._ask.made is not None:
            await self._repeat(self._ask.made, reply)
            return
        try:
            await self._start()
        except AlreadyMadeError as error:  # by a call that came at the same time
            self._release()
            await self._repeat(error.subject_id, reply)
            return
        await reply.open(self._chunks(public("job", self._ask.job_id)))
        while True:
            try:
                await self._generate(reply)
            except RetryableError as error:
                self._board.providers.refused(self._on, error)
                if self._recording.pieces or self._recording.extras:
                    raise
                await self._move(error)
                continue
            return

    async def _generate(self, reply: Reply) -> None:
        """One start: the engine's answer, passed on as it comes."""
        assert self._place is not None
        slot = self._place.slot
        self._server, self._replica = slot.server, slot.replica
        stream = slot.engine.stream(self._ask.request.salted(self._ask.tenant_id))
        self._recording = recording = self._begun = Recording()
        try:
            async with asyncio.timeout(None) as limit:
                self._expect(limit)
                async for event in stream:
                    self._expect(None)
                    recording.add(event)
                    if isinstance(event, Delta):
                        await reply.piece(slot.deployment, event)
        except TimeoutError:
            raise EngineTimeoutError(f"nothing came in {self._ask.first_s:g} s, and another engine is free") from None
        finally:
            self._expect(None)
            recording.stop()
            await stream.aclose()
            self._release()
        answer = self._whole()
        self._end(State.SUCCEEDED)
        await reply.finish(answer)

    def _expect(self, limit: asyncio.Timeout | None) -> None:
        """Looks after `first_s` whether the first event has come; it has with None. An engine that hangs, or is slow
        beyond what the tier allows, is left where another is free: else late is better than never."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if limit is not None:
            self._late = asyncio.get_running_loop().call_later(self._ask.first_s, self._look_elsewhere, limit)

    def _look_elsewhere(self, limit: asyncio.Timeout) -> None:
        try:
            self._route({**self._board.slots.full(), **self._tried, self._server: "is late"})
        except UnavailableError:
            self._expect(limit)
        else:
            limit.reschedule(asyncio.get_running_loop().time())

    def _route(self, passed: dict[str, str]) -> Choice:
        assert self._ask.choice is not None
        return self._board.route(self._ask.choice.features, passed)

    def _wish(self) -> Wish:
        ask = self._ask
        assert ask.choice is not None
        wish = Wish(ask.choice, ask.tier, ask.prefix_key, ask.request.max_tokens, ask.patience_s, dict(self._tried))
        # It was chosen as if nobody else were calling.
        fits = not self._tried and self._board.slots.has_room(ask.choice.deployment)
        return wish if fits else replace(wish, chosen=best(self._board, wish))

    async def _start(self) -> None:
        """Waits for room, then saves the job as running."""
        ask, asked = self._ask, time.monotonic()
        self._place = await take_place(self._board, self._wish())
        choice = self._place.choice
        self._on = choice.deployment
        job = public("job", ask.job_id)
        self._note(
            {
                "x-request-id": job,
                "x-selected-model": choice.deployment,
                "x-tieryard-job": job,
                "x-tieryard-queue-ms": f"{(time.monotonic() - asked) * 1000:.2f}",
                "x-tieryard-routing-ms": f"{ask.routing_ms:.2f}",
            }
        )
        new = NewCall(
            id=ask.job_id,
            tenant_id=ask.tenant_id,
            tier=ask.tier,
            body=ask.body,
            window_s=ask.window_s,
            waited_ms=ask.waited_ms,
            choice=choice,
            worker_id=self._board.lease.worker_id,
            mark=ask.mark,
            api_key_id=ask.api_key_id,
            worst_usd=ask.worst_usd,
        )
        # Known before it is saved: should the store's answer be lost, this start is ended like any other.
        category = choice.features.text.category
        self._job = Claimed(
            new.id, FIRST_FENCE, None, new.tier, category, 0, 0, new.waited_ms, self._created, new.body,
            new.tenant_id, choice.deployment,
        )  # fmt: skip
        self._board.running[new.id] = self
        try:
            self._saved(choice, await uninterrupted(self._board.work(calls.start, self._board.store, new)))
        except (AlreadyMadeError, ConflictError, BudgetError):
            self._forget()
            raise

    async def _move(self, error: RetryableError) -> None:
        """To another replica or deployment, under the next fence. Raises `error` when nobody is left."""
        ask, board, job = self._ask, self._board, self._job
        assert job is not None
        self._tried[self._server] = f"failed this call: {error.kind}"
        try:
            wish = self._wish()
            board.log.warning(Event.CALL_REROUTED, job=job.id, deployment=self._on, error=error.kind)
            self._place = await take_place(board, wish)
        except (UnavailableError, EngineBusyError):
            raise error from None
        choice = self._place.choice
        board.providers.moved(self._on, error)
        self._note({"x-selected-model": choice.deployment})  # too late for a stream, whose headers are out
        failed = FailedStart(job, self._on, self._recording.latency_ms or 0.0, error.message[:500])
        unmoved = self._final(State.FAILED, "store_away", "the store was away")
        self._on = choice.deployment
        self._job = replace(job, fence=job.fence + 1, waited_ms=ask.waited_ms, deployment=self._on)
        worker_id = board.lease.worker_id
        try:
            moving = board.work(calls.restart, board.store, failed, choice, worker_id=worker_id)
            restarted = await uninterrupted(moving)
        except StoreError:  # its answer may be lost: one of the two fences is the job's
            board.end(job, unmoved)
            raise
        self._saved(choice, restarted)

    async def _repeat(self, job_id: int, reply: Reply) -> None:
        ask = self._ask
        self._note({"x-request-id": public("job", job_id), "x-tieryard-job": public("job", job_id)})
        try:
            async with asyncio.timeout(ask.window_s):
                await self._board.finals.wait(job_id)
        except TimeoutError:
            raise UnavailableError("the first call with this Idempotency-Key still runs", retry_after_s=5.0) from None
        endpoint, board = ask.request.endpoint, self._board
        answer = await board.work(stored_answer, board.store, job_id, endpoint, tenant_id=ask.tenant_id)
        self._note({"x-selected-model": answer.model})
        self._created = answer.created
        await reply.open(self._chunks(answer.job))
        await reply.piece(answer.model, as_piece(answer))
        await reply.finish(answer)

    # --- its end --------------------------------------------------------------------------------------

    def _fail(self, error: TieryardError) -> None:
        if isinstance(error, EngineError):
            self._end(State.FAILED, error.kind, error.message)
        else:
            self._end(State.FAILED, "store_away", "the store was away")

    def _told(self, error: TieryardError) -> TieryardError:
        """An engine's trouble in words that are for callers."""
        if not isinstance(error, EngineError):
            return error
        wait_s = error.retry_after_s if isinstance(error, EngineBusyError) else None
        return JobFailedError(error.kind, said(error.kind, error.message, self._on), retry_after_s=wait_s)

    async def _settle(self) -> None:
        """Counts what was used beyond the reservation, which is a guess where the caller set no limit."""
        usage = self._recording.usage
        over = usage.prompt_tokens + usage.completion_tokens - self._ask.reserved
        if over > 0:
            await uninterrupted(self._board.work(self._ask.charge, over))

    def _end(self, state: State, kind: str | None = None, message: str | None = None) -> None:
        """Once: what comes after the first ending changes nothing."""
        if self._job is not None:
            ending = self._final(state, kind, message)
            job = self._job
            self._forget()
            self._board.end(job, ending)

    def _final(self, state: State, kind: str | None, message: str | None) -> Ending:
        assert self._job is not None
        self._estimate()
        window = self._board.window_at(self._on, self._replica) if self._replica is not None else None
        return self._board.endings.final(
            self._job, state, self._recording, error_kind=kind, error=message, window=window
        )

    def _estimate(self) -> None:
        """An engine that says only in the end what it used says nothing to one who leaves before: its prompt was read
        all the same, and is billed as it was counted for routing."""
        recording, choice = self._recording, self._ask.choice
        if choice is not None and recording.generated and recording.done is None and recording.running is None:
            tokenizer, counts = self._board.endings.spec_of(self._on).tokenizer, choice.features.prompt_tokens
            recording.running = Usage(counts.get(tokenizer, max(counts.values())), recording.generated)

    def _forget(self) -> None:
        self._board.running.pop(self._ask.job_id, None)
        self._job = None

    def _release(self) -> None:
        if self._place is not None:
            self._place.give_back(self._board, self._begun)
            self._place = self._begun = None

    # --- what it is made of ---------------------------------------------------------------------------

    def _saved(self, choice: Choice, started: Started) -> None:
        assert self._job is not None
        self._board.snapshots.remember(choice.snapshot, started.snapshot_id)
        self._board.snapshots.owe(choice.extra_usd)
        self._created = started.created_at
        self._job = replace(self._job, claimed_at=started.claimed_at)

    def _chunks(self, job: str) -> Chunks:
        return Chunks(self._ask.request.endpoint, job, self._created, with_usage=self._ask.with_usage)

    def _whole(self) -> Answer:
        recording = self._recording
        done = recording.done
        assert done is not None
        return Answer(
            endpoint=self._ask.request.endpoint,
            job=public("job", self._ask.job_id),
            created=self._created,
            model=self._on,
            text=recording.text,
            finish_reason=done.finish_reason,
            usage=done.usage,
            extra=recording.extra,
            fingerprint=done.fingerprint,
        )


async def _tell(reply: Reply, error: TieryardError | Refusal) -> None:
    with contextlib.suppress(CallerGoneError):
        await reply.fail(error)
