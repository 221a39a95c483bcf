"""What a request may name as its `model`: `auto`, size classes, and deployments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.shapes import ERRORS
from api.state import AnyDep, State, StateDep
from tieryard.catalog import Deployment, Policy
from tieryard.errors import ModelNotFoundError
from tieryard.store.keys import Holder

router = APIRouter(prefix="/v1", tags=["models"], responses=ERRORS)


class ModelPublic(BaseModel):
    """A model in OpenAI's shape. What follows `owned_by` is Tieryard's own: of a deployment, or of the best of those
    that `auto` or a class may choose from."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["tieryard"] = "tieryard"

    size_class: str | None = Field(description="None for `auto`.")
    context_limit: int = Field(description="Tokens: prompt and completion together.")
    capabilities: list[str]
    serves: list[str] = Field(description="`text`, `embeddings`, or both.")
    live: bool = Field(description="Whether a replica is serving now.")


class ModelPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelPublic]


@router.get("/models")
def list_models(state: StateDep, holder: AnyDep) -> ModelPage:
    """All names that a request of yours may give as its `model`."""
    return ModelPage(data=list(_models(state, holder)))


@router.get("/models/{model:path}")
def get_model(state: StateDep, holder: AnyDep, model: str) -> ModelPublic:
    """One of them."""
    for known in _models(state, holder):
        if known.id == model:
            return known
    raise ModelNotFoundError(f"'{model}' is not served", param="model")


def _models(state: State, holder: Holder) -> Iterable[ModelPublic]:
    """Of what its tenant's policy, if there is one, lets it use."""
    policy = state.catalog.routing.policies.get(holder.tenant, Policy())
    deployments = {name: d for name, d in state.catalog.deployments.items() if policy.allows(name, d.region)}
    chosen = {name: d for name, d in deployments.items() if not d.named_only}
    if chosen:
        yield _model(state, "auto", chosen, None)
    for size in sorted({str(d.size_class) for d in chosen.values()}):
        yield _model(state, f"class:{size}", {n: d for n, d in chosen.items() if d.size_class == size}, size)
    for name, deployment in deployments.items():
        yield _model(state, name, {name: deployment}, deployment.size_class)


def _model(state: State, name: str, among: dict[str, Deployment], size_class: str | None) -> ModelPublic:
    replicas = state.calls.snapshots.live.replicas
    return ModelPublic(
        id=name,
        created=int(state.in_force.applied_at),
        size_class=size_class,
        context_limit=max(d.context_limit for d in among.values()),
        capabilities=sorted({c for d in among.values() for c in d.capabilities}),
        serves=sorted({d.serves for d in among.values()}),
        live=any(replicas.get(n) for n in among),
    )
