"""Receives golden sets, which deployments' answers are measured on, and shows them. For operators and their programs.
Next: `POST /v1/benchmarks` with `kind: quality` names one."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from api.shapes import ERRORS
from api.state import BenchmarkDep, BenchmarkReadDep, State, StateDep
from tieryard.golden import GoldenSet, advice, parse_golden
from tieryard.golden.saving import load, save
from tieryard.store import golden
from tieryard.store.golden import SetRow

PATH = "/v1/golden_sets"
router = APIRouter(prefix=PATH, tags=["benchmarks"], responses=ERRORS)

_EXAMPLE = '{"id": "a1", "category": "chat", "prompt": "Capital of Peru?", "expected": "Lima", "scorer": "exact"}'
_BODY = {
    "requestBody": {
        "required": True,
        "description": "One item a line.",
        "content": {"application/x-ndjson": {"schema": {"type": "string", "examples": [_EXAMPLE]}}},
    }
}


class GoldenSetPublic(BaseModel):
    """A set as it was imported last. `counts` are items by category."""

    object: Literal["golden_set"] = "golden_set"
    name: str
    hash: str
    items: int
    counts: dict[str, int]
    imported_at: datetime

    @classmethod
    def of(cls, row: SetRow, **more: Any) -> Self:
        shown = {name: getattr(row, name) for name in GoldenSetPublic.model_fields if name != "object"}
        return cls(**shown, **more)


class GoldenSetWhole(GoldenSetPublic):
    """`advice` is what its size allows to be said; `bodies` are its items, where they were asked for."""

    advice: list[str]
    bodies: list[dict[str, Any]] | None = None


class GoldenSetList(BaseModel):
    """By name."""

    object: Literal["list"] = "list"
    data: list[GoldenSetPublic]


@router.post("", openapi_extra=_BODY)
async def import_golden_set(
    request: Request,
    state: StateDep,
    holder: BenchmarkDep,  # noqa: ARG001
    name: Annotated[str, Query(max_length=64, description="What it is called; the newest import is meant by it.")],
) -> GoldenSetWhole:
    """Takes a set whole, or refuses it with the line and field of each fault. The same content is the same set, however
    often it is sent."""
    return await run_in_threadpool(_import, state, name, await request.body())


@router.get("")
def list_golden_sets(state: StateDep, holder: BenchmarkReadDep) -> GoldenSetList:  # noqa: ARG001
    """All sets, by name."""
    return GoldenSetList(data=[GoldenSetPublic.of(row) for row in golden.list_sets(state.store)])


@router.get("/{name}")
def get_golden_set(
    state: StateDep,
    holder: BenchmarkReadDep,  # noqa: ARG001
    name: str,
    items: Annotated[bool, Query(description="With its items.")] = False,
) -> GoldenSetWhole:
    """A set, as it was imported last."""
    row = golden.find_set(state.store, name)
    return _whole(row, load(state.store, row), items=items)


def _import(state: State, name: str, body: bytes) -> GoldenSetWhole:
    found = parse_golden(body.split(b"\n"), name=name, categories=state.catalog.categories)
    row, _ = save(state.store, found)
    return _whole(row, found, items=False)


def _whole(row: SetRow, found: GoldenSet, *, items: bool) -> GoldenSetWhole:
    bodies = [item.canonical() for item in found.items] if items else None
    return GoldenSetWhole.of(row, advice=advice(found), bodies=bodies)
