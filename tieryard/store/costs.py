"""The reports' reads of the ledger, one statement each. docs/reference/cost-reports.md says each once more, plainly.

What is posted counts at its moment; only what is a window's own (warm-up, idle, overhead) counts when the window
started, since it is posted some time after the window's day. A window that is not closed owes these still: they are
estimated as if it ended now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from types import MappingProxyType
from typing import Any

import orjson
import psycopg
from psycopg.rows import TupleRow

from tieryard.costs.reconciling import Books, Unheard, WindowSum
from tieryard.costs.reporting import CostRow, Costs, Dimension, InvoiceLine, Span, Utilisation
from tieryard.costs.savings import CategorySavings
from tieryard.costs.windows import Kind
from tieryard.errors import RequestError
from tieryard.ids import public
from tieryard.store.connection import Connection, Store
from tieryard.store.keys import SYSTEM_TENANTS
from tieryard.store.windows import RENT_TENANT, meter

_TIMEOUT_S = 60
_WORK_MEM = "64MB"  # with Postgres' own 4 MB a month of a million jobs is sorted on disk, and takes twice as long
_BILLED = "(kind = 'inference' OR kind = 'adjustment' AND window_id IS NULL)"
"""What a tenant pays. An adjustment of a window balances the window, not the charge that came late for it."""

_EXPRESSIONS = {
    Dimension.DAY: "(at AT TIME ZONE 'UTC')::date",
    Dimension.DEPLOYMENT: "posting.deployment",
    Dimension.TENANT: "coalesce(tenant.name, posting.of_tenant)",
    Dimension.CATEGORY: "posting.category",
    Dimension.TIER: "posting.tier",
    Dimension.BATCH: "posting.batch_id",
    Dimension.KIND: "posting.kind",
    Dimension.KEY: "posting.api_key_id",
}


_STOP = "greatest(started_at, coalesce(stopped_at, now()))"
_SERVED = f"greatest(started_at, least(coalesce(served_at, {_STOP}), {_STOP}))"
_WARMUP = f"CASE WHEN deployment IS NULL THEN 0 ELSE {meter(_SERVED)} - {meter('started_at')} END"

_HELD = f"""held AS MATERIALIZED (
    SELECT id, deployment, started_at, closed_at, gpus, extract(epoch FROM {_STOP} - started_at) AS rented_s,
           {meter(_STOP)} - {meter("started_at")} AS rent_usd, {_WARMUP} AS warmup_usd
    FROM rent_window WHERE started_at >= %(since)s AND started_at < %(until)s
)"""  # noqa: S608  # parts of ours

_COLUMNS = """l.kind, l.tenant_id, NULL AS of_tenant, l.api_key_id, l.batch_id, l.deployment, l.category, l.tier,
           l.prompt_tokens, l.cached_tokens, l.completion_tokens, l.cost_usd, false AS estimated"""

_POSTING = f"""{_HELD}, posting AS (
    SELECT l.posted_at AS at, job.state, {_COLUMNS}
    FROM ledger l LEFT JOIN job ON job.id = l.job_id AND l.kind = 'inference'
    WHERE l.posted_at >= %(since)s AND l.posted_at < %(until)s AND l.window_id IS DISTINCT FROM l.job_id
    UNION ALL
    SELECT held.started_at, NULL, {_COLUMNS}
    FROM held JOIN ledger l ON l.job_id = held.id AND l.fence = 0 AND l.kind IN ('warmup', 'idle', 'overhead')
    UNION ALL
    SELECT held.started_at, NULL, due.kind, NULL, '{RENT_TENANT}', NULL, NULL, held.deployment, NULL, NULL,
           0, 0, 0, due.usd, true
    FROM held,
    LATERAL (SELECT coalesce(sum(cost_usd), 0) AS usd FROM ledger WHERE window_id = held.id) AS posted,
    LATERAL (VALUES ('warmup', warmup_usd), (CASE WHEN deployment IS NULL THEN 'overhead' ELSE 'idle' END,
                                             rent_usd - warmup_usd - posted.usd)) AS due (kind, usd)
    WHERE closed_at IS NULL AND due.usd <> 0
)"""  # noqa: S608  # parts of ours

_POSTING_OF_TENANT = f"""posting AS (
    SELECT l.posted_at AS at, job.state, {_COLUMNS}
    FROM ledger l LEFT JOIN job ON job.id = l.job_id AND l.kind = 'inference'
    WHERE l.posted_at >= %(since)s AND l.posted_at < %(until)s AND l.tenant_id = %(tenant)s
      AND {_BILLED.replace("kind", "l.kind").replace("window_id", "l.window_id")}
)"""  # noqa: S608  # parts of ours

_KINDS = ",\n       ".join(f"coalesce(sum(cost_usd) FILTER (WHERE kind = '{kind}'), 0)" for kind in Kind)

_FIGURES = f"""count(*) FILTER (WHERE kind = 'inference'),
       count(*) FILTER (WHERE kind = 'inference' AND state = 'succeeded'),
       coalesce(sum(prompt_tokens) FILTER (WHERE kind = 'inference'), 0),
       coalesce(sum(cached_tokens) FILTER (WHERE kind = 'inference'), 0),
       coalesce(sum(completion_tokens) FILTER (WHERE kind = 'inference'), 0),
       coalesce(sum(prompt_tokens + completion_tokens) FILTER (WHERE kind IN ('retry', 'benchmark')), 0),
       coalesce(sum(cost_usd), 0), coalesce(sum(cost_usd) FILTER (WHERE estimated), 0),
       {_KINDS}"""

_OPEN = """
SELECT count(*) FROM rent_window WHERE started_at >= %(since)s AND started_at < %(until)s AND closed_at IS NULL
"""

_UTILISATION = f"""
WITH {_HELD}, posted AS (
    SELECT window_id, sum(cost_usd) FILTER (WHERE kind = 'inference') AS used,
           sum(cost_usd) FILTER (WHERE kind = 'retry') AS retry,
           sum(cost_usd) FILTER (WHERE kind = 'benchmark') AS benchmark,
           sum(cost_usd) FILTER (WHERE kind = 'adjustment') AS adjustment,
           sum(cost_usd) FILTER (WHERE kind = 'warmup') AS warmup, sum(cost_usd) FILTER (WHERE kind = 'idle') AS idle,
           sum(cost_usd) FILTER (WHERE kind = 'overhead') AS overhead, sum(cost_usd) AS usd
    FROM ledger WHERE window_id IN (SELECT id FROM held) GROUP BY window_id
), each AS (
    SELECT held.*, posted.*,
           CASE WHEN closed_at IS NULL THEN warmup_usd ELSE 0 END AS due_warmup,
           CASE WHEN closed_at IS NULL THEN rent_usd - warmup_usd - coalesce(posted.usd, 0) ELSE 0 END AS due
    FROM held LEFT JOIN posted ON posted.window_id = held.id
)
SELECT deployment, count(*), count(*) FILTER (WHERE closed_at IS NULL), sum(rented_s), sum(rented_s * gpus),
       sum(rent_usd), coalesce(sum(used), 0), coalesce(sum(retry), 0), coalesce(sum(benchmark), 0),
       sum(coalesce(warmup, 0) + due_warmup),
       sum(coalesce(idle, 0) + CASE WHEN deployment IS NULL THEN 0 ELSE due END),
       sum(coalesce(overhead, 0) + CASE WHEN deployment IS NULL THEN due ELSE 0 END),
       coalesce(sum(adjustment), 0), sum(due + due_warmup)
FROM each GROUP BY deployment ORDER BY deployment
"""  # noqa: S608  # parts of ours

_INVOICE = f"""
SELECT kind, tier, deployment, count(*) FILTER (WHERE kind = 'inference'), sum(prompt_tokens), sum(cached_tokens),
       sum(completion_tokens), sum(cost_usd), note
FROM ledger
WHERE tenant_id = %(tenant)s AND posted_at >= %(since)s AND posted_at < %(until)s AND {_BILLED}
GROUP BY kind, tier, deployment, note ORDER BY kind DESC, tier, deployment, note
"""  # noqa: S608  # a part of ours

# A job that several have scored counts once, by their mean. Scores are of six digits: as numbers their mean is exact.
_SAVINGS = """
WITH scored AS (
    SELECT job_id, avg(score::numeric) AS score FROM outcome WHERE scored_at >= %(since)s GROUP BY job_id
)
SELECT category, count(*), sum(cost_usd),
       count(large_usd), coalesce(sum(cost_usd) FILTER (WHERE large_usd IS NOT NULL), 0), coalesce(sum(large_usd), 0),
       count(hosted_usd), coalesce(sum(cost_usd) FILTER (WHERE hosted_usd IS NOT NULL), 0),
       coalesce(sum(hosted_usd), 0), count(scored.score), avg(scored.score)
FROM ledger LEFT JOIN scored USING (job_id)
WHERE posted_at >= %(since)s AND posted_at < %(until)s AND kind = 'inference'
  AND (%(tenant)s::bigint IS NULL OR tenant_id = %(tenant)s)
  AND tenant_id NOT IN (SELECT id FROM tenant WHERE name = ANY(%(system)s))
GROUP BY category ORDER BY category
"""

# What the rows of windows sum to, window by window; and what has no window: charges by the token, adjustments by hand.
_WINDOWS = """
SELECT w.id, w.deployment, w.place, w.started_at, w.stopped_at, w.closed_at, w.usd_per_hour, now(), l.kind,
       coalesce(sum(l.cost_usd), 0)
FROM rent_window w LEFT JOIN ledger l ON l.window_id = w.id
WHERE w.started_at >= %(since)s GROUP BY w.id, l.kind ORDER BY w.started_at, w.id
"""
_WINDOWLESS = """
SELECT kind, sum(cost_usd) FROM ledger WHERE posted_at >= %(since)s AND window_id IS NULL GROUP BY kind
"""
# What work of rented deployments was posted without a window while one of theirs stood: its worker had yet to hear of
# it, or another process stood at its place. Windows that follow each other are one spell.
_UNHEARD = """
WITH stood AS MATERIALIZED (
    SELECT deployment, range_agg(tstzrange(started_at, stopped_at)) AS spells
    FROM rent_window WHERE deployment IS NOT NULL GROUP BY deployment
)
SELECT ledger.deployment, count(*), sum(cost_usd)
FROM ledger JOIN stood ON stood.deployment = coalesce(%(hosts)s::jsonb ->> ledger.deployment, ledger.deployment)
WHERE posted_at >= %(since)s AND window_id IS NULL AND kind <> 'adjustment' AND posted_at <@ spells
GROUP BY ledger.deployment ORDER BY ledger.deployment
"""
_TWICE = """
SELECT job_id FROM ledger WHERE posted_at >= %(since)s AND kind = 'inference' GROUP BY job_id HAVING count(*) > 1
"""
_STRAYS = """
SELECT DISTINCT window_id FROM ledger
WHERE window_id IS NOT NULL AND posted_at >= %(since)s
  AND NOT EXISTS (SELECT FROM rent_window WHERE rent_window.id = window_id)
"""


def costs(
    store: Store, span: Span, dimensions: Sequence[Dimension], *, tenant_id: int | None = None, most: int = 10_000
) -> Costs:
    """Sums by these dimensions, in their order, and the whole. With a tenant only what that pays. Raises RequestError
    where it takes too long."""
    columns = [f"{_EXPRESSIONS[one]}" for one in dimensions]
    posting = _POSTING if tenant_id is None else _POSTING_OF_TENANT
    places = ", ".join(str(at + 2) for at in range(len(columns)))
    statement = f"""
WITH {posting}
SELECT GROUPING({columns[0]}) = 1 AS whole, {", ".join(columns)},
       {_FIGURES}
FROM posting LEFT JOIN tenant ON tenant.id = posting.tenant_id
GROUP BY GROUPING SETS ((), ({", ".join(columns)})) ORDER BY whole DESC, {places} LIMIT %(most)s
"""  # noqa: S608  # expressions of ours
    wanted = _wanted(span, tenant_id) | {"most": most + 2}
    with _reading(store) as connection:
        found = connection.execute(statement, wanted).fetchall()
        [[n_open]] = connection.execute(_OPEN, wanted).fetchall() if tenant_id is None else [[0]]
    whole, *rows = [_row(dimensions, row) for row in found]
    return Costs(span, tuple(dimensions), whole, rows[:most], n_open, len(rows) > most)


def utilisation(store: Store, span: Span) -> list[Utilisation]:
    """By deployment, of the windows that started in this time; hosts come last."""
    with _reading(store) as connection:
        return [Utilisation(*row) for row in connection.execute(_UTILISATION, _wanted(span, None))]


def invoice_lines(store: Store, span: Span, tenant_id: int) -> list[InvoiceLine]:
    """What a tenant pays for this time: jobs first, then adjustments."""
    with _reading(store) as connection:
        return [InvoiceLine(*row) for row in connection.execute(_INVOICE, _wanted(span, tenant_id))]


def savings(store: Store, span: Span, *, tenant_id: int | None = None) -> list[CategorySavings]:
    """Of jobs that somebody asked for: copies on trial and the fleet's own questions are left out."""
    wanted = _wanted(span, tenant_id) | {"system": list(SYSTEM_TENANTS)}
    with _reading(store) as connection:
        return [CategorySavings(*row) for row in connection.execute(_SAVINGS, wanted)]


def books(store: Store, since: datetime, hosts: Mapping[str, str] = MappingProxyType({})) -> Books:
    """Of windows that started since then, and of what was posted since then without one. `hosts`: the deployments in
    whose windows LoRA adapters' work belongs, by the adapters' names."""
    wanted = {"since": since, "hosts": orjson.dumps(dict(hosts)).decode()}
    with _reading(store) as connection:
        rows = connection.execute(_WINDOWS, wanted).fetchall()
        windowless = {Kind(kind): usd for kind, usd in connection.execute(_WINDOWLESS, wanted)}
        twice = [row[0] for row in connection.execute(_TWICE, wanted)]
        strays = [row[0] for row in connection.execute(_STRAYS, wanted)]
        unheard = [Unheard(*row) for row in connection.execute(_UNHEARD, wanted)]
    return Books(_windows(rows), windowless, twice, strays, unheard)


def _wanted(span: Span, tenant_id: int | None) -> dict[str, Any]:
    return {"since": span.since, "until": span.until, "tenant": tenant_id}


@contextlib.contextmanager
def _reading(store: Store) -> Iterator[Connection]:
    """A transaction that only reads, does not last, and whose statements all see one moment."""
    with store.transaction() as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute(f"SET LOCAL statement_timeout = '{_TIMEOUT_S}s'")
        connection.execute(f"SET LOCAL work_mem = '{_WORK_MEM}'")
        try:
            yield connection
        except psycopg.errors.QueryCanceled:
            raise RequestError(f"took longer than {_TIMEOUT_S} s: ask for less time", param="since") from None


def _row(dimensions: Sequence[Dimension], row: TupleRow) -> CostRow:
    values, numbers = row[1 : 1 + len(dimensions)], row[1 + len(dimensions) :]
    group = {str(one): _worded(one, value) for one, value in zip(dimensions, values, strict=True)}
    jobs, succeeded, *tokens, cost_usd, estimated_usd = numbers[:8]
    prompt, cached, completion, other = (int(n) for n in tokens)
    by_kind = dict(zip(Kind, numbers[8:], strict=True))
    return CostRow(group, jobs, succeeded, prompt, cached, completion, other, cost_usd, by_kind, estimated_usd)


def _worded(dimension: Dimension, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, date):
        return value.isoformat()
    if dimension in (Dimension.BATCH, Dimension.KEY):
        return public(str(dimension), value)
    return str(value)


def _windows(rows: Sequence[TupleRow]) -> list[WindowSum]:
    found: dict[int, WindowSum] = {}
    for *window, kind, usd in rows:
        known = found.setdefault(window[0], WindowSum(*window))
        if kind is not None:
            known.by_kind[Kind(kind)] = usd
    return list(found.values())
