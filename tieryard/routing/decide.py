"""The decision: filter the candidates, each with a reason; then the lowest expected cost that meets SLO and floor.

`decide` gives the whole decision, every candidate with its numbers. It is what `jobs show` runs again on the
stored features and snapshot, so an explanation is never a second opinion.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal

from tieryard.catalog import REALTIME
from tieryard.routing.hurdles import (
    Floor,
    Hurdle,
    Prospect,
    Refusal,
    below_its_worth,
    by_learned,
    cannot_take,
    falls_short,
    floor_for,
    too_slow,
)
from tieryard.routing.job import AUTO, JobFeatures
from tieryard.routing.outlook import outlooks
from tieryard.routing.snapshot import PolicyRules, Rules, Snapshot, TierRules
from tieryard.routing.trials import drawn

_ROOM = 0.8  # of a deployment's throughput is counted on for what must be done by a deadline
_STICKS = Decimal("1.1")  # times the cheapest, for the deployment that has the beginning cached
_LEAST_PATIENCE_S, _MOST_PATIENCE_S, _PATIENCE = 5.0, 120.0, 0.25  # of the time waited so far, until the next look
_SLACK_S = 60.0  # before a deadline, in which no job waits for a cheaper deployment
_EXPLORE, _SHARE_OUT, _CANARY = 9973, 7907, 9949  # what a job's chance is for
_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class Judged:
    """One candidate's numbers, and why it lost; `why` is empty for the chosen one. `fits`: it can take the job at all;
    `qualifies`: it also meets the SLO and the floor, and is well. Cost is the expected one, times are the 95th
    percentile, `score` (0 to 1) weighs quality, cost and latency among those that fit."""

    name: str
    fits: bool
    qualifies: bool
    why: str
    prompt_tokens: int
    output_tokens: int
    cost_usd: Decimal
    wait_ms: float
    ttft_ms: float
    latency_ms: float
    quality: float
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Weighing:
    """All candidates as they were compared, with what was held against each: `hard` where it cannot take the job.
    `gone` is the deployment by which the floor is set, where the catalog has lost it."""

    found: tuple[Prospect, ...]
    hard: dict[str, Refusal]
    short: dict[str, Refusal]
    weights: tuple[float, float, float]
    gone: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """`deployment` is None when no candidate can take the job at all, or when it should wait `defer_s` for a cheaper
    one. `fallback`: none met the SLO and the floor. `explored`: sent beside the choice, to measure, which is expected
    to cost `extra_usd` above it. `canary`: it counts for the canary of this candidate, which took the job if it is the
    `deployment`, and is compared by it if not. `notes` name what the numbers lack, of the candidates that fit.

    Where there is none, `closest` are the refusals of those that came furthest: what to change to be taken.
    """

    deployment: str | None
    reason: str
    weighing: Weighing
    fallback: bool = False
    closest: tuple[Refusal, ...] = ()
    defer_s: float = 0.0
    explored: bool = False
    extra_usd: Decimal = _NOTHING
    canary: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        w = self.weighing
        gone = (f"no floor by the quality of {w.gone}: the catalog has it no more",) if w.gone else ()
        return gone + tuple(note for p in w.found if p.name not in w.hard for note in p.outlook.notes)

    @property
    def judged(self) -> tuple[Judged, ...]:
        """Every candidate, in the snapshot's order. Worked out when it is asked for: whoever only routes does not."""
        w = self.weighing
        scores = _scores([p for p in w.found if p.name not in w.hard], w.weights)
        chosen = next((p for p in w.found if p.name == self.deployment), None)
        return tuple(self._judged(p, chosen, scores.get(p.name)) for p in w.found)

    def _judged(self, p: Prospect, chosen: Prospect | None, score: float | None) -> Judged:
        w, outlook = self.weighing, p.outlook
        fits = p.name not in w.hard
        if p is chosen:
            why = ""
        elif (refusal := w.hard.get(p.name) or w.short.get(p.name)) is not None:
            why = refusal.why
        else:
            why = self._lost(p, chosen)
        return Judged(
            p.name, fits, fits and p.name not in w.short, why, p.prompt_tokens, p.output_tokens, p.cost_usd, p.wait_ms,
            outlook.ttft_ms, p.latency_ms, p.quality, score,
        )  # fmt: skip

    def _lost(self, loser: Prospect, chosen: Prospect | None) -> str:
        """Why a candidate that qualifies was not chosen, in the order in which they are ranked."""
        if chosen is None or self.explored or self.canary == chosen.name or loser.cost_usd < chosen.cost_usd:
            return self.reason
        if loser.cost_usd > chosen.cost_usd:
            return f"expected cost ${loser.cost_usd:f} against ${chosen.cost_usd:f}"
        if loser.load != chosen.load:
            return f"costs the same; load {loser.load:.2f} against {chosen.load:.2f}"
        return f"equal to {chosen.name}, by name"


def decide_many(jobs: Iterable[JobFeatures], snapshot: Snapshot) -> list[Decision]:
    """One decision a job, in order."""
    return [decide(job, snapshot) for job in jobs]


def decide(job: JobFeatures, snapshot: Snapshot) -> Decision:
    """Of those that can take the job and qualify: the lowest expected cost, then the least load, then the name."""
    rules = snapshot.rules
    tier, policy = rules.tiers.get(job.tier, _NO_TIER), rules.policies.get(job.policy, _NO_POLICY)
    if job.bounds is not None:
        tier = replace(tier, bounds=job.bounds.over(tier.bounds))
    seen = outlooks(snapshot, job.text.category)
    learned = by_learned(job, seen, rules)
    found = tuple(Prospect.of(job, outlook, learned=learned) for outlook in seen)
    hard = {p.name: refusal for p in found if (refusal := cannot_take(job, p, policy)) is not None}
    fit = [p for p in found if p.name not in hard]
    if not fit:
        furthest = max((r.hurdle for r in hard.values()), default=None)
        closest = tuple(r for r in hard.values() if r.hurdle is furthest)
        weighing = Weighing(found, hard, {}, rules.weights)
        return Decision(None, _nobody(job, hard), weighing, closest=closest)
    floor = floor_for(job, tier, policy, found, rules)
    short = {p.name: refusal for p in fit if (refusal := falls_short(job, p, tier, floor)) is not None}
    if learned and job.model == AUTO and not floor.least:
        short |= below_its_worth(fit, short, rules)
    made = _choose(job, tier, fit, short, snapshot, learned=learned)
    if rules.trials.canaries and _may_be_tried(job, made):
        made = _tried(job, made, found, rules, (tier, policy, floor))
        hard = {name: refusal for name, refusal in hard.items() if made.chosen is None or name != made.chosen.name}
    return Decision(
        made.chosen.name if made.chosen is not None else None,
        made.reason,
        Weighing(found, hard, short, rules.weights, _gone(tier, found)),
        made.fallback,
        defer_s=made.defer_s,
        explored=made.explored,
        extra_usd=made.extra_usd,
        canary=made.canary,
    )


def _gone(tier: TierRules, found: Iterable[Prospect]) -> str:
    other = tier.bounds.quality_of
    return other if other is not None and all(p.name != other for p in found) else ""


@dataclass(frozen=True, slots=True)
class _Choice:
    chosen: Prospect | None
    reason: str
    fallback: bool = False
    defer_s: float = 0.0
    explored: bool = False
    extra_usd: Decimal = _NOTHING
    canary: str = ""


_NO_TIER, _NO_POLICY = TierRules(), PolicyRules()


def _choose(
    job: JobFeatures,
    tier: TierRules,
    fit: list[Prospect],
    short: dict[str, Refusal],
    snapshot: Snapshot,
    *,
    learned: bool,
) -> _Choice:
    ranked = sorted((p for p in fit if p.name not in short), key=lambda p: p.rank)
    if job.pinned:
        return _Choice(fit[0], f"pinned to {fit[0].name}")
    if not ranked:
        return _wait_for_one_that_qualifies(job, tier, fit, short) or _fall_back(job, tier, fit, short)
    if tier.may_wait and not job.attended:
        cheaper = min(
            (p for p in _awaited(fit, short) if p.cost_usd < ranked[0].cost_usd), key=lambda p: p.rank, default=None
        )
        if cheaper is not None and _can_wait(job, tier, ranked):
            costs = f"${cheaper.cost_usd:f} against ${ranked[0].cost_usd:f}"
            return _put_off(job, f"waits for {cheaper.name} ({costs}): {short[cheaper.name].why}")
        chosen, why = _share_out(job, tier, ranked)
    else:
        chosen, why = ranked[0], ""
    stuck = next((p for p in ranked if p.name == job.sticky), None)
    if stuck is not None and not why and stuck.cost_usd <= chosen.cost_usd * _STICKS:
        if stuck is not chosen:
            why = "; has its beginning cached"
        chosen = stuck
    if (other := _explored(job, ranked, chosen, snapshot)) is not None:
        extra_usd = max(other.cost_usd - chosen.cost_usd, _NOTHING)
        why = f"explores {other.name} instead of {chosen.name}, to measure it"
        return _Choice(other, why, explored=True, extra_usd=extra_usd)
    return _Choice(chosen, _because(job, chosen, ranked, learned=learned) + why)


def _awaited(fit: list[Prospect], short: dict[str, Refusal]) -> list[Prospect]:
    """Those that would qualify, were they well, as they were a while ago. One that fails too many jobs may do so for
    ever."""
    down = (p for p in fit if p.name in short and short[p.name].hurdle is Hurdle.HEALTH and not p.outlook.errs)
    return [p for p in down if p.outlook.candidate.live or p.outlook.candidate.awaited]


def _wait_for_one_that_qualifies(
    job: JobFeatures, tier: TierRules, fit: list[Prospect], short: dict[str, Refusal]
) -> _Choice | None:
    """Rather than fall back, while those that are up could still do it in time."""
    up = sorted((p for p in fit if not p.outlook.unhealthy), key=lambda p: p.rank)
    awaited = min(_awaited(fit, short), key=lambda p: p.rank, default=None)
    if awaited is None or not up or not tier.may_wait or job.attended or not _can_wait(job, tier, up):
        return None
    return _put_off(job, f"waits for {awaited.name}, the only one that qualifies: {short[awaited.name].why}")


def _put_off(job: JobFeatures, why: str) -> _Choice:
    return _Choice(None, why, defer_s=_patience_s(job) * (0.5 + job.draw))


def _patience_s(job: JobFeatures) -> float:
    """How long a job waits before it is looked at again: the longer, the longer it has waited."""
    return min(max(_PATIENCE * job.waited_s, _LEAST_PATIENCE_S), _MOST_PATIENCE_S)


def _can_wait(job: JobFeatures, tier: TierRules, ranked: list[Prospect]) -> bool:
    """Whether those that are up now could still do all that is due, this job too, if it waits."""
    if job.due_in_s is None:
        return False
    spare_s = job.due_in_s - 2 * ranked[0].latency_ms / 1000 - _SLACK_S
    return spare_s > 0 and tier.needed_tps <= _ROOM * sum(p.outlook.throughput_tps for p in ranked)


def _share_out(job: JobFeatures, tier: TierRules, ranked: list[Prospect]) -> tuple[Prospect, str]:
    """The cheapest takes what it can do by the deadlines; only what is beyond it moves up to the next."""
    all_tps = sum(p.outlook.throughput_tps for p in ranked)
    needed_tps = job.chance(_SHARE_OUT) * min(tier.needed_tps, _ROOM * all_tps)  # beyond that all do what they can
    p, could_tps = ranked[0], _ROOM * ranked[0].outlook.throughput_tps
    for other in ranked[1:]:
        if needed_tps <= could_tps:
            break
        p, could_tps = other, could_tps + _ROOM * other.outlook.throughput_tps
    if p is ranked[0]:
        return p, ""
    return p, f"; the deadlines need {tier.needed_tps:,.0f} tokens/s, more than {ranked[0].name} gives"


def _fall_back(job: JobFeatures, tier: TierRules, fit: list[Prospect], short: dict[str, Refusal]) -> _Choice:
    """None qualifies. Of those that serve, the nearest. Where none serves, the one that would have been chosen: its
    queue keeps the job."""
    up = [p for p in fit if not p.outlook.unhealthy]
    if up:
        chosen, which = _nearest(job, tier, up, short)
        why = f"none qualifies ({short[chosen.name].why}); {chosen.name} is the {which}"
        return _Choice(chosen, why, fallback=True)
    live = [p for p in fit if p.outlook.candidate.live]
    chosen = min(live or fit, key=lambda p: (-p.quality, p.rank) if live else (p.short_of_size, p.rank))
    return _Choice(chosen, f"{chosen.name} waits to serve: {short[chosen.name].why}", fallback=bool(live))


def _nearest(job: JobFeatures, tier: TierRules, up: list[Prospect], short: dict[str, Refusal]) -> tuple[Prospect, str]:
    """What comes nearest to what was asked, and in which way. Where only the price is missed, the cheapest: who sets a
    limit to it is not sent to the dearest. Else the best quality that is in time; where none is, the quickest, for more
    work on what is late already makes all of it later."""
    if only_dear := [p for p in up if short[p.name].hurdle is Hurdle.PRICE]:
        return min(only_dear, key=lambda p: p.rank), "cheapest of those that miss only the price"
    if in_time := [p for p in up if too_slow(job, p, tier) is None]:
        return min(in_time, key=lambda p: (-p.quality, p.rank)), "best that is in time"
    return min(up, key=lambda p: (p.latency_ms, p.rank)), "quickest"


def _explored(job: JobFeatures, ranked: list[Prospect], chosen: Prospect, snapshot: Snapshot) -> Prospect | None:
    """Now and then the one of which least is known."""
    rules = snapshot.rules
    if not rules.explore_share or job.tier not in rules.explore_tiers or job.chance(_EXPLORE) >= rules.explore_share:
        return None
    others = [p for p in ranked if p is not chosen]
    return min(others, key=lambda p: (p.outlook.samples, p.name), default=None)


def _may_be_tried(job: JobFeatures, made: _Choice) -> bool:
    """Realtime jobs have no second to lose; those that name a deployment, or that nobody serves as asked, are no
    sample."""
    if made.chosen is None or made.fallback or made.explored or made.chosen.outlook.unhealthy:
        return False
    return not job.pinned and job.tier != REALTIME


def _tried(
    job: JobFeatures,
    made: _Choice,
    found: Iterable[Prospect],
    rules: Rules,
    held_to: tuple[TierRules, PolicyRules, Floor],
) -> _Choice:
    """The choice, or the candidate that takes a share of its jobs: such as it can serve as they should be, by what is
    known of it, and has room for. Only these count, on both sides: or the two would be compared on other jobs."""
    assert made.chosen is not None
    found_canary = drawn(rules.trials.canaries, made.chosen.name, job.text.category, job.chance(_CANARY))
    if found_canary is None:
        return made
    canary, takes = found_canary
    tier, policy, floor = held_to
    p = next((p for p in found if p.name == canary.candidate), None)
    if p is None or p.outlook.unhealthy or p.outlook.candidate.probing or p.load >= 1:
        return made
    if cannot_take(job, p, policy, on_trial=True) is not None or falls_short(job, p, tier, floor) is not None:
        return made
    if not takes:
        return replace(made, canary=canary.candidate)
    return _Choice(p, f"canary of {canary.serving}: takes {canary.share:.1%} of its jobs", canary=canary.candidate)


def _because(job: JobFeatures, chosen: Prospect, ranked: list[Prospect], *, learned: bool) -> str:
    cheapest = f"cheapest of {len(ranked)} that qualify" if len(ranked) > 1 else "the only one that qualifies"
    if job.model != AUTO:
        return f"{job.model}: {cheapest}"
    if learned:
        return f"predicted quality {chosen.quality:.2f}; {cheapest}"
    return f"{job.text.cue} → {job.text.wanted}; {cheapest}"


def _nobody(job: JobFeatures, refusals: dict[str, Refusal]) -> str:
    """Speaks of what the job asked for: those of another size, or name, are no news to its owner."""
    asked = {name: r.why for name, r in refusals.items() if r.hurdle is not Hurdle.MODEL}
    if job.model in asked:
        return f"'{job.model}' cannot take it: {asked[job.model]}"
    nobody = "no deployment can take it" if job.model == AUTO else f"no deployment of '{job.model}' can take it"
    if len(set(asked.values())) == 1:
        return f"{nobody}: {next(iter(asked.values()))}"
    return f"{nobody}: " + ("; ".join(f"'{name}' {why}" for name, why in asked.items()) or "there is none")


def _scores(fit: list[Prospect], weights: tuple[float, float, float]) -> dict[str, float]:
    """Weighted sums of quality, cost and latency, each scaled over the candidates: 1 for the best of them, 0 for the
    worst."""
    if not fit:
        return {}
    whole = sum(weights)
    parts = (
        _scaled([p.quality for p in fit]),
        _scaled([-float(p.cost_usd) for p in fit]),
        _scaled([-p.latency_ms for p in fit]),
    )
    return {
        p.name: sum(weight * part[i] for weight, part in zip(weights, parts, strict=True)) / whole
        for i, p in enumerate(fit)
    }


def _scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [1.0 if high == low else (value - low) / (high - low) for value in values]
