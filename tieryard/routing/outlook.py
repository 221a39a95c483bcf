"""What a candidate is likely to give a job of one category now: from its profiles, and from what is in its engines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from tieryard.routing.profiles import ASSUMED, Known, Profile, Rating, pooled, rating
from tieryard.routing.snapshot import Candidate, Rules, Snapshot

_LEAST_ODDS, _MOST_ODDS = 0.01, 0.99  # a quality of 0 or 1 would hold against any evidence


@dataclass(frozen=True, slots=True)
class Outlook:
    """Times are the 95th percentile. `throughput_tps` is of all replicas, `output_tokens` an answer's expected length,
    None where it was never seen, and `lengths` the same by tier. `closed` says why it takes only jobs that name it.
    `quality_known`: it was measured, or the catalog states it. `unhealthy` says what is wrong (`errs`: only that it
    fails too many jobs), and `notes` what the numbers lack."""

    candidate: Candidate
    ttft_ms: float
    tpot_ms: float
    wait_ms: float
    throughput_tps: float
    output_tokens: float | None
    lengths: dict[str, float]
    quality: float
    quality_known: bool
    samples: int
    unhealthy: str
    errs: bool
    closed: str
    notes: tuple[str, ...]

    def length(self, tier: str, most: int) -> int:
        """Expected tokens of an answer of at most so many: as long as others of its tier, else of any."""
        usual = self.lengths.get(tier, self.output_tokens)
        return most if usual is None else min(most, math.ceil(usual))

    def latency_ms(self, tokens: int, *, waiting: bool = True) -> float:
        """End to end, for an answer of so many tokens."""
        return (self.wait_ms if waiting else 0.0) + self.ttft_ms + max(0, tokens - 1) * self.tpot_ms

    def quality_of(self, hardness: float | None) -> float:
        """Predicted for a prompt that lowers the log-odds of a good answer by `hardness` (Rasch 1960: the log-odds are
        ability less difficulty)."""
        if hardness is None:
            return self.quality
        odds = min(max(self.quality, _LEAST_ODDS), _MOST_ODDS)
        return 1 / (1 + math.exp(hardness - math.log(odds / (1 - odds))))


def outlooks(snapshot: Snapshot, category: str) -> tuple[Outlook, ...]:
    """Of all candidates, in their order; worked out once a snapshot."""
    if category not in snapshot.memo:
        snapshot.memo[category] = tuple(_outlook(c, category, snapshot.rules) for c in snapshot.candidates)
    found: tuple[Outlook, ...] = snapshot.memo[category]
    return found


def _outlook(candidate: Candidate, category: str, rules: Rules) -> Outlook:
    profile, known = _profile(candidate, category)
    assumed = ASSUMED[candidate.size_class]
    measured = profile or Profile(samples=0, timestamp=0.0)
    prior = assumed.quality if candidate.quality is None else candidate.quality
    rated = rating(candidate.profiles.get(category), candidate.profiles.values(), prior)
    ttft_ms = _first(measured.ttft_p95_ms, measured.ttft_ms, assumed.ttft_p95_ms)
    tpot_ms = _first(measured.tpot_p95_ms, measured.tpot_ms, assumed.tpot_p95_ms)
    replicas = max(1, candidate.replicas)
    full_tps = 1000 * candidate.capacity / max(tpot_ms, 1e-3)  # as if a full engine were as quick as an idle one
    away, errs = _away(candidate), _errs(measured, rules)
    throughput_tps = measured.throughput_tps * replicas if measured.throughput_tps else full_tps
    return Outlook(
        candidate,
        ttft_ms,
        tpot_ms,
        _wait_ms(candidate, measured.output_tokens, throughput_tps),
        throughput_tps,
        measured.output_tokens,
        measured.lengths,
        rated.quality,
        candidate.quality is not None or rated.known is not Known.ASSUMED,
        candidate.profiles[category].samples if category in candidate.profiles else 0,
        away or errs,
        not away and bool(errs),
        _closed(candidate, category, rules),
        _notes(candidate, category, known, measured, rated),
    )


def _profile(candidate: Candidate, category: str) -> tuple[Profile | None, Known]:
    own = candidate.profiles.get(category)
    if own is not None and own.samples > 0:
        return own, Known.STALE if own.stale else Known.FRESH
    borrowed = pooled(candidate.profiles.values())
    return borrowed, Known.ASSUMED if borrowed is None else Known.BORROWED


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _wait_ms(candidate: Candidate, output_tokens: float | None, throughput_tps: float) -> float:
    """Backlog tokens over throughput: what is there beyond what the engines take at once, at the usual length."""
    queued = candidate.in_flight + candidate.backlog - candidate.capacity
    if queued < 0 or not candidate.capacity or throughput_tps <= 0:
        return 0.0
    return 1000 * (queued + 1) * (output_tokens or 0.0) / throughput_tps


def _away(candidate: Candidate) -> str:
    if not candidate.live:
        return "no replica of it is serving"
    return candidate.broken if not candidate.probing else ""


def _closed(candidate: Candidate, category: str, rules: Rules) -> str:
    """A candidate may be chosen where it is promoted, whatever it is otherwise."""
    if candidate.candidate_of:
        promoted = rules.trials.promoted(candidate.name, category)
        return "" if promoted else f"is a candidate of {candidate.candidate_of}, not promoted in {category}"
    return "is only for jobs that name it" if candidate.named_only else ""


def _errs(profile: Profile, rules: Rules) -> str:
    if not profile.surely_errs_above(rules.max_error_rate):
        return ""
    return f"fails {profile.error_rate:.1%} of its jobs, above {rules.max_error_rate:.1%}"


@lru_cache(maxsize=1024)
def _moment(timestamp: float) -> str:
    """Of epoch seconds. What is stored must read the same for ever, so it is a time and not an age."""
    return f"{datetime.fromtimestamp(timestamp, tz=UTC):%Y-%m-%d %H:%M} UTC"


def _notes(candidate: Candidate, category: str, known: Known, profile: Profile, rated: Rating) -> tuple[str, ...]:
    name = candidate.name
    notes = []
    if known is Known.ASSUMED:
        notes.append(f"{name} has no profile: taken for a usual {candidate.size_class} one")
    elif known is Known.BORROWED:
        notes.append(f"{name} has no profile for {category}: that of its other categories stands in")
    elif known is Known.STALE:
        notes.append(f"{name}'s profile for {category} is stale")
    if profile.benchmark:
        at = _moment(profile.benchmark_timestamp)
        notes.append(f"{name}'s profile for {category} was measured by {profile.benchmark}, {at}")
    if known is not Known.ASSUMED:
        lacking = [what for what in ("ttft_ms", "tpot_ms", "output_tokens") if getattr(profile, what) is None]
        if lacking:
            notes.append(f"{name}'s profile for {category} lacks {', '.join(lacking)}")
    if rated.known is Known.STALE:
        notes.append(f"{name}'s quality on {category} is stale")
    elif rated.known is Known.BORROWED:
        notes.append(f"{name}'s quality on {category} is not measured: that on its other categories stands in")
    elif rated.known is Known.ASSUMED:
        prior = "the catalog's" if candidate.quality is not None else f"that of a usual {candidate.size_class} one"
        notes.append(f"{name}'s quality is not measured: {prior} stands in")
    return (*notes, *_changed(candidate, category))


def _changed(candidate: Candidate, category: str) -> Iterator[str]:
    """What a benchmark has found to be otherwise than it was measured before."""
    own = candidate.profiles.get(category)
    if own is not None and own.regressed:
        yield f"{candidate.name} has regressed on {category}: {own.regressed}"
    if own is not None and own.drifted:
        yield f"{candidate.name} is no longer what was measured: {own.drifted}"
