"""Adjustments by hand: a credit or a further charge, one ledger row without a window, with a note that says why."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from tieryard.errors import NotFoundError, UserError
from tieryard.store.connection import Connection, Store, storable
from tieryard.store.keys import SYSTEM_TENANTS, find_key, find_tenant
from tieryard.store.system_tenants import system_tenant
from tieryard.store.windows import RENT_TENANT

KIND = "adjustment"

_MOST_USD = Decimal(10) ** 9
_STEP_USD = Decimal("1E-12")  # the ledger's last digit
_LONGEST_WHY = 500

_POST = """
INSERT INTO ledger (job_id, fence, kind, tenant_id, api_key_id, deployment, prompt_tokens, completion_tokens, cost_usd,
                    catalog, note)
VALUES (%(id)s, 0, 'adjustment', %(tenant)s, %(key)s, %(deployment)s, 0, 0, %(usd)s, 'by hand', %(why)s)
"""

_KNOWN = """
SELECT EXISTS (SELECT FROM rent_window WHERE deployment = %(name)s)
       OR EXISTS (SELECT FROM ledger WHERE deployment = %(name)s)
"""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One to post, as it was asked for: names and text, not looked up yet. A negative `usd` is a credit."""

    tenant: str
    usd: Decimal
    why: str
    key: str | None = None
    deployment: str | None = None


def post(store: Store, wanted: Adjustment) -> int:
    """Its id. It counts from now on; no budget counts it. Raises UserError with the field at fault, NotFoundError for
    an unknown tenant, key or deployment."""
    usd, why = _usd(wanted.usd), _why(wanted.why)
    number = store.reserve_ids(1)
    with store.transaction() as connection:
        tenant_id = _tenant(connection, wanted.tenant)
        key_id = _key(connection, tenant_id, wanted)
        if wanted.deployment is not None:
            _check_deployment(connection, wanted.deployment)
        row = {"id": number, "tenant": tenant_id, "key": key_id, "deployment": wanted.deployment}
        connection.execute(_POST, row | {"usd": usd, "why": why})
    return number


def _usd(usd: Decimal) -> Decimal:
    if not usd.is_finite() or not usd or abs(usd) >= _MOST_USD:
        raise UserError(f"{usd} is no adjustment: give USD, not 0 and below {_MOST_USD:,}", param="usd")
    if usd != usd.quantize(_STEP_USD):
        raise UserError(f"{usd} is too fine: the ledger has 12 digits after the point", param="usd")
    return usd


def _why(text: str) -> str:
    why = storable(" ".join(text.split()))
    if not why or len(why) > _LONGEST_WHY:
        raise UserError(f"say why, in 1 to {_LONGEST_WHY} characters: the invoice shows it", param="why")
    return why


def _tenant(connection: Connection, name: str) -> int:
    """Of the system's own tenants, the one that holds rent: what a provider's bill has beside the windows."""
    if name == RENT_TENANT:
        return system_tenant(connection, name)
    if (holds := SYSTEM_TENANTS.get(name)) is not None:
        raise UserError(f"'{name}' {holds}; what the fleet pays itself is {RENT_TENANT}'s", param="tenant")
    return find_tenant(connection, name)


def _key(connection: Connection, tenant_id: int, wanted: Adjustment) -> int | None:
    """Also one that is revoked: what it has spent stays."""
    if wanted.key is None:
        return None
    return find_key(connection, tenant_id, wanted.key, tenant=wanted.tenant, revoked=True)


def _check_deployment(connection: Connection, name: str) -> None:
    [(known,)] = connection.execute(_KNOWN, {"name": storable(name)}).fetchall()
    if not known:
        raise NotFoundError(f"nothing was ever charged or rented for '{name}'", param="deployment")
