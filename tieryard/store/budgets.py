"""Budgets: what a tenant, or one of its keys, may spend in a UTC day or month. Reserved with the jobs, settled after.

Whoever saves jobs reserves their worst case in the same transaction, so neither is there without the other. Rescue's
leader settles once a second: what of a reservation's jobs are all final gives way to what the ledger says of them.
Finishing touches no budget. Decision 0022 says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from tieryard.errors import BudgetError, NotFoundError, UserError
from tieryard.ids import internal, public
from tieryard.store.connection import Connection, Store
from tieryard.store.keys import SYSTEM_TENANTS, find_key, find_tenant
from tieryard.store.telling import is_told

KIND = "budget"
Period = Literal["day", "month"]
PERIODS: tuple[Period, ...] = ("day", "month")
MARKS = (50, 80, 100)
"""Per cent of a limit at which its owner is told."""

_MOST_USD = Decimal(10) ** 15
_RETRY_S = 5.0  # reservations are given back as jobs end


@dataclass(frozen=True, slots=True)
class Wanted:
    """A budget to set, as it was asked for: names and text, not looked up yet."""

    tenant: str
    limit_usd: Decimal
    period: str
    key: str | None = None
    hard: bool = True
    alert_url: str | None = None


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """A budget with its period of today. `api_key_id` None: all of the tenant's keys together."""

    id: int
    tenant: str
    api_key_id: int | None
    period: str
    limit_usd: Decimal
    hard: bool
    alert_url: str | None
    starts_on: date
    spent_usd: Decimal
    reserved_usd: Decimal

    @property
    def left_usd(self) -> Decimal:
        """Below zero where a limit was lowered, or is soft."""
        return self.limit_usd - self.spent_usd - self.reserved_usd

    @property
    def resets_at(self) -> datetime:
        return resets_at(self.period, self.starts_on)


@dataclass(frozen=True, slots=True)
class Need:
    """The worst that jobs `first_job_id` to `first_job_id + n - 1` can cost together."""

    first_job_id: int
    n: int
    usd: Decimal


@dataclass(frozen=True, slots=True)
class Settled:
    """A budget's period to which something was settled. `marks` were passed just now; `over` reservations cost more
    than their worst case."""

    budget_id: int
    spent_usd: Decimal
    limit_usd: Decimal
    marks: list[int]
    over: int


_STARTS = "date_trunc({}, now() AT TIME ZONE 'UTC')::date"

_SET = """
INSERT INTO budget (tenant_id, api_key_id, period, limit_usd, hard, alert_url)
VALUES (%(tenant)s, %(key)s, %(period)s, %(limit)s, %(hard)s, %(alert_url)s)
ON CONFLICT (tenant_id, api_key_id, period)
DO UPDATE SET limit_usd = excluded.limit_usd, hard = excluded.hard, alert_url = excluded.alert_url
RETURNING id, xmax = 0 AS is_new
"""

# A new budget begins with what was spent by then, as the ledger has it (by the BRIN on its time). For jobs without an
# end nothing is reserved, since their worst case is not known any more; what they cost is settled with the others. Runs
# of ids are one row each. In one look, so that what ends meanwhile is counted once.
_BEGIN = """
WITH begun AS (
    SELECT b.id, b.tenant_id, b.api_key_id, {starts} AS starts_on FROM budget b WHERE b.id = %(id)s
), spent AS (
    INSERT INTO budget_period (budget_id, starts_on, spent_usd)
    SELECT id, starts_on, (
        SELECT coalesce(sum(cost_usd), 0) FROM ledger l
        WHERE l.posted_at >= starts_on::timestamp AT TIME ZONE 'UTC' AND l.kind = 'inference'
          AND l.tenant_id = begun.tenant_id AND (begun.api_key_id IS NULL OR l.api_key_id = begun.api_key_id))
    FROM begun
), open AS (
    SELECT job.id, job.id - row_number() OVER (ORDER BY job.id) AS run FROM job, begun
    WHERE job.finished_at IS NULL AND job.tenant_id = begun.tenant_id
      AND (begun.api_key_id IS NULL OR job.api_key_id = begun.api_key_id)
), ranges AS (
    SELECT min(id) AS first, count(*) AS n FROM open GROUP BY run
    UNION ALL
    SELECT first_job_id + expanded_to, total - expanded_to FROM batch, begun
    WHERE finished_at IS NULL AND expanded_to < total AND batch.tenant_id = begun.tenant_id
      AND (begun.api_key_id IS NULL OR batch.api_key_id = begun.api_key_id)
)
INSERT INTO reservation (first_job_id, budget_id, n, starts_on, usd)
SELECT first, begun.id, n, begun.starts_on, 0 FROM ranges, begun
""".replace("{starts}", _STARTS.format("b.period"))

# A limit that was raised above a mark is told of there once more. A lowered one is told of with the next settlement.
_TELL_ANEW = """
UPDATE budget_period p SET told = least(told, (
    SELECT coalesce(max(mark), 0) FROM unnest(%(marks)s::smallint[]) AS mark
    WHERE 100 * p.spent_usd >= mark * b.limit_usd))
FROM budget b WHERE b.id = %(id)s AND p.budget_id = b.id AND p.starts_on = {starts}
""".replace("{starts}", _STARTS.format("b.period"))

_LIST = """
SELECT b.id, t.name, b.api_key_id, b.period, b.limit_usd, b.hard, b.alert_url, {starts},
       coalesce(p.spent_usd, 0), coalesce(p.reserved_usd, 0)
FROM budget b JOIN tenant t ON t.id = b.tenant_id
LEFT JOIN budget_period p ON p.budget_id = b.id AND p.starts_on = {starts}
WHERE (%(tenant)s::bigint IS NULL OR b.tenant_id = %(tenant)s) AND (%(id)s::bigint IS NULL OR b.id = %(id)s)
ORDER BY t.name, b.api_key_id NULLS FIRST, b.period
""".replace("{starts}", _STARTS.format("b.period"))

# Its periods in the order in which settling locks them. What is reserved of it is settling's to sweep, like all others.
_REMOVE = """
WITH gone AS (
    DELETE FROM budget WHERE id = %(id)s RETURNING id
), periods AS MATERIALIZED (
    SELECT budget_id, starts_on FROM budget_period WHERE budget_id = %(id)s ORDER BY starts_on FOR UPDATE
), forgotten AS (
    DELETE FROM budget_period p USING periods WHERE p.budget_id = periods.budget_id AND p.starts_on = periods.starts_on
)
SELECT id FROM gone
"""

# All of a caller's budgets or none, locked in one order. Where a period has just begun its row is missing, and nothing
# is taken, nor locked: whoever then makes it may wait for another who does, and must hold nothing meanwhile. `refused`
# is worked out from the locked row, also after a wait for it.
_RESERVE = """
WITH mine AS (
    SELECT id, api_key_id, period, limit_usd, hard, {starts} AS starts_on FROM budget
    WHERE tenant_id = %(tenant)s AND (api_key_id IS NULL OR api_key_id = %(key)s)
), bound AS MATERIALIZED (
    SELECT p.budget_id, p.starts_on, p.spent_usd, p.reserved_usd,
           mine.hard AND p.spent_usd + p.reserved_usd + %(usd)s > mine.limit_usd AS refused
    FROM mine JOIN budget_period p ON p.budget_id = mine.id AND p.starts_on = mine.starts_on
    WHERE (SELECT count(*) FROM mine JOIN budget_period there ON there.budget_id = mine.id
                                                                AND there.starts_on = mine.starts_on)
          = (SELECT count(*) FROM mine)
    ORDER BY p.budget_id FOR NO KEY UPDATE OF p
), taken AS (
    UPDATE budget_period p SET reserved_usd = p.reserved_usd + %(usd)s FROM bound
    WHERE p.budget_id = bound.budget_id AND p.starts_on = bound.starts_on
      AND NOT EXISTS (SELECT FROM bound WHERE refused)
      AND (SELECT count(*) FROM bound) = (SELECT count(*) FROM mine)  -- else one was removed meanwhile
    RETURNING p.budget_id, p.starts_on
), kept AS (
    INSERT INTO reservation (first_job_id, n, budget_id, starts_on, usd)
    SELECT need.first, need.n, taken.budget_id, taken.starts_on, need.usd
    FROM taken, unnest(%(firsts)s::bigint[], %(ns)s::int[], %(each)s::numeric[]) AS need (first, n, usd)
)
SELECT mine.id, mine.api_key_id, mine.period, mine.limit_usd, mine.starts_on, bound.spent_usd, bound.reserved_usd,
       bound.refused
FROM mine LEFT JOIN bound ON bound.budget_id = mine.id ORDER BY mine.id
""".replace("{starts}", _STARTS.format("period"))

_NEW_PERIODS = """
INSERT INTO budget_period (budget_id, starts_on)
SELECT wanted.* FROM unnest(%(ids)s::bigint[], %(days)s::date[]) AS wanted (id, day) JOIN budget USING (id)
ORDER BY id ON CONFLICT (budget_id, starts_on) DO NOTHING
"""

# A reservation is over when none of its jobs is unfinished, nor about to be made of a batch's lines: so one whose jobs
# will never be is swept by the same look. OFFSET 0 keeps that to one index look each. What a job's rows sum to counts
# for the period in which it was reserved.
_SETTLE = """
WITH to_come AS MATERIALIZED (
    SELECT first_job_id + expanded_to AS first, first_job_id + total AS after FROM batch
    WHERE finished_at IS NULL AND expanded_to < total
), done AS (
    DELETE FROM reservation r WHERE NOT EXISTS (
        SELECT FROM job WHERE job.id >= r.first_job_id AND job.id < r.first_job_id + r.n AND job.finished_at IS NULL
        OFFSET 0)
    AND NOT EXISTS (
        SELECT FROM to_come WHERE r.first_job_id + r.n > to_come.first AND r.first_job_id < to_come.after OFFSET 0)
    RETURNING r.*
), actual AS (
    SELECT budget_id, starts_on, sum(usd) AS reserved_usd, sum(charged.usd_spent) AS spent_usd,
           count(*) FILTER (WHERE charged.usd_spent > usd AND usd > 0) AS over
    FROM done, LATERAL (
        SELECT coalesce(sum(cost_usd), 0) AS usd_spent FROM ledger
        WHERE job_id >= first_job_id AND job_id < first_job_id + n AND ledger.kind = 'inference') AS charged
    GROUP BY budget_id, starts_on
), bound AS MATERIALIZED (
    SELECT p.budget_id, p.starts_on, p.told, b.tenant_id, b.api_key_id, b.period, b.alert_url, b.limit_usd,
           a.reserved_usd, a.spent_usd, a.over, p.spent_usd + a.spent_usd AS in_all_usd
    FROM actual a JOIN budget_period p USING (budget_id, starts_on) JOIN budget b ON b.id = p.budget_id
    ORDER BY p.budget_id, p.starts_on FOR NO KEY UPDATE OF p
), passed AS (
    SELECT bound.*, ARRAY(
        SELECT mark FROM unnest(%(marks)s::smallint[]) AS mark
        WHERE mark > told AND 100 * in_all_usd >= mark * limit_usd ORDER BY mark) AS marks
    FROM bound
), settled AS (
    UPDATE budget_period p SET reserved_usd = p.reserved_usd - passed.reserved_usd,
        spent_usd = p.spent_usd + passed.spent_usd,
        told = greatest(p.told, (SELECT max(mark) FROM unnest(passed.marks) AS mark))
    FROM passed WHERE p.budget_id = passed.budget_id AND p.starts_on = passed.starts_on
), owed AS (
    INSERT INTO outbox (tenant_id, event, subject_id, url, data)
    SELECT tenant_id, 'budget.threshold', budget_id, alert_url, jsonb_build_object(
        'tenant', (SELECT name FROM tenant WHERE id = tenant_id), 'key', 'key_' || api_key_id, 'period', period,
        'starts_on', starts_on, 'limit_usd', trim_scale(limit_usd)::text, 'spent_usd', trim_scale(in_all_usd)::text,
        'mark', mark)
    FROM passed, unnest(marks) AS mark WHERE alert_url IS NOT NULL OR {told}
)
SELECT budget_id, in_all_usd, limit_usd, marks, over FROM passed ORDER BY budget_id
""".replace("{told}", is_told("'budget.threshold'", tenant="passed.tenant_id"))


def resets_at(period: str, starts_on: date) -> datetime:
    """When the next period begins: midnight UTC."""
    start = datetime(starts_on.year, starts_on.month, starts_on.day, tzinfo=UTC)
    if period == "day":
        return start + timedelta(days=1)
    return (start.replace(day=28) + timedelta(days=4)).replace(day=1)


def set_budget(store: Store, wanted: Wanted) -> BudgetRow:
    """Makes a budget, or changes the limit, kind and address of the one that there is. Raises UserError with the field
    at fault, NotFoundError for an unknown tenant or key."""
    limit = wanted.limit_usd
    if not limit.is_finite() or limit < 0 or limit > _MOST_USD:
        raise UserError(f"{limit} is no limit: give USD from 0 to {_MOST_USD:f}", param="limit_usd")
    if wanted.period not in PERIODS:
        raise UserError(f"'{wanted.period}' is not a period; expected 'day' or 'month'", param="period")
    if (holds := SYSTEM_TENANTS.get(wanted.tenant)) is not None:
        raise UserError(f"'{wanted.tenant}' {holds}, and has no budgets; name another tenant", param="tenant")
    with store.transaction() as connection:
        tenant_id = find_tenant(connection, wanted.tenant)
        key_id = find_key(connection, tenant_id, wanted.key, tenant=wanted.tenant) if wanted.key is not None else None
        row = connection.execute(
            _SET,
            {
                "tenant": tenant_id,
                "key": key_id,
                "period": wanted.period,
                "limit": limit,
                "hard": wanted.hard,
                "alert_url": wanted.alert_url,
            },
        ).fetchone()
        assert row is not None
        budget_id, is_new = row
        connection.execute(_BEGIN if is_new else _TELL_ANEW, {"id": budget_id, "marks": list(MARKS)})
        [made] = _listed(connection, budget_id=budget_id)
    return made


def list_budgets(store: Store, *, tenant_id: int | None = None) -> list[BudgetRow]:
    """All budgets, or a tenant's, with what is spent and reserved of them in their period of today."""
    with store.transaction() as connection:
        return _listed(connection, tenant_id=tenant_id)


def tenant_budgets(store: Store, tenant: str) -> list[BudgetRow]:
    """Those of the tenant of this name. Raises NotFoundError."""
    with store.transaction() as connection:
        return _listed(connection, tenant_id=find_tenant(connection, tenant))


def remove(store: Store, which: str) -> str:
    """Removes a budget (`budget_7`): its id. Raises NotFoundError."""
    if not store.fetch(_REMOVE, {"id": internal(KIND, which)}):
        raise NotFoundError(f"no budget '{which}'; `tieryard budgets list` shows them", param=KIND)
    return which


def reserve(connection: Connection, *, tenant_id: int, api_key_id: int | None, needs: Sequence[Need]) -> None:
    """In the transaction that saves the jobs, as its last statement: others wait for it. Raises BudgetError where a
    hard budget does not cover all of them. Does nothing where there is no budget. What is free by now is kept, too: it
    is charged at the price that there is when it runs."""
    usd = sum((need.usd for need in needs), Decimal(0))
    wanted: dict[str, Any] = {
        "tenant": tenant_id,
        "key": api_key_id,
        "usd": usd,
        "firsts": [need.first_job_id for need in needs],
        "ns": [need.n for need in needs],
        "each": [need.usd for need in needs],
    }
    rows = connection.execute(_RESERVE, wanted).fetchall()
    new = [(row[0], row[4]) for row in rows if row[7] is None]
    if new:
        ids, days = zip(*new, strict=True)
        connection.execute(_NEW_PERIODS, {"ids": list(ids), "days": list(days)})
        rows = connection.execute(_RESERVE, wanted).fetchall()
    for row in rows:
        if row[7]:
            raise _refusal(*row[:7], usd=usd)


def settle(connection: Connection) -> list[Settled]:
    """Gives back what was reserved for jobs that are final, or never were, and counts what they cost: the periods that
    changed."""
    return [Settled(*row) for row in connection.execute(_SETTLE, {"marks": list(MARKS)})]


def _refusal(
    _: int,
    api_key_id: int | None,
    period: str,
    limit_usd: Decimal,
    starts_on: date,
    spent_usd: Decimal,
    reserved_usd: Decimal,
    *,
    usd: Decimal,
) -> BudgetError:
    whose = "the tenant" if api_key_id is None else public("key", api_key_id)
    never = spent_usd + usd > limit_usd
    now = "ask for less" if never else "try again when some are done, or ask for less"
    later = f", or wait for {resets_at(period, starts_on):%Y-%m-%d %H:%M} UTC, when it begins anew"
    if usd > limit_usd:
        later = ", or have the budget raised: no new period covers this"
    return BudgetError(
        f"the budget of {whose} is {_shown(limit_usd)} a {period}: {_shown(spent_usd)} are spent, "
        f"{_shown(reserved_usd)} reserved for jobs that are not final, and this could cost {_shown(usd)}; "
        f"{now}{later}",
        retry_after_s=math.inf if never else _RETRY_S,
    )


def _shown(usd: Decimal) -> str:
    return f"${usd.normalize():f}"


def _listed(connection: Connection, *, tenant_id: int | None = None, budget_id: int | None = None) -> list[BudgetRow]:
    return [BudgetRow(*row) for row in connection.execute(_LIST, {"tenant": tenant_id, "id": budget_id})]
