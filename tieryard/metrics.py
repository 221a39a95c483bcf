"""What is measured live, in Redis: gauges that processes publish whole, and profiles that decay.

Gauges (`gauges:{deployment}`, a hash by worker id) are complete values with their time, never increments, so
nothing drifts after a crash or a flush. An API process has one for each replica that it uses, in the field
`api:{its worker id}:{the replica's}`: no capacity, and the calls it has in flight there. Profiles
(`metrics:{deployment}:{category}`) are exponential averages.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
import redis

from tieryard.catalog import Catalog
from tieryard.engines.load import Load, load_from
from tieryard.routing import Measured, Profile

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


class EngineState(StrEnum):
    """Whether an engine may be given work. `unfit` answers, and failed its start-up checks."""

    STARTING = "starting"
    SERVING = "serving"
    DOWN = "down"
    UNFIT = "unfit"


@dataclass(frozen=True, slots=True)
class Gauge:
    """One replica's load. `capacity` is how many requests it takes at once now. `backlog` counts jobs in its inbox or
    claimed and not started. `url` is where its engine answers; an engine inside the worker has none.

    `why` says what is wrong with an engine that does not serve, to operators alone: it holds the server's own words.
    `ttft_ms` (p95) and `load` are what the server says of itself.
    """

    capacity: int
    in_flight: int
    backlog: int
    url: str = ""
    state: EngineState = EngineState.SERVING
    why: str = ""
    ttft_ms: float | None = None
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """A worker's engine, as its gauge says. `in_flight` is of all processes; `calls` is the part of API processes, by
    worker id."""

    worker_id: int
    url: str
    capacity: int
    in_flight: int
    calls: dict[int, int]
    backlog: int = 0
    state: EngineState = EngineState.SERVING
    why: str = ""
    ttft_ms: float | None = None
    load: Load | None = None

    @property
    def serves(self) -> bool:
        return self.capacity > 0


@dataclass(frozen=True, slots=True)
class Live:
    """All that was measured: gauges by deployment, profiles by deployment and category, replicas that serve."""

    gauges: dict[str, Measured]
    profiles: dict[str, dict[str, Profile]]
    replicas: dict[str, list[Replica]]


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
        self._put(deployment, str(worker_id), gauge)

    def withdraw_gauge(self, deployment: str, worker_id: int) -> None:
        self._redis.hdel(f"gauges:{deployment}", str(worker_id))

    def publish_calls(self, deployment: str, replica: int, gauge: Gauge, *, api: int) -> None:
        """What the API process with worker id `api` has in flight at one replica."""
        self._put(deployment, _calls_field(api, replica), gauge)

    def withdraw_calls(self, deployment: str, replica: int, *, api: int) -> None:
        self._redis.hdel(f"gauges:{deployment}", _calls_field(api, replica))

    def forget_calls(self, deployment: str, *, api: int) -> None:
        """All that a dead API process said of its calls there: old already, but it would stay."""
        names = [n.decode() if isinstance(n, bytes) else n for n in self._redis.hkeys(f"gauges:{deployment}")]
        if fields := [name for name in names if (callers := _callers(name)) is not None and callers[0] == api]:
            self._redis.hdel(f"gauges:{deployment}", *fields)

    def calls_at(self, deployment: str, worker_id: int, url: str) -> int:
        """Calls of API processes in flight at this replica's engine, which it may share with others of its URL."""
        fresh = _fresh(self._redis.hgetall(f"gauges:{deployment}"))
        found = ((_callers(name), gauge) for name, gauge in fresh.items())
        return sum(
            gauge["in_flight"]
            for callers, gauge in found
            if callers and (gauge.get("url") == url if url else callers[1] == worker_id)
        )

    def replicas(self, deployment: str) -> list[Replica]:
        """Those heard of in the last seconds, also such as do not serve."""
        return _replicas(_fresh(self._redis.hgetall(f"gauges:{deployment}")))

    def _put(self, deployment: str, name: str, gauge: Gauge) -> None:
        body = {**dataclasses.asdict(gauge), "at": time.time()}
        self._redis.hset(f"gauges:{deployment}", name, orjson.dumps(body))

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

    def read(self, catalog: Catalog) -> Live:
        """In one round trip."""
        names = list(catalog.deployments)
        pairs = [(name, category) for name in names for category in catalog.categories]
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(f"gauges:{name}")
            for name, category in pairs:
                pipe.hgetall(f"metrics:{name}:{category}")
            answers = pipe.execute()
        fresh = {name: found for name, raw in zip(names, answers, strict=False) if (found := _fresh(raw))}
        profiles: dict[str, dict[str, Profile]] = {name: {} for name in names}
        for (name, category), raw in zip(pairs, answers[len(names) :], strict=True):
            if raw:
                profiles[name][category] = _profile(raw)
        gauges = {name: _measured(found) for name, found in fresh.items()}
        return Live(gauges, profiles, {n: [r for r in _replicas(found) if r.serves] for n, found in fresh.items()})


_Gauges = dict[str, dict[str, Any]]
"""A deployment's gauges by field."""


def _fresh(raw: dict[Any, Any]) -> _Gauges:
    """Those heard of in the last seconds."""
    found = {name.decode(): orjson.loads(body) for name, body in raw.items()}
    return {name: gauge for name, gauge in found.items() if time.time() - gauge["at"] < _FRESH_S}


def _measured(fresh: _Gauges) -> Measured:
    """Of all its replicas: counts are summed, the KV cache is that of the emptiest."""
    loads = [g["load"] for g in fresh.values() if g.get("load")]
    return Measured(
        capacity=sum(g["capacity"] for g in fresh.values()),
        in_flight=sum(g["in_flight"] for g in fresh.values()),
        backlog=sum(g["backlog"] for g in fresh.values()),
        kv_usage=min((load["kv_usage"] for load in loads), default=None),
    )


def _replicas(fresh: _Gauges) -> list[Replica]:
    """By worker id."""
    calls: dict[int, dict[int, int]] = defaultdict(dict)
    for name, gauge in fresh.items():
        if callers := _callers(name):
            calls[callers[1]][callers[0]] = gauge["in_flight"]
    workers = {int(name): gauge for name, gauge in fresh.items() if name.isdecimal()}
    return [
        Replica(
            worker_id=n,
            url=g.get("url", ""),
            capacity=g["capacity"],
            in_flight=g["in_flight"] + sum(calls[n].values()),
            calls=calls[n],
            backlog=g["backlog"],
            state=EngineState(g.get("state", EngineState.SERVING)),
            why=g.get("why", ""),
            ttft_ms=g.get("ttft_ms"),
            load=load_from(g["load"]) if g.get("load") else None,
        )
        for n, g in sorted(workers.items())
    ]


def _calls_field(api: int, replica: int) -> str:
    return f"api:{api}:{replica}"


def _callers(name: str) -> tuple[int, int] | None:
    """(an API process, a replica) where the field is of calls."""
    kind, _, rest = name.partition(":")
    if kind != "api":
        return None
    api, _, replica = rest.partition(":")
    return int(api), int(replica)


def _profile(raw: dict[bytes, bytes]) -> Profile:
    """Of the fields we know: a newer process may write more."""
    known = {f.name for f in dataclasses.fields(Profile)}
    found: dict[str, Any] = {k.decode(): float(v) for k, v in raw.items() if k.decode() in known}
    return Profile(**{"timestamp": 0.0, **found, "samples": int(found.get("samples", 0))})
