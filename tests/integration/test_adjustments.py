"""Adjustments by hand: one row each, with why, on the invoice and in the reports, and in nobody's budget."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from tests import factories as make
from tests.integration.test_cli import Run, here, run
from tieryard.costs.reporting import Dimension, Span
from tieryard.costs.windows import Kind
from tieryard.settings import Settings
from tieryard.store import Store, budgets, costs, keys
from tieryard.store.budgets import Wanted
from tieryard.store.finish import finish
from tieryard.store.invoices import invoice_of
from tieryard.store.windows import RENT_TENANT

__all__ = ["here", "run"]  # fixtures

pytestmark = pytest.mark.usefixtures("here")
MONTH = f"{datetime.now(UTC):%Y-%m}"
WHY = "credit for the outage of 12 November"


@pytest.fixture
def acme(store: Store) -> int:
    """A tenant with one job that was charged at `hosted`; its id."""
    keys.add_key(store, "ty_acme", tenant="acme", name="test")
    holder = keys.holder_of(store, "ty_acme")
    [job] = make.running(store, holder.tenant_id)
    with store.transaction() as connection:
        finish(connection, [make.ending(job, deployment="hosted", cost_usd=Decimal("0.25"))])
    return holder.tenant_id


def of_today() -> Span:
    now = datetime.now(UTC)
    return Span(now - timedelta(days=1), now + timedelta(minutes=1))


def test_a_credit_is_on_the_invoice_with_why(
    run: Run, store: Store, acme: int, settings: Settings, tmp_path: Path
) -> None:
    code, shown, error = run("costs", "adjust", "acme", "-0.05", "--why", f" {WHY}\n", "--deployment", "hosted")
    assert (code, error, "acme, -$0.05" in shown) == (0, "", True)
    [(number, kept)] = store.fetch("SELECT job_id, note FROM ledger WHERE kind = 'adjustment'")
    assert (f"adjustment_{number}" in shown, kept) == (True, WHY)
    charged, credit = invoice_of(store, "acme", MONTH, of_today()).lines
    assert (charged.kind, charged.amount_usd, charged.note) == ("inference", Decimal("0.25"), None)
    assert (credit.kind, credit.deployment, credit.amount_usd, credit.note) == (
        "adjustment", "hosted", Decimal("-0.05"), WHY,
    )  # fmt: skip
    code, shown, _ = run("invoice", "acme", "--month", MONTH, "--csv", str(tmp_path / "x.csv"))
    assert f"-$0.05: {WHY}" in shown
    assert "total $0.20" in shown
    assert [row["note"] for row in csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text()))] == ["", WHY]
    with TestClient(create_app(settings)) as client:
        caller = {"authorization": "Bearer ty_acme"}
        lines = client.get(f"/v1/invoices/{MONTH}", headers=caller).json()["lines"]
        whole = client.get("/v1/costs?group_by=kind", headers=caller).json()["total"]
    assert [(line["amount_usd"], line["note"]) for line in lines] == [("0.25", None), ("-0.05", WHY)]
    assert (whole["cost_usd"], whole["by_kind"]["adjustment"]) == ("0.20", "-0.05")


def test_each_reason_is_a_line_and_the_books_say_what_was_by_hand(run: Run, store: Store, acme: int) -> None:
    for usd, why in (("-0.05", WHY), ("0.02", "more"), ("0.01", "more")):
        assert run("costs", "adjust", "acme", usd, "--why", why)[0] == 0
    lines = invoice_of(store, "acme", MONTH, of_today()).lines
    assert [(line.amount_usd, line.note) for line in lines[1:]] == [(Decimal("-0.05"), WHY), (Decimal("0.03"), "more")]
    found = costs.books(store, of_today().since)
    assert (found.by_token_usd, found.by_hand_usd, found.balanced) == (Decimal("0.25"), Decimal("-0.02"), True)
    shown = json.loads(run("costs", "reconcile", "--json")[1])
    assert (shown["by_hand_usd"], shown["bill_usd"], shown["unheard"]) == ("-0.02", "0.23", [])


def test_one_may_be_of_a_key_and_no_budget_counts_it(run: Run, store: Store, acme: int) -> None:
    [[key_id]] = store.fetch("SELECT id FROM api_key WHERE tenant_id = %(id)s", {"id": acme})
    before = budgets.set_budget(store, Wanted("acme", Decimal(1), "month"))
    assert run("costs", "adjust", "acme", "7", "--why", "x", "--key", f"key_{key_id}")[0] == 0
    assert store.fetch("SELECT api_key_id FROM ledger WHERE kind = 'adjustment'") == [(key_id,)]
    after = budgets.set_budget(store, Wanted("acme", Decimal(2), "month"))
    assert after.spent_usd == before.spent_usd


def test_what_the_fleet_pays_itself_is_no_tenants(run: Run, store: Store) -> None:
    assert run("costs", "adjust", RENT_TENANT, "3.2", "--why", "machines that booted")[0] == 0
    found = costs.costs(store, of_today(), [Dimension.TENANT])
    assert [(row.group["tenant"], row.by_kind[Kind.ADJUSTMENT]) for row in found.rows] == [
        (RENT_TENANT, Decimal("3.2"))
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("acme 0 --why x", "usd: 0 is no adjustment"),
        ("acme NaN --why x", "usd: NaN is no adjustment"),
        ("acme -Infinity --why x", "usd: -Infinity is no adjustment"),
        ("acme 1e9 --why x", "usd: 1E+9 is no adjustment"),
        ("acme 1e-13 --why x", "usd: 1E-13 is too fine"),
        ("acme much --why x", "usd: 'much' is no amount"),
        ("acme 1 --why=", "why: say why"),
        (f"acme 1 --why {'x' * 501}", "why: say why"),
        ("nobody 1 --why x", "tenant: no tenant 'nobody'"),
        ("tieryard-shadow 1 --why x", "tenant: 'tieryard-shadow' holds copies"),
        ("acme 1 --why x --key key_999", "key: 'acme' has no key 'key_999'"),
        ("acme 1 --why x --key seven", "key: no key 'seven'"),
        ("acme 1 --why x --deployment hostd", "deployment: nothing was ever charged or rented for 'hostd'"),
    ],
)
def test_what_is_no_adjustment_is_refused_with_its_field(
    run: Run, store: Store, acme: int, arguments: str, said: str
) -> None:
    code, _, error = run("costs", "adjust", *arguments.split())
    assert (code, said in error) == (2, True), error
    assert make.count(store, "ledger", "kind = 'adjustment'") == 0
