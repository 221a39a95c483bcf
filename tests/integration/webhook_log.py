"""Deliveries as the callback worker leaves them, without it: to any endpoint, in any state, of any age."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tieryard.store import Store

Owe = Callable[..., list[str]]
Attempts = Sequence[tuple[int | None, str | None, str | None]]


def owe_deliveries(store: Store) -> Owe:
    """Makes `n` deliveries, oldest first: their ids. `webhook` None: to a callback address, of `tenant`."""

    def owe(
        webhook: str | None,
        *,
        n: int = 1,
        event: str = "job.completed",
        outcome: str = "pending",
        attempts: Attempts = (),
        days_ago: float = 0,
        url: str | None = None,
        tenant: str = "tests",
    ) -> list[str]:
        return [_one(store, webhook, event, outcome, attempts, days_ago, url, tenant) for _ in range(n)]

    return owe


def _one(
    store: Store,
    webhook: str | None,
    event: str,
    outcome: str,
    attempts: Attempts,
    days_ago: float,
    url: str | None,
    tenant: str,
) -> str:
    given = {
        "endpoint": int(webhook.partition("_")[2]) if webhook is not None else None,
        "event": event,
        "settled": outcome != "pending",
        "delivered": outcome == "delivered",
        "ago": days_ago,
        "url": url,
        "tenant": tenant,
        "attempts": len(attempts),
        "status": attempts[-1][0] if attempts else None,
        "error": attempts[-1][1] if attempts else None,
    }
    [[number]] = store.fetch(
        """
        WITH owner AS (
            INSERT INTO tenant (name) VALUES (%(tenant)s) ON CONFLICT (name) DO UPDATE SET name = excluded.name
            RETURNING id
        ), moment AS (
            SELECT id AS tenant_id, now() - %(ago)s * interval '1 day' AS at FROM owner
        ), event AS (
            INSERT INTO outbox (tenant_id, event, subject_id, created_at, fanned_at)
            SELECT tenant_id, %(event)s, 1, at, at FROM moment RETURNING id
        ), made AS (
            INSERT INTO delivery_lane (tenant_id, origin)
            SELECT tenant_id, 'https://hooks.example.com' FROM moment WHERE %(endpoint)s::bigint IS NULL
            ON CONFLICT (tenant_id, origin) DO UPDATE SET origin = excluded.origin RETURNING id
        ), lane AS (
            SELECT id FROM made UNION SELECT id FROM delivery_lane WHERE endpoint_id = %(endpoint)s
        )
        INSERT INTO delivery (tenant_id, outbox_id, lane_id, endpoint_id, url, created_at, first_due_at, next_at,
                              attempts, last_status, last_error, settled_at, delivered_at)
        SELECT tenant_id, event.id, lane.id, %(endpoint)s, %(url)s, at, at, at, %(attempts)s, %(status)s, %(error)s,
               CASE WHEN %(settled)s THEN at END, CASE WHEN %(delivered)s THEN at END
        FROM moment, event, lane RETURNING id
        """,
        given,
    )
    for place, (status, error, answer) in enumerate(attempts, start=1):
        store.fetch(
            "INSERT INTO delivery_attempt (delivery_id, attempt, status, latency_ms, error, answer, address) "
            "VALUES (%(id)s, %(place)s, %(status)s, 12.5, %(error)s, %(answer)s, '93.184.216.34') RETURNING attempt",
            {"id": number, "place": place, "status": status, "error": error, "answer": answer},
        )
    return f"delivery_{number}"
