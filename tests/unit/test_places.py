"""A place for a call: a provider that refuses is asked once on each of its servers, and then no more."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.places import Wish, take_place
from api.switchboard import Switchboard
from tests import factories as make
from tests.unit.test_slots import engine, slots_of
from tieryard.errors import EngineBusyError, UnavailableError
from tieryard.quotas import Quota, Start, Taken
from tieryard.store.calls import Choice

CHOICE = Choice("base", "cheapest", make.features(), b"")


@dataclass
class UsedUp:
    """A quota of which nothing is left, whatever server is asked."""

    asked: list[Start] = field(default_factory=list)

    def take(self, starts: list[Start]) -> Taken:
        self.asked += starts
        return Taken([], wait_s=30.0, why="its 10 requests a minute are used up")


def test_a_quota_that_is_used_up_is_asked_once_a_server() -> None:
    servers = {"http://127.0.0.1:100", "http://127.0.0.1:101"}
    quota = UsedUp()

    def route(_: Any, passed: dict[str, str]) -> Choice:
        if servers <= passed.keys():
            raise UnavailableError("all are passed over", retry_after_s=1.0)
        return CHOICE

    async def work(function: Any, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return function(*arguments)

    async def ask() -> None:
        board = SimpleNamespace(
            slots=slots_of(engine(8, worker_id=100), engine(8, worker_id=101)),
            providers=SimpleNamespace(quota=lambda _: cast("Quota", quota)),
            endings=SimpleNamespace(spec_of=lambda _: SimpleNamespace(tokenizer="t")),
            route=route,
            work=work,
        )
        wish = Wish(CHOICE, "interactive", 0, 16, 5.0, {})
        async with asyncio.timeout(10):
            await take_place(cast("Switchboard", board), wish)

    with pytest.raises(EngineBusyError, match="used up"):
        asyncio.run(ask())
    assert len(quota.asked) == 2
