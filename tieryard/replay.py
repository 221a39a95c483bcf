"""What another catalog would have made of jobs that were routed: each is decided again, from its stored features and
from the measurements of that moment.

Of a deployment what was measured is kept by its name. One that is new has no measurements: it is taken for one idle
replica of a usual deployment of its size class, and that is said.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from decimal import Decimal

import orjson

from tieryard.admission import counted_for
from tieryard.catalog import Catalog, parse_catalog
from tieryard.costs import token_cost
from tieryard.errors import CatalogError
from tieryard.requests import EMBEDDINGS
from tieryard.routing import Decision, JobFeatures, Judged, Measured, Rules, Snapshot, TierRules, decide
from tieryard.store import Store, catalogs, keys, routes
from tieryard.store.routes import Made

REFUSED = "(refused)"
WAITING = "(waiting)"
"""Where a job went that has no deployment."""

_KEPT = 64  # snapshots, with what they would be under the new catalog
_NO_TIER = TierRules()
_NOT_OURS = (KeyError, TypeError, ValueError)  # of reading what software of another time has stored


@dataclass(slots=True)
class Sums:
    """Over jobs. What follows `refused` is of those that have a deployment on both sides.

    Money is of those `charged`: by the ledger, and what the same tokens cost at the new deployment's price.
    Misses are of the SLO: `missed` as measured, of the `measured` that succeeded, and as predicted on each side.
    Qualities are sums of predictions.
    """

    jobs: int = 0
    moved: int = 0
    waits: int = 0
    refused: int = 0
    refused_usd: Decimal = Decimal(0)
    compared: int = 0
    charged: int = 0
    old_usd: Decimal = Decimal(0)
    new_usd: Decimal = Decimal(0)
    measured: int = 0
    missed: int = 0
    old_missed: int = 0
    new_missed: int = 0
    old_quality: float = 0.0
    new_quality: float = 0.0

    def add(self, other: Sums) -> None:
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))


@dataclass(slots=True)
class Report:
    """By tier, and by (from, to) of the jobs that move. `unknown` jobs have no features that could be decided again.
    `unheard` ones have no word of the learned model, which the catalog asks for. The rest counts jobs: of deployments
    without measurements, tokenizers without a count, and tiers that are gone."""

    tiers: dict[str, Sums] = field(default_factory=dict)
    moves: dict[tuple[str, str], Sums] = field(default_factory=dict)
    unknown: int = 0
    unheard: int = 0
    unmeasured: Counter[str] = field(default_factory=Counter)
    uncounted: Counter[str] = field(default_factory=Counter)
    gone: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> Sums:
        whole = Sums()
        for sums in self.tiers.values():
            whole.add(sums)
        return whole


def replay(
    store: Store,
    catalog: Catalog,
    since: datetime,
    until: datetime,
    *,
    limit: int | None = None,
    told: Callable[[int], None] = lambda _: None,
) -> Report:
    """Over the jobs whose newest decision was made in that time, the first `limit` of them. Memory does not grow with
    their number. `told` hears how many are done after each chunk."""
    again, done = _Again(store, catalog), 0
    for chunk in routes.decisions(store, since, until):
        made = [m for m in chunk if not m.superseded]
        if limit is not None:
            made = made[: limit - done]
        again.add(made)
        done += len(made)
        told(done)
        if done == limit:
            break
    return again.report


def under(catalog: Catalog, old: Snapshot, *, exploring: bool = True) -> Snapshot:
    """What the router would have known under this catalog when it knew `old`. `exploring`: there was money for it. What
    is rented is charged at its standard price, which the catalog does not have: as then."""
    known = {c.name: c for c in old.candidates}
    idle = {name: Measured(capacity=d.max_in_flight, replicas=1) for name, d in catalog.deployments.items()}
    seen = {c.name: Measured(**{f.name: getattr(c, f.name) for f in fields(Measured)}) for c in old.candidates}
    made = Snapshot.of(
        catalog,
        prices={name: known[name].price for name, d in catalog.deployments.items() if d.rent and name in known},
        gauges=idle | seen,
        profiles={name: c.profiles for name, c in known.items()},
        needed_tps={name: tier.needed_tps for name, tier in old.rules.tiers.items()},
        exploring=exploring,
        step_back=old.rules.step_back,
        quality_model=old.quality_model,
        trials=old.rules.trials,
    )
    return made.refusing({name: c.refused for name, c in known.items() if c.refused})


@dataclass(frozen=True, slots=True)
class _Sides:
    """A snapshot, what it would be under the new catalog, and the deployments of which that knows nothing."""

    old: Snapshot
    new: Snapshot
    unmeasured: tuple[str, ...]


class _Again:
    """Decides again, and adds up."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self.report = Report()
        self._store = store
        self._catalog = catalog
        self._hash = catalog.hash()
        self._tokenizers = {d.tokenizer for d in catalog.deployments.values()}
        self._sides: OrderedDict[int, _Sides] = OrderedDict()
        self._tenants: dict[int, str] = {}
        self._shares: dict[str, float] = {}

    def add(self, chunk: list[Made]) -> None:
        bodies = routes.snapshots(self._store, {m.snapshot_id for m in chunk} - self._sides.keys())
        self._learn_names({m.tenant_id for m in chunk})
        for made in chunk:
            job, sides = _features(made), self._sides_of(made.snapshot_id, bodies)
            if job is None or sides is None:
                self.report.unknown += 1
                continue
            one, move = self._compare(made, job, sides)
            self.report.tiers.setdefault(made.tier, Sums()).add(one)
            if one.moved:
                self.report.moves.setdefault(move, Sums()).add(one)

    def _learn_names(self, tenants: set[int]) -> None:
        if self._catalog.routing.policies and (unknown := tenants - self._tenants.keys()):
            with self._store.transaction() as connection:
                self._tenants |= keys.tenant_names(connection, sorted(unknown))

    def _sides_of(self, snapshot_id: int, bodies: dict[int, str]) -> _Sides | None:
        """The last ones used are kept: decisions of the same moment share theirs."""
        found = self._sides.get(snapshot_id)
        if found is None:
            if snapshot_id not in bodies:
                bodies |= routes.snapshots(self._store, [snapshot_id])
            if snapshot_id not in bodies:
                return None
            try:
                old = Snapshot.from_json(orjson.loads(bodies[snapshot_id]))
            except _NOT_OURS:
                return None
            known = {c.name for c in old.candidates}
            unmeasured = tuple(name for name in self._catalog.deployments if name not in known)
            new = old if old.catalog == self._hash else under(self._catalog, old, exploring=self._could_explore(old))
            found = self._sides[snapshot_id] = _Sides(old, new, unmeasured)
            if len(self._sides) > _KEPT:
                self._sides.popitem(last=False)
        self._sides.move_to_end(snapshot_id)
        return found

    def _could_explore(self, old: Snapshot) -> bool:
        """Whether there was money for it at that moment: where there was none the snapshot has no share, and its
        catalog has."""
        if old.rules.explore_share:
            return True
        if old.catalog not in self._shares:
            version = catalogs.of_hash(self._store, old.catalog)
            try:
                share = parse_catalog(version.body).routing.exploration.share if version is not None else 0.0
            except CatalogError:  # of another software
                share = 0.0
            self._shares[old.catalog] = share
        return not self._shares[old.catalog]

    def _compare(self, made: Made, job: JobFeatures, sides: _Sides) -> tuple[Sums, tuple[str, str]]:
        """One job's part, and its move."""
        job = counted_for(job, sides.old)
        old = decide(job, sides.old)
        wanted = self._under(job, made, sides)
        new = decide(wanted, sides.new)
        one = Sums(jobs=1)
        if new.defer_s:
            # It would first wait for a cheaper one. Nobody knows where it ends then: it counts where it would go now.
            one.waits = 1
            new = decide(replace(wanted, due_in_s=None), sides.new)
        nowhere = WAITING if old.defer_s else REFUSED
        move = made.deployment or nowhere, new.deployment or REFUSED
        one.moved = int(move[0] != move[1])
        before, after = _judged(old, made.deployment), _judged(new, new.deployment)
        if after is None:
            one.refused, one.refused_usd = 1, made.cost_usd or Decimal(0)
        elif before is not None:
            self._add_both(one, made, sides, (job, before), (wanted, after))
        return one, move

    def _under(self, job: JobFeatures, made: Made, sides: _Sides) -> JobFeatures:
        """The job's features as the new catalog would have them."""
        for name in sides.unmeasured:
            self.report.unmeasured[name] += 1
        if made.tier not in self._catalog.tiers:
            self.report.gone[made.tier] += 1
        for name in self._tokenizers - job.prompt_tokens.keys():
            self.report.uncounted[name] += 1
        chosen = not job.pinned and job.endpoint != EMBEDDINGS
        if chosen and sides.new.rules.classifier == "learned" and job.hardness is None:
            self.report.unheard += 1
        tenant = self._tenants.get(made.tenant_id, "")
        policy = self._catalog.routing.policies.get(tenant)
        sticky = job.sticky if policy is None or policy.sticky else ""
        return counted_for(replace(job, policy=tenant if policy is not None else "", sticky=sticky), sides.new)

    def _add_both(
        self,
        one: Sums,
        made: Made,
        sides: _Sides,
        before: tuple[JobFeatures, Judged],
        after: tuple[JobFeatures, Judged],
    ) -> None:
        one.compared = 1
        if made.cost_usd is not None:
            price = next(c.price for c in sides.new.candidates if c.name == after[1].name)
            prompt, completion = made.prompt_tokens or 0, made.completion_tokens or 0
            one.charged, one.old_usd = 1, made.cost_usd
            one.new_usd = token_cost(price, prompt_tokens=prompt, completion_tokens=completion)
        if made.outcome == "succeeded" and made.latency_ms is not None:
            one.measured = 1
            one.missed = int(_missed_measured(made, before[0], sides.old.rules))
        one.old_missed = int(_missed(*before, sides.old.rules))
        one.new_missed = int(_missed(*after, sides.new.rules))
        one.old_quality, one.new_quality = before[1].quality, after[1].quality


def _features(made: Made) -> JobFeatures | None:
    """None where there are none, or those of another software."""
    try:
        return replace(JobFeatures.from_dict(made.features), tier=made.tier) if made.features else None
    except _NOT_OURS:
        return None


def _judged(decision: Decision, deployment: str | None) -> Judged | None:
    return next((j for j in decision.judged if j.name == deployment), None)


def _missed(job: JobFeatures, judged: Judged, rules: Rules) -> bool:
    """Whether it was predicted to miss its SLO."""
    late = job.due_in_s is not None and judged.latency_ms > 1000 * job.due_in_s
    return late or _slow(job, rules, judged.wait_ms, judged.ttft_ms, judged.latency_ms - judged.wait_ms)


def _missed_measured(made: Made, job: JobFeatures, rules: Rules) -> bool:
    late = False
    if job.due_in_s is not None and made.finished_at is not None:
        late = (made.finished_at - made.decided_at).total_seconds() > job.due_in_s
    return late or _slow(job, rules, made.waited_ms or 0.0, made.ttft_ms, made.latency_ms or 0.0)


def _slow(job: JobFeatures, rules: Rules, wait_ms: float, ttft_ms: float | None, latency_ms: float) -> bool:
    """`ttft_ms` and `latency_ms` are from the start in the engine; the wait counts as the tier says."""
    tier = rules.tiers.get(job.tier, _NO_TIER)
    bounds = job.bounds.over(tier.bounds) if job.bounds is not None else tier.bounds
    waited_ms = 0.0 if tier.from_claim else wait_ms
    if bounds.max_ttft_ms is not None and ttft_ms is not None and waited_ms + ttft_ms > bounds.max_ttft_ms:
        return True
    return bounds.max_latency_ms is not None and waited_ms + latency_ms > bounds.max_latency_ms


def notes(report: Report) -> Iterator[str]:
    """What the figures lack, a sentence each."""
    for name, jobs in sorted(report.unmeasured.items()):
        yield f"{name} was not measured when {jobs:,} jobs were routed: a usual one of its class, idle, stands in"
    for name, jobs in sorted(report.uncounted.items()):
        yield f"no prompt was counted with {name} for {jobs:,} jobs: the most that another tokenizer counted stands in"
    for name, jobs in sorted(report.gone.items()):
        yield f"the catalog has no tier {name}, of which {jobs:,} jobs are: they count as without an SLO"
    if report.unheard:
        yield f"the learned model has read no prompt of {report.unheard:,} jobs: the rules decide there"
    if report.unknown:
        yield f"{report.unknown:,} jobs could not be decided again: they could not be read, or their snapshot is gone"
    total = report.total
    if total.refused:
        yield f"{total.refused:,} jobs would be refused; what they cost, ${total.refused_usd:f}, is on neither side"
    if total.waits:
        yield f"{total.waits:,} jobs would first wait for a cheaper deployment; they count where they would go at once"
    if total.compared > total.charged:
        yield f"{total.compared - total.charged:,} jobs have no bill (yet), and no part in the dollars"
