"""How much a tenant may have waiting: prompt tokens of its unfinished jobs and batches, against its cap."""

from __future__ import annotations

import math

from tieryard.errors import LimitError
from tieryard.store.connection import Connection

_RETRY_S = 60.0

# The tenant's row is the lock: two submissions at once are counted one after the other.
_CAP = "SELECT max_enqueued_tokens FROM tenant WHERE id = %s FOR UPDATE"
_WAITING = """
SELECT (SELECT coalesce(sum(enqueued_tokens), 0) FROM batch WHERE tenant_id = %(tenant)s AND finished_at IS NULL)
     + (SELECT coalesce(sum(enqueued_tokens), 0) FROM job
        WHERE batch_id IS NULL AND finished_at IS NULL AND tenant_id = %(tenant)s)
"""


def admit(connection: Connection, tenant_id: int, tokens: int) -> None:
    """In the transaction that saves them. Raises LimitError when the tenant's cap has no room for `tokens` more; its
    `retry_after_s` is infinite when they exceed the cap alone."""
    row = connection.execute(_CAP, [tenant_id]).fetchone()
    cap = row[0] if row else None
    if cap is None:
        return
    waiting = connection.execute(_WAITING, {"tenant": tenant_id}).fetchone()
    assert waiting is not None
    if waiting[0] + tokens > cap:
        never = tokens > cap
        raise LimitError(
            f"this needs {tokens:,} prompt tokens; the tenant may have {cap:,} enqueued and has {waiting[0]:,}: "
            f"{'split it' if never else 'try again when some are done'}, or raise the cap with `tieryard tenants cap`",
            code="token_limit_exceeded",
            retry_after_s=math.inf if never else _RETRY_S,
        )
