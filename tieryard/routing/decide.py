"""The decision: filter the candidates, each with a reason, then take the cheapest of the right size.

`decide` gives the whole decision, every candidate with its numbers. It is what `jobs show` runs again on the
stored features and snapshot, so an explanation is never a second opinion.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from typing import Any, NamedTuple, Self

from tieryard.catalog import SizeClass
from tieryard.routing.features import TextFeatures
from tieryard.routing.snapshot import Candidate, Snapshot

AUTO = "auto"
CLASS_PREFIX = "class:"

_MILLION = Decimal(1_000_000)
_ORDER = {SizeClass.SMALL: 0, SizeClass.MEDIUM: 1, SizeClass.LARGE: 2}


@dataclass(frozen=True, slots=True)
class JobFeatures:
    """What a decision depends on, and all that is kept of the prompt. `prompt_tokens` is by tokenizer."""

    text: TextFeatures
    model: str
    prompt_tokens: dict[str, int]
    max_tokens: int
    needs: frozenset[str] = frozenset()
    endpoint: str = "/v1/chat/completions"

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        text = {**stored["text"], "wanted": SizeClass(stored["text"]["wanted"])}
        return cls(**{**stored, "text": TextFeatures(**text), "needs": frozenset(stored["needs"])})


@dataclass(frozen=True, slots=True)
class Judged:
    """One candidate's numbers, and why it lost; `why` is empty for the chosen one. Cost is the expected cost."""

    name: str
    qualifies: bool
    why: str
    prompt_tokens: int
    cost_usd: Decimal


class Hurdle(IntEnum):
    """What a candidate failed at, in the order in which they are taken."""

    MODEL = 1
    ENDPOINT = 2
    CAPABILITIES = 3
    CONTEXT = 4
    NOW = 5


class Refusal(NamedTuple):
    """Why a candidate cannot take the job; `lacks` are capabilities."""

    hurdle: Hurdle
    why: str
    lacks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision:
    """`deployment` is None when no candidate can take the job at all. `fallback`: smaller than was wanted.

    Where there is none, `closest` are the refusals of those that came furthest: what to change to be taken.
    """

    deployment: str | None
    reason: str
    fallback: bool
    judged: tuple[Judged, ...]
    closest: tuple[Refusal, ...] = ()


def decide_many(jobs: Iterable[JobFeatures], snapshot: Snapshot) -> list[Decision]:
    """One decision a job, in order."""
    return [decide(job, snapshot) for job in jobs]


def decide(job: JobFeatures, snapshot: Snapshot) -> Decision:
    """Filters, then ranks what is left by (serving now, distance from the wanted size, expected cost, load, name)."""
    refusals = {c.name: refused for c in snapshot.candidates if (refused := _refusal(job, c)) is not None}
    fit = [c for c in snapshot.candidates if c.name not in refusals]
    if not fit:
        furthest = max((r.hurdle for r in refusals.values()), default=None)
        closest = tuple(r for r in refusals.values() if r.hurdle is furthest)
        judged = _judge_all(job, snapshot, refusals, None)
        return Decision(None, _nobody(job, refusals), fallback=False, judged=judged, closest=closest)
    any_live = any(c.live for c in fit)
    chosen = min(
        fit, key=lambda c: (any_live and not c.live, _distance(job, c), expected_cost(job, c), _load(c), c.name)
    )
    wanted = job.text.wanted
    fallback = job.model == AUTO and _ORDER[chosen.size_class] < _ORDER[wanted]
    return Decision(
        chosen.name, _because(job, chosen, fit), fallback, _judge_all(job, snapshot, refusals, chosen, any_live)
    )


def expected_cost(job: JobFeatures, candidate: Candidate) -> Decimal:
    """USD if the answer is as long as `max_tokens` allows."""
    tokens = job.prompt_tokens[candidate.tokenizer]
    return (candidate.input_usd_per_1m * tokens + candidate.output_usd_per_1m * job.max_tokens) / _MILLION


def _refusal(job: JobFeatures, candidate: Candidate) -> Refusal | None:
    """The first hurdle at which this candidate fails; None when it can take the job."""
    if job.model.startswith(CLASS_PREFIX):
        if candidate.size_class != job.model.removeprefix(CLASS_PREFIX):
            return Refusal(Hurdle.MODEL, f"is {candidate.size_class}; the job asks for {job.model}")
    elif job.model not in (AUTO, candidate.name):
        return Refusal(Hurdle.MODEL, f"the job pins '{job.model}'")
    if candidate.named_only and job.model != candidate.name:
        return Refusal(Hurdle.MODEL, "is only for jobs that name it")
    if job.endpoint not in candidate.serves:
        return Refusal(Hurdle.ENDPOINT, f"does not serve {job.endpoint}")
    missing = job.needs - candidate.capabilities
    if missing:
        return Refusal(Hurdle.CAPABILITIES, f"lacks {', '.join(sorted(missing))}", missing)
    total = job.prompt_tokens[candidate.tokenizer] + job.max_tokens
    if total > candidate.context_limit:
        limit = candidate.context_limit
        return Refusal(Hurdle.CONTEXT, f"prompt + max_tokens = {total} tokens exceed its context of {limit}")
    return Refusal(Hurdle.NOW, candidate.refused) if candidate.refused else None


def _distance(job: JobFeatures, candidate: Candidate) -> int:
    """0 for the wanted size; a larger one is nearer than a smaller one. Pinned jobs want what they pin."""
    if job.model != AUTO:
        return 0
    steps = _ORDER[candidate.size_class] - _ORDER[job.text.wanted]
    return steps if steps >= 0 else 3 - steps


def _load(candidate: Candidate) -> float:
    """What is in its engines and waits for them, of what they take at once: above 1 there is a queue. Or the share of
    the KV cache in use, where few long requests fill it."""
    if not candidate.capacity:
        return 0.0
    return max((candidate.in_flight + candidate.backlog) / candidate.capacity, candidate.kv_usage or 0.0)


def _because(job: JobFeatures, chosen: Candidate, fit: list[Candidate]) -> str:
    if job.model == chosen.name:
        return f"pinned to {chosen.name}"
    if job.model != AUTO:
        return f"{job.model}: cheapest of {len(fit)} that fit"
    if chosen.size_class is job.text.wanted:
        return f"{job.text.cue} → {job.text.wanted}; cheapest of that size that fits"
    return f"{job.text.cue} → {job.text.wanted}; none fits, {chosen.size_class} is nearest; cheapest that fits"


def _nobody(job: JobFeatures, refusals: dict[str, Refusal]) -> str:
    """Speaks of what the job asked for: those of another size, or name, are no news to its owner."""
    asked = {name: r.why for name, r in refusals.items() if r.hurdle is not Hurdle.MODEL}
    if job.model in asked:
        return f"'{job.model}' cannot take it: {asked[job.model]}"
    nobody = "no deployment can take it" if job.model == AUTO else f"no deployment of '{job.model}' can take it"
    if len(set(asked.values())) == 1:
        return f"{nobody}: {next(iter(asked.values()))}"
    return f"{nobody}: " + ("; ".join(f"'{name}' {why}" for name, why in asked.items()) or "there is none")


def _judge_all(
    job: JobFeatures,
    snapshot: Snapshot,
    refusals: dict[str, Refusal],
    chosen: Candidate | None,
    any_live: bool = False,  # a private helper's flag
) -> tuple[Judged, ...]:
    return tuple(
        Judged(
            c.name,
            c.name not in refusals,
            refusals[c.name].why
            if c.name in refusals
            else ("" if chosen is None or c is chosen else _lost(job, c, chosen, any_live=any_live)),
            job.prompt_tokens[c.tokenizer],
            expected_cost(job, c),
        )
        for c in snapshot.candidates
    )


def _lost(job: JobFeatures, loser: Candidate, chosen: Candidate, *, any_live: bool) -> str:
    """Why a candidate that fits was not chosen, in the order in which `decide` ranks."""
    if any_live and chosen.live and not loser.live:
        return "no replica of it is serving"
    if _distance(job, loser) != _distance(job, chosen):
        return f"{loser.size_class}; {chosen.size_class} is nearer to {job.text.wanted}"
    cost, best = expected_cost(job, loser), expected_cost(job, chosen)
    if cost != best:
        return f"expected cost ${cost:f} against ${best:f}"
    load, less = _load(loser), _load(chosen)
    return f"costs the same; load {load:.2f} against {less:.2f}" if load != less else f"equal to {chosen.name}, by name"
