"""Shows Prometheus how the fleet is: its load, what is measured of deployments, and what is wrong with them.

Nothing is counted here. A scrape reads in one round trip what all processes have published in Redis, so each API
process tells the same, and nothing is lost when one stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import redis
from fastapi import APIRouter, Response
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from api.shapes import ERRORS
from api.state import BenchmarkReadDep, StateDep
from tieryard.breakers import Breaker
from tieryard.catalog import Catalog
from tieryard.errors import MetricsAwayError
from tieryard.metrics import Live
from tieryard.routing import Measured, Profile
from tieryard.snapshots import step_back
from tieryard.store.lanes import Owing

router = APIRouter(tags=["metrics"], responses=ERRORS)

_TEXT = {"content": {"text/plain": {"schema": {"type": "string"}}}}

T = TypeVar("T")


@router.get("/metrics", response_class=Response, responses={200: _TEXT})
def metrics(state: StateDep, holder: BenchmarkReadDep) -> Response:  # noqa: ARG001
    """The fleet's load and measurements, in Prometheus' text format. For operators, whose keys have the scope
    `benchmark`."""
    try:
        live = state.metrics.read(state.catalog)
    except redis.RedisError as error:
        raise MetricsAwayError("Redis does not answer, and it has all that is measured", retry_after_s=5.0) from error
    scrape = Scrape(state.catalog, live, stepped_back=bool(step_back(state.admission.load_model(), live)))
    return Response(generate_latest(scrape), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@dataclass(frozen=True, slots=True)
class Scrape:
    """One look at the fleet, as a collector of prometheus_client's."""

    catalog: Catalog
    live: Live
    stepped_back: bool

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from _families(_OF_DEPLOYMENTS, ["deployment"], self._deployments())
        yield from _families(_OF_PROFILES, ["deployment", "category"], self._profiles())
        yield from _families(_OF_CANDIDATES, ["deployment", "category"], self._candidates())
        yield from _families(_OF_QUOTES, ["figure"], {(name,): found for name, found in self.live.quote_errors.items()})
        yield from _families(_QUOTE_ERROR, ["figure", "quantile"], self._quote_errors())
        yield from _families(_OF_CALLBACKS, [], {} if self.live.owing is None else {(): self.live.owing})
        yield from _families(_OF_THE_FLEET, [], {(): self})

    def _quote_errors(self) -> dict[tuple[str, ...], float]:
        found = self.live.quote_errors.items()
        return {(name, q): one[p] for name, one in found for q, p in (("0.5", "p50"), ("0.9", "p90"))}

    def _deployments(self) -> dict[tuple[str, ...], _Deployment]:
        """Also those that nothing is heard of."""
        live = self.live
        return {
            (name,): _Deployment(live.gauges.get(name, Measured()), live.breakers.get(name, Breaker()))
            for name in self.catalog.deployments
        }

    def _profiles(self) -> dict[tuple[str, ...], _Measurement]:
        found = self.live.profiles.items()
        return {(name, at): _Measurement(p, self.live.at) for name, profiles in found for at, p in profiles.items()}

    def _candidates(self) -> dict[tuple[str, ...], _Candidate]:
        trials = self.live.trials.holding(self.catalog)
        candidates = [name for name, deployment in self.catalog.deployments.items() if deployment.candidate_of]
        return {
            (name, category): _Candidate(trials.promoted(name, category), trials.share(name, category))
            for name in candidates
            for category in self.catalog.categories
        }


class _Deployment(NamedTuple):
    load: Measured
    breaker: Breaker


class _Measurement(NamedTuple):
    """A profile, and when it was read: epoch seconds, by the clock that it is dated by."""

    profile: Profile
    read_at: float

    def if_timed(self, value: float) -> float | None:
        """None where only scores are known, which have a time of their own."""
        return value if self.profile.timestamp else None


class _Candidate(NamedTuple):
    """In one category."""

    promoted: bool
    canary_share: float


@dataclass(frozen=True, slots=True)
class _Figure(Generic[T]):
    """`of` gives a row's value, None where it has none."""

    name: str
    says: str
    of: Callable[[T], float | None]


def _families(
    figures: Iterable[_Figure[T]], labels: list[str], rows: Mapping[tuple[str, ...], T]
) -> Iterator[GaugeMetricFamily]:
    """One for each figure; rows are by the labels' values."""
    for figure in figures:
        family = GaugeMetricFamily(figure.name, figure.says, labels=labels)
        for at, row in rows.items():
            if (value := figure.of(row)) is not None:
                family.add_metric(at, value)
        yield family


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


_OF_DEPLOYMENTS: tuple[_Figure[_Deployment], ...] = (
    _Figure("tieryard_deployment_capacity", "Requests that its replicas take at once.", lambda d: d.load.capacity),
    _Figure("tieryard_deployment_in_flight", "Requests in its engines.", lambda d: d.load.in_flight),
    _Figure("tieryard_deployment_backlog", "Users' jobs that wait for its engines.", lambda d: d.load.backlog),
    _Figure("tieryard_deployment_replicas", "Replicas that serve.", lambda d: d.load.replicas),
    _Figure("tieryard_breaker_open", "1 until a try succeeds, if its breaker has opened.", lambda d: d.breaker.opened),
)
_OF_PROFILES: tuple[_Figure[_Measurement], ...] = (
    _Figure("tieryard_profile_ttft_seconds", "Mean time to first token.", lambda m: _seconds(m.profile.ttft_ms)),
    _Figure("tieryard_profile_error_ratio", "Share of starts that its engines fail.", lambda m: m.profile.error_rate),
    _Figure("tieryard_profile_quality_score", "Mean score of its answers, 0 to 1.", lambda m: m.profile.quality_score),
    _Figure(
        "tieryard_profile_age_seconds",
        "Time since the profile's last measurement.",
        lambda m: m.if_timed(m.read_at - m.profile.timestamp),
    ),
    _Figure("tieryard_profile_stale", "1 if older than routing.stale_after.", lambda m: m.if_timed(m.profile.stale)),
    _Figure(
        "tieryard_benchmark_regressed",
        "1 while a quality run's finding stands that its answers have become worse.",
        lambda m: bool(m.profile.regressed),
    ),
    _Figure(
        "tieryard_benchmark_drifted",
        "1 while a run's finding stands that something else answers than was measured.",
        lambda m: bool(m.profile.drifted),
    ),
)
_OF_CANDIDATES: tuple[_Figure[_Candidate], ...] = (
    _Figure("tieryard_canary_ratio", "Share of the serving one's jobs that it is given.", lambda c: c.canary_share),
    _Figure("tieryard_candidate_promoted", "1 where it is promoted.", lambda c: c.promoted),
)
_OF_QUOTES: tuple[_Figure[dict[str, float]], ...] = (
    _Figure("tieryard_quotes_settled", "Quotes of 30 days that were held against their batch.", lambda q: q["quotes"]),
    _Figure("tieryard_quote_inside_ratio", "Of these, what came out in the quoted range.", lambda q: q.get("inside")),
)
_QUOTE_ERROR: tuple[_Figure[float], ...] = (
    _Figure("tieryard_quote_error", "Actual over expected, of batches that were completed.", lambda ratio: ratio),
)
_OF_CALLBACKS: tuple[_Figure[Owing], ...] = (
    _Figure("tieryard_callbacks_owed", "Deliveries that are not settled, and events without any.", lambda o: o.owed),
    _Figure(
        "tieryard_callbacks_oldest_seconds", "Age of the oldest owed to a receiver that is well.", lambda o: o.oldest_s
    ),
    _Figure(
        "tieryard_callback_lanes_failing", "Receivers that fail, and are owed something.", lambda o: o.failing_lanes
    ),
    _Figure("tieryard_webhooks_disabled", "Endpoints that are disabled.", lambda o: o.disabled_endpoints),
)
_OF_THE_FLEET: tuple[_Figure[Scrape], ...] = (
    _Figure("tieryard_explored_usd", "What exploring has cost on this day, in UTC.", lambda s: s.live.explored_usd),
    _Figure("tieryard_router_stepped_back", "1 while it goes by its rules instead.", lambda s: s.stepped_back),
)
