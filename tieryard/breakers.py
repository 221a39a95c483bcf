"""A circuit breaker for each deployment: one that fails again and again is left alone for a while, then tried by a few.

How starts ended is counted in Redis by all processes, and one script moves the state, so that all agree on it: closed
→ open, after enough failures that are a large enough share of the latest starts; half open, when it has been open for
so long; then closed by a success, or open again by a failure. Of a flushed Redis every breaker is closed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import redis

from tieryard.catalog import Breaker as Rules
from tieryard.telemetry import Event, logger

StartKind = Literal["ok", "failed", "refused"]
"""Of a start: answered, failed by the engine, or refused for the provider's rate limit (429), which opens nothing."""

_GRAINS = 10  # buckets that `within` is counted in

# Fields of `breaker:{deployment}`: o<bucket>, f<bucket>, r<bucket> counts; opened (ms), failed, of: when and why.
_TELL = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local told = {o = tonumber(ARGV[1]), f = tonumber(ARGV[2]), r = tonumber(ARGV[3])}
local failures, share = tonumber(ARGV[4]), tonumber(ARGV[5])
local within, open = tonumber(ARGV[6]), tonumber(ARGV[7])
local grain = math.max(1, math.ceil(within / tonumber(ARGV[8])))
local bucket = math.floor(now / grain)

local sums, opened = {o = 0, f = 0, r = 0}, nil
local found = redis.call('HGETALL', KEYS[1])
for i = 1, #found, 2 do
  local kind, at = string.match(found[i], '^([ofr])(%d+)$')
  if kind and (tonumber(at) + 1) * grain + within <= now then
    redis.call('HDEL', KEYS[1], found[i])
  elseif kind then
    sums[kind] = sums[kind] + tonumber(found[i + 1])
  elseif found[i] == 'opened' then
    opened = tonumber(found[i + 1])
  end
end

local function add(kind)
  if told[kind] == 0 then return end
  sums[kind] = sums[kind] + told[kind]
  redis.call('HINCRBY', KEYS[1], kind .. string.format('%d', bucket), told[kind])
end
local function blow(failed, of)
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'opened', string.format('%d', now), 'failed', failed, 'of', of)
end

local change, all = 0, told.o + told.f
if not opened then
  add('o')
  add('f')
  if sums.f >= failures and sums.f >= share * (sums.o + sums.f) then
    blow(sums.f, sums.o + sums.f)
    change = 1
  end
elseif now >= opened + open and all > 0 then
  if told.f > 0 and told.f >= share * all then
    blow(told.f, all)
    change = 1
  else
    redis.call('DEL', KEYS[1])
    change = -1
  end
end
add('r')
redis.call('PEXPIRE', KEYS[1], 20 * (within + open))
local state = redis.call('HMGET', KEYS[1], 'opened', 'failed', 'of')
return {change, sums.r, now, tonumber(state[1] or '0'), tonumber(state[2] or '0'), tonumber(state[3] or '0')}
"""
_STATE = ("opened", "failed", "of")


@dataclass(frozen=True, slots=True)
class Breaker:
    """One deployment's, as it was read. Not `opened` is closed; otherwise it is open for `open_for_s` more, and half
    open from then on. `failed` of the `of` starts within `within_s` had opened it. `refused`: starts that were answered
    429 within that time, where that was asked for."""

    opened: bool = False
    open_for_s: float = 0.0
    failed: int = 0
    of: int = 0
    within_s: float = 0.0
    refused: int = 0

    @property
    def open(self) -> bool:
        return self.opened and self.open_for_s > 0

    @property
    def half_open(self) -> bool:
        return self.opened and not self.open

    @property
    def why(self) -> str:
        """Empty when it is closed."""
        if not self.opened:
            return ""
        state = "open" if self.open else "half open"
        return f"its circuit breaker is {state}: {self.failed} of {self.of} starts failed in {self.within_s:g} s"


CLOSED = Breaker()


class Breakers:
    """Of deployments. Methods raise redis.RedisError."""

    def __init__(self, client: redis.Redis) -> None:
        self._script = client.register_script(_TELL)

    def tell(self, deployment: str, rules: Rules, counts: Mapping[StartKind, int] | None = None) -> Breaker:
        """Counts how starts ended: the breaker as it is then, by the catalog's `rules`. Without any it only reads."""
        told = Counter(counts or {})
        limits = [rules.failures, rules.share, _ms(rules.within), _ms(rules.open_for), _GRAINS]
        found = self._script(keys=[key(deployment)], args=[told["ok"], told["failed"], told["refused"], *limits])
        change, refused, now, *state = (int(value) for value in found)
        breaker = _breaker(state, now, rules, refused)
        if change > 0:
            logger().error(Event.BREAKER_OPENED, deployment=deployment, why=breaker.why)
        elif change < 0:
            logger().info(Event.BREAKER_CLOSED, deployment=deployment)
        return breaker


def key(deployment: str) -> str:
    return f"breaker:{deployment}"


def ask(pipe: Any, deployments: Iterable[str]) -> None:
    """Has a pipeline read these breakers, for `read`: one answer each."""
    for name in deployments:
        pipe.hmget(key(name), _STATE)


def read(answer: Iterable[bytes | None], rules: Rules, *, now: float) -> Breaker:
    """From an answer that `ask` has brought, at `now` by Redis's clock (epoch seconds)."""
    state = [int(value or 0) for value in answer]
    return _breaker(state, int(now * 1000), rules)


def _breaker(state: list[int], now_ms: int, rules: Rules, refused: int = 0) -> Breaker:
    opened, failed, of = state
    if not opened:
        return Breaker(refused=refused) if refused else CLOSED
    left_s = max(0, opened + _ms(rules.open_for) - now_ms) / 1000
    return Breaker(bool(opened), left_s, failed, of, rules.within.total_seconds(), refused)


def _ms(duration: Any) -> int:
    return int(duration.total_seconds() * 1000)
