"""Receives a claimed speed or capacity run. Sends its load to the deployment's replicas while they have room to spare,
and computes its figures from the traces.
Next: `workers/benchmark.py` writes them down; `tell` puts the new profiles where `workers/classify.py` reads them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson
import redis
from pydantic import ValidationError

from tieryard.bench.capacity import Capacity, probing, search_capacity
from tieryard.bench.figures import Figures, Rent, Slos, duration_s, measure, to_profile
from tieryard.bench.load import Closed, Open, Run, Shape, run_load
from tieryard.bench.specs import CapacitySpec, SpeedSpec
from tieryard.catalog import AttachedEngine, Catalog, Limits, LlamaCppEngine, Price
from tieryard.complaints import complaint
from tieryard.costs import token_cost
from tieryard.costs.terms import rent_of
from tieryard.costs.windows import WindowPrice, charge_usd
from tieryard.engines import Usage
from tieryard.engines.opening import missing_key, open_replica
from tieryard.errors import UserError
from tieryard.metrics import Replica
from tieryard.profiles import Observed
from tieryard.store import Connection, profiles
from tieryard.store.benchmark_postings import Posting
from tieryard.store.benchmarks import BenchmarkRun, RunEnd, RunKind, RunState
from workers.giving_way import GivingWay, StoppedError
from workers.replicas import Replicas
from workers.sampling import Sample, draw_sample
from workers.spare import NotYetError, Spare, measurable
from workers.yard import Yard

_TIMEOUT_S = 60.0  # of one request; then it counts as failed
_AGAIN_S = 30.0
_INTERACTIVE = "interactive"  # whose SLO is meant where the catalog's benchmarks set none
_SOUND = 600  # requests of a probe, from which on chance leaves a capacity within 10 %


class Busy(Exception):  # noqa: N818  # no error: it is to be tried again
    """Others need the deployment: the run is for later, in `wait_s` seconds at the earliest. `postings` are what it has
    used until now."""

    def __init__(self, why: str, wait_s: float = _AGAIN_S, postings: tuple[Posting, ...] = ()) -> None:
        super().__init__(why)
        self.wait_s = wait_s
        self.postings = postings


class FaultedError(Exception):
    """A fault of ours, `error`, in the middle of a run. `postings` are what that has used until then."""

    def __init__(self, error: Exception, postings: tuple[Posting, ...]) -> None:
        super().__init__(str(error))
        self.error = error
        self.postings = postings


def run(yard: Yard, run: BenchmarkRun, stop: threading.Event) -> RunEnd:
    """The run from its start to its end, in this thread. `stop` ends it at once. What cannot be measured, by its
    catalog or its request, has FAILED and says why. Raises Busy, FaultedError, redis.RedisError or StoreError."""
    try:
        return _Measurement(yard, run).make(stop)
    except UserError as error:
        return RunEnd(RunState.FAILED, str(error))


def tell(yard: Yard, run: BenchmarkRun, end: RunEnd) -> None:
    """New profiles, to Redis. Where nothing succeeded the deployment was away: gauges and breakers say so, and what is
    known of its speed is as true as before. Raises redis.RedisError."""
    if not any(figures["succeeded"] for figures in end.profiles.values()):
        return
    for category, figures in end.profiles.items():
        if figures["valid"] and figures["succeeded"]:
            age_s = max(0.0, time.time() - figures["at"])
            yard.metrics.seed(run.deployment, category, figures["fields"], benchmark=run.public_id, age_s=age_s)
        else:  # that a client was late, or all failed, says nothing but what errors it saw
            seen = Observed(n=figures["n"], error_rate=figures["error_rate"])
            yard.metrics.observe(run.deployment, category, seen)


def tell_profiles(yard: Yard, connection: Connection) -> None:
    """When Redis has lost its memory: the newest profiles that are not stale come back from Postgres, of what the
    catalog still has as it was measured. Raises redis.RedisError."""
    catalog = yard.catalog
    within = catalog.routing.stale_after
    for one in profiles.newest_speeds(connection, deployments=list(catalog.deployments), within=within):
        if one.build == catalog.deployments[one.deployment].build:
            yard.metrics.seed(one.deployment, one.category, one.fields, benchmark=one.benchmark, age_s=one.age_s)


@dataclass(frozen=True, slots=True)
class _Load:
    """What is sent where: at most `wanted` requests at once, of the `room` that the replicas have."""

    replicas: Sequence[Replica]
    sample: Sample
    wanted: int
    room: int


class _Measurement:
    """One run, under the catalog that is in force when it starts."""

    def __init__(self, yard: Yard, run: BenchmarkRun) -> None:
        self._yard, self._run, self._catalog = yard, run, yard.catalog
        self._name = run.deployment
        self._spec = _read_spec(run)
        _check(self._catalog, self._name)
        self._deployment = self._catalog.deployments[self._name]
        self._host = self._catalog.deployments[self._catalog.host_of(self._name)]
        self._slos = _slos(self._catalog)
        self._posting_ids: list[int | None] = []
        self._spare = Spare(yard.metrics, self._name, ours=yard.worker_id, reserve=self._host.realtime_reserve)

    def make(self, stop: threading.Event) -> RunEnd:
        load = self._prepared()
        anyway = self._in_window()
        if not anyway and (why := self._spare.taken_by(load.wanted)):
            raise Busy(why)
        # Before there is anything to post: then the store may be away.
        self._posting_ids = [None, *(self._yard.store.next_id() for _ in load.replicas[1:])]
        try:
            return asyncio.run(self._under_way(load, stop, anyway=anyway))
        finally:  # after the last look, which may still have told something
            with contextlib.suppress(redis.RedisError):  # it is forgotten in seconds
                self._spare.withdraw()

    def _prepared(self) -> _Load:
        try:
            replicas = measurable(self._name, self._spare.look())
        except NotYetError as error:
            raise Busy(str(error)) from None
        room = self._spare.room(replicas, usual=self._deployment.max_in_flight)
        asked = self._spec.concurrency if isinstance(self._spec, SpeedSpec) else None
        wanted = min(asked or room, room)
        count = self._spec.count(wanted) if isinstance(self._spec, SpeedSpec) else self._spec.least
        categories = [self._spec.category] if self._spec.category is not None else self._catalog.categories
        sample = draw_sample(
            self._yard,
            self._catalog,
            self._name,
            categories=categories,
            count=count,
            seed=self._spec.seed,
            apart=self._apart(),
        )
        if asked is not None and asked > wanted:
            sample.notes.append(f"{asked} at once were asked for; its replicas take {wanted} beside realtime's reserve")
        return _Load(replicas, sample, wanted, room)

    def _apart(self) -> dict[str, Any]:
        """Else the second night's prompts would be in the prefix cache since the first."""
        engine = self._host.engine
        if isinstance(engine, LlamaCppEngine) or (isinstance(engine, AttachedEngine) and engine.server == "llama_cpp"):
            return {"cache_prompt": False}  # it has no salts
        return {"cache_salt": f"{self._run.public_id}:{self._run.fence}"}

    def _in_window(self) -> bool:
        window = self._catalog.benchmarks.window
        return window is not None and window.holds(datetime.now(tz=UTC))

    async def _under_way(self, load: _Load, stop: threading.Event, *, anyway: bool) -> RunEnd:
        engines = {url: self._open(url) for url in {replica.url for replica in load.replicas}}
        replicas = Replicas(load.replicas, engines, self._yard.quotas.of(self._catalog, self._name))
        closed = isinstance(self._spec, SpeedSpec) and self._spec.rate_per_s is None
        giving_way = GivingWay(
            self._spare,
            replicas,
            wanted=load.wanted,
            most_tokens=load.sample.most_tokens,
            pauses=closed,
            anyway=anyway,
        )
        try:
            end = await self._sent(load, replicas, giving_way, stop)
        except StoppedError:
            end = RunEnd(RunState.CANCELLED, "stopped while it ran")
        except UserError as error:
            end = RunEnd(RunState.FAILED, str(error))
        except redis.RedisError as error:
            raise Busy(f"{type(error).__name__} while it ran", postings=self._postings(load, replicas)) from error
        except Exception as error:
            raise FaultedError(error, self._postings(load, replicas)) from error
        postings = self._postings(load, replicas)
        if end.state is RunState.SUCCEEDED and not self._unchanged():
            raise Busy("the catalog has changed what it is while it ran", postings=postings)
        if giving_way.gave_way:
            raise Busy(giving_way.gave_way, max(_AGAIN_S, giving_way.wait_s), postings)
        return replace(end, postings=postings, pinned=self._deployment.build)

    async def _sent(self, load: _Load, replicas: Replicas, giving_way: GivingWay, stop: threading.Event) -> RunEnd:
        sending = self._speed if isinstance(self._spec, SpeedSpec) else self._capacity
        try:
            return await giving_way.guard(sending(load, replicas, giving_way), stop)
        finally:
            await replicas.close()
            with contextlib.suppress(redis.RedisError):  # what was used and paid for is known all the same
                await asyncio.to_thread(replicas.settle)

    def _unchanged(self) -> bool:
        """Whether the catalog in force has the build that was to be measured."""
        known = self._yard.catalog.deployments.get(self._name)
        return known is not None and known.build == self._deployment.build

    def _open(self, url: str) -> Any:
        key = self._yard.settings.engine_key
        secret = key.get_secret_value() if key is not None else None
        return open_replica(self._catalog, self._name, url, key=secret)

    def _postings(self, load: _Load, replicas: Replicas) -> tuple[Posting, ...]:
        """What was used in each rent window that stands now, or stood when the load began; what nothing is rented for
        is one posting."""
        heard = {replica.worker_id: replica for replica in load.replicas}
        with contextlib.suppress(redis.RedisError):
            heard |= {replica.worker_id: replica for replica in self._yard.metrics.replicas(self._name)}
        by_window: dict[WindowPrice | None, Usage] = {}
        for worker_id, used in sorted(replicas.used.items()):
            if used.prompt_tokens + used.completion_tokens:
                window = heard[worker_id].window
                by_window[window] = by_window.get(window, Usage(0, 0)) + used
        return tuple(
            self._posting(window, used, posting_id)
            for (window, used), posting_id in zip(by_window.items(), self._posting_ids, strict=False)
        )

    def _posting(self, window: WindowPrice | None, used: Usage, posting_id: int | None) -> Posting:
        tokens = {
            "prompt_tokens": used.prompt_tokens,
            "cached_tokens": used.cached_tokens,
            "completion_tokens": used.completion_tokens,
        }
        price = self._catalog.price_of(self._name, datetime.now(tz=UTC).date())
        return Posting(
            **tokens,
            cost_usd=token_cost(price, **tokens) if window is None else charge_usd(window.price, **tokens),
            tier=[*self._catalog.tiers][-1],
            catalog=self._catalog.hash(),
            window_id=window.window_id if window is not None else None,
            id=posting_id,
        )

    # --- speed ------------------------------------------------------------------------------------------

    async def _speed(self, load: _Load, replicas: Replicas, giving_way: GivingWay) -> RunEnd:
        spec = self._spec
        assert isinstance(spec, SpeedSpec)
        count = len(load.sample.requests)
        shape: Shape = Closed(load.wanted, count)
        if spec.rate_per_s is not None:
            shape = Open(spec.rate_per_s, count, spec.seed, max_in_flight=load.room)
        found = await run_load(
            replicas,
            load.sample.requests,
            shape,
            warm_up=spec.warm_up,
            yield_to=giving_way.yield_to,
            timeout_s=_TIMEOUT_S,
        )
        if found.aborted:
            return RunEnd(RunState.QUEUED)
        return self._speed_end(found, load, pauses=giving_way.pauses)

    def _speed_end(self, found: Run, load: _Load, *, pauses: int) -> RunEnd:
        cost = self._cost()
        full = isinstance(found.shape, Closed) and load.wanted == load.room and len(found.traces) >= 2 * load.room

        def figures_of(run: Run) -> dict[str, Figures]:
            return measure(
                run, deployment=self._name, replicas=len(load.replicas), full=full, slos=self._slos, cost=cost
            )

        whole = figures_of(replace(found, traces=tuple(replace(one, category="") for one in found.traces)))
        notes = [*load.sample.notes, *found.notes]
        if pauses:
            notes.append(f"it paused {pauses} times for better work")
        report = {
            "shape": {"kind": type(found.shape).__name__.lower(), **asdict(found.shape)},
            "replicas": len(load.replicas),
            "full": full,
            "duration_s": duration_s(found),
            "lag_p99_ms": found.lag_p99_ms,
            "valid": found.valid,
            "why": found.why,
            "notes": notes,
            "sample": load.sample.origins,
            "slos": asdict(self._slos) if self._slos is not None else None,
            "figures": _as_json(whole[""]),
        }
        profiles_ = {name: _as_json(one) | {"fields": to_profile(one)} for name, one in figures_of(found).items()}
        at = datetime.fromtimestamp(found.at, tz=UTC)
        return RunEnd(RunState.SUCCEEDED, report=_plain(report), measured_at=at, profiles=profiles_)

    def _cost(self) -> Price | Rent:
        """As jobs there are paid for; an adapter by its host's rent."""
        today, rent = datetime.now(tz=UTC).date(), self._host.rent
        if rent is None:
            return self._catalog.price_of(self._name, today)
        usd_per_hour, _ = rent_of(rent, self._catalog.instance_of(rent, today), gpus=self._host.gpus)
        return Rent(usd_per_hour)

    # --- capacity ---------------------------------------------------------------------------------------

    async def _capacity(self, load: _Load, replicas: Replicas, giving_way: GivingWay) -> RunEnd:
        spec = self._spec
        assert isinstance(spec, CapacitySpec)
        if self._slos is None:
            raise UserError("there is no SLO that a rate could hold: set `benchmarks.slo` in the catalog")
        probe = probing(
            replicas,
            load.sample.requests,
            self._slos,
            seconds=spec.seconds,
            least=spec.least,
            seed=spec.seed,
            warm_up=load.wanted,
            max_in_flight=load.room,
            yield_to=giving_way.yield_to,
        )
        found = await search_capacity(probe, low=spec.low, high=spec.high, most=spec.most, target=spec.target)
        if giving_way.gave_way:
            return RunEnd(RunState.QUEUED)
        notes = list(load.sample.notes)
        if spec.least < _SOUND:
            notes.append(f"probes of {spec.least} requests: chance may move what they find by more than 10 %")
        report = {
            "replicas": len(load.replicas),
            "notes": notes,
            "sample": load.sample.origins,
            "slos": asdict(self._slos),
            "capacity": _capacity_report(found),
        }
        return RunEnd(RunState.SUCCEEDED, report=_plain(report))


def _read_spec(run: BenchmarkRun) -> SpeedSpec | CapacitySpec:
    """Raises UserError: what was asked of an older version may not be known any more."""
    kind = SpeedSpec if run.kind == RunKind.SPEED else CapacitySpec
    try:
        return kind.model_validate(run.spec)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {complaint(one)}" for one in error.errors())
        raise UserError(f"what was asked for cannot be read: {faults}") from None


def _check(catalog: Catalog, name: str) -> None:
    """Raises UserError where there is nothing to measure, by the catalog."""
    if name not in catalog.deployments:
        raise UserError(f"'{name}' is not a deployment of the catalog in force")
    if catalog.deployments[name].serves != "text":
        raise UserError(f"'{name}' serves embeddings: only text is measured")
    if missing := missing_key(catalog, name):
        raise UserError(missing)


def _slos(catalog: Catalog) -> Slos | None:
    """Those of the catalog's benchmarks, else of its interactive tier; None where neither sets any."""
    given = catalog.benchmarks.slo
    if given != Limits():
        return Slos(given.max_ttft_ms, given.max_tpot_ms, given.max_latency_ms)
    tier = catalog.tiers.get(_INTERACTIVE)
    if tier is None or (tier.slo.max_ttft_ms is None and tier.slo.max_latency_ms is None):
        return None
    return Slos(max_ttft_ms=tier.slo.max_ttft_ms, max_latency_ms=tier.slo.max_latency_ms)


def _capacity_report(found: Capacity) -> dict[str, Any]:
    return asdict(found) | {
        "says": found.says,
        "probes": [asdict(probe) | {"share": probe.share} for probe in found.probes],
    }


def _as_json(figures: Figures) -> dict[str, Any]:
    return _plain(asdict(figures))


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it: money as text."""
    found: dict[str, Any] = orjson.loads(orjson.dumps(value, default=str))
    return found
