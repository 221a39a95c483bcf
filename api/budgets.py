"""Shows tenants what they may spend, and what they have; sets it for operators.
Next: `tieryard/store/budgets.py` reserves and settles."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Query, Response
from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field

from api.shapes import ERRORS, Usd
from api.state import AnyDep, OperateDep, StateDep
from tieryard.errors import RequestError, ScopeError
from tieryard.ids import public
from tieryard.store import budgets
from tieryard.store.budgets import BudgetRow, Period, Wanted
from tieryard.store.keys import Scope

PATH = "/v1/budgets"
router = APIRouter(prefix=PATH, tags=["budgets"], responses=ERRORS)


class BudgetPut(BaseModel):
    """A budget to set. One of the same tenant, key and period is changed."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    tenant: str = Field(min_length=1, description="Whose, by name.")
    key: str | None = Field(default=None, description="One of its keys, such as `key_7`. Default: all together.")
    period: Period = Field(description="UTC.")
    limit_usd: Decimal = Field(ge=0, max_digits=30, description="USD; better as a string, which no JSON reader rounds.")
    hard: bool = Field(default=True, description="Whether it refuses what it does not cover, or only tells.")
    alert_url: AnyHttpUrl | None = Field(default=None, description="Told at 50, 80 and 100 %.")


class BudgetPublic(BaseModel):
    """A budget with its period of today."""

    id: str
    object: Literal["budget"] = "budget"
    tenant: str
    key: str | None
    period: str
    limit_usd: Usd
    hard: bool
    alert_url: str | None
    spent_usd: Usd
    reserved_usd: Usd
    left_usd: Usd
    resets_at: datetime

    @classmethod
    def of(cls, row: BudgetRow) -> Self:
        key = public("key", row.api_key_id) if row.api_key_id is not None else None
        same = ("tenant", "period", "limit_usd", "hard", "alert_url", "spent_usd", "reserved_usd", "left_usd")
        shared = {name: getattr(row, name) for name in (*same, "resets_at")}
        return cls(id=public(budgets.KIND, row.id), key=key, **shared)


class BudgetList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BudgetPublic]


@router.get("")
def list_budgets(
    state: StateDep,
    holder: AnyDep,
    tenant: Annotated[str | None, Query(description="Another tenant's, by name: with the scope `operate`.")] = None,
) -> BudgetList:
    """Your tenant's budgets: what is spent and reserved of each in its period of today. Any key may ask."""
    if tenant is None or tenant == holder.tenant:
        rows = budgets.list_budgets(state.store, tenant_id=holder.tenant_id)
    elif Scope.OPERATE not in holder.scopes:
        raise ScopeError(f"another tenant's budgets need a key with the scope '{Scope.OPERATE}'")
    else:
        rows = budgets.tenant_budgets(state.store, _storable(tenant, "tenant"))
    return BudgetList(data=[BudgetPublic.of(row) for row in rows])


@router.put("")
def set_budget(state: StateDep, holder: OperateDep, wanted: BudgetPut) -> BudgetPublic:  # noqa: ARG001
    """Sets a budget of any tenant, or of one of its keys. Binds within a second."""
    if wanted.alert_url is not None and not state.signs_callbacks:
        raise RequestError("callbacks are off: this fleet has no TIERYARD_WEBHOOK_SECRET", param="alert_url")
    row = budgets.set_budget(
        state.store,
        Wanted(
            _storable(wanted.tenant, "tenant"),
            wanted.limit_usd,
            wanted.period,
            key=wanted.key,
            hard=wanted.hard,
            alert_url=str(wanted.alert_url) if wanted.alert_url is not None else None,
        ),
    )
    return BudgetPublic.of(row)


@router.delete("/{budget_id}", status_code=204)
def remove_budget(state: StateDep, holder: OperateDep, budget_id: str) -> Response:  # noqa: ARG001
    """Removes a budget, whatever is reserved of it."""
    budgets.remove(state.store, budget_id)
    return Response(status_code=204)


def _storable(text: str, param: str) -> str:
    if "\x00" in text:
        raise RequestError("holds a NUL", param=param)
    return text
