"""A tenant's invoice for a month."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tieryard.costs.reporting import Invoice, Span
from tieryard.errors import RequestError
from tieryard.store import costs
from tieryard.store.connection import Store
from tieryard.store.keys import SYSTEM_TENANTS, tenant_id_of

_SETTLED_AFTER = timedelta(minutes=10)
"""No transaction that has begun in the month is still open then."""


def invoice_of(store: Store, tenant: str, month: str, span: Span) -> Invoice:
    """Raises NotFoundError, and RequestError for a tenant of the system's own."""
    if (holds := SYSTEM_TENANTS.get(tenant)) is not None:
        raise RequestError(f"'{tenant}' {holds}: nobody pays for it", param="tenant")
    lines = costs.invoice_lines(store, span, tenant_id_of(store, tenant))
    return Invoice(tenant, month, span, lines, datetime.now(UTC) > span.until + _SETTLED_AFTER)
