"""A place for a call to start: a slot in an engine, and leave of the API behind it, where that is somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from api.slots import Slot
from api.switchboard import Switchboard
from tieryard.engines import Recording
from tieryard.errors import EngineBusyError, UnavailableError
from tieryard.quotas import Quota, Start, Taken, Ticket
from tieryard.store.calls import Choice


@dataclass(frozen=True, slots=True)
class Wish:
    """A place that is wanted: for what the router `chose`, or the best of those that are not among the `tried` servers
    (with why they failed), within `patience_s`. `most_tokens` is what the answer may take."""

    chosen: Choice
    tier: str
    key: int
    most_tokens: int
    patience_s: float
    tried: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """Held until it is given back."""

    choice: Choice
    slot: Slot
    quota: Quota | None = None
    ticket: Ticket | None = None

    def give_back(self, board: Switchboard, recording: Recording | None) -> None:
        """After the start that `recording` tells of; None where there was none."""
        board.slots.give_back(self.slot)
        if self.quota is None or self.ticket is None:
            return
        if recording is None:
            self.quota.settle(self.ticket, 0, sent=False)
        elif recording.done is not None:
            usage = recording.done.usage
            self.quota.settle(self.ticket, usage.prompt_tokens + usage.completion_tokens)


def best(board: Switchboard, wish: Wish) -> Choice:
    """The best of those that have room now; where none has, the best to wait for. Raises UnavailableError."""
    features, tried = wish.chosen.features, dict(wish.tried)
    with contextlib.suppress(UnavailableError):
        return board.route(features, {**board.slots.full(), **tried})
    return board.route(features, tried)


async def take_place(board: Switchboard, wish: Wish) -> Place:
    """Waits for room. A provider whose limits are used up is left for another deployment; where there is none, the call
    waits, if that is not too long. Raises UnavailableError, or EngineBusyError."""
    choice, refused, until = wish.chosen, dict(wish.tried), time.monotonic() + wish.patience_s
    while True:
        left_s = max(until - time.monotonic(), 0.001)
        tried = frozenset(refused)
        slot = await board.slots.take(choice.deployment, wish.tier, within_s=left_s, tried=tried, key=wish.key)
        try:
            quota = board.providers.quota(choice.deployment)
            taken = await _ask(board, quota, choice, wish)
        except BaseException:
            board.slots.give_back(slot)
            raise
        if quota is None or taken.granted:
            return Place(choice, slot, quota, next(iter(taken.granted), None))
        board.slots.give_back(slot)
        refused[slot.server] = taken.why
        try:
            choice = board.route(wish.chosen.features, {**board.slots.full(), **refused})
        except UnavailableError:
            if time.monotonic() + taken.wait_s > until:
                raise EngineBusyError(taken.why, retry_after_s=taken.wait_s) from None
            await asyncio.sleep(taken.wait_s)
            choice, refused = wish.chosen, dict(wish.tried)


async def _ask(board: Switchboard, quota: Quota | None, choice: Choice, wish: Wish) -> Taken:
    """Calls are as urgent as realtime jobs: somebody waits for them."""
    if quota is None:
        return Taken([])
    counts = choice.features.prompt_tokens
    spec = board.endings.spec_of(choice.deployment)
    prompt = counts.get(spec.tokenizer, max(counts.values(), default=0))
    return await board.work(quota.take, [Start(prompt + wish.most_tokens, urgent=True)])
