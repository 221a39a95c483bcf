"""What a candidate must clear, in order: first what makes it able to take the job at all, then to be good enough.

Where every candidate falls short of the second kind, the job is still served, and that is counted as a fallback. The
tier that is given here has the job's own bounds in place of those that it sets otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from typing import NamedTuple

from tieryard.catalog import REALTIME, SizeClass
from tieryard.routing.job import AUTO, CLASS_PREFIX, JobFeatures
from tieryard.routing.outlook import Outlook
from tieryard.routing.snapshot import Candidate, PolicyRules, Rules, TierRules

_MILLION = Decimal(1_000_000)
_ORDER = {SizeClass.SMALL: 0, SizeClass.MEDIUM: 1, SizeClass.LARGE: 2}
_PROBED = 0.1  # of the jobs try a deployment whose breaker is half open
_TRIED = 0.02  # of the jobs try one that fails too often: else nobody would see that it no longer does
_PROBE = 7919


class Hurdle(IntEnum):
    """What a candidate failed at, in the order in which they are taken; from QUALITY on it could take the job."""

    MODEL = 1
    POLICY = 2
    ENDPOINT = 3
    CAPABILITIES = 4
    CONTEXT = 5
    CAP = 6
    NOW = 7
    QUALITY = 8
    LATENCY = 9
    PRICE = 10
    HEALTH = 11


class Refusal(NamedTuple):
    """Why a candidate was passed over; `lacks` are capabilities."""

    hurdle: Hurdle
    why: str
    lacks: frozenset[str] = frozenset()


class Floor(NamedTuple):
    """The least quality, and who asks for it."""

    least: float
    asked_by: str


@dataclass(frozen=True, slots=True)
class Prospect:
    """One job at one candidate. `short_of_size`: smaller than the rules want for it."""

    outlook: Outlook
    prompt_tokens: int
    output_tokens: int
    cost_usd: Decimal
    latency_ms: float
    wait_ms: float
    quality: float
    load: float
    short_of_size: bool

    @classmethod
    def of(cls, job: JobFeatures, outlook: Outlook, *, learned: bool) -> Prospect:
        """`learned`: by what the learned model says of this prompt, and not by the rules."""
        c = outlook.candidate
        prompt, output = job.prompt_tokens[c.tokenizer], outlook.length(job.tier, job.max_tokens)
        queues = not job.attended and job.tier != REALTIME  # they are first in every inbox, and calls are in none
        known = job.predicted.get(c.measured_as) if learned else None
        return cls(
            outlook,
            prompt,
            output,
            cost_usd(c, prompt, output),
            outlook.latency_ms(output, waiting=queues),
            outlook.wait_ms if queues else 0.0,
            outlook.quality_of(job.hardness if learned else None) if known is None else known,
            load_of(c),
            job.model == AUTO and not learned and _ORDER[c.size_class] < _ORDER[job.text.wanted],
        )

    @property
    def name(self) -> str:
        return self.outlook.candidate.name

    @property
    def rank(self) -> tuple[Decimal, float, str]:
        return self.cost_usd, self.load, self.name


def by_learned(job: JobFeatures, found: Sequence[Outlook], rules: Rules) -> bool:
    """Whether the learned model decides: it has a word on this prompt, and the quality of every deployment that `auto`
    may choose is known. It says how hard a prompt is; of one whose quality was never measured nor stated, that tells
    nothing."""
    if rules.classifier != "learned" or job.hardness is None:
        return False
    able = (o for o in found if not o.closed and job.endpoint in o.candidate.serves)
    return all(o.quality_known or o.candidate.measured_as in job.predicted for o in able)


def cost_usd(candidate: Candidate, prompt_tokens: int, output_tokens: int) -> Decimal:
    """What so many tokens cost there."""
    return (candidate.input_usd_per_1m * prompt_tokens + candidate.output_usd_per_1m * output_tokens) / _MILLION


def cap_of(job: JobFeatures, policy: PolicyRules) -> Decimal | None:
    """The most that the job, or its tenant's policy, lets it cost."""
    return min((x for x in (job.max_cost_usd, policy.max_cost_usd) if x is not None), default=None)


def load_of(candidate: Candidate) -> float:
    """What is in its engines and waits for them, of what they take at once: above 1 there is a queue. Or the share of
    the KV cache in use, where few long requests fill it."""
    if not candidate.capacity:
        return 0.0
    return max((candidate.in_flight + candidate.backlog) / candidate.capacity, candidate.kv_usage or 0.0)


def cannot_take(job: JobFeatures, p: Prospect, policy: PolicyRules, *, on_trial: bool = False) -> Refusal | None:
    """The first thing that keeps a candidate from taking the job at all; None when it can. `on_trial`: where it is not
    promoted either."""
    c = p.outlook.candidate
    if why := _not_asked(job, p.outlook, on_trial=on_trial):
        return Refusal(Hurdle.MODEL, why)
    if policy.models is not None and c.name not in policy.models:
        return Refusal(Hurdle.POLICY, f"is not among the models of '{job.policy}'")
    if policy.regions is not None and c.region not in policy.regions:
        return Refusal(Hurdle.POLICY, f"is in {c.region or 'no region'}, which '{job.policy}' does not use")
    if job.endpoint not in c.serves:
        return Refusal(Hurdle.ENDPOINT, f"does not serve {job.endpoint}")
    if missing := job.needs - c.capabilities:
        return Refusal(Hurdle.CAPABILITIES, f"lacks {', '.join(sorted(missing))}", missing)
    total = p.prompt_tokens + job.max_tokens
    if total > c.context_limit:
        return Refusal(Hurdle.CONTEXT, f"prompt + max_tokens = {total} tokens exceed its context of {c.context_limit}")
    cap = cap_of(job, policy)
    if cap is not None and (worst := cost_usd(c, p.prompt_tokens, job.max_tokens)) > cap:
        return Refusal(Hurdle.CAP, f"could cost ${worst:f}, above ${cap:f}")
    return Refusal(Hurdle.NOW, c.refused) if c.refused else None


def _not_asked(job: JobFeatures, outlook: Outlook, *, on_trial: bool) -> str:
    c = outlook.candidate
    if job.model.startswith(CLASS_PREFIX):
        if c.size_class != job.model.removeprefix(CLASS_PREFIX):
            return f"is {c.size_class}; the job asks for {job.model}"
    elif job.model not in (AUTO, c.name):
        return f"the job pins '{job.model}'"
    return outlook.closed if job.model != c.name and not on_trial else ""


def floor_for(
    job: JobFeatures,
    tier: TierRules,
    policy: PolicyRules,
    found: Sequence[Prospect],
    rules: Rules,
) -> Floor:
    """The highest floor that anybody sets."""
    bounds = tier.bounds
    floors = [
        Floor(rules.floors.get(job.text.category, 0.0), f"the floor of {job.text.category}"),
        Floor(policy.min_quality or 0.0, f"the floor of '{job.policy}'"),
        Floor(bounds.min_quality or 0.0, "min_quality"),
    ]
    if bounds.quality_of is not None:
        other = next((p for p in found if p.name == bounds.quality_of), None)
        share = bounds.quality_share or 0.0
        floors.append(Floor(share * other.quality if other else 0.0, f"{share:.0%} of {bounds.quality_of}"))
    return max(floors, key=lambda f: f.least)


def below_its_worth(fit: list[Prospect], short: dict[str, Refusal], rules: Rules) -> dict[str, Refusal]:
    """Those that are cheaper than what is worth its price, and so not good enough. Worth is quality less cost, where
    the dearest candidate's whole cost weighs as much as `quality_worth` of quality. It is what one would set as the
    floor for each prompt to get the most quality for a given sum (Lagrange). One that is down and would be the best is
    only down."""
    qualify = [p for p in fit if p.name not in short]
    if not qualify:
        return {}
    dearest = max(p.cost_usd for p in qualify) or Decimal(1)  # where nothing costs anything, only quality is worth

    def worth(p: Prospect) -> float:
        return p.quality - rules.quality_worth * float(p.cost_usd / dearest)

    best = max(qualify, key=lambda p: (worth(p), -p.cost_usd))
    poor = [p for p in fit if p.quality < best.quality]
    return {
        p.name: Refusal(
            Hurdle.QUALITY, f"predicted quality {p.quality:.2f}; {best.name} is worth its price at {best.quality:.2f}"
        )
        for p in poor
        if p.name not in short or (short[p.name].hurdle is Hurdle.HEALTH and worth(p) < worth(best))
    }


def falls_short(job: JobFeatures, p: Prospect, tier: TierRules, floor: Floor) -> Refusal | None:
    """The first thing in which a candidate that can take the job is not good enough; None when it qualifies."""
    size = p.outlook.candidate.size_class
    if p.short_of_size:
        return Refusal(Hurdle.QUALITY, f"{size}; {job.text.cue} asks for {job.text.wanted}")
    if p.quality < floor.least:
        return Refusal(Hurdle.QUALITY, f"predicted quality {p.quality:.2f}, below {floor.least:.2f} ({floor.asked_by})")
    return too_slow(job, p, tier) or _too_dear(p, tier) or _unwell(job, p)


def _unwell(job: JobFeatures, p: Prospect) -> Refusal | None:
    """Last, so that one which fails here alone is worth waiting for."""
    c = p.outlook.candidate
    if p.outlook.unhealthy and not (p.outlook.errs and job.chance(_PROBE) < _TRIED):
        return Refusal(Hurdle.HEALTH, p.outlook.unhealthy)
    if c.probing and job.chance(_PROBE) >= _PROBED:
        return Refusal(Hurdle.HEALTH, f"{c.broken}; one job in ten tries it")
    return None


def too_slow(job: JobFeatures, p: Prospect, tier: TierRules) -> Refusal | None:
    """What keeps it from being in time; None when nothing does."""
    bounds = tier.bounds
    before_ms = 0.0 if tier.from_claim else p.wait_ms
    latency_ms = p.latency_ms - p.wait_ms + before_ms
    ttft_ms = p.outlook.ttft_ms + before_ms
    if bounds.max_ttft_ms is not None and ttft_ms > bounds.max_ttft_ms:
        return Refusal(Hurdle.LATENCY, f"first token after {ttft_ms:,.0f} ms, not {bounds.max_ttft_ms:,.0f}")
    if bounds.max_latency_ms is not None and latency_ms > bounds.max_latency_ms:
        return Refusal(Hurdle.LATENCY, f"takes {latency_ms:,.0f} ms, not {bounds.max_latency_ms:,.0f}")
    if job.due_in_s is not None and p.latency_ms > 1000 * job.due_in_s:
        return Refusal(Hurdle.LATENCY, f"takes {p.latency_ms / 1000:,.0f} s, and it is due in {job.due_in_s:,.0f} s")
    return None


def _too_dear(p: Prospect, tier: TierRules) -> Refusal | None:
    bounds = tier.bounds
    if bounds.max_cost_per_1k is None or not (tokens := p.prompt_tokens + p.output_tokens):
        return None
    per_1k = 1000 * p.cost_usd / tokens
    if per_1k <= bounds.max_cost_per_1k:
        return None
    return Refusal(Hurdle.PRICE, f"costs ${per_1k:.6f} per 1,000 tokens, above ${bounds.max_cost_per_1k:f}")
