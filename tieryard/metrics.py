"""What is measured live, in Redis: gauges that processes publish whole, and profiles that decay.

Gauges (`gauges:{deployment}`, a hash by worker id) are complete values with their time, never increments, so
nothing drifts after a crash or a flush. Profiles (`metrics:{deployment}:{category}`) are exponential averages.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import orjson
import redis

from tieryard.catalog import Catalog
from tieryard.routing import Profile

_FRESH_S = 5.0
_HALF_LIFE = 50  # samples after which an old average weighs half

# Averages move towards the new value by 1 - 0.5^(n / half life): n samples at once weigh as n single ones.
_OBSERVE = """
local key, n = KEYS[1], tonumber(ARGV[1])
local keep = 0.5 ^ (n / tonumber(ARGV[2]))
for i = 4, #ARGV, 2 do
  local old = tonumber(redis.call('HGET', KEYS[1], ARGV[i]))
  local new = tonumber(ARGV[i + 1])
  if old then new = old * keep + new * (1 - keep) end
  redis.call('HSET', key, ARGV[i], tostring(new))
end
redis.call('HINCRBY', key, 'samples', n)
redis.call('HSET', key, 'timestamp', ARGV[3])
"""


@dataclass(frozen=True, slots=True)
class Gauge:
    """One replica's load. `backlog` counts jobs in its inbox or claimed and not started."""

    capacity: int
    in_flight: int
    backlog: int


@dataclass(frozen=True, slots=True)
class Observed:
    """The mean of `n` finished starts of one category."""

    n: int
    ttft_ms: float | None
    throughput_tps: float | None
    cost_per_1k: float | None
    error_rate: float


class Metrics:
    """The live metrics store. Methods raise redis.RedisError when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._observe = client.register_script(_OBSERVE)

    def publish_gauge(self, deployment: str, worker_id: int, gauge: Gauge) -> None:
        body = {"capacity": gauge.capacity, "in_flight": gauge.in_flight, "backlog": gauge.backlog, "at": time.time()}
        self._redis.hset(f"gauges:{deployment}", str(worker_id), orjson.dumps(body))

    def withdraw_gauge(self, deployment: str, worker_id: int) -> None:
        self._redis.hdel(f"gauges:{deployment}", str(worker_id))

    def observe(self, deployment: str, category: str, seen: Observed) -> None:
        """Moves a profile's averages; a value that is None leaves its average as it was."""
        values = {
            "ttft_ms": seen.ttft_ms,
            "throughput_tps": seen.throughput_tps,
            "cost_per_1k": seen.cost_per_1k,
            "error_rate": seen.error_rate,
        }
        pairs = [x for name, value in values.items() if value is not None for x in (name, value)]
        self._observe(keys=[f"metrics:{deployment}:{category}"], args=[seen.n, _HALF_LIFE, time.time(), *pairs])

    def read(self, catalog: Catalog) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, Profile]]]:
        """(gauges summed by deployment, profiles by deployment and category), in one round trip."""
        names = list(catalog.deployments)
        pairs = [(name, category) for name in names for category in catalog.categories]
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(f"gauges:{name}")
            for name, category in pairs:
                pipe.hgetall(f"metrics:{name}:{category}")
            answers = pipe.execute()
        gauges: dict[str, dict[str, int]] = {}
        for name, raw in zip(names, answers, strict=False):
            if total := _sum_fresh(raw):
                gauges[name] = total
        profiles: dict[str, dict[str, Profile]] = {name: {} for name in names}
        for (name, category), raw in zip(pairs, answers[len(names) :], strict=True):
            if raw:
                profiles[name][category] = _profile(raw)
        return gauges, profiles


def _sum_fresh(raw: dict[bytes, bytes]) -> dict[str, int]:
    """The sum over replicas heard of in the last seconds; empty when there is none."""
    fresh = [g for g in map(orjson.loads, raw.values()) if time.time() - g["at"] < _FRESH_S]
    if not fresh:
        return {}
    return {name: sum(g[name] for g in fresh) for name in ("capacity", "in_flight", "backlog")}


def _profile(raw: dict[bytes, bytes]) -> Profile:
    """Of the fields we know: a newer process may write more."""
    known = {f.name for f in dataclasses.fields(Profile)}
    found: dict[str, Any] = {k.decode(): float(v) for k, v in raw.items() if k.decode() in known}
    return Profile(**{"timestamp": 0.0, **found, "samples": int(found.get("samples", 0))})
