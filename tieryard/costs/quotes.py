"""What a batch will cost and when it will be done, before it runs: the arithmetic of quotes, over what was read and
decided elsewhere. Formulae and assumptions: docs/reference/costs.md."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from typing import Generic, TypeVar

from tieryard.catalog import Price
from tieryard.costs import token_cost

T = TypeVar("T")

SAMPLE = 2000
"""Lines that are read of a longer batch: all that is asked of a line takes a core about a millisecond."""

_SHORT = 0.5  # of the usual length, for an answer at the low end
_ROOM = 0.8  # of a measured throughput is counted on at the worst, as the router does
_UNDER_WAY_S = (0.0, 1.0, 5.0)  # validation, queues and beats around the work itself
_LEAST_STEP = Decimal("0.000001")
_SURE = 2  # standard errors on either side: 95 % of samples hold the truth
_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class Range(Generic[T]):
    """From the low end over what is expected to the worst."""

    low: T
    expected: T
    worst: T


class Meets(StrEnum):
    """Whether a batch is done by a time: even at its worst, as expected, not, or nobody can say."""

    SURELY = "surely"
    LIKELY = "likely"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Line:
    """One request at the deployment that the decision chose. Tokens are by that deployment's tokenizer, times are its
    95th percentile without waiting, `wait_ms` that for what is in its engines. `throughput_tps` is of all replicas, in
    output tokens a second; 0 where none serves."""

    deployment: str
    prompt_tokens: int
    output_tokens: Range[int]
    latency_ms: Range[float]
    wait_ms: float
    throughput_tps: float


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a deployment charges, and what its provider allows a minute; None: no limit."""

    price: Price
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """How many requests there are, and how many of them were read."""

    requests: int
    read: int

    @property
    def whole(self) -> bool:
        return self.read >= self.requests

    @property
    def scale(self) -> float:
        return self.requests / self.read if self.read else 0.0

    def total(self, seen: Iterable[float]) -> float:
        """Of all requests, by those that were read."""
        return sum(seen) * self.scale

    def usd(self, seen: Decimal) -> Decimal:
        """The same of money: exact where all were read."""
        if self.whole or not self.read:
            return seen
        return (seen * self.requests / self.read).quantize(_LEAST_STEP, ROUND_HALF_EVEN)

    def error(self, seen: Sequence[float]) -> float:
        """The standard error of `total`: N √((1 − n/N) s² ÷ n) (Cochran 1977, 2.23), those that are not in `seen`
        counting 0. As of a simple random sample, which one drawn line by line from equal pieces does not exceed where
        neighbours are alike."""
        if self.whole or self.read < 2:
            return 0.0
        mean = sum(seen) / self.read
        squares = sum((x - mean) ** 2 for x in seen) + (self.read - len(seen)) * mean**2
        return self.requests * math.sqrt((1 - self.read / self.requests) * squares / (self.read - 1) / self.read)


@dataclass(frozen=True, slots=True)
class Ahead:
    """Jobs that are done before a batch's last one is: as expected, and at the worst."""

    expected: int = 0
    worst: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What one deployment would get of a batch; `finish_s` None where it serves nothing now."""

    deployment: str
    requests: int
    cost_usd: Decimal
    finish_s: Range[float] | None


@dataclass(frozen=True, slots=True)
class Offer:
    """A batch under one tier. `error_usd` is the standard error that the sample leaves in the expected cost; the range
    has it on both sides already. `finish_s` counts from the batch's acceptance."""

    cost_usd: Range[Decimal]
    error_usd: Decimal
    prompt_tokens: int
    output_tokens: Range[int]
    finish_s: Range[float] | None
    shares: tuple[Share, ...]


def answer_tokens(most: int, usual: float | None) -> Range[int]:
    """How long an answer of at most so many tokens is likely to be: half the usual length, the usual one, and all of
    them. One whose length was never seen may be of any."""
    if usual is None:
        return Range(min(most, 1), most, most)
    return Range(min(most, math.ceil(usual * _SHORT)), min(most, math.ceil(usual)), most)


def ahead_of(requests: int, mine: int, others: Iterable[int]) -> Ahead:
    """Jobs ahead, from one's own that are due before and from what each other tenant has open. Tenants share evenly: by
    the time that ours are done, each other has had as many turns, or all that it wanted."""
    waiting = tuple(others)
    turns = requests + mine
    return Ahead(mine + sum(min(n, turns) for n in waiting), mine + sum(waiting))


def offer(lines: Sequence[Line], drawn: Drawn, tariffs: Mapping[str, Tariff], ahead: Ahead) -> Offer:
    """What these lines, all those read that something can take, come to under one tier."""
    costs = [_costs(line, tariffs[line.deployment].price) for line in lines]
    expected = [float(cost.expected) for cost in costs]
    error_usd = Decimal(repr(drawn.error(expected))).quantize(_LEAST_STEP)
    low, usual, worst = (
        drawn.usd(sum((getattr(cost, end) for cost in costs), _NOTHING)) for end in ("low", "expected", "worst")
    )
    by_deployment: dict[str, list[int]] = defaultdict(list)
    for i, line in enumerate(lines):
        by_deployment[line.deployment].append(i)
    shares = tuple(
        Share(
            name,
            round(len(members) * drawn.scale),
            drawn.usd(sum((costs[i].expected for i in members), _NOTHING)),
            _finish([lines[i] for i in members], drawn, tariffs[name], ahead),
        )
        for name, members in sorted(by_deployment.items())
    )
    return Offer(
        Range(max(low - _SURE * error_usd, _NOTHING), usual, worst + _SURE * error_usd),
        error_usd,
        round(drawn.total(line.prompt_tokens for line in lines)),
        Range(
            *(
                round(drawn.total(getattr(line.output_tokens, end) for line in lines))
                for end in ("low", "expected", "worst")
            )
        ),
        _last([share.finish_s for share in shares]),
        shares,
    )


def _costs(line: Line, price: Price) -> Range[Decimal]:
    def usd(tokens: int) -> Decimal:
        return token_cost(price, prompt_tokens=line.prompt_tokens, completion_tokens=tokens)

    answer = line.output_tokens
    return Range(usd(answer.low), usd(answer.expected), usd(answer.worst))


def _finish(lines: list[Line], drawn: Drawn, tariff: Tariff, ahead: Ahead) -> Range[float] | None:
    """Seconds until the last of these lines is done at one deployment. Others' jobs are taken to be as long as these,
    and no line is done before it has been answered once."""
    if any(line.throughput_tps <= 0 for line in lines):
        return None
    low, usual, worst = (_busy_s(lines, end, drawn, tariff) for end in ("low", "expected", "worst"))
    single = Range(
        *(max(getattr(line.latency_ms, end) for line in lines) / 1000 for end in ("low", "expected", "worst"))
    )
    wait_s = max(line.wait_ms for line in lines) / 1000
    before_s, before_worst_s = (usual * n / max(drawn.requests, 1) for n in (ahead.expected, ahead.worst))
    return Range(
        max(single.low, low) + _UNDER_WAY_S[0],
        wait_s + max(single.expected, usual + before_s) + _UNDER_WAY_S[1],
        (wait_s + max(single.worst, worst + before_worst_s)) / _ROOM + _UNDER_WAY_S[2],
    )


def _busy_s(lines: list[Line], end: str, drawn: Drawn, tariff: Tariff) -> float:
    """How long its replicas, or its provider's limits, need for all of it."""
    tokens = [getattr(line.output_tokens, end) for line in lines]
    busy_s = drawn.total(n / line.throughput_tps for n, line in zip(tokens, lines, strict=True))
    minutes = [0.0]
    if tariff.requests_per_minute is not None:
        minutes.append(len(lines) * drawn.scale / tariff.requests_per_minute)
    if tariff.tokens_per_minute is not None:
        both = drawn.total(n + line.prompt_tokens for n, line in zip(tokens, lines, strict=True))
        minutes.append(both / tariff.tokens_per_minute)
    return max(busy_s, 60 * max(minutes))


def _last(found: list[Range[float] | None]) -> Range[float] | None:
    """Deployments work side by side: the slowest ends the batch."""
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    return Range(max(r.low for r in known), max(r.expected for r in known), max(r.worst for r in known))


def meets(finish_s: Range[float] | None, due_s: float) -> Meets:
    """Whether it is done so many seconds after its acceptance."""
    if finish_s is None:
        return Meets.UNKNOWN
    if finish_s.worst <= due_s:
        return Meets.SURELY
    return Meets.LIKELY if finish_s.expected <= due_s else Meets.NO


def cheapest(offers: Mapping[str, tuple[Offer, Meets, int]], windows_s: Mapping[str, float]) -> str | None:
    """The tier that serves most of the batch in time for the least money: of those that surely do, else of those that
    likely do, else none. An offer comes with how many requests nothing would take, or nothing that meets SLO and floor:
    those with the fewest go first. Of equal cost the least urgent, which leaves room for others."""
    for enough in (Meets.SURELY, Meets.LIKELY):
        found = [
            (amiss, one.cost_usd.expected, one.cost_usd.worst, -windows_s[tier], tier)
            for tier, (one, met, amiss) in offers.items()
            if met is enough and one.shares
        ]
        if found:
            return min(found)[-1]
    return None
