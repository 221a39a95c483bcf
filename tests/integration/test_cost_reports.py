"""Reports of a filled ledger: plain SQL from the page says the same."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from psycopg.rows import dict_row

from tests.integration.ledger_days import Days, days_of
from tieryard.cli.costs import savings_of
from tieryard.costs.reporting import Dimension, Span
from tieryard.costs.windows import Kind
from tieryard.errors import RequestError
from tieryard.store import Store, costs, windows
from tieryard.store.invoices import invoice_of

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cost-reports.md"
BLOCKS = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SETUP, *QUERIES = BLOCKS
BY_NAME = {block.partition("\n")[0].removeprefix("-- "): block for block in QUERIES}


@pytest.fixture
def days(store: Store) -> Days:
    return days_of(store)


@pytest.fixture
def span(store: Store, days: Days) -> Span:
    """All of it; what still stood has stopped, so that what it owes does not grow while it is looked at."""
    for window in days.open:
        with store.transaction() as connection:
            windows.stop(connection, window)
    return Span(days.since, datetime.now(UTC) + timedelta(minutes=1))


def by_hand(store: Store, name: str, **wanted: Any) -> list[dict[str, Any]]:
    """What a block of the page says."""
    statement = re.sub(r":'(\w+)'", r"%(\1)s", BY_NAME[name])
    with store.transaction() as connection, connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(SETUP.encode())
        cursor.execute(statement.encode(), wanted)
        found = cursor.fetchall()
        connection.rollback()
    return found


def of_span(span: Span) -> dict[str, Any]:
    return {"since": span.since, "until": span.until}


# --- the page's SQL -----------------------------------------------------------------------------------


def test_costs_by_group_are_what_the_page_says(store: Store, span: Span) -> None:
    found = costs.costs(store, span, [Dimension.DAY, Dimension.DEPLOYMENT])
    plain = by_hand(store, "costs by day and deployment", **of_span(span))
    assert len(plain) == len(found.rows) == 12
    for row, expected in zip(found.rows, plain, strict=True):
        assert (row.group["day"], row.group["deployment"]) == (str(expected.pop("day")), expected.pop("deployment"))
        assert {name: getattr(row, name) for name in expected} == expected
    kinds = by_hand(store, "costs by kind", **of_span(span))
    assert {k["kind"]: k["cost_usd"] for k in kinds} == {str(k): usd for k, usd in found.total.by_kind.items() if usd}
    assert sum(row.cost_usd for row in found.rows) == found.total.cost_usd == sum(found.total.by_kind.values())
    assert found.open_windows == 3
    assert sum(row.estimated_usd for row in found.rows) == found.total.estimated_usd > 0


def test_every_grouping_adds_up_to_the_same(store: Store, span: Span) -> None:
    whole = costs.costs(store, span, [Dimension.DAY]).total
    names = ("jobs", "succeeded", "prompt_tokens", "completion_tokens", "other_tokens", "cost_usd", "estimated_usd")
    for dimension in Dimension:
        found = costs.costs(store, span, [dimension])
        for name in names:
            assert sum(getattr(row, name) for row in found.rows) == getattr(whole, name) == getattr(found.total, name)


def test_a_tenants_costs_are_what_the_page_says(store: Store, span: Span, days: Days) -> None:
    found = costs.costs(store, span, [Dimension.TIER], tenant_id=days.acme)
    plain = by_hand(store, "costs of a tenant by tier", tenant="acme", **of_span(span))
    assert [(r.group["tier"], r.jobs, r.cost_usd) for r in found.rows] == [tuple(p.values()) for p in plain]
    assert not [kind for kind, usd in found.total.by_kind.items() if usd and kind not in (Kind.INFERENCE, "adjustment")]


def test_savings_are_what_the_page_says(store: Store, span: Span) -> None:
    jobs = [
        row[0]
        for row in store.fetch(
            "SELECT job_id FROM ledger WHERE category = 'chat' AND kind = 'inference' ORDER BY 1 LIMIT 5"
        )
    ]
    for number, job in enumerate([*jobs, jobs[0]]):
        store.fetch(
            "INSERT INTO outcome (job_id, source, score) VALUES (%(id)s, %(source)s, %(score)s) RETURNING job_id",
            {"id": job, "source": f"s{number}", "score": 0.9 - number / 7},
        )
    found = costs.savings(store, span)
    plain = by_hand(store, "savings by category", **of_span(span))
    assert [row.category for row in found] == ["chat", "extraction", None]
    for row, expected in zip(found, plain, strict=True):
        nothing = {name: 0 for name, value in expected.items() if value is None and name.endswith("_usd")}
        assert {name: getattr(row, name) for name in expected} == expected | nothing
    assert (found[0].scored, found[1].scored) == (5, 0)


def test_the_baselines_quality_is_what_the_page_says(store: Store, span: Span, catalog_path: Path) -> None:
    for number, (deployment, score) in enumerate([("long", 0.5), ("long", 0.91), ("long", 0.77), ("one", 0.1)]):
        run = store.next_id()
        store.fetch(
            "WITH run AS (INSERT INTO benchmark (id, tenant_id, kind, deployment, spec, golden_set_id) "
            "VALUES (%(id)s, 1, 'quality', %(deployment)s, '{}', %(set)s) RETURNING id) "
            "INSERT INTO profile (benchmark_id, deployment, category, measured_at, figures) "
            "SELECT id, %(deployment)s, 'chat', now() - %(age)s * interval '1 day', %(figures)s FROM run RETURNING 1",
            {
                "id": run,
                "deployment": deployment,
                "set": number // 2,
                "age": 10 - number,
                "figures": json.dumps({"n": 30 + number, "quality_score": score}),
            },
        )
    [plain] = by_hand(store, "the baseline's quality", baseline="long")
    store.fetch(
        "INSERT INTO catalog_version (hash, body) VALUES ('x', %(body)s) RETURNING id",
        {"body": catalog_path.read_text() + "baseline: long\n"},
    )
    found = savings_of(store, span)
    assert found.baseline == "long"
    assert {"category": "chat", "n": found.measured["chat"].n, "score": found.measured["chat"].score} == plain
    assert plain["n"] == 31 + 32


def test_utilisation_is_what_the_page_says(store: Store, span: Span) -> None:
    found = costs.utilisation(store, span)
    plain = by_hand(store, "utilisation", **of_span(span))
    assert [{name: getattr(row, name) for name in plain[0]} for row in found] == plain
    assert [(row.deployment, row.windows, row.open_windows) for row in found] == [
        ("one", 5, 1),
        ("two", 3, 1),
        (None, 3, 1),
    ]
    for row in found:
        parts = ("used", "retry", "benchmark", "warmup", "idle", "overhead", "adjustment")
        assert sum(getattr(row, f"{part}_usd") for part in parts) == row.rent_usd


def test_an_invoice_is_what_the_page_says(store: Store, span: Span) -> None:
    for tenant in ("acme", "globex"):
        found = invoice_of(store, tenant, "2026-11", span)
        plain = by_hand(store, "invoice", tenant=tenant, **of_span(span))
        assert [{name: getattr(line, name) for name in plain[0]} for line in found.lines] == plain
        where = "posted_at < %(until)s AND tenant_id = (SELECT id FROM tenant WHERE name = %(tenant)s)"
        [[jobs]] = store.fetch(
            f"SELECT sum(cost_usd) FROM ledger WHERE kind = 'inference' AND {where}",
            {"tenant": tenant, "until": span.until},
        )
        assert found.total_usd == jobs + (Decimal("-0.0000071") if tenant == "acme" else 0)


def test_the_books_are_what_the_page_says_and_balance(store: Store, span: Span) -> None:
    found = costs.books(store, span.since)
    plain = by_hand(store, "each closed window", since=span.since)
    assert len(plain) == len(found.closed) == 8
    in_order = sorted(found.closed, key=lambda window: window.id)
    assert [{name: getattr(window, name) for name in plain[0]} for window in in_order] == plain
    [whole] = by_hand(store, "the whole", since=span.since)
    assert whole == {
        "rent_usd": found.rents_usd,
        "by_token_usd": found.by_token_usd,
        "by_hand_usd": found.by_hand_usd,
        "posted_usd": found.posted_usd,
    }
    assert found.balanced
    assert (found.difference_usd, len(found.open), found.by_kind[Kind.ADJUSTMENT] < 0) == (0, 3, True)


def test_no_block_of_the_page_is_left_out() -> None:
    used = set(re.findall(r'by_hand\(store, "([^"]+)"', Path(__file__).read_text(encoding="utf-8")))
    assert used == BY_NAME.keys()


def test_what_was_posted_without_a_window_while_one_stood_is_listed(store: Store, span: Span) -> None:
    assert costs.books(store, span.since).unheard == []
    moved = "UPDATE ledger SET window_id = NULL WHERE deployment = 'one' AND kind IN ('inference', 'retry') RETURNING 1"
    n = len(store.fetch(moved))
    after = (
        "UPDATE ledger SET posted_at = %(until)s WHERE kind = 'retry' AND job_id = "
        "(SELECT min(job_id) FROM ledger WHERE deployment = 'one' AND kind = 'retry') RETURNING 1"
    )
    assert len(store.fetch(after, of_span(span))) == 1  # by then none stands any more
    found = costs.books(store, span.since)
    [plain] = by_hand(store, "without a window while one stood", since=span.since)
    assert [asdict(one) for one in found.unheard] == [plain]
    assert (plain["deployment"], plain["postings"]) == ("one", n - 1)
    assert found.by_token_usd > plain["cost_usd"] > 0
    store.fetch("UPDATE ledger SET deployment = 'tuned' WHERE deployment = 'one' AND window_id IS NULL RETURNING 1")
    assert costs.books(store, span.since).unheard == []
    [tuned] = costs.books(store, span.since, {"tuned": "one"}).unheard
    assert (tuned.deployment, tuned.postings) == ("tuned", n - 1)


def test_a_standing_window_owes_its_rent_so_far(store: Store, days: Days) -> None:
    span = Span(days.days[2], datetime.now(UTC) + timedelta(minutes=1))
    [before, after] = [costs.costs(store, span, [Dimension.KIND]).total for _ in range(2)]
    assert after.estimated_usd > before.estimated_usd > 0
    assert after.by_kind[Kind.INFERENCE] == before.by_kind[Kind.INFERENCE]


def test_what_has_no_place_shows_in_the_books(store: Store, span: Span) -> None:
    [[job, window]] = store.fetch("SELECT job_id, window_id FROM ledger WHERE kind = 'inference' LIMIT 1")
    store.fetch(
        "INSERT INTO ledger (job_id, fence, kind, tenant_id, window_id, prompt_tokens, completion_tokens, cost_usd, "
        "catalog) VALUES (%(job)s, 99, 'inference', 1, %(window)s, 1, 1, 0.000000000001, 'c'), "
        "(987654321, 1, 'retry', 1, 123456789, 1, 1, 1, 'c') RETURNING job_id",
        {"job": job, "window": window},
    )
    found = costs.books(store, span.since)
    assert not found.balanced
    assert [(w.id, w.difference_usd) for w in found.differing] == [(window, Decimal("1E-12"))]
    assert (found.charged_twice, found.strays) == ([job], [123456789])


def test_copies_and_the_fleets_own_questions_save_nothing(store: Store, span: Span, days: Days) -> None:
    before = sum(row.jobs for row in costs.savings(store, span))
    [[n]] = store.fetch(
        "WITH t AS (INSERT INTO tenant (name) VALUES ('tieryard-shadow') RETURNING id), moved AS (UPDATE ledger "
        "SET tenant_id = t.id FROM t WHERE kind = 'inference' AND ledger.tenant_id = %(tenant)s RETURNING 1) "
        "SELECT count(*) FROM moved",
        {"tenant": days.acme},
    )
    assert n > 0
    assert sum(row.jobs for row in costs.savings(store, span)) == before - n


def test_a_report_that_takes_too_long_is_refused(store: Store, span: Span, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_TIMEOUT_S", 0.001)
    with pytest.raises(RequestError) as refused:
        costs.costs(store, Span(span.since - timedelta(days=90), span.until), list(Dimension))
    assert refused.value.param == "since"
