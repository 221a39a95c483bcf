"""Quotes: the lines of a batch are read as the expander would read them, and decided on as the classifier would decide
now, tier by tier. Nothing is saved, and nothing is charged."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

from tieryard.admission import Admission, Surroundings, counted_for
from tieryard.catalog import AttachedEngine, Catalog, Price
from tieryard.costs.quotes import (
    SAMPLE,
    Ahead,
    Drawn,
    Line,
    Meets,
    Offer,
    Range,
    Tariff,
    ahead_of,
    answer_tokens,
    cheapest,
    meets,
    offer,
)
from tieryard.errors import RequestError
from tieryard.requests import EMBEDDINGS, Request, Slo
from tieryard.routing import Decision, JobFeatures, Snapshot, decide, pooled, worst_usd
from tieryard.routing.hurdles import Prospect
from tieryard.store.batches import OpenBatch
from tieryard.tokens import UTF8

Parse = Callable[[int, str], Request]
"""A line by its number. Raises RequestError."""

_FAULTS = 20  # bad lines that are told of one by one
_NOTES = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that would not become a job, and why."""

    line: int
    param: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Good:
    """A line that would become a job. `limited`: its answer has a limit of its own, and cannot fill the context."""

    number: int
    features: JobFeatures
    slo: Slo | None
    limited: bool


@dataclass(slots=True)
class Reading:
    """What was read of a batch: `good` lines, how many were `bad`, and the first `faults`. `tiers` are those that lines
    name."""

    good: list[Good] = field(default_factory=list)
    bad: int = 0
    faults: list[Fault] = field(default_factory=list)
    tiers: dict[str, int] = field(default_factory=dict)

    @property
    def read(self) -> int:
        return len(self.good) + self.bad

    def refuse(self, line: int, error: RequestError) -> None:
        self.bad += 1
        if len(self.faults) < _FAULTS:
            self.faults.append(Fault(line, error.param, error.message))


@dataclass(frozen=True, slots=True)
class Prices:
    """What a batch would cost and take under each tier. `prompt_tokens` are by the tokenizer that makes the most of it,
    as limits count them."""

    drawn: Drawn
    reading: Reading
    prompt_tokens: int
    prompt_tokens_error: int
    tiers: dict[str, TierPrice]
    cheapest: str | None


@dataclass(frozen=True, slots=True)
class TierPrice:
    """An offer, whether it is `met` by the deadline or its window, and for how many requests something is not as it
    should be: `missed`, nothing would take them; `waits`, they would wait for a cheaper deployment, or one that is
    away; `fallbacks`, none meets SLO and floor. `notes` say what the figures rest on."""

    offer: Offer
    met: Meets
    missed: int
    waits: int
    fallbacks: int
    notes: tuple[str, ...]


def draw_lines(lines: int, seed: int) -> list[int] | None:
    """Numbers of the lines to be read, one of each of SAMPLE equal pieces; None for all. The same each time."""
    if lines <= SAMPLE:
        return None
    chance = random.Random(seed)  # noqa: S311  # a sample keeps no secret
    bounds = [1 + lines * i // SAMPLE for i in range(SAMPLE + 1)]
    return [chance.randrange(first, after) for first, after in pairwise(bounds)]


def read(
    admission: Admission, parts: Iterable[list[tuple[int, str]]], parse: Parse, *, tenant: str, callbacks: bool
) -> Reading:
    """Reads (line number, line), a part at a time; of each only its features are kept."""
    reading = Reading()
    for part in parts:
        asked: list[tuple[int, Request]] = []
        for number, text in part:
            if not text.strip():
                continue
            try:
                request = parse(number, text)
                admission.check(request, callbacks=callbacks, tenant=tenant)
                _hold_to_one_tier(reading, number, request)
                asked.append((number, request))
            except RequestError as error:
                reading.refuse(number, error)
        _keep(admission, reading, asked, tenant)
    return reading


def _hold_to_one_tier(reading: Reading, number: int, request: Request) -> None:
    if request.tier is None:
        return
    for other, line in reading.tiers.items():
        if other != request.tier:
            raise RequestError(
                f"a batch has one tier; this is '{request.tier}', line {line} is '{other}'", param="tier"
            )
    reading.tiers.setdefault(request.tier, number)


def _keep(admission: Admission, reading: Reading, asked: list[tuple[int, Request]], tenant: str) -> None:
    around = [Surroundings(tenant=tenant, job_id=number) for number, _ in asked]
    try:
        found = admission.features([request for _, request in asked], around)
    except RequestError as error:  # a chat template refuses one of them: find out which
        if len(asked) == 1:
            reading.refuse(asked[0][0], error)
            return
        for one in asked:
            _keep(admission, reading, [one], tenant)
        return
    reading.good += [
        Good(number, features, request.slo, request.endpoint == EMBEDDINGS or "max_tokens" in request.body)
        for (number, request), features in zip(asked, found, strict=True)
    ]


def price(
    admission: Admission,
    snapshot: Snapshot,
    reading: Reading,
    requests: int,
    *,
    tiers: Iterable[str],
    ahead: Mapping[str, Ahead],
    now: datetime,
    due: datetime | None,
) -> Prices:
    """What was read, priced under each of these tiers. `ahead` is by tier, `due` when all is to be done."""
    drawn = Drawn(requests, reading.read)
    most = [float(max(features.prompt_tokens.values())) for features in (one.features for one in reading.good)]
    found: dict[str, TierPrice] = {}
    windows_s: dict[str, float] = {}
    for tier in tiers:
        windows_s[tier] = admission.catalog.due_in(tier, None).total_seconds()
        due_s = min(windows_s[tier], (due - now).total_seconds() if due is not None else windows_s[tier])
        found[tier] = _price_tier(admission, snapshot, reading, drawn, tier, ahead[tier], now, due_s)
    offers = {tier: (one.offer, one.met, one.missed + one.fallbacks) for tier, one in found.items()}
    return Prices(
        drawn, reading, round(drawn.total(most)), round(drawn.error(most)), found, cheapest(offers, windows_s)
    )


def _price_tier(
    admission: Admission,
    snapshot: Snapshot,
    reading: Reading,
    drawn: Drawn,
    tier: str,
    ahead: Ahead,
    now: datetime,
    due_s: float,
) -> TierPrice:
    steady = _as_it_will_be(snapshot, reading, drawn, tier, due_s)
    expires = now + admission.catalog.due_in(tier, None)
    around = Surroundings(tier, accepted=now, expires=expires, now=now)
    lines: list[Line] = []
    missed: Counter[str] = Counter()
    notes: dict[str, None] = {}
    waits = fallbacks = guessed = 0
    for one in reading.good:
        due_in_s = admission.due_in_s(one.slo, around)
        job = counted_for(replace(one.features, tier=tier, due_in_s=due_in_s), steady)
        decision, waited = _decide(job, steady)
        waits += waited
        chosen = next((p for p in decision.weighing.found if p.name == decision.deployment), None)
        if chosen is None:
            missed[decision.reason] += 1
            continue
        fallbacks += decision.fallback
        guessed += not chosen.outlook.candidate.profiles
        lines.append(_line(job, chosen, limited=one.limited))
        notes |= dict.fromkeys(_notes(chosen, job.text.category))
    offered = offer(lines, drawn, tariffs(admission.catalog, steady), ahead)
    at_all = {"missed": missed.total(), "waits": waits, "fallbacks": fallbacks}
    scaled = {name: round(n * drawn.scale) for name, n in at_all.items()}
    whys = [f"{round(n * drawn.scale)} requests would go nowhere: {why}" for why, n in missed.most_common(_FAULTS)]
    met = meets(offered.finish_s, due_s)
    if guessed and met is Meets.SURELY:  # the worst of what nobody has measured is not known
        met = Meets.LIKELY
    return TierPrice(offered, met, **scaled, notes=tuple([*whys, *notes][:_NOTES]))


def _as_it_will_be(snapshot: Snapshot, reading: Reading, drawn: Drawn, tier: str, due_s: float) -> Snapshot:
    """Without what befalls single jobs: exploring and canaries. Where jobs wait for the cheapest, the deadlines need
    this batch's tokens too."""
    rules = snapshot.rules
    tiers = dict(rules.tiers)
    if tier in tiers and tiers[tier].may_wait:
        usual = pooled(p for c in snapshot.candidates for p in c.profiles.values())
        length = usual.output_tokens if usual is not None else None
        tokens = drawn.total(answer_tokens(one.features.max_tokens, length).expected for one in reading.good)
        tiers[tier] = replace(tiers[tier], needed_tps=tiers[tier].needed_tps + tokens / max(due_s, 1.0))
    trials = replace(rules.trials, canaries=())
    return replace(snapshot, rules=replace(rules, tiers=tiers, explore_share=0.0, trials=trials))


def _decide(job: JobFeatures, snapshot: Snapshot) -> tuple[Decision, bool]:
    """The decision, and whether the job would wait: it is priced as if it did not."""
    decision = decide(job, snapshot)
    if decision.deployment is None and decision.defer_s:
        return decide(replace(job, due_in_s=None), snapshot), True
    return decision, False


def _line(job: JobFeatures, chosen: Prospect, *, limited: bool) -> Line:
    """An answer without a limit may fill the context, and is planned for as routing does where its usual length is not
    known."""
    outlook = chosen.outlook
    usual = outlook.lengths.get(job.tier, outlook.output_tokens)
    answer = answer_tokens(job.max_tokens, usual)
    if not limited:
        answer = replace(answer, worst=max(answer.worst, outlook.candidate.context_limit - chosen.prompt_tokens))
    latency = (outlook.latency_ms(n, waiting=False) for n in (answer.low, answer.expected, answer.worst))
    return Line(
        chosen.name,
        chosen.prompt_tokens,
        answer,
        Range(*latency),
        chosen.wait_ms,
        outlook.throughput_tps if not outlook.unhealthy or outlook.errs else 0.0,
    )


def _notes(chosen: Prospect, category: str) -> Iterator[str]:
    outlook, candidate = chosen.outlook, chosen.outlook.candidate
    if outlook.unhealthy:
        yield f"{candidate.name}: {outlook.unhealthy}"
    if candidate.tokenizer == UTF8:
        yield f"{candidate.name}'s tokenizer is not known: a token a byte, which is more than any makes of it"
    yield from outlook.notes
    own = candidate.profiles.get(category) or pooled(candidate.profiles.values())
    if own is not None and own.throughput_tps is None:
        yield f"{candidate.name}'s throughput on {category} is not measured: that of idle engines stands in"


def ahead(
    open_now: Iterable[OpenBatch], *, tenant_id: int, requests: int, due: Mapping[str, datetime]
) -> dict[str, Ahead]:
    """By tier the jobs that are done before a batch which is due then: of open batches of the same tier, or due before.
    At the worst all that is open."""
    waiting = [b for b in open_now if not (b.stopping or b.behind)]
    jobs = {b.id: b.total - b.released_to + b.outstanding for b in waiting}
    found: dict[str, Ahead] = {}
    for tier, at in due.items():
        left: dict[int, int] = defaultdict(int)
        for batch in waiting:
            if batch.deadline <= at or (batch.tenant_id != tenant_id and batch.tier == tier):
                left[batch.tenant_id] += jobs[batch.id]
        mine = left.pop(tenant_id, 0)
        found[tier] = Ahead(ahead_of(requests, mine, left.values()).expected, sum(jobs.values()))
    return found


def reserves_usd(reading: Reading, drawn: Drawn, snapshot: Snapshot, prices: Mapping[str, Price]) -> Decimal:
    """What a budget would reserve for all of it: the worst that its jobs can cost, wherever they may be sent."""
    jobs = ((counted_for(one.features, snapshot), one.limited) for one in reading.good)
    worst = (worst_usd(features, snapshot, prices, limited=limited) for features, limited in jobs)
    return drawn.usd(sum(worst, Decimal(0)))


def tariffs(catalog: Catalog, snapshot: Snapshot) -> dict[str, Tariff]:
    """What each deployment charges as decisions know it, and its provider's limits."""
    found: dict[str, Tariff] = {}
    for candidate in snapshot.candidates:
        engine = catalog.deployments[candidate.name].engine if candidate.name in catalog.deployments else None
        limits = engine.limits if isinstance(engine, AttachedEngine) else None
        charged = Price(input_usd_per_1m=candidate.input_usd_per_1m, output_usd_per_1m=candidate.output_usd_per_1m)
        found[candidate.name] = Tariff(
            charged,
            limits.requests_per_minute if limits is not None else None,
            limits.tokens_per_minute if limits is not None else None,
        )
    return found


def stored(prices: Prices, *, due: datetime | None) -> dict[str, Any]:
    """What is kept of it: money as text, times in seconds from the batch's acceptance."""
    reading, drawn = prices.reading, prices.drawn
    return {
        "lines": {
            "good": round(len(reading.good) * drawn.scale),
            "bad": round(reading.bad * drawn.scale),
            "read": drawn.read,
            "faults": [{"line": f.line, "param": f.param, "message": f.message} for f in reading.faults],
        },
        "prompt_tokens_error": prices.prompt_tokens_error,
        "deadline": due.isoformat() if due is not None else None,
        "cheapest": prices.cheapest,
        "tiers": {tier: _stored_tier(one) for tier, one in prices.tiers.items()},
    }


def _stored_tier(one: TierPrice) -> dict[str, Any]:
    offered = one.offer
    return {
        "cost_usd": _ends(offered.cost_usd, _money),
        "cost_error_usd": _money(offered.error_usd),
        "prompt_tokens": offered.prompt_tokens,
        "output_tokens": _ends(offered.output_tokens, int),
        "finish_s": _ends(offered.finish_s, _seconds) if offered.finish_s is not None else None,
        "meets": str(one.met),
        "missed": one.missed,
        "waits": one.waits,
        "fallbacks": one.fallbacks,
        "deployments": [
            {
                "deployment": share.deployment,
                "requests": share.requests,
                "cost_usd": _money(share.cost_usd),
                "finish_s": _ends(share.finish_s, _seconds) if share.finish_s is not None else None,
            }
            for share in offered.shares
        ],
        "notes": list(one.notes),
    }


def _money(usd: Decimal) -> str:
    """Without an exponent or zeros at its end: equal amounts are equal texts."""
    return f"{usd.normalize():f}"


def _seconds(value: float) -> float:
    return round(value, 3)


def _ends(found: Range[Any], shown: Callable[[Any], Any]) -> dict[str, Any]:
    return {"low": shown(found.low), "expected": shown(found.expected), "worst": shown(found.worst)}
