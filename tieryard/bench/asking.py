"""What may be asked of the fleet about itself: the request, checked, and the runs that it makes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, RootModel, ValidationError

from tieryard.bench.specs import CapacitySpec, SpeedSpec
from tieryard.catalog import BenchmarkSchedule, Catalog
from tieryard.errors import ConflictError, NotFoundError, RequestError
from tieryard.ids import internal
from tieryard.requests.fields import Name, refusal, refuse_nul
from tieryard.store import Store, benchmarks, golden
from tieryard.store.benchmarks import KIND, BenchmarkRun, NewRun, RunKind, RunState

_Deployment = Annotated[Name | None, Field(description="Whom to measure. Default: every deployment of text.")]
_Told = Annotated[AnyHttpUrl | None, Field(description="Told when a run has ended, or has regressed.")]


class SpeedAsk(SpeedSpec):
    """How fast a deployment is, under one load."""

    kind: Literal["speed"] = Field(description="What is measured.")
    deployment: _Deployment = None
    callback_url: _Told = None


class CapacityAsk(CapacitySpec):
    """The highest rate of requests at which a deployment holds its SLOs."""

    kind: Literal["capacity"] = Field(description="What is measured.")
    deployment: _Deployment = None
    callback_url: _Told = None


class QualityAsk(BaseModel):
    """How good a deployment's answers to a golden set are."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["quality"] = Field(description="What is measured.")
    golden: Name = Field(description="A golden set's name; the newest import of it is meant.")
    deployment: _Deployment = None
    callback_url: _Told = None


class PairwiseAsk(BaseModel):
    """Whose answers the judge prefers, of two quality runs on the same golden set."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["pairwise"] = Field(description="What is measured.")
    a: str = Field(description="A quality run that has succeeded, such as `benchmark_7`.")
    b: str = Field(description="Another, on the same golden set.")
    callback_url: _Told = None


Ask = SpeedAsk | CapacityAsk | QualityAsk | PairwiseAsk


class BenchmarkCreate(RootModel[Annotated[Ask, Field(discriminator="kind")]]):
    """What the fleet is to measure of itself."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={"examples": [{"kind": "speed", "requests": 64}, {"kind": "quality", "golden": "gsm8k"}]},
    )


_NOT_SPEC = {"kind", "deployment", "callback_url"}


def parse_ask(raw: bytes) -> Ask:
    """Raises RequestError that names the field."""
    refuse_nul(raw)
    try:
        return BenchmarkCreate.model_validate_json(raw).root
    except ValidationError as error:
        raise _refused(error) from None


def asked_runs(ask: Ask, catalog: Catalog, store: Store) -> list[NewRun]:
    """The runs to make: one for each deployment. Raises RequestError, or NotFoundError for a golden set or a run that
    is not there."""
    if isinstance(ask, PairwiseAsk):
        return [_pair(ask, catalog, store)]
    kind = RunKind(ask.kind)
    set_id = golden.find_set(store, ask.golden).id if isinstance(ask, QualityAsk) else None
    if not isinstance(ask, QualityAsk) and ask.category is not None and ask.category not in catalog.categories:
        raise RequestError(f"'{ask.category}' is not a category: {', '.join(catalog.categories)}", param="category")
    spec = ask.model_dump(mode="json", exclude=_NOT_SPEC, exclude_none=True)
    return [
        NewRun(kind, name, spec, golden_set_id=set_id, callback_url=_text(ask.callback_url))
        for name in measurable(catalog, None if ask.deployment is None else [ask.deployment])
    ]


def scheduled_runs(
    schedule: BenchmarkSchedule, catalog: Catalog, store: Store, *, name: str, slot: datetime
) -> list[NewRun]:
    """The runs of one slot. Raises NotFoundError for a golden set that nobody has imported."""
    kind = RunKind(schedule.run)
    sets: list[tuple[dict[str, Any], int | None]] = [
        ({"golden": one}, golden.find_set(store, one).id) for one in schedule.golden
    ]
    return [
        NewRun(kind, deployment, spec, golden_set_id=set_id, schedule=name, slot=slot)
        for deployment in measurable(catalog, schedule.deployments)
        for spec, set_id in sets or [({}, None)]
    ]


def measurable(catalog: Catalog, names: Iterable[str] | None) -> list[str]:
    """These deployments, or all that serve text. Raises RequestError for one that there is not, or that does not."""
    if names is None:
        return [name for name, deployment in catalog.deployments.items() if deployment.serves == "text"]
    found = list(names)
    for name in found:
        if name not in catalog.deployments:
            known = ", ".join(catalog.deployments)
            raise RequestError(f"'{name}' is not a deployment: {known}", param="deployment")
        if catalog.deployments[name].serves != "text":
            raise RequestError(f"'{name}' serves embeddings: only text is measured", param="deployment")
    return found


def _refused(error: ValidationError) -> RequestError:
    """A fault of one kind's fields is named without the kind, which stands in the request."""
    if error.errors()[0]["type"].startswith("union_tag"):
        return RequestError(f"expected one of {', '.join(RunKind)}", param="kind")
    found = refusal(error)
    _, _, field = (found.param or "").partition(".")
    return RequestError(found.message, param=field or None)


def _text(url: AnyHttpUrl | None) -> str | None:
    return None if url is None else str(url)


def _pair(ask: PairwiseAsk, catalog: Catalog, store: Store) -> NewRun:
    judge = catalog.benchmarks.judge
    if judge is None:
        raise RequestError("the catalog names no benchmarks.judge, who would compare them", param="kind")
    a, b = (_quality_run(store, name, field) for name, field in ((ask.a, "a"), (ask.b, "b")))
    if a.id == b.id:
        raise RequestError("is the same run", param="b")
    if a.golden_set_id != b.golden_set_id:
        raise RequestError("is of another golden set: their answers cannot be compared", param="b")
    url = _text(ask.callback_url)
    spec = {"a": a.id, "b": b.id, "judge": judge.deployment}
    return NewRun(RunKind.PAIRWISE, a.deployment, spec, a.golden_set_id, url)


def _quality_run(store: Store, name: str, field: str) -> BenchmarkRun:
    try:
        run = benchmarks.get(store, internal(KIND, name))
    except NotFoundError as error:
        raise NotFoundError(str(error), param=field) from None
    if run.kind != RunKind.QUALITY or run.state != RunState.SUCCEEDED:
        raise ConflictError(f"{name} is no quality run that has succeeded ({run.kind}, {run.state})", param=field)
    return run
