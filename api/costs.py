"""Shows what was spent. A tenant sees what it pays; a key with the scope `operate` sees all tenants and the fleet's own
costs. Everything comes from the ledger, and amounts are text with every digit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from api.shapes import ERRORS, Usd
from api.state import ReadDep, State, StateDep
from tieryard.costs import export, reporting
from tieryard.costs.reporting import CostRow, Costs, Invoice, InvoiceLine
from tieryard.costs.windows import Kind
from tieryard.errors import ScopeError
from tieryard.store import costs as ledger
from tieryard.store.invoices import invoice_of
from tieryard.store.keys import Holder, Scope, tenant_id_of

router = APIRouter(prefix="/v1", tags=["costs"], responses=ERRORS)

_MOST = 10_000
_FILES: dict[str, tuple[str, Callable[[Sequence[Mapping[str, Any]], Sequence[str]], bytes]]] = {
    "csv": ("text/csv; charset=utf-8", export.as_csv),
    "parquet": ("application/vnd.apache.parquet", export.as_parquet),
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind, _ in _FILES.values()}}
}
_FormatQuery = Annotated[
    Literal["json", "csv", "parquet"],
    Query(description="A file has the groups alone; a header says where it has not all of them."),
]
_TenantQuery = Annotated[
    str | None, Query(description="Only what this tenant pays; another than yours needs the scope `operate`.")
]


class CostFigures(BaseModel):
    """`jobs` were charged, `succeeded` of them did, and tokens are theirs; `other_tokens` are of starts that failed and
    of benchmarks. Unit costs are of all that the group cost; null by nothing."""

    jobs: int
    succeeded: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    other_tokens: int
    cost_usd: Usd
    usd_per_1k_tokens: Usd | None
    usd_per_job: Usd | None
    usd_per_successful_job: Usd | None
    estimated_usd: Usd = Field(description="Of `cost_usd`: what windows that are not closed may still change.")
    by_kind: dict[Kind, Usd]

    @classmethod
    def of(cls, row: CostRow, **more: Any) -> Self:
        return cls(**reporting.figures(row), by_kind=row.by_kind, **more)


class CostGroup(CostFigures):
    """The figures of one group; a value that its rows do not have is null."""

    group: dict[str, str | None]


class CostsPublic(BaseModel):
    """Costs by group, and as a whole. `truncated`: `total` holds more groups than are listed."""

    object: Literal["costs"] = "costs"
    since: datetime
    until: datetime
    group_by: list[str]
    open_windows: int = Field(description="Rent windows not closed: their warm-up and idle are estimates.")
    total: CostFigures
    data: list[CostGroup]
    truncated: bool

    @classmethod
    def of(cls, found: Costs) -> Self:
        return cls(
            since=found.span.since,
            until=found.span.until,
            group_by=[str(one) for one in found.dimensions],
            open_windows=found.open_windows,
            total=CostFigures.of(found.total),
            data=[CostGroup.of(row, group=row.group) for row in found.rows],
            truncated=found.truncated,
        )


class InvoiceLinePublic(BaseModel):
    """`kind` is `inference`, or `adjustment` for what was put right by hand, which has no jobs."""

    kind: str
    tier: str | None
    deployment: str | None
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    amount_usd: Usd
    note: str | None = Field(description="Why something was put right by hand.")

    @classmethod
    def of(cls, line: InvoiceLine) -> Self:
        return cls(**{name: getattr(line, name) for name in cls.model_fields})


class InvoicePublic(BaseModel):
    """A tenant's month. `complete`: it is over, and nothing more comes."""

    object: Literal["invoice"] = "invoice"
    tenant: str
    month: str
    since: datetime
    until: datetime
    complete: bool
    lines: list[InvoiceLinePublic]
    total_usd: Usd

    @classmethod
    def of(cls, found: Invoice) -> Self:
        return cls(
            tenant=found.tenant,
            month=found.month,
            since=found.span.since,
            until=found.span.until,
            complete=found.complete,
            lines=[InvoiceLinePublic.of(line) for line in found.lines],
            total_usd=found.total_usd,
        )


@router.get("/costs", response_model=CostsPublic, responses=_ANSWERS)
def get_costs(
    state: StateDep,
    holder: ReadDep,
    group_by: Annotated[
        str, Query(description="Of day, deployment, tenant, category, tier, batch, kind, key: several by commas.")
    ] = "day,deployment",
    since: Annotated[
        str, Query(description="A UTC day, a time, or a duration back; `7d` are today and six days before.")
    ] = reporting.DEFAULT_SINCE,
    until: Annotated[str | None, Query(description="The same, itself not included. Default: now.")] = None,
    tenant: _TenantQuery = None,
    limit: Annotated[int, Query(ge=1, le=_MOST, description="Most groups.")] = _MOST,
    format: _FormatQuery = "json",  # noqa: A002
) -> CostsPublic | Response:
    """What was spent, by group. You see what you pay: jobs, and what was put right by hand. With the scope `operate`
    you see all tenants, and what the fleet pays itself: failed starts, warm-up, idle, benchmarks, overhead."""
    span = reporting.read_span(since, until, datetime.now(UTC))
    dimensions = reporting.read_dimensions(group_by, param="group_by")
    found = ledger.costs(state.store, span, dimensions, tenant_id=_whose(state, holder, tenant), most=limit)
    if format == "json":
        return CostsPublic.of(found)
    media_type, made = _FILES[format]
    columns = [*map(str, dimensions), *reporting.FIGURES, *reporting.KIND_COLUMNS]
    headers = {"content-disposition": f'attachment; filename="costs.{format}"'}
    if found.truncated:
        headers["x-tieryard-truncated"] = "true"
    return Response(made(reporting.flat(found.rows), columns), media_type=media_type, headers=headers)


@router.get("/invoices/{month}")
def get_invoice(state: StateDep, holder: ReadDep, month: str, tenant: _TenantQuery = None) -> InvoicePublic:
    """Your invoice for a UTC month, such as 2026-11: by tier and deployment, to the last digit of its ledger rows."""
    named, span = reporting.read_month(month, datetime.now(UTC))
    if tenant is not None:
        _check_may_name(tenant, holder)
    return InvoicePublic.of(invoice_of(state.store, holder.tenant if tenant is None else tenant, named, span))


def _whose(state: State, holder: Holder, tenant: str | None) -> int | None:
    """The tenant to show, by its id; None: all of them. Raises ScopeError and NotFoundError."""
    if tenant is not None:
        _check_may_name(tenant, holder)
        return tenant_id_of(state.store, tenant)
    return None if Scope.OPERATE in holder.scopes else holder.tenant_id


def _check_may_name(tenant: str, holder: Holder) -> None:
    if tenant != holder.tenant and Scope.OPERATE not in holder.scopes:
        has = ", ".join(sorted(holder.scopes))
        raise ScopeError(f"needs a key with the scope '{Scope.OPERATE}'; this key's scopes: {has}", param="tenant")
