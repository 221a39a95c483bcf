"""How much a deployment can take: the highest request rate at which all SLOs hold.

The rule. A rate holds when its goodput share is at least the target. From the lowest rate on the search quadruples (or,
with a highest rate, takes a third of the way to it on a log scale, if that is more) until a rate misses; then it halves
the bracket on a log scale until its ends are 5 % apart. Chance is allowed for twice: a result that may be chance (the
target lies in Wilson's 95 % interval of the share) is tried again where that decides most, at the lowest rate and, with
the probes left over, at the two ends of the bracket; all that was seen at a rate counts together, and where an end
falls the search goes on from there. A run that its client spoilt is tried once more, and does not count where that one
is sound.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tieryard.bench.figures import Slos
from tieryard.bench.load import Open, Sampled, YieldTo, run_load
from tieryard.engines import Engine
from tieryard.errors import UserError

_STEP = 4.0
_CLOSE = 1.05
_FOUND = 1.10
_Z2 = 1.96**2


@dataclass(frozen=True, slots=True)
class Probe:
    """One open-loop run at `rate_per_s`: `met` of its `n` requests met all SLOs. Where the client could not keep up it
    is not `valid`, and `why` says so. `aborted`: ended for better work, which ends the search."""

    rate_per_s: float
    met: int
    n: int
    valid: bool = True
    why: str = ""
    aborted: bool = False

    @property
    def share(self) -> float:
        return self.met / self.n if self.n else 0.0


class SearchEnd(StrEnum):
    """What a search has come to."""

    FOUND = "found"
    TOO_LOW = "the lowest rate misses"
    TOO_HIGH = "the highest rate holds"
    WIDE = "out of probes"
    CLIENT = "the client could not send faster"
    ABORTED = "ended for better work"


@dataclass(frozen=True, slots=True)
class Capacity:
    """`rate_per_s` is the highest rate that held, None when not even the lowest did; `misses_at` the lowest one above
    it that did not. `probes` are all, in their order."""

    end: SearchEnd
    rate_per_s: float | None
    misses_at: float | None
    target: float
    probes: tuple[Probe, ...]

    @property
    def says(self) -> str:
        held = f"{self.rate_per_s:.3g} requests a second" if self.rate_per_s is not None else ""
        match self.end:
            case SearchEnd.FOUND:
                return f"{held} hold the SLOs for {self.target:.0%} of requests; {self.misses_at:.3g} miss"
            case SearchEnd.TOO_LOW:
                return f"even {self.probes[0].rate_per_s:.3g} requests a second miss: {_shares(self.probes)}"
            case SearchEnd.TOO_HIGH:
                return f"{held}, the highest rate asked for, still hold: the capacity is there or above"
            case SearchEnd.WIDE:
                above = f"; {self.misses_at:.3g} miss" if self.misses_at is not None else "; none was seen to miss"
                return f"{held} hold{above}: out of probes before it was found within 10 %"
            case SearchEnd.CLIENT:
                return f"{held or 'no rate'} held; above: {_whys(self.probes)}"
            case SearchEnd.ABORTED:
                return f"{_whys(self.probes)}; {held or 'no rate'} had held until then"


async def search_capacity(
    probe: Callable[[float], Awaitable[Probe]],
    *,
    low: float,
    high: float | None = None,
    most: int = 10,
    target: float = 0.95,
) -> Capacity:
    """Searches from `low` up to `high` requests a second in at most `most` probes. Chance leaves it within 10 %
    where a probe has 600 requests and lasts 20 times as long as the SLO leaves for waiting: a shorter one is over
    before the queue of a rate that is a little too high is long. Raises UserError."""
    if not 0 < low < math.inf or (high is not None and not low <= high < math.inf):
        raise UserError(f"{low} to {high} requests a second is no range to search", param="low")
    if most < 1 or not 0 < target <= 1:
        raise UserError("a search needs at least 1 probe, and a target above 0 and at most 1", param="most")
    search = _Search(target)
    while len(search.probes) < most and (rate := search.next_rate(low, high)) is not None:
        search.probes.append(replace(await probe(rate), rate_per_s=rate))
        if search.probes[-1].aborted:
            break
    return search.capacity(high)


def probing(
    engine: Engine,
    requests: Sequence[Sampled],
    slos: Slos,
    *,
    seconds: float,
    least: int = 600,
    seed: int = 0,
    warm_up: int = 0,
    max_in_flight: int = 512,
    yield_to: YieldTo | None = None,
) -> Callable[[float], Awaitable[Probe]]:
    """A probe that is an open-loop run of about `seconds`, and `least` requests. Only the first of them warms up."""
    tried = 0

    async def probe(rate: float) -> Probe:
        nonlocal tried
        tried += 1
        count = max(least, math.ceil(rate * seconds))
        shape = Open(rate, count, seed + tried, max_in_flight)
        asked = [_apart(one, tried) for one in requests]
        run = await run_load(engine, asked, shape, warm_up=warm_up if tried == 1 else 0, yield_to=yield_to)
        met = sum(slos.met_by(one) for one in run.traces)
        return Probe(rate, met, len(run.traces), run.valid, "; ".join(run.why), run.aborted)

    return probe


def _apart(one: Sampled, probe: int) -> Sampled:
    """What the probe before has left in a prefix cache does not help this one."""
    salt = one.body.get("cache_salt")
    return one if salt is None else replace(one, body={**one.body, "cache_salt": f"{salt}:{probe}"})


class _Search:
    """What the probes have shown so far."""

    def __init__(self, target: float) -> None:
        self.probes: list[Probe] = []
        self._target = target

    def next_rate(self, low: float, high: float | None) -> float | None:
        """None when there is nothing left to learn."""
        if self.probes and not (last := self.probes[-1]).valid and len(self._at(last.rate_per_s)) == 1:
            return last.rate_per_s
        held, missed = self._held(), self._missed()
        if held is None:
            return low if missed is None or self._doubtful(low) else None
        if missed is None:
            if high is not None and held >= high:
                return high if self._doubtful(high) else None
            step = _STEP if high is None else max(_STEP, (high / low) ** (1 / 3))
            higher = held * step
            return higher if high is None else high if higher >= high or math.isclose(higher, high) else higher
        if missed / held > _CLOSE:
            return math.sqrt(held * missed)
        return next((rate for rate in (held, missed) if self._doubtful(rate)), None)

    def capacity(self, high: float | None) -> Capacity:
        held, missed = self._held(), self._missed()
        if self.probes and self.probes[-1].aborted:
            end = SearchEnd.ABORTED
        elif missed is not None and not self._seen(missed)[2]:
            end = SearchEnd.CLIENT
        elif held is None:
            end = SearchEnd.TOO_LOW
        elif missed is None:
            end = SearchEnd.TOO_HIGH if high is not None and held >= high else SearchEnd.WIDE
        else:
            end = SearchEnd.FOUND if missed / held <= _FOUND else SearchEnd.WIDE
        return Capacity(end, held, missed, self._target, tuple(self.probes))

    def _held(self) -> float | None:
        """The highest rate that holds, below all that miss."""
        missed = self._missed()
        rates = [p.rate_per_s for p in self.probes if not p.aborted and (missed is None or p.rate_per_s < missed)]
        return max(rates, default=None)

    def _missed(self) -> float | None:
        """The lowest rate that misses, or that the client could not send."""
        return min((p.rate_per_s for p in self.probes if not p.aborted and not self._holds(p.rate_per_s)), default=None)

    def _holds(self, rate: float) -> bool:
        met, n, valid = self._seen(rate)
        return valid and n > 0 and met >= self._target * n

    def _doubtful(self, rate: float) -> bool:
        """Whether it may be chance, and has been tried once: Wilson's interval (1927), two-sided 95 %."""
        met, n, valid = self._seen(rate)
        if len(self._at(rate)) != 1 or not valid or n == 0:
            return False
        p = met / n
        centre, spread = p + _Z2 / (2 * n), math.sqrt(_Z2 * (p * (1 - p) / n + _Z2 / (4 * n * n)))
        return abs(self._target * (1 + _Z2 / n) - centre) <= spread

    def _seen(self, rate: float) -> tuple[int, int, bool]:
        """(met, requests, whether that is sound), over all probes at this rate, or those that are sound."""
        found = self._at(rate)
        sound = [p for p in found if p.valid]
        counted = sound or found
        return sum(p.met for p in counted), sum(p.n for p in counted), bool(sound)

    def _at(self, rate: float) -> list[Probe]:
        return [p for p in self.probes if p.rate_per_s == rate and not p.aborted]


def _shares(probes: tuple[Probe, ...]) -> str:
    return ", ".join(f"{p.share:.0%} of {p.n} met them" for p in probes)


def _whys(probes: tuple[Probe, ...]) -> str:
    return next((p.why for p in probes if not p.valid), "")
