"""What the router sees: gauges, and profiles that move with what has finished, as the fleet's own metrics do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

from tests.benchmarks.day.hardware import Hardware
from tests.benchmarks.day.prompts import Prompt
from tests.benchmarks.day.servers import Run, Server
from tests.benchmarks.day.traffic import TIERS
from tieryard.catalog import Routing
from tieryard.routing import Bounds, Candidate, Profile, Rules, Snapshot, TierRules

_KEEP = 0.5 ** (1 / 50)  # half life of 50 samples, as tieryard/metrics.py has it
_SEED_SAMPLES, _SEED_LOAD = 200, 8  # a benchmark's, with so many in flight
_SEED_OUTPUT_TOKENS = 100.0
_BUSY_S = 5.0  # of full load are one measurement of throughput
_WAIT_FOR_S = Routing().wait_for.total_seconds()
TOKENIZER = "t"
CATALOG = "simulated-da"


@dataclass(slots=True)
class _Averages:
    """Exponential averages of one deployment and category."""

    samples: int
    ttft_ms: float
    ttft_ln: float
    ttft_ln2: float
    tpot_ms: float
    tpot_ln: float
    tpot_ln2: float
    output_tokens: float
    quality: float

    def observe(self, ttft_ms: float, tpot_ms: float | None, output_tokens: int) -> None:
        self.samples += 1
        ln = math.log(ttft_ms)
        self.ttft_ms += (ttft_ms - self.ttft_ms) * (1 - _KEEP)
        self.ttft_ln += (ln - self.ttft_ln) * (1 - _KEEP)
        self.ttft_ln2 += (ln * ln - self.ttft_ln2) * (1 - _KEEP)
        self.output_tokens += (output_tokens - self.output_tokens) * (1 - _KEEP)
        if tpot_ms is not None:
            ln = math.log(tpot_ms)
            self.tpot_ms += (tpot_ms - self.tpot_ms) * (1 - _KEEP)
            self.tpot_ln += (ln - self.tpot_ln) * (1 - _KEEP)
            self.tpot_ln2 += (ln * ln - self.tpot_ln2) * (1 - _KEEP)

    def profile(self, throughput_tps: float, now_s: float) -> Profile:
        return Profile(
            samples=self.samples,
            timestamp=now_s,
            ttft_ms=self.ttft_ms,
            ttft_p95_ms=_p95(self.ttft_ln, self.ttft_ln2),
            tpot_ms=self.tpot_ms,
            tpot_p95_ms=_p95(self.tpot_ln, self.tpot_ln2),
            throughput_tps=throughput_tps,
            output_tokens=self.output_tokens,
            error_rate=0.0,
            quality_score=self.quality,
        )


def _p95(ln: float, ln2: float) -> float:
    return math.exp(ln + 1.645 * math.sqrt(max(0.0, ln2 - ln * ln)))


def _seed(hardware: Hardware, quality: float) -> _Averages:
    """What a benchmark has measured before the day."""
    ttft, tpot = hardware.curve.ttft(_SEED_LOAD, 300), hardware.curve.tpot(_SEED_LOAD)
    ln, ln_tpot = math.log(ttft), math.log(tpot)
    return _Averages(
        _SEED_SAMPLES, ttft, ln, ln * ln + 0.04, tpot, ln_tpot, ln_tpot * ln_tpot + 0.0025, _SEED_OUTPUT_TOKENS, quality
    )


class Live:
    """The metrics store of the day. `finished` is told of each answer, `snapshot` gives what a decision is made on."""

    def __init__(self, servers: Mapping[str, Server], known: Iterable[Prompt], rules: Rules) -> None:
        self._servers = servers
        self._rules = rules
        prompts = list(known)
        categories = sorted({p.features.category for p in prompts})
        self._averages = {
            (name, category): _seed(server.hardware, _quality(prompts, name, category))
            for name, server in servers.items()
            for category in categories
        }
        self._overall = {name: fmean(p.scores[name] for p in prompts) for name in servers}
        self._throughput = {  # of one replica, full
            name: server.hardware.curve.throughput_tps(server.hardware.slots) for name, server in servers.items()
        }
        self._full: dict[str, tuple[float, int]] = {}
        self._profiles: dict[str, dict[str, Profile]] = {name: {} for name in servers}
        self._moved = set(self._averages)

    def finished(self, run: Run) -> None:
        job, key = run.job, (run.deployment, run.job.prompt.features.category)
        averages = self._averages.get(key)
        if averages is None:
            averages = _seed(self._servers[run.deployment].hardware, self._overall[run.deployment])
            self._averages[key] = averages
        ttft_ms = 1000 * (run.first_s - run.claimed_s)
        more = job.output_tokens - 1
        tpot_ms = 1000 * (run.ended_s - run.first_s) / more if more else None
        averages.observe(max(ttft_ms, 0.01), tpot_ms or None, job.output_tokens)
        self._moved.add(key)
        self._count_throughput(run)

    def _count_throughput(self, run: Run) -> None:
        """Output tokens a second over five seconds in which a deployment was full all the time."""
        server = self._servers[run.deployment]
        if not server.queue or server.in_flight < server.capacity - server.hardware.reserve * len(server.replicas):
            self._full.pop(run.deployment, None)
            return
        since, tokens = self._full.get(run.deployment, (run.ended_s, 0))
        tokens += run.job.output_tokens
        self._full[run.deployment] = (since, tokens)
        if run.ended_s - since >= _BUSY_S:
            self._throughput[run.deployment] = tokens / (run.ended_s - since) / len(server.replicas)
            self._full.pop(run.deployment)
            self._moved.update(key for key in self._averages if key[0] == run.deployment)

    def snapshot(self, now_s: float, needed_tps: Mapping[str, float]) -> Snapshot:
        for name, category in self._moved:
            profile = self._averages[name, category].profile(self._throughput[name], now_s)
            self._profiles[name] = {**self._profiles[name], category: profile}
        self._moved.clear()
        rules = self._rules
        if needed_tps:
            tiers = {name: replace(t, needed_tps=needed_tps.get(name, 0.0)) for name, t in rules.tiers.items()}
            rules = replace(rules, tiers=tiers)
        return Snapshot(
            CATALOG, tuple(_candidate(s, self._profiles[name], now_s) for name, s in self._servers.items()), rules
        )


def _candidate(server: Server, profiles: dict[str, Profile], now_s: float) -> Candidate:
    hardware, live = server.hardware, server.seen_up
    return Candidate(
        name=hardware.name,
        size_class=hardware.size_class,
        context_limit=32_768,
        tokenizer=TOKENIZER,
        capabilities=frozenset(),
        input_usd_per_1m=hardware.input_usd_per_1m,
        output_usd_per_1m=hardware.output_usd_per_1m,
        quality=None,
        live=live,
        awaited=live or now_s - server.gone_s < _WAIT_FOR_S,
        capacity=server.capacity if live else 0,
        in_flight=server.in_flight,
        backlog=len(server.queue),
        replicas=len(server.replicas) if live else 0,
        measured_as=hardware.outcomes,
        profiles=profiles,
    )


def _quality(known: list[Prompt], deployment: str, category: str) -> float:
    """What the known half's answers were worth in this category."""
    found = [p.scores[deployment] for p in known if p.features.category == category]
    return fmean(found) if found else 0.5


def rules(classifier: str) -> Rules:
    """As a catalog's tiers give them, and the defaults of its routing."""
    tiers = {
        t.name: TierRules(
            Bounds(t.max_ttft_ms, t.max_latency_ms),
            from_claim=t.from_claim,
            may_wait=t.max_ttft_ms is None and t.window_s >= 3600,
        )
        for t in TIERS.values()
    }
    return Rules(tiers=tiers, classifier=classifier)
