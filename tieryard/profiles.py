"""Profiles in Redis (`metrics:{deployment}:{category}`): exponential averages that live traffic moves and benchmarks
set, and what is wrong with them.

Their times are by Redis's own clock, as those of `tieryard/metrics.py` are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import redis

from tieryard.routing import Profile

Mark = Literal["regressed", "drifted"]

_LENGTH = "output_tokens:"
_QUALITY = "quality_score"
_TEXTS = frozenset({"benchmark", "regressed", "drifted"})  # of a profile's fields; the others are numbers
_HALF_LIFE = 50  # samples after which an old average weighs half

# Averages move towards the new value by 1 - 0.5^(n / half life): n samples at once weigh as n single ones. Before there
# are as many as that stands on they are plain means, or the very first sample would outweigh all of the next fifty.
_OBSERVE = """
local key, n, count = KEYS[1], tonumber(ARGV[1]), ARGV[3]
local seen = tonumber(redis.call('HGET', key, count)) or 0
local keep = math.min(0.5 ^ (n / tonumber(ARGV[2])), seen / (seen + n))
for i = 5, #ARGV, 2 do
  local old = tonumber(redis.call('HGET', key, ARGV[i]))
  local new = tonumber(ARGV[i + 1])
  if old then new = old * keep + new * (1 - keep) end
  redis.call('HSET', key, ARGV[i], tostring(new))
end
redis.call('HINCRBY', key, count, n)
local time = redis.call('TIME')
redis.call('HSET', key, ARGV[4], string.format('%.6f', time[1] + time[2] / 1000000))
"""

# ARGV: how long ago it was measured (s), the benchmark, then the measured fields. What live traffic alone tells, such
# as lengths by tier, and quality stay as they are.
_SEED = """
local time = redis.call('TIME')
local at = string.format('%.6f', time[1] + time[2] / 1000000 - tonumber(ARGV[1]))
redis.call('HSET', KEYS[1], 'timestamp', at, 'benchmark_timestamp', at, 'benchmark', ARGV[2])
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
"""


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


class Profiles:
    """Of all deployments. Methods raise redis.RedisError when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._observe = client.register_script(_OBSERVE)
        self._seed = client.register_script(_SEED)

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
                arguments = [n, _HALF_LIFE, count, at, *pairs]
                self._observe(keys=[_key(deployment, category)], args=arguments)

    def seed(
        self, deployment: str, category: str, fields: Mapping[str, float], *, benchmark: str, age_s: float = 0.0
    ) -> None:
        """Sets what a benchmark measured (`to_profile`) `age_s` seconds ago, whole: from there live traffic moves it
        on."""
        measured = {name: value for name, value in fields.items() if name != "timestamp"}
        measured["samples"] = int(measured["samples"])
        arguments = [age_s, benchmark, *(x for pair in measured.items() for x in pair)]
        self._seed(keys=[_key(deployment, category)], args=arguments)

    def mark(self, deployment: str, category: str, name: Mark, why: str) -> None:
        """What is wrong with a profile, beside its figures; empty takes it back."""
        key = _key(deployment, category)
        if why:
            self._redis.hset(key, name, why)
        else:
            self._redis.hdel(key, name)


def ask(pipe: Any, pairs: Iterable[tuple[str, str]]) -> None:
    """Has a pipeline read the profiles of these deployments and categories, for `read`: an answer each."""
    for deployment, category in pairs:
        pipe.hgetall(_key(deployment, category))


def read(raw: dict[bytes, bytes], *, stale_before: float) -> Profile:
    """Of the fields we know: a newer process may write more."""
    texts = {name: raw[name.encode()].decode() for name in _TEXTS if name.encode() in raw}
    given = {name: float(v) for k, v in raw.items() if (name := k.decode()) not in _TEXTS}
    known = {f.name for f in dataclasses.fields(Profile)}
    found: dict[str, Any] = {k: v for k, v in given.items() if k in known}
    for name in ("ttft", "tpot"):
        if f"{name}_ln2" in given and f"{name}_p95_ms" not in found:
            found[f"{name}_p95_ms"] = _p95(given[f"{name}_ln"], given[f"{name}_ln2"])
    lengths = {name.removeprefix(_LENGTH): value for name, value in given.items() if name.startswith(_LENGTH)}
    whole = {"timestamp": 0.0, **found, **texts, "samples": int(found.get("samples", 0)), "lengths": lengths}
    if "quality_samples" in found:
        whole["quality_samples"] = int(found["quality_samples"])
    rated_at = found.get("quality_timestamp", whole["timestamp"])
    return Profile(**whole, stale=whole["timestamp"] < stale_before, quality_stale=rated_at < stale_before)


def _key(deployment: str, category: str) -> str:
    return f"metrics:{deployment}:{category}"


def _p95(ln: float, ln2: float) -> float:
    """Of log-normal times: exp(mean + 1.645 standard deviations) of their logarithms."""
    return math.exp(ln + 1.645 * math.sqrt(max(0.0, ln2 - ln * ln)))
