"""The questions of a run in a fleet: whom they go to, whether these say how sure they are, and the line of a batch that
asks each. What is checked here when a run is made is what its worker counts on."""

from __future__ import annotations

from typing import Any

import orjson

from tieryard.admission import Admission
from tieryard.catalog import Catalog
from tieryard.classification import gates, prompts, thresholds
from tieryard.errors import ModelNotFoundError, RequestError
from tieryard.requests import Request, parse_job
from tieryard.requests.classification import TRUTH, ClassificationSpec

_CLASS = "class:"


def models_of(spec: ClassificationSpec) -> dict[str, str]:
    """Whom a run may ask, by the field that says so."""
    found = {"model": spec.model}
    if spec.escalate is not None:
        found["escalate.model"] = spec.escalate.model
    if spec.gate is not None and spec.gate.judge != TRUTH:
        found["gate.judge"] = spec.gate.judge
    return found


def check(spec: ClassificationSpec, admission: Admission, *, tenant: str = "") -> None:
    """Raises RequestError, with the field, for a run that could not be: what no question can be made of, a model that
    is not served or lacks what is needed, a sample that is too small to show anything."""
    prompts.check(spec)
    admission.check_tier(spec.tier)
    if spec.gate is not None:
        gates.check_rows(spec.gate.rows, spec.gate.min_agreement)
    if spec.escalate is not None and spec.escalate.calibrate is not None:
        thresholds.check_texts(spec.escalate.calibrate.rows, spec.escalate.calibrate.max_drop)
    for field, model in models_of(spec).items():
        if field != "model" and model not in admission.catalog.deployments:
            known = ", ".join(f"'{name}'" for name in admission.catalog.deployments)
            raise ModelNotFoundError(f"'{model}' is not a deployment; expected one of {known}", param=field)
        if field != "model" and _may_take(admission.catalog, spec.model, tenant) == [model]:
            raise RequestError(f"'{model}' is the model that is asked first: name another", param=field)
        unsure = field == "model" and spec.escalate is not None and not says_how_sure(admission, model, tenant=tenant)
        if unsure:
            raise RequestError(
                f"a cascade goes by how sure '{model}' is, and not all that it may be served by have the capability "
                "'logprobs': name a model that has it",
                param=field,
            )
        check_model(spec, model, admission, tenant=tenant, field=field)


def check_model(spec: ClassificationSpec, model: str, admission: Admission, *, tenant: str, field: str) -> None:
    """Raises RequestError where not even the shortest text could be asked of this model."""
    try:
        bare = parse(line(spec, 0, "a", model=model, logprobs=says_how_sure(admission, model, tenant=tenant)))
        admission.check(bare, callbacks=False, tenant=tenant)
    except RequestError as error:
        raise type(error)(error.message, param=field) from None


def says_how_sure(admission: Admission, model: str, *, tenant: str) -> bool:
    """Whether every deployment that may take the questions gives logprobs. Asking for them where only some do would
    keep the others from being chosen."""
    may_take = _may_take(admission.catalog, model, tenant)
    return all("logprobs" in admission.catalog.deployments[name].capabilities for name in may_take)


def _may_take(catalog: Catalog, model: str, tenant: str) -> list[str]:
    if model in catalog.deployments:
        return [model]
    policy = catalog.routing.policies.get(tenant)
    wanted = model.removeprefix(_CLASS) if model.startswith(_CLASS) else None
    return [
        name
        for name, each in catalog.deployments.items()
        if each.serves == "text" and not each.named_only and "json_schema" in each.capabilities
        and (wanted is None or each.size_class == wanted)
        and (policy is None or policy.allows(name, each.region))
    ]  # fmt: skip


def line(spec: ClassificationSpec, text_no: int, text: str, *, model: str, logprobs: bool) -> str:
    """A native job, as a line of a batch: its `custom_id` is the number of the text in its run."""
    asked: dict[str, Any] = prompts.body(spec, text, model=model, logprobs=logprobs)
    return orjson.dumps({**asked, "tier": spec.tier, "custom_id": str(text_no)}).decode()


def parse(asked: str) -> Request:
    """A line as the fleet will read it."""
    return parse_job(asked)
