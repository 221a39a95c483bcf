"""The most that a job can cost, wherever it may be sent: what a budget reserves for it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from tieryard.catalog import Price
from tieryard.routing.hurdles import Hurdle, Prospect, cannot_take, cap_of
from tieryard.routing.job import JobFeatures
from tieryard.routing.outlook import outlooks
from tieryard.routing.snapshot import PolicyRules, Snapshot

_MILLION = Decimal(1_000_000)
_NO_POLICY = PolicyRules()


def worst_usd(job: JobFeatures, snapshot: Snapshot, prices: Mapping[str, Price], *, limited: bool) -> Decimal:
    """USD of its prompt and its longest answer at the dearest deployment that may take it, by `prices` (names to USD
    per million). An answer that is not `limited` may fill the context. A job is charged for one start, the last, so
    retries add nothing. Candidates count, promoted or not: a canary may send it there. One that only a cap refuses
    counts at the cap, since a rented one's own price may be lower than the catalog's. 0 where nobody can take it."""
    policy = snapshot.rules.policies.get(job.policy, _NO_POLICY)
    cap, worst = cap_of(job, policy), Decimal(0)
    for outlook in outlooks(snapshot, job.text.category):
        c = outlook.candidate
        p = Prospect.of(job, outlook, learned=False)
        refusal = cannot_take(job, p, policy, on_trial=bool(c.candidate_of))
        if refusal is None:
            price = prices[c.name]
            answer = job.max_tokens if limited else c.context_limit - p.prompt_tokens
            usd = (price.input_usd_per_1m * p.prompt_tokens + price.output_usd_per_1m * answer) / _MILLION
            worst = max(worst, usd)
        elif refusal.hurdle is Hurdle.CAP and cap is not None and limited:
            worst = max(worst, cap)
    return worst
