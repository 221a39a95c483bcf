"""Receives what the fleet is to measure of itself, and shows what it has found. Runs are saved, and a nudge sent.
Next: `workers/benchmark.py` claims them. For operators and their programs: the fleet pays for what is measured."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from api.idempotency import mark_of
from api.paging import cursor
from api.shapes import ERRORS, Usd
from api.state import BenchmarkDep, BenchmarkReadDep, State, StateDep
from tieryard.bench.asking import asked_runs, parse_ask
from tieryard.errors import ConflictError, RequestError
from tieryard.ids import internal, public
from tieryard.queues import BENCHMARK, BrokerError
from tieryard.store import benchmarks
from tieryard.store.benchmarks import KIND, BenchmarkRun, RunKind
from tieryard.store.idempotency import AlreadyMadeError, Mark

router = APIRouter(prefix="/v1/benchmarks", tags=["benchmarks"], responses=ERRORS)

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BenchmarkCreate"}}},
    }
}


class BenchmarkPublic(BaseModel):
    """A run on one deployment."""

    id: str
    object: Literal["benchmark"] = "benchmark"
    kind: str
    deployment: str
    state: str
    spec: dict[str, Any]
    schedule: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancelling: bool
    why: str | None
    regressed: str | None

    @classmethod
    def of(cls, run: BenchmarkRun, **more: Any) -> Self:
        shared = {name: getattr(run, name) for name in BenchmarkPublic.model_fields if name not in ("id", "object")}
        shared["spec"] = _worded(run)
        return cls(id=run.public_id, **shared, **more)


class BenchmarkWhole(BenchmarkPublic):
    """With all that it has found: `report` by its kind, `profiles` by category, and what it has cost."""

    fingerprint: dict[str, Any] | None
    report: dict[str, Any] | None
    profiles: dict[str, dict[str, Any]]
    cost_usd: Usd


class BenchmarkList(BaseModel):
    """Runs, and whether there are more after the last."""

    object: Literal["list"] = "list"
    data: list[BenchmarkPublic]
    has_more: bool = False


@router.post("", openapi_extra=_BODY)
async def create_benchmarks(request: Request, state: StateDep, holder: BenchmarkDep) -> BenchmarkList:
    """Asks for runs: one for each deployment. They wait until it has room beside what users ask of it."""
    body = await request.body()
    return await run_in_threadpool(_create, state, body, mark_of(request, holder.tenant_id, body))


@router.get("")
def list_benchmarks(
    state: StateDep,
    holder: BenchmarkReadDep,  # noqa: ARG001
    deployment: Annotated[str | None, Query(description="Only those on this one.")] = None,
    kind: Annotated[RunKind | None, Query(description="Only those of this kind.")] = None,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BenchmarkList:
    """All runs, newest first."""
    if deployment is not None and "\x00" in deployment:
        raise RequestError("holds a NUL", param="deployment")
    before = cursor(KIND, after)
    found = benchmarks.listing(state.store, deployment=deployment, kind=kind, before=before, limit=limit + 1)
    return _listed(found[:limit], more=len(found) > limit)


@router.get("/{benchmark_id}")
def get_benchmark(state: StateDep, holder: BenchmarkReadDep, benchmark_id: str) -> BenchmarkWhole:  # noqa: ARG001
    """A run, with all that it has found."""
    return _whole(state, benchmarks.get(state.store, internal(KIND, benchmark_id)))


@router.post("/{benchmark_id}/cancel")
def cancel_benchmark(state: StateDep, holder: BenchmarkDep, benchmark_id: str) -> BenchmarkWhole:  # noqa: ARG001
    """Cancels a run: at once while it waits, within seconds while it runs. What it has used is billed."""
    run = benchmarks.cancel(state.store, internal(KIND, benchmark_id))
    if not run.cancelling:
        raise ConflictError(f"cannot cancel a benchmark that is {run.state}", param="benchmark")
    _nudge(state)
    return _whole(state, run)


def _create(state: State, body: bytes, mark: Mark | None) -> BenchmarkList:
    ask = parse_ask(body)
    if ask.callback_url is not None and not state.signs_callbacks:
        raise RequestError("callbacks are off: this fleet has no TIERYARD_WEBHOOK_SECRET", param="callback_url")
    runs = asked_runs(ask, state.catalog, state.store)
    try:
        made = benchmarks.create(state.store, runs, mark=mark)
    except AlreadyMadeError as known:
        made = benchmarks.made_with(state.store, known.subject_id)
    else:
        _nudge(state)
    return _listed([benchmarks.get(state.store, number) for number in made])


def _nudge(state: State) -> None:
    with contextlib.suppress(BrokerError):  # beat's tick finds it
        state.publisher.nudge(BENCHMARK)


def _worded(run: BenchmarkRun) -> dict[str, Any]:
    """Its spec, with the runs of a comparison as they are named outside."""
    if run.kind != RunKind.PAIRWISE:
        return run.spec
    return run.spec | {side: public(KIND, run.spec[side]) for side in ("a", "b") if side in run.spec}


def _listed(runs: Sequence[BenchmarkRun], *, more: bool = False) -> BenchmarkList:
    return BenchmarkList(data=[BenchmarkPublic.of(run) for run in runs], has_more=more)


def _whole(state: State, run: BenchmarkRun) -> BenchmarkWhole:
    return BenchmarkWhole.of(
        run,
        fingerprint=run.fingerprint,
        report=run.report if run.finished_at is not None else None,  # until then it is the worker's own note
        profiles=benchmarks.profiles_of(state.store, run.id),
        cost_usd=benchmarks.cost_of(state.store, run),
    )
