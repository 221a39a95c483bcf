"""Requests and tokens a minute, for each key that has such limits, counted in Redis.

Limits count in a sliding window of two counters (`limits`' sliding window counter): the last window fades while the
current one fills. A moving window would be exact, but keeps an entry for every token; a fixed one lets twice the
limit through around its edge. Both counters and their clock are Redis's own, and one script reads and raises them, so
any number of API processes may ask at once.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

import redis
from limits.storage import RedisStorage
from redis.backoff import NoBackoff
from redis.retry import Retry

from tieryard import telemetry
from tieryard.errors import LimitError

_WINDOW_S = 60
_NO_LIMIT = 2**53  # Lua's largest exact integer
_PATIENCE_S = 0.5  # for an answer of Redis
_AWAY_S = 1.0  # after none came, so long it is not asked again


class Limited(Protocol):
    """Whose requests are counted, and up to what; None does not bind. Store's `Holder` is one."""

    @property
    def key_id(self) -> int: ...
    @property
    def requests_per_minute(self) -> int | None: ...
    @property
    def tokens_per_minute(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class _Asked:
    """`cost` of what a limit counts (`requests` or `tokens`), of which a minute has `most`."""

    name: str
    key: str
    most: int
    cost: int


@dataclass(frozen=True, slots=True)
class _Window:
    """A limit's counters, and the seconds that Redis will keep each."""

    previous: int
    previous_left_s: float
    current: int
    current_left_s: float

    @property
    def used(self) -> int:
        return max(0, math.floor(self.previous * self.previous_left_s / _WINDOW_S) + self.current)

    def until_s(self, room: int) -> float:
        """Seconds until no more than `room` count as used, if nobody asks for more meanwhile.

        The previous counter weighs by what is left of its window. The current one takes its place when it has less
        than a window to live, and fades in turn. What remains is rounded down, hence the `+ 1`: just after that.
        """
        if self.used <= room:
            return 0.0
        if self.current <= room:
            return self.previous_left_s - _WINDOW_S * (room - self.current + 1) / self.previous + 0.001
        return self.current_left_s - _WINDOW_S * (room + 1) / self.current + 0.001


class Rates:
    """The limits of all keys. Connects on first use; safe to share between threads."""

    def __init__(self, redis_url: str) -> None:
        # No retries: an attempt whose answer was lost may have counted.
        self._pool = redis.ConnectionPool.from_url(
            redis_url,
            socket_timeout=_PATIENCE_S,
            socket_connect_timeout=_PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._storage = RedisStorage("redis://", connection_pool=self._pool, key_prefix="rates")
        self._away_until = 0.0

    def admit(self, holder: Limited, *, requests: int, tokens: int) -> dict[str, str]:
        """Counts them against the key's limits: the `x-ratelimit-…` headers of the limits it has.

        Raises LimitError, and then nothing was counted. Its `retry_after_s` is infinite when no wait would help.
        """
        wanted = (("requests", holder.requests_per_minute, requests), ("tokens", holder.tokens_per_minute, tokens))
        asked = [_Asked(n, f"{holder.key_id}:{n}", most, cost) for n, most, cost in wanted if most is not None]
        if not asked or self._away:
            return {}
        try:
            refused = self._take([a for a in asked if a.cost])
            windows = {a: _Window(*self._storage.get_sliding_window(a.key, _WINDOW_S)) for a in asked}
        except redis.RedisError as error:
            self._gone(error)
            return {}
        headers = {name: value for a, window in windows.items() for name, value in _headers(a, window)}
        if refused is not None:
            raise _refusal(refused, windows[refused], headers)
        return headers

    def charge(self, holder: Limited, *, tokens: int) -> None:
        """Counts tokens that were used already, over the limit too: what is asked for next has to wait for it."""
        if holder.tokens_per_minute is None or tokens <= 0 or self._away:
            return
        used = _Asked("tokens", f"{holder.key_id}:tokens", _NO_LIMIT, tokens)
        try:
            self._count(used, used.cost)
        except redis.RedisError as error:
            self._gone(error)

    def close(self) -> None:
        self._pool.disconnect()

    @property
    def _away(self) -> bool:
        return time.monotonic() < self._away_until

    def _gone(self, error: redis.RedisError) -> None:
        """Postgres remembers, Redis carries: while it is away work is still accepted, so limits do not bind. Nor may
        every request wait for it in vain."""
        self._away_until = time.monotonic() + _AWAY_S
        telemetry.logger().warning(telemetry.Event.LIMITS_AWAY, error=str(error)[:200])

    def _take(self, asked: list[_Asked]) -> _Asked | None:
        """Counts all that is asked, or nothing: the limit that does not hold it."""
        for n, a in enumerate(asked):
            if not self._count(a, a.cost):
                for taken in asked[:n]:
                    self._count(taken, -taken.cost)
                return a
        return None

    def _count(self, asked: _Asked, amount: int) -> bool:
        return self._storage.acquire_sliding_window_entry(asked.key, asked.most, _WINDOW_S, amount)


def _headers(asked: _Asked, window: _Window) -> list[tuple[str, str]]:
    """As OpenAI names them. `reset` is when all of the limit is free again."""
    return [
        (f"x-ratelimit-limit-{asked.name}", str(asked.most)),
        (f"x-ratelimit-remaining-{asked.name}", str(max(0, asked.most - window.used))),
        (f"x-ratelimit-reset-{asked.name}", duration(window.until_s(0))),
    ]


def _refusal(asked: _Asked, window: _Window, headers: dict[str, str]) -> LimitError:
    limit = f"this key's limit is {asked.most:,} {asked.name} a minute"
    if asked.cost > asked.most:
        message, wait_s = f"{limit}, and this asks for {asked.cost:,} at once: it can never pass", math.inf
    else:
        wait_s = window.until_s(asked.most - asked.cost)
        used = f"{window.used:,} are used and {asked.cost:,} asked for"
        message = f"{limit}, of which {used}; try again in {duration(wait_s)}"
    return LimitError(message, code="rate_limit_exceeded", retry_after_s=wait_s, headers=headers)


def duration(seconds: float) -> str:
    """As OpenAI writes it: `20ms`, `1.5s`, `6m0s`. Rounded up to a millisecond."""
    ms = math.ceil(seconds * 1000)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    return f"{minutes}m{ms / 1000:g}s" if minutes else f"{ms / 1000:g}s"
