"""What is measured live, in Redis: gauges that processes publish whole, profiles, breakers and trials; all in one read.

Gauges (`gauges:{deployment}`, a hash by worker id) are complete values with their time, never increments, so
nothing drifts after a crash or a flush. An API process has one for each replica that it uses, in the field
`api:{its worker id}:{the replica's}`: no capacity, and the calls it has in flight there. Profiles are read with them.

All times are by Redis's own clock, written by scripts and read in the round trip that reads what they are compared
with: hosts whose clocks differ see the same fleet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson
import redis

from tieryard import breakers, profiles, trials
from tieryard.breakers import Breaker, Breakers
from tieryard.catalog import Catalog, Price
from tieryard.costs.windows import WindowPrice
from tieryard.engines.load import Load, load_from
from tieryard.profiles import Mark, Observed, Profiles
from tieryard.routing import Measured, Profile
from tieryard.routing.trials import NO_TRIALS, Trials
from tieryard.store.lanes import Owing

_FRESH_S = 5.0
_SERVED, _ARRIVED = "served", "arrived"  # by deployment: when it served last, and since when without a gap
_NEEDED = "needed_tps"
_STEP_BACK = "stepped_back"
_QUOTES = "quote_errors"
_QUOTES_KEPT_S = 3600
_OWING = "callbacks_owing"
_OWING_KEPT_S = 60

# ARGV: the gauge's field and JSON, to which its time is added; its deployment, if it serves; how long none may be
# heard of before it has arrived anew.
_PUBLISH = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local at = string.format('%.6f', now)
redis.call('HSET', KEYS[1], ARGV[1], string.sub(ARGV[2], 1, -2) .. ',"at":' .. at .. '}')
if ARGV[3] == '' then return end
local before = tonumber(redis.call('HGET', KEYS[2], ARGV[3]) or '0')
redis.call('HSET', KEYS[2], ARGV[3], at)
if now - before > tonumber(ARGV[4]) then redis.call('HSET', KEYS[3], ARGV[3], at) end
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
    claimed and not started; `behind` those of them for which nobody is to wait. `url` is where its engine answers; an
    engine inside the worker has none.

    `why` says what is wrong with an engine that does not serve, to operators alone: it holds the server's own words.
    `ttft_ms` (p95) and `load` are what the server says of itself. `held` says why the hosted API behind it may not be
    asked now, and for how long; empty when it may. `window` is the rent window that stands for a rented replica.
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
    behind: int = 0
    window: WindowPrice | None = None


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
    window: WindowPrice | None = None

    @property
    def serves(self) -> bool:
        return self.capacity > 0


@dataclass(frozen=True, slots=True)
class Live:
    """All that was measured: gauges by deployment, profiles by deployment and category, replicas that serve; by tier
    the rate that its deadlines need; what exploring has cost today; by quality model why the router has stepped back
    from it to its rules, if it has; what is promoted or on trial; circuit breakers by deployment. `at` is when it was
    read (epoch seconds, by Redis's clock). `quote_errors`: by figure, how far quotes were off, see
    `tieryard.store.quotes.errors`."""

    gauges: dict[str, Measured]
    profiles: dict[str, dict[str, Profile]]
    replicas: dict[str, list[Replica]]
    needed_tps: dict[str, float] = field(default_factory=dict)
    explored_usd: float = 0.0
    step_back: dict[str, str] = field(default_factory=dict)
    trials: Trials = NO_TRIALS
    breakers: dict[str, Breaker] = field(default_factory=dict)
    at: float = 0.0
    quote_errors: dict[str, dict[str, float]] = field(default_factory=dict)
    owing: Owing | None = None
    """What callbacks are owed, None where no callback worker has said it for a minute."""


class Metrics:
    """The live metrics store. Methods raise redis.RedisError when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._publish = client.register_script(_PUBLISH)
        self._profiles = Profiles(client)
        self._breakers = Breakers(client)

    def publish_gauge(self, deployment: str, worker_id: int, gauge: Gauge) -> None:
        """Of one replica; while it takes requests, the deployment is remembered as one that served."""
        self._put(deployment, str(worker_id), gauge, serving=gauge.capacity > 0)

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
        fresh = self._heard(deployment)
        found = ((_callers(name), gauge) for name, gauge in fresh.items())
        return sum(
            gauge["in_flight"]
            for callers, gauge in found
            if callers and (gauge.get("url") == url if url else callers[1] == worker_id)
        )

    def replicas(self, deployment: str) -> list[Replica]:
        """Those heard of in the last seconds, also such as do not serve."""
        return _replicas(self._heard(deployment))

    def fallen(self, names: Collection[str]) -> dict[str, float]:
        """Those of these deployments that do not serve now, with the time (seconds ago, below 0 for a time to come)
        until when the router may have taken them to serve, or not have known of one that does; none where no other
        serves either."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(_SERVED)
            pipe.hgetall(_ARRIVED)
            at, *found = pipe.execute()
        now, (served, arrived) = _seconds(at), map(_times, found)
        serving = {name for name in names if now - served.get(name, 0.0) <= _FRESH_S}
        if not serving:
            return {}
        known = max(arrived.get(name, 0.0) for name in serving) + _FRESH_S
        fallen = (name for name in names if name not in serving)
        return {name: now - max(served.get(name, 0.0) + 2 * _FRESH_S, known) for name in fallen}

    def _heard(self, deployment: str) -> _Gauges:
        """Its gauges of the last seconds, in one round trip."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(f"gauges:{deployment}")
            at, raw = pipe.execute()
        return _fresh(raw, _seconds(at))

    def _put(self, deployment: str, name: str, gauge: Gauge, *, serving: bool = False) -> None:
        keys = [f"gauges:{deployment}", _SERVED, _ARRIVED]
        told = orjson.dumps(gauge, default=_plain)
        self._publish(keys=keys, args=[name, told, deployment if serving else "", _FRESH_S])

    def observe(self, deployment: str, category: str, seen: Observed) -> None:
        """As `Profiles.observe`."""
        self._profiles.observe(deployment, category, seen)

    def seed(
        self, deployment: str, category: str, fields: Mapping[str, float], *, benchmark: str, age_s: float = 0.0
    ) -> None:
        """As `Profiles.seed`."""
        self._profiles.seed(deployment, category, fields, benchmark=benchmark, age_s=age_s)

    def mark(self, deployment: str, category: str, name: Mark, why: str) -> None:
        """As `Profiles.mark`."""
        self._profiles.mark(deployment, category, name, why)

    def publish_step_back(self, why: dict[str, str]) -> None:
        """By quality model, why the router goes by its rules instead; empty that it need not. Stands until the next
        word."""
        with self._redis.pipeline() as pipe:
            pipe.delete(_STEP_BACK)
            if why:
                pipe.hset(_STEP_BACK, items=[text for pair in why.items() for text in pair])
            pipe.execute()

    def publish_trials(self, found: Trials) -> None:
        """What is in force, in the place of what was."""
        trials.publish(self._redis, found)

    def publish_quote_errors(self, found: Mapping[str, Mapping[str, float]]) -> None:
        """By figure, how far quotes of the last days were off, in the place of what was."""
        self._redis.set(_QUOTES, orjson.dumps(found), ex=_QUOTES_KEPT_S)

    def publish_owing(self, found: Owing) -> None:
        """What callbacks are owed, in the place of what was."""
        self._redis.set(_OWING, orjson.dumps(found), ex=_OWING_KEPT_S)

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
            profiles.ask(pipe, pairs)
            breakers.ask(pipe, names)
            pipe.hgetall(_SERVED)
            pipe.get(_NEEDED)
            pipe.get(_explored_today())
            pipe.hgetall(_STEP_BACK)
            trials.ask(pipe)
            pipe.get(_QUOTES)
            pipe.get(_OWING)
            pipe.time()
            *answers, served, needed, explored, step_back, told, quoted, owing, at = pipe.execute()
        now = _seconds(at)
        stale_before = now - catalog.routing.stale_after.total_seconds()
        awaited_since = now - catalog.routing.wait_for.total_seconds()
        awaited = {name for name, at in _times(served).items() if at > awaited_since} & set(names)
        fresh = {name: found for name, raw in zip(names, answers, strict=False) if (found := _fresh(raw, now))}
        measured: dict[str, dict[str, Profile]] = {name: {} for name in names}
        for (name, category), raw in zip(pairs, answers[len(names) :], strict=False):
            if raw:
                measured[name][category] = profiles.read(raw, stale_before=stale_before)
        states = dict(zip(names, answers[len(names) + len(pairs) :], strict=True))
        broken = {name: breakers.read(raw, catalog.routing.breaker, now=now) for name, raw in states.items()}
        gauges = {
            name: replace(_measured(fresh.get(name, {}), broken[name]), awaited=name in awaited)
            for name in fresh.keys() | awaited
        }
        replicas = {n: [r for r in _replicas(found) if r.serves] for n, found in fresh.items()}
        why = {model.decode(): said.decode() for model, said in step_back.items()}
        tps, explored_usd = orjson.loads(needed or b"{}"), float(explored or 0.0)
        off = orjson.loads(quoted or b"{}")
        owed = Owing(**orjson.loads(owing)) if owing else None
        return Live(gauges, measured, replicas, tps, explored_usd, why, trials.read(told), broken, now, off, owed)


_Gauges = dict[str, dict[str, Any]]
"""A deployment's gauges by field."""


def _explored_today() -> str:
    return f"explored_usd:{datetime.now(tz=UTC):%Y-%m-%d}"


def _seconds(answer: tuple[int, int]) -> float:
    """Epoch seconds of what TIME answers: seconds and microseconds."""
    return answer[0] + answer[1] / 1_000_000


def _fresh(raw: dict[Any, Any], now: float) -> _Gauges:
    """Those heard of in the last seconds before `now`."""
    found = {name.decode(): orjson.loads(body) for name, body in raw.items()}
    return {name: gauge for name, gauge in found.items() if now - gauge["at"] < _FRESH_S}


def _measured(fresh: _Gauges, breaker: Breaker) -> Measured:
    """Of all its replicas: counts are summed, the KV cache is that of the emptiest, and what one says of the API behind
    it holds for all."""
    held = next((g["held"] for g in fresh.values() if g.get("held")), "")
    loads = [g["load"] for g in fresh.values() if g.get("load")]
    return Measured(
        capacity=sum(g["capacity"] for g in fresh.values()),
        in_flight=sum(g["in_flight"] for g in fresh.values()),
        backlog=sum(g["backlog"] - g.get("behind", 0) for g in fresh.values()),
        behind=sum(g.get("behind", 0) for g in fresh.values()),
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
            window=_window(g.get("window")),
        )
        for n, g in sorted(workers.items())
    ]


def _plain(value: Any) -> Any:
    """A price as JSON has it: its decimals as text."""
    if isinstance(value, Price):
        return {name: None if usd is None else str(usd) for name, usd in value}
    raise TypeError(f"{type(value).__name__} has no place in a gauge")


def _window(told: dict[str, Any] | None) -> WindowPrice | None:
    return WindowPrice(told["window_id"], Price(**told["price"])) if told else None


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
