"""What a hosted API still lets each deployment do: the requests and tokens of the last minute, counted in Redis for all
processes at once, and how long it wants to be left alone.

A moving window in buckets of a second, each of which counts until it is whole seconds past the minute: a request may
take that long to arrive. One script takes for as many starts as fit, requests and tokens together, says how long the
next must wait, and corrects what earlier starts took: one round trip. (`limits`, which rates.py stands on, counts one
thing a trip, keeps an entry for each token, and cannot say how many of a list fit.)
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tieryard import telemetry
from tieryard.catalog import OWN_SERVERS, AttachedEngine, Catalog, RateLimits

WINDOW_S = 60.0
_GRAIN_S = 1.0
_LONGEST_HOLD_S = 300.0  # whatever a provider asks for: then it is asked again
_PATIENCE_S = 0.5  # for an answer of Redis
_AWAY_S = 1.0  # after none came, so long it is not asked again

# Fields of `quota:{deployment}`: r<bucket> requests, t<bucket> tokens, held (until, ms), refusals.
# ARGV: limits of requests and tokens (-1: none), those for what is not urgent, window and grain in ms, hold in ms,
# refusals; how many corrections, each (bucket, requests, tokens); tokens of whoever asks next; then the starts, each
# (tokens, urgent).
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local most = {r = {tonumber(ARGV[3]), tonumber(ARGV[1])}, t = {tonumber(ARGV[4]), tonumber(ARGV[2])}}
local window, grain = tonumber(ARGV[5]), tonumber(ARGV[6])
local hold, refusals, corrections = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local function ends(bucket) return (bucket + 2) * grain + window end

local counts, used, held = {r = {}, t = {}}, {r = 0, t = 0}, 0
local found = redis.call('HGETALL', KEYS[1])
for i = 1, #found, 2 do
  local kind, bucket = string.match(found[i], '^([rt])(%d+)$')
  if kind and ends(tonumber(bucket)) <= now then
    redis.call('HDEL', KEYS[1], found[i])
  elseif kind then
    counts[kind][tonumber(bucket)] = tonumber(found[i + 1])
    used[kind] = used[kind] + tonumber(found[i + 1])
  elseif found[i] == 'held' then
    held = tonumber(found[i + 1])
  end
end

local changed = {}
local function add(kind, bucket, n)
  local old = counts[kind][bucket] or 0
  n = math.max(n, -old)
  if n == 0 then return end
  counts[kind][bucket], used[kind] = old + n, used[kind] + n
  changed[kind .. string.format('%d', bucket)] = string.format('%d', old + n)
end

local at = 11
for _ = 1, corrections do
  local bucket = tonumber(ARGV[at])
  if ends(bucket) > now then
    add('r', bucket, tonumber(ARGV[at + 1]))
    add('t', bucket, tonumber(ARGV[at + 2]))
  end
  at = at + 3
end
if hold > 0 and now + hold > held then
  held = now + hold
  redis.call('HSET', KEYS[1], 'held', string.format('%d', held))
end
if refusals > 0 then redis.call('HINCRBY', KEYS[1], 'refusals', refusals) end

local function wait(kind, tier, n)
  local limit = most[kind][tier]
  local excess = limit < 0 and 0 or used[kind] + n - limit
  if excess <= 0 then return 0 end
  local buckets = {}
  for bucket in pairs(counts[kind]) do table.insert(buckets, bucket) end
  table.sort(buckets)
  for _, bucket in ipairs(buckets) do
    excess = excess - counts[kind][bucket]
    if excess <= 0 then return ends(bucket) - now end
  end
  return window
end

local bucket, granted, waits = math.floor(now / grain), 0, {0, 0, 0}
local function look(tokens, tier)
  waits = {math.max(held - now, 0), wait('r', tier, 1), wait('t', tier, tokens)}
  return waits[1] + waits[2] + waits[3] == 0
end
local refused = false
while at < #ARGV and not refused do
  local tokens, tier = tonumber(ARGV[at]), tonumber(ARGV[at + 1]) + 1
  if look(tokens, tier) then
    add('r', bucket, 1)
    add('t', bucket, tokens)
    granted, at = granted + 1, at + 2
  else
    refused = true
  end
end
if not refused then look(tonumber(ARGV[10]), 1) end
for field, n in pairs(changed) do redis.call('HSET', KEYS[1], field, n) end
redis.call('PEXPIRE', KEYS[1], math.max(2 * window, held - now + window))
local function left(tier) return most.r[tier] < 0 and -1 or math.max(most.r[tier] - used.r, 0) end
return {granted, bucket, waits[1], waits[2], waits[3], left(1), left(2),
        tonumber(redis.call('HGET', KEYS[1], 'refusals') or '0')}
"""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What one start has taken: `tokens` in `bucket`."""

    bucket: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Taken:
    """`granted` starts, the first of those asked for, may begin; the next one in `wait_s` at the earliest, and `why`
    says what keeps it. `all_wait`: urgent ones too. `left` requests more fit now, `left_urgent` of urgent ones; None
    where there is no such limit. `refusals` is how often the provider has answered 429 so far."""

    granted: list[Ticket]
    wait_s: float = 0.0
    why: str = ""
    all_wait: bool = False
    left: int | None = None
    left_urgent: int | None = None
    refusals: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A start that is asked for: the tokens it may use, prompt and answer."""

    tokens: int
    urgent: bool = False


class Quota:
    """Of one deployment; safe to share between threads. While Redis is away everything is let through: the provider
    still refuses what is too much, and that is no job's fault.

    What is not urgent leaves the `kept` share of the limits to what is.
    """

    def __init__(self, client: redis.Redis, name: str, limits: RateLimits, *, kept: float = 0.0) -> None:
        self._client, self._key = client, f"quota:{name}"
        self._limits, self._kept = limits, kept
        self._script = client.register_script(_TAKE)
        self._corrections: deque[tuple[int, int, int]] = deque()
        self._hold_ms = self._refusals = 0
        self._lock = threading.Lock()
        self._away_until = 0.0

    def take(self, starts: Sequence[Start] = (), *, next_tokens: int = 0) -> Taken:
        """Takes for the first of these, as many as fit. Without any it only asks whether one of `next_tokens` would,
        and reports corrections."""
        if time.monotonic() < self._away_until:
            return _let_through(starts)
        costs = [(self._most_tokens(start), int(start.urgent)) for start in starts]
        with self._lock:
            corrections = [self._corrections.popleft() for _ in range(len(self._corrections))]
            hold_ms, refusals = self._hold_ms, self._refusals
            self._hold_ms = self._refusals = 0
        limits = [self._limit(kind, urgent=urgent) for urgent in (True, False) for kind in ("requests", "tokens")]
        head = [*limits, _ms(WINDOW_S), _ms(_GRAIN_S), hold_ms, refusals, len(corrections)]
        head.append(self._most_tokens(Start(next_tokens)))
        try:
            found = self._script(keys=[self._key], args=[*head, *_flat(corrections), *_flat(costs)])
        except redis.RedisError as error:
            self._away_until = time.monotonic() + _AWAY_S
            telemetry.logger().warning(telemetry.Event.LIMITS_AWAY, error=str(error)[:200])
            return _let_through(starts)
        return self._read([int(value) for value in found], costs)

    def settle(self, ticket: Ticket, tokens: int, *, sent: bool = True) -> None:
        """Corrects what a start took to the `tokens` that it used; one that was never `sent` has made no request. It is
        counted with the next `take`."""
        self._corrections.append((ticket.bucket, 0 if sent else -1, tokens - ticket.tokens))

    def refused(self, wait_s: float) -> None:
        """The provider answered 429: nobody shall ask it for so long. Told with the next `take`."""
        with self._lock:
            self._hold_ms = max(self._hold_ms, _ms(min(wait_s, _LONGEST_HOLD_S)))
            self._refusals += 1

    @property
    def owes(self) -> bool:
        """Whether anything is not told yet."""
        return self.owes_refusals or bool(self._corrections)

    @property
    def owes_refusals(self) -> bool:
        """Whether a refusal is not told yet."""
        return self._refusals > 0

    def _limit(self, kind: str, *, urgent: bool) -> int:
        most: int | None = getattr(self._limits, f"{kind}_per_minute")
        if most is None:
            return -1
        return most if urgent else max(1, math.floor(most * (1 - self._kept)))

    def _most_tokens(self, start: Start) -> int:
        """One that asks for more than a minute has takes all of it, rather than wait for ever."""
        limit = self._limit("tokens", urgent=start.urgent)
        return start.tokens if limit < 0 else min(start.tokens, limit)

    def _read(self, found: list[int], costs: list[tuple[int, int]]) -> Taken:
        granted, bucket, held_ms, requests_ms, tokens_ms, left, left_urgent, refusals = found
        tickets = [Ticket(bucket, tokens) for tokens, _ in costs[:granted]]
        wait_ms = max(held_ms, requests_ms, tokens_ms)
        limits = self._limits
        if not wait_ms:
            why = ""
        elif wait_ms == held_ms:
            why = "its provider refused a request for its rate limit (429)"
        elif wait_ms == requests_ms:
            why = f"its {limits.requests_per_minute:,} requests a minute are used up"
        else:
            why = f"its {limits.tokens_per_minute:,} tokens a minute are used up"
        room, room_urgent = (None if n < 0 else n for n in (left, left_urgent))
        refused_urgent = granted < len(costs) and bool(costs[granted][1])
        all_wait = bool(why) and (held_ms > 0 or refused_urgent or not self._kept)
        return Taken(tickets, wait_ms / 1000, why, all_wait, room, room_urgent, refusals)


class Quotas:
    """Of hosted deployments. Connects on first use; safe to share between threads."""

    def __init__(self, redis_url: str) -> None:
        # No retries: an attempt whose answer was lost may have counted.
        self._pool = redis.ConnectionPool.from_url(
            redis_url,
            socket_timeout=_PATIENCE_S,
            socket_connect_timeout=_PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
        )
        self.client = redis.Redis(connection_pool=self._pool)
        self._quotas: dict[tuple[str, RateLimits, float], Quota] = {}

    def of(self, catalog: Catalog, deployment: str) -> Quota | None:
        """None where the engine is the fleet's own: it is never asked for more than it holds. A LoRA adapter has its
        host's."""
        if not hosted(catalog, deployment):
            return None
        name = catalog.host_of(deployment)
        spec = catalog.deployments[name]
        limits = (spec.engine.limits if isinstance(spec.engine, AttachedEngine) else None) or RateLimits()
        kept = spec.realtime_reserve / spec.max_in_flight  # as of the slots
        known = (name, limits, kept)
        if known not in self._quotas:
            self._quotas[known] = Quota(self.client, name, limits, kept=kept)
        return self._quotas[known]

    def report(self) -> None:
        """What is owed to any of them: refusals, and corrections of what was taken."""
        for quota in list(self._quotas.values()):
            if quota.owes:
                quota.take()

    def close(self) -> None:
        self._pool.disconnect()


def hosted(catalog: Catalog, deployment: str) -> bool:
    """Whether its engine is somebody's API: one that speaks OpenAI's protocol and is no server we know, or has
    limits."""
    engine = catalog.deployments[catalog.host_of(deployment)].engine
    if not isinstance(engine, AttachedEngine):
        return False
    return engine.limits is not None or engine.server not in OWN_SERVERS


def _let_through(starts: Sequence[Start]) -> Taken:
    return Taken([Ticket(0, start.tokens) for start in starts])


def _flat(rows: Sequence[tuple[int, ...]]) -> list[int]:
    return [value for row in rows for value in row]


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)
