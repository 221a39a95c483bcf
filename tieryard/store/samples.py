"""Requests that tenants have agreed to be measured with: read here and nowhere else, and of nobody who has not."""

from __future__ import annotations

from collections.abc import Collection

from tieryard.store.connection import Store

MOST_LOOKED_AT = 5000
"""Of a tenant's newest jobs: a sample of recent traffic is wanted, and a rare category must not cost a scan of all."""

# A row comparison, and the order by both columns, leave nothing but `job_by_tenant` to read by: for `tenant_id =` the
# planner may go back through everybody's jobs. Of those chosen the lines are looked up one by one.
_RECENT = """
WITH recent AS (
    SELECT latest.id, latest.source_id, latest.line_no, latest.category
    FROM tenant CROSS JOIN LATERAL (
        SELECT id, source_id, line_no, category, state, deployment FROM job
        WHERE (job.tenant_id, job.id) >= (tenant.id, 0) AND (job.tenant_id, job.id) < (tenant.id + 1, 0)
        ORDER BY job.tenant_id DESC, job.id DESC LIMIT %(look)s
    ) AS latest
    WHERE tenant.name = ANY(%(tenants)s) AND latest.state = 'succeeded' AND latest.category = ANY(%(categories)s)
      AND NOT coalesce(latest.deployment = ANY(%(passed)s), false)
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY category ORDER BY id DESC) AS place FROM recent
)
SELECT category, (SELECT body FROM line WHERE line.source_id = ranked.source_id AND line.line_no = ranked.line_no)
FROM ranked WHERE place <= %(each)s
ORDER BY category, place
"""


def recent_requests(
    store: Store, *, tenants: Collection[str], categories: Collection[str], passed: Collection[str], each: int
) -> list[tuple[str, str]]:
    """(category, stored line) of jobs of these tenants that succeeded, newest first, at most `each` of a category.
    `passed` are deployments of which none are wanted: those of embeddings."""
    if not tenants:
        return []
    wanted = {
        "tenants": list(tenants),
        "categories": list(categories),
        "passed": list(passed),
        "each": each,
        "look": MOST_LOOKED_AT,
    }
    return [(row[0], row[1]) for row in store.fetch(_RECENT, wanted) if row[1] is not None]
