"""How fast jobs may start where the engine is somebody's API, or has failed too often of late: what it lets the fleet
do in a minute, how long it wants to be left alone, and the deployment's circuit breaker."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

import redis

from tieryard.admission import count_prompts
from tieryard.breakers import CLOSED, Breaker, Breakers, StartKind
from tieryard.catalog import REALTIME, AttachedEngine
from tieryard.endings import start_kind
from tieryard.engines import Recording
from tieryard.errors import EngineBusyError, UserError
from tieryard.quotas import Start, Taken, Ticket
from tieryard.requests import parse_request
from tieryard.store.finish import Ending
from tieryard.store.jobs import Claimed
from tieryard.tokens import TokenCounter, load_counter
from workers.upkeep import Upkeep
from workers.yard import Yard

_MANY = 2**31
_LONGEST_BACKOFF_S = 60.0  # between refusals that do not say how long to wait


class Pacing:
    """Of one infer process. `waits` says whether a job that was refused is still here; `changed` is called when more
    may start. On the loop, but for what says otherwise."""

    def __init__(
        self,
        yard: Yard,
        names: list[str],
        upkeep: Upkeep,
        *,
        waits: Callable[[Claimed], bool],
        changed: Callable[[], None],
    ) -> None:
        self._yard, self._names, self._upkeep, self._waits, self._changed = yard, names, upkeep, waits, changed
        self._spec = yard.catalog.deployments[names[0]]
        self._quota = yard.quotas.of(yard.catalog, names[0])
        self._breakers = Breakers(yard.redis)
        self._counter: TokenCounter | None = None
        self._tickets: dict[int, Ticket] = {}
        self._counts = _nothing(names)
        self._telling: asyncio.Task[None] | None = None
        self._breaker, self._breaker_until = CLOSED, 0.0
        self._until = {True: 0.0, False: 0.0}  # by whether it is urgent
        self._why = ""
        self._heard_at = 0.0
        self._left: int | None = None
        self._left_urgent: int | None = None
        self._refusals: int | None = None
        self._refused_in_a_row = 0
        self._next: tuple[Claimed, int] | None = None  # refused last, and the tokens that it may use
        self.asking = 0
        """Jobs for which leave is being asked."""

    @property
    def free(self) -> bool:
        """Whether jobs start without asking: the engine is the fleet's own."""
        return self._quota is None

    @property
    def held(self) -> str:
        """Why the API may not be asked now, and for how long; empty when it may. Urgent jobs may be let through."""
        left_s = self._until[False] - time.monotonic()
        return f"{self._why} for {math.ceil(left_s)} s more" if left_s > 0 else ""

    @property
    def why(self) -> str:
        """Why nothing, or next to nothing, may start now."""
        return self.held or self._breaker.why

    def most(self, *, urgent: bool = False) -> int:
        """Jobs that may run at once, as far as this goes: none while it is held or the breaker is open, and one where
        the breaker is half open, to see."""
        now = time.monotonic()
        if now < self._until[urgent]:
            return 0
        if not self._breaker.opened:
            return _MANY
        return 0 if now < self._breaker_until else 1

    def claimable(self, waiting: int, *, urgent: bool) -> int:
        """How many more jobs it is any use to claim, where so many are claimed and wait."""
        if (most := self.most(urgent=urgent)) < _MANY:
            return max(most - waiting, 0)
        left = self._left_urgent if urgent else self._left
        return _MANY if left is None else max(left - waiting, 0)

    async def ask(self, jobs: Sequence[Claimed]) -> int:
        """How many of these, the first ones, may start now."""
        assert self._quota is not None
        self.asking = len(jobs)
        try:
            taken = await asyncio.to_thread(self._take, jobs)
        finally:
            self.asking = 0
        self._note(taken)
        granted = len(taken.granted)
        self._tickets |= dict(zip([job.id for job in jobs[:granted]], taken.granted, strict=True))
        return granted

    def never_started(self, job_id: int) -> None:
        """Gives back what was taken for a job that was stopped meanwhile."""
        if self._quota is not None and (ticket := self._tickets.pop(job_id, None)) is not None:
            self._quota.settle(ticket, 0, sent=False)

    def ended(self, job: Claimed, recording: Recording, ending: Ending) -> None:
        """After a start: what it used, and how it went."""
        kind = start_kind(ending)
        if kind is not None:
            self._counts[job.deployment][kind] += 1
            if kind != "ok" and (self._telling is None or self._telling.done()):
                self._telling = asyncio.get_running_loop().create_task(self._tell_of_trouble())
        ticket = self._tickets.pop(job.id, None)
        if self._quota is None:
            return
        if kind == "ok":
            self._refused_in_a_row = 0
            self._upkeep.answered()
        if ticket is None:
            return
        if recording.done is not None:
            usage = recording.done.usage
            self._quota.settle(ticket, usage.prompt_tokens + usage.completion_tokens)
        elif kind == "refused":
            self._quota.settle(ticket, 0)
        # Of others it is not known what the provider has counted: what was taken stays taken.

    def refused(self, error: EngineBusyError, recording: Recording) -> None:
        """The API answered 429, or that it is overloaded: all of the fleet leaves it alone for as long as it says."""
        if self._quota is None:
            return
        if self._upkeep.refused(began=recording.started):
            self._refused_in_a_row += 1
        wait_s = error.retry_after_s
        if wait_s is None:
            wait_s = min(2.0 ** (self._refused_in_a_row - 1), _LONGEST_BACKOFF_S)
        self._quota.refused(wait_s)
        self._hold(wait_s, "its provider refused a request for its rate limit (429)", everybody=True)

    async def exchange(self) -> None:
        """Twice a second, and at once after a failure: tells how starts went and what they used, and hears what others
        found. Raises redis.RedisError."""
        told, self._counts = self._counts, _nothing(self._names)
        # There is room when the next job fits: without it a few tokens that are left would say that there is.
        next_tokens = self._next[1] if self._next is not None and self._waits(self._next[0]) else 0
        self._hear(*await asyncio.to_thread(self._tell, told, next_tokens))

    def _tell(self, told: dict[str, Counter[StartKind]], next_tokens: int) -> tuple[Breaker, Taken | None]:
        taken = self._quota.take(next_tokens=next_tokens) if self._quota is not None else None
        rules = self._yard.catalog.routing.breaker
        found = [self._breakers.tell(name, rules, told[name]) for name in self._names]
        return found[0], taken

    async def _tell_of_trouble(self) -> None:
        """What fails may fail hundreds of jobs in half a second."""
        while any(kind != "ok" for counts in self._counts.values() for kind in counts):
            try:
                await self.exchange()
            except redis.RedisError:  # the next look says so
                return

    def _hear(self, breaker: Breaker, taken: Taken | None) -> None:
        was = self.most()
        self._breaker, self._breaker_until = breaker, time.monotonic() + breaker.open_for_s
        if breaker.open:
            self._wake_in(breaker.open_for_s)
        if taken is not None:
            self._note(taken)
        if self.most() > was:
            self._changed()

    def unheard(self) -> None:
        """Redis is away: what it said last of the breaker is too old to go by."""
        self._breaker = CLOSED

    def _take(self, jobs: Sequence[Claimed]) -> Taken:
        assert self._quota is not None
        starts = [Start(self._tokens(job), urgent=job.tier == REALTIME) for job in jobs]
        taken = self._quota.take(starts)
        granted = len(taken.granted)
        self._next = (jobs[granted], starts[granted].tokens) if granted < len(jobs) else None
        return taken

    def _tokens(self, job: Claimed) -> int:
        """Prompt and answer at most. What cannot be read or counted takes none: it will be refused."""
        engine = self._spec.engine
        if not isinstance(engine, AttachedEngine) or engine.limits is None or not engine.limits.tokens_per_minute:
            return 0
        try:
            if self._counter is None:
                self._counter = load_counter(self._spec.tokenizer, cache_dir=self._yard.settings.cache_dir)
            request = parse_request(job.body)
            return count_prompts(self._counter, [request])[0] + request.max_tokens
        except UserError:
            return 0

    def _note(self, taken: Taken) -> None:
        self._left, self._left_urgent = taken.left, taken.left_urgent
        told = self._quota is None or not self._quota.owes_refusals
        if told and not taken.why:  # what started earlier has used less than it took
            self._until = {True: 0.0, False: 0.0}
        if taken.why:
            self._hold(taken.wait_s, taken.why, everybody=taken.all_wait)
        if taken.refusals is None:
            return
        if self._refusals is not None and taken.refusals > self._refusals:  # of this process's own it knows already
            self._upkeep.refused(began=self._heard_at)
        self._refusals, self._heard_at = taken.refusals, time.monotonic()

    def _hold(self, wait_s: float, why: str, *, everybody: bool) -> None:
        until = time.monotonic() + wait_s
        if until > self._until[False]:
            self._until[False], self._why = until, why
            self._wake_in(wait_s)
        if everybody:
            self._until[True] = max(self._until[True], until)

    def _wake_in(self, wait_s: float) -> None:
        asyncio.get_running_loop().call_later(wait_s + 0.001, self._changed)


def _nothing(names: list[str]) -> dict[str, Counter[StartKind]]:
    return {name: Counter() for name in names}
