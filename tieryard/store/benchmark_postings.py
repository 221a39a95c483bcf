"""What benchmark runs used, posted to the rent windows that they used it in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import orjson

from tieryard.store.finish import HELD, windows_of


@dataclass(frozen=True, slots=True)
class Posting:
    """What a run used, for the ledger: a row each for what it used in one rent window, or where nothing is rented.
    `id` is a row's own, of the store's ids; the first may go without and has the run's."""

    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal
    tier: str
    catalog: str
    cached_tokens: int = 0
    window_id: int | None = None
    id: int | None = None


# Of the run that is `ended`: over, or put off. As in tieryard.store.finish, a window is held while it is posted to, and
# what comes after its closing is balanced.
BILLED = f"""{HELD}, posting AS (
    SELECT ended.tenant_id, ended.fence, ended.deployment, held.id AS window_id, held.closed,
           coalesce(b.id, ended.id) AS id, b.tier, b.prompt_tokens, b.cached_tokens, b.completion_tokens, b.cost_usd,
           b.catalog
    FROM ended CROSS JOIN jsonb_to_recordset(%(postings)s::jsonb)
        AS b (id bigint, tier text, prompt_tokens int, cached_tokens int, completion_tokens int, cost_usd numeric,
              window_id bigint, catalog text)
    LEFT JOIN held ON held.id = b.window_id
), billed AS (
    INSERT INTO ledger (job_id, fence, kind, tenant_id, tier, deployment, prompt_tokens, cached_tokens,
                        completion_tokens, cost_usd, catalog, window_id)
    SELECT id, fence, 'benchmark', tenant_id, tier, deployment, prompt_tokens, cached_tokens, completion_tokens,
           cost_usd, catalog, window_id
    FROM posting
), balanced AS (
    INSERT INTO ledger (job_id, fence, kind, tenant_id, tier, deployment, prompt_tokens, completion_tokens, cost_usd,
                        catalog, window_id)
    SELECT id, fence, 'adjustment', tenant_id, tier, deployment, 0, 0, -cost_usd, catalog, window_id
    FROM posting WHERE closed
)"""  # noqa: S608  # a part of ours

# What postings are found by again, from the run that they are of.
POSTED = "posting_ids = posting_ids || %(posting_ids)s::bigint[]"


def to_post(postings: Sequence[Posting]) -> dict[str, Any]:
    """The parameters of `BILLED` and `POSTED`."""
    return {
        "postings": orjson.dumps([asdict(one) for one in postings], default=str).decode(),
        "posting_ids": [one.id for one in postings if one.id is not None],
        "windows": windows_of(postings),
    }
