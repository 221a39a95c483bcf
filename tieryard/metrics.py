"""What is measured live, in Redis: gauges that processes publish whole, and profiles that decay.

Gauges (`gauges:{deployment}`, a hash by worker id) are complete values with their time, never increments, so
nothing drifts after a crash or a flush. An API process has one for each replica that it uses, in the field
`api:{its worker id}:{the replica's}`: no capacity, and the calls it has in flight there. Profiles
(`metrics:{deployment}:{category}`) are exponential averages.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson
import redis

from tieryard import breakers
from tieryard.breakers import Breaker, Breakers
from tieryard.catalog import Catalog
from tieryard.engines.load import Load, load_from
from tieryard.routing import Measured, Profile

_FRESH_S = 5.0
_SERVED, _ARRIVED = "served", "arrived"  # by deployment: when it served last, and since when without a gap
_NEEDED = "needed_tps"
_LENGTH = "output_tokens:"
_STEP_BACK = "step_back"
_QUALITY = "quality_score"
_HALF_LIFE = 50  # samples after which an old average weighs half

# Averages move towards the new value by 1 - 0.5^(n / half life): n samples at once weigh as n single ones. Before there
# are as many as that stands on they are plain means, or the very first sample would outweigh all of the next fifty.
_OBSERVE = """
local key, n, count = KEYS[1], tonumber(ARGV[1]), ARGV[4]
local seen = tonumber(redis.call('HGET', key, count)) or 0
local keep = math.min(0.5 ^ (n / tonumber(ARGV[2])), seen / (seen + n))
for i = 6, #ARGV, 2 do
  local old = tonumber(redis.call('HGET', key, ARGV[i]))
  local new = tonumber(ARGV[i + 1])
  if old then new = old * keep + new * (1 - keep) end
  redis.call('HSET', key, ARGV[i], tostring(new))
end
redis.call('HINCRBY', key, count, n)
redis.call('HSET', key, ARGV[5], ARGV[3])
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
    `ttft_ms` (p95) and `load` are what the server says of itself. `held` says why the hosted API behind it may not be
    asked now, and for how long; empty when it may.
    """

    capacity: int
    in_flight: int
    backlog: int
    url: str = ""
    state: EngineState = EngineState.SERVING
    why: str = ""
    ttft_ms: float | None = None
    load: Load | None = None
    held: str = ""


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
    held: str = ""

    @property
    def serves(self) -> bool:
        return self.capacity > 0


@dataclass(frozen=True, slots=True)
class Live:
    """All that was measured: gauges by deployment, profiles by deployment and category, replicas that serve; by tier
    the rate that its deadlines need; what exploring has cost today; and why the router has stepped back to its rules,
    if it has."""

    gauges: dict[str, Measured]
    profiles: dict[str, dict[str, Profile]]
    replicas: dict[str, list[Replica]]
    needed_tps: dict[str, float] = field(default_factory=dict)
    explored_usd: float = 0.0
    step_back: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """Means of `n` finished starts of one category. The 95th percentiles of times are taken from the means of their
    logarithms and of those squared, as if times were log-normal."""

    n: int
    error_rate: float | None = None
    ttft_ms: float | None = None
    ttft_ln: float | None = None
    ttft_ln2: float | None = None
    tpot_ms: float | None = None
    tpot_ln: float | None = None
    tpot_ln2: float | None = None
    throughput_tps: float | None = None
    output_tokens: float | None = None
    lengths: dict[str, float] = field(default_factory=dict)
    cost_per_1k: float | None = None
    quality_score: float | None = None


class Metrics:
    """The live metrics store. Methods raise redis.RedisError when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._observe = client.register_script(_OBSERVE)
        self._breakers = Breakers(client)

    def publish_gauge(self, deployment: str, worker_id: int, gauge: Gauge) -> None:
        """Of one replica; while it takes requests, the deployment is remembered as one that served."""
        self._put(deployment, str(worker_id), gauge)
        if not gauge.capacity:
            return
        now, before = time.time(), self._redis.hget(_SERVED, deployment)
        with self._redis.pipeline() as pipe:
            pipe.hset(_SERVED, deployment, now)
            if before is None or now - float(before) > _FRESH_S:
                pipe.hset(_ARRIVED, deployment, now)
            pipe.execute()

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

    def fallen(self, names: Collection[str]) -> dict[str, float]:
        """Those of these deployments that do not serve now, with the time (epoch seconds) until when the router may
        have taken them to serve, or not have known of one that does; none where no other serves either."""
        now = time.time()
        served, arrived = (_times(self._redis.hgetall(key)) for key in (_SERVED, _ARRIVED))
        serving = {name for name in names if now - served.get(name, 0.0) <= _FRESH_S}
        if not serving:
            return {}
        known = max(arrived.get(name, 0.0) for name in serving) + _FRESH_S
        return {name: max(served.get(name, 0.0) + 2 * _FRESH_S, known) for name in names if name not in serving}

    def _put(self, deployment: str, name: str, gauge: Gauge) -> None:
        body = {**dataclasses.asdict(gauge), "at": time.time()}
        self._redis.hset(f"gauges:{deployment}", name, orjson.dumps(body))

    def observe(self, deployment: str, category: str, seen: Observed) -> None:
        """Moves a profile's averages; a value that is None leaves its average as it was. Quality has a count and a time
        of its own: a score comes long after its answer, and says nothing of how quick the deployment is now."""
        values = {name: value for name, value in dataclasses.asdict(seen).items() if value is not None}
        n, quality = values.pop("n"), values.pop(_QUALITY, None)
        values |= {f"{_LENGTH}{tier}": length for tier, length in values.pop("lengths").items()}
        rated = {} if quality is None else {_QUALITY: quality}
        for count, at, found in (("samples", "timestamp", values), ("quality_samples", "quality_timestamp", rated)):
            if found:
                pairs = [x for pair in found.items() for x in pair]
                arguments = [n, _HALF_LIFE, time.time(), count, at, *pairs]
                self._observe(keys=[f"metrics:{deployment}:{category}"], args=arguments)

    def publish_step_back(self, why: str) -> None:
        """That the router goes by its rules, and why; empty that it need not. Stands until the next word."""
        if why:
            self._redis.set(_STEP_BACK, why)
        else:
            self._redis.delete(_STEP_BACK)

    def breaker(self, deployment: str, catalog: Catalog) -> Breaker:
        """A deployment's circuit breaker, with the refusals of its provider."""
        return self._breakers.tell(deployment, catalog.routing.breaker)

    def publish_needed(self, needed_tps: dict[str, float]) -> None:
        """By tier, the output tokens a second that its open deadlines need."""
        self._redis.set(_NEEDED, orjson.dumps(needed_tps), px=int(1000 * _FRESH_S))

    def spend_exploring(self, usd: float) -> float:
        """What jobs cost above the choice, because they explore: what that has come to today, in the whole fleet."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.incrbyfloat(_explored_today(), usd)
            pipe.expire(_explored_today(), 2 * 86_400)
            return float(pipe.execute()[0])

    def read(self, catalog: Catalog) -> Live:
        """In one round trip."""
        names = list(catalog.deployments)
        pairs = [(name, category) for name in names for category in catalog.categories]
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(f"gauges:{name}")
            for name, category in pairs:
                pipe.hgetall(f"metrics:{name}:{category}")
            breakers.ask(pipe, names)
            pipe.hgetall(_SERVED)
            pipe.get(_NEEDED)
            pipe.get(_explored_today())
            pipe.get(_STEP_BACK)
            *answers, served, needed, explored, step_back = pipe.execute()
        stale_before = time.time() - catalog.routing.stale_after.total_seconds()
        awaited_since = time.time() - catalog.routing.wait_for.total_seconds()
        awaited = {name for name, at in _times(served).items() if at > awaited_since} & set(names)
        fresh = {name: found for name, raw in zip(names, answers, strict=False) if (found := _fresh(raw))}
        profiles: dict[str, dict[str, Profile]] = {name: {} for name in names}
        for (name, category), raw in zip(pairs, answers[len(names) :], strict=False):
            if raw:
                profiles[name][category] = _profile(raw, stale_before=stale_before)
        states = dict(zip(names, answers[len(names) + len(pairs) :], strict=True))
        broken = {name: breakers.read(raw, catalog.routing.breaker) for name, raw in states.items()}
        gauges = {
            name: replace(_measured(fresh.get(name, {}), broken[name]), awaited=name in awaited)
            for name in fresh.keys() | awaited
        }
        replicas = {n: [r for r in _replicas(found) if r.serves] for n, found in fresh.items()}
        why = (step_back or b"").decode()
        return Live(gauges, profiles, replicas, orjson.loads(needed or b"{}"), float(explored or 0.0), why)


_Gauges = dict[str, dict[str, Any]]
"""A deployment's gauges by field."""


def _explored_today() -> str:
    return f"explored_usd:{datetime.now(tz=UTC):%Y-%m-%d}"


def _fresh(raw: dict[Any, Any]) -> _Gauges:
    """Those heard of in the last seconds."""
    found = {name.decode(): orjson.loads(body) for name, body in raw.items()}
    return {name: gauge for name, gauge in found.items() if time.time() - gauge["at"] < _FRESH_S}


def _measured(fresh: _Gauges, breaker: Breaker) -> Measured:
    """Of all its replicas: counts are summed, the KV cache is that of the emptiest, and what one says of the API behind
    it holds for all."""
    held = next((g["held"] for g in fresh.values() if g.get("held")), "")
    loads = [g["load"] for g in fresh.values() if g.get("load")]
    return Measured(
        capacity=sum(g["capacity"] for g in fresh.values()),
        in_flight=sum(g["in_flight"] for g in fresh.values()),
        backlog=sum(g["backlog"] for g in fresh.values()),
        replicas=sum(g["capacity"] > 0 for g in fresh.values()),
        kv_usage=min((load["kv_usage"] for load in loads), default=None),
        broken=held or breaker.why,
        probing=breaker.half_open and not held,
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
            held=g.get("held", ""),
        )
        for n, g in sorted(workers.items())
    ]


def _calls_field(api: int, replica: int) -> str:
    return f"api:{api}:{replica}"


def _times(raw: dict[Any, Any]) -> dict[str, float]:
    """Epoch seconds by deployment."""
    return {name.decode(): float(at) for name, at in raw.items()}


def _callers(name: str) -> tuple[int, int] | None:
    """(an API process, a replica) where the field is of calls."""
    kind, _, rest = name.partition(":")
    if kind != "api":
        return None
    api, _, replica = rest.partition(":")
    return int(api), int(replica)


def _profile(raw: dict[bytes, bytes], *, stale_before: float) -> Profile:
    """Of the fields we know: a newer process may write more."""
    given = {k.decode(): float(v) for k, v in raw.items()}
    known = {f.name for f in dataclasses.fields(Profile)}
    found: dict[str, Any] = {k: v for k, v in given.items() if k in known}
    for name in ("ttft", "tpot"):
        if f"{name}_ln2" in given and f"{name}_p95_ms" not in found:
            found[f"{name}_p95_ms"] = _p95(given[f"{name}_ln"], given[f"{name}_ln2"])
    lengths = {name.removeprefix(_LENGTH): value for name, value in given.items() if name.startswith(_LENGTH)}
    whole = {"timestamp": 0.0, **found, "samples": int(found.get("samples", 0)), "lengths": lengths}
    if "quality_samples" in found:
        whole["quality_samples"] = int(found["quality_samples"])
    rated_at = found.get("quality_timestamp", whole["timestamp"])
    return Profile(**whole, stale=whole["timestamp"] < stale_before, quality_stale=rated_at < stale_before)


def _p95(ln: float, ln2: float) -> float:
    """Of log-normal times: exp(mean + 1.645 standard deviations) of their logarithms."""
    return math.exp(ln + 1.645 * math.sqrt(max(0.0, ln2 - ln * ln)))
