"""The figures of a run, by category. Each has one formula, which docs/reference/metrics.md states.

Nothing succeeded: a figure is None, never 0 or infinity. Requests that failed are in the error rate and nowhere else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tieryard.bench.load import Closed, Run
from tieryard.bench.percentiles import Spread
from tieryard.bench.trace import TokenSource, Trace
from tieryard.catalog import Price
from tieryard.costs import token_cost

_HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Slos:
    """What a request is held to, in milliseconds; None asks nothing. Each is of this request, not of a percentile."""

    max_ttft_ms: float | None = None
    max_tpot_ms: float | None = None
    max_latency_ms: float | None = None

    def met_by(self, one: Trace) -> bool:
        """Whether it succeeded within all of them. One without content misses every limit on its first token; one with
        a single token has no time to the next, and meets any."""
        if one.error is not None or _beyond(one.latency_ms, self.max_latency_ms):
            return False
        late = self.max_ttft_ms is not None and (one.ttft_ms is None or one.ttft_ms > self.max_ttft_ms)
        return not late and not _beyond(one.tpot_ms, self.max_tpot_ms)


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests that met all SLOs: `met` of `n`, and how many a second."""

    met: int
    n: int
    per_s: float | None

    @property
    def share(self) -> float:
        return self.met / self.n


@dataclass(frozen=True, slots=True)
class Rent:
    """What a replica costs an hour, in USD, whether it works or not."""

    usd_per_h: Decimal


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one deployment on one category. Times are milliseconds. TTFT and latency count from the intended start,
    `service_ttft_ms` from the sending. `output_tps` is this category's, `total_output_tps` that of all categories of
    the run, as they share the engine. `full`: the load was all that the `replicas` took at once. Goodput is None
    without SLOs. `why` says why the run is worth nothing, `notes` what else to know."""

    deployment: str
    category: str
    at: float
    replicas: int
    full: bool
    n: int
    succeeded: int
    ttft_ms: Spread | None
    service_ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    latency_ms: Spread | None
    prompt_tokens: float | None
    cached_tokens: float | None
    output_tokens: float | None
    requests_per_s: float | None
    output_tps: float | None
    total_output_tps: float | None
    goodput: Goodput | None
    error_rate: float
    errors: dict[str, int]
    cost_per_1k: Decimal | None
    token_source: TokenSource | None
    valid: bool
    why: tuple[str, ...]
    notes: tuple[str, ...]


def measure(
    run: Run,
    *,
    deployment: str,
    replicas: int = 1,
    full: bool = False,
    slos: Slos | None = None,
    cost: Price | Rent | None = None,
) -> dict[str, Figures]:
    """By category. `full`: the load was all that the `replicas` behind the engine took at once, without which rents
    have no cost a token. A run that was ended for better work has no figures."""
    if run.aborted:
        return {}
    by_category: dict[str, list[Trace]] = defaultdict(list)
    for one in run.traces:
        by_category[one.category].append(one)
    seconds = duration_s(run)
    total_tps = _rate(sum(one.output_tokens for one in _succeeded(run.traces)), seconds)
    found = {}
    for category, traces in sorted(by_category.items()):
        good = _succeeded(traces)
        found[category] = Figures(
            deployment=deployment,
            category=category,
            at=run.at,
            replicas=replicas,
            full=full,
            n=len(traces),
            succeeded=len(good),
            ttft_ms=Spread.of(one.ttft_ms for one in good),
            service_ttft_ms=Spread.of(one.service_ttft_ms for one in good),
            tpot_ms=Spread.of(one.tpot_ms for one in good),
            itl_ms=Spread.weighted(gap for one in good for gap in gaps_ms(one)),
            latency_ms=Spread.of(one.latency_ms for one in good),
            prompt_tokens=_mean([one.prompt_tokens for one in good]),
            cached_tokens=_mean([one.cached_tokens for one in good]),
            output_tokens=_mean([one.output_tokens for one in good]),
            requests_per_s=_rate(len(good), seconds),
            output_tps=_rate(sum(one.output_tokens for one in good), seconds),
            total_output_tps=total_tps,
            goodput=None if slos is None else goodput(traces, slos, seconds=seconds),
            error_rate=(len(traces) - len(good)) / len(traces),
            errors=dict(Counter(one.error for one in traces if one.error is not None)),
            cost_per_1k=_cost_per_1k(good, cost, total_tps if full else None, replicas),
            token_source=_source(good),
            valid=run.valid,
            why=run.why,
            notes=run.notes,
        )
    return found


def duration_s(run: Run) -> float:
    """Open loop: from the first intended start to the last end. Closed loop: the time in which a request was under way,
    so that a run that paused for better work is not slower for it."""
    if not run.traces:
        return 0.0
    if not isinstance(run.shape, Closed):
        return max(one.ended_s for one in run.traces) - min(one.intended_s for one in run.traces)
    busy_s, until_s = 0.0, 0.0
    for one in sorted(run.traces, key=lambda one: one.sent_s):
        busy_s += max(0.0, one.ended_s - max(one.sent_s, until_s))
        until_s = max(until_s, one.ended_s)
    return busy_s


def gaps_ms(one: Trace) -> Iterator[tuple[float, int]]:
    """Inter-token latencies, as (milliseconds, of how many tokens). A piece's gap to the one before is shared by the
    tokens that came in it; a piece that brought none adds its gap to the next. Where the server keeps no running count
    each piece holds as many as the answer's tokens over its pieces."""
    counted = all(piece.tokens is not None for piece in one.arrivals)
    even = max(1.0, one.output_tokens / len(one.arrivals)) if one.arrivals else 1.0
    since_s, before = one.first_s or 0.0, (one.arrivals[0].tokens or 0) if one.arrivals else 0
    for piece in one.arrivals[1:]:
        tokens = (piece.tokens or 0) - before if counted else even
        if tokens <= 0:
            continue
        yield 1000 * (piece.at_s - since_s) / tokens, round(tokens)
        since_s, before = piece.at_s, piece.tokens or 0


def goodput(traces: Sequence[Trace], slos: Slos, *, seconds: float) -> Goodput | None:
    """None of nothing. Failed requests count, and miss."""
    if not traces:
        return None
    met = sum(slos.met_by(one) for one in traces)
    return Goodput(met, len(traces), met / seconds if seconds > 0 else None)


def to_profile(figures: Figures) -> dict[str, float]:
    """The fields of `metrics:{deployment}:{category}` that a run measures; what it could not is absent. Throughput is
    one replica's, where the load was full. An invalid run tells nothing but how much failed."""
    found: dict[str, float | None] = {
        "samples": figures.n,
        "timestamp": figures.at,
        "error_rate": figures.error_rate,
    }
    if figures.valid:
        found |= _times("ttft", figures.service_ttft_ms) | _times("tpot", figures.tpot_ms)
        found["output_tokens"] = figures.output_tokens
        found["cost_per_1k"] = None if figures.cost_per_1k is None else float(figures.cost_per_1k)
        if figures.full and figures.total_output_tps is not None:
            found["throughput_tps"] = figures.total_output_tps / figures.replicas
    return {name: float(value) for name, value in found.items() if value is not None}


def _times(name: str, spread: Spread | None) -> dict[str, float | None]:
    if spread is None:
        return {}
    return {f"{name}_ms": spread.mean, f"{name}_ln": spread.ln, f"{name}_ln2": spread.ln2}


def _cost_per_1k(good: list[Trace], cost: Price | Rent | None, full_tps: float | None, replicas: int) -> Decimal | None:
    """USD for 1,000 output tokens, as profiles have it: prompts, and a rented replica's whole hour, are paid for in
    it."""
    tokens = sum(one.output_tokens for one in good)
    if cost is None or not tokens:
        return None
    if isinstance(cost, Rent):
        return 1000 * cost.usd_per_h * replicas / (_HOUR_S * Decimal(str(full_tps))) if full_tps else None
    prompts, cached = sum(one.prompt_tokens for one in good), sum(one.cached_tokens for one in good)
    return 1000 * token_cost(cost, prompt_tokens=prompts, cached_tokens=cached, completion_tokens=tokens) / tokens


def _source(good: list[Trace]) -> TokenSource | None:
    """One count that is not the server's is enough to say so."""
    sources = {one.token_source for one in good}
    return TokenSource.COUNTED if TokenSource.COUNTED in sources else next(iter(sources), None)


def _succeeded(traces: Iterable[Trace]) -> list[Trace]:
    return [one for one in traces if one.error is None]


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None


def _mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _beyond(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit
