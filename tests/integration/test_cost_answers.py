"""Reports of a filled ledger as commands and routes give them: files hold every digit, and each sees its own."""

# ruff: noqa: F811  # fixtures that are imported

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from tests import factories as make
from tests.integration.ledger_days import Days
from tests.integration.test_cli import Run, here, run  # noqa: F401  # fixtures
from tests.integration.test_cost_reports import days, span  # noqa: F401
from tieryard.costs.reporting import Dimension, Span
from tieryard.costs.windows import Kind
from tieryard.settings import Settings
from tieryard.store import Store, costs, keys
from tieryard.store.keys import Scope

pytestmark = pytest.mark.usefixtures("here")

# --- the commands -------------------------------------------------------------------------------------


def test_files_hold_every_digit(run: Run, days: Days, tmp_path: Path) -> None:
    paths = {ending: tmp_path / f"costs.{ending}" for ending in ("csv", "parquet", "svg", "png")}
    files = ["--csv", str(paths["csv"]), "--parquet", str(paths["parquet"])]
    code, shown, _ = run("costs", "--until", "0d", "--by", "day,kind", "--json", *files)
    assert code == 0
    made = json.loads(shown)
    rows = list(csv.DictReader(io.StringIO(paths["csv"].read_text())))
    assert [row["cost_usd"] for row in rows] == [row["cost_usd"] for row in made["data"]]
    parquet = pq.read_table(paths["parquet"])
    assert str(parquet.schema.field("cost_usd").type) == "decimal128(38, 12)"
    assert [Decimal(row["cost_usd"]) for row in rows] == [row["cost_usd"] for row in parquet.to_pylist()]
    assert [row["day"] for row in rows] == [str(row["day"]) for row in parquet.to_pylist()]
    for ending in ("svg", "png"):
        assert run("costs", "--by", "day,kind", "--picture", str(paths[ending]))[0] == 0
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    assert "overhead" not in paths["svg"].read_text()[:200]


@pytest.mark.parametrize("report", ["--utilisation", "--savings"])
def test_the_other_reports_come_as_files_too(run: Run, days: Days, tmp_path: Path, report: str) -> None:
    paths = {ending: tmp_path / f"x.{ending}" for ending in ("csv", "parquet")}
    code, shown, error = run("costs", report, "--csv", str(paths["csv"]), "--parquet", str(paths["parquet"]))
    assert (code, error) == (0, ""), shown
    rows = list(csv.DictReader(io.StringIO(paths["csv"].read_text())))
    found = pq.read_table(paths["parquet"]).to_pylist()
    share = "idle_share" if report == "--utilisation" else "large_saved_share"
    assert [Decimal(row[share]) if row[share] else None for row in rows] == [row[share] for row in found]


def test_reconcile_says_yes_and_no(run: Run, days: Days, store: Store) -> None:
    code, shown, _ = run("costs", "reconcile")
    assert (code, "everything adds up" in shown, "8 windows closed, 0 differ" in shown) == (0, True, True)
    [[window]] = store.fetch("SELECT min(id) FROM rent_window WHERE closed_at IS NOT NULL")
    store.fetch("DELETE FROM ledger WHERE job_id = %(id)s AND kind = 'idle' RETURNING job_id", {"id": window})
    code, shown, _ = run("costs", "reconcile")
    assert (code, "1 differ" in shown, f"window_{window}" in shown, "does not add up" in shown) == (1, True, True, True)
    code, shown, _ = run("costs", "reconcile", "--json", "--since", "1h")
    assert (code, json.loads(shown)["balanced"]) == (0, True)


def test_tables_say_what_is_an_estimate_and_what_was_not_measured(run: Run, days: Days) -> None:
    assert "3 windows not closed yet" in run("costs")[1]
    assert "not measured" in run("costs", "--savings")[1]
    code, shown, _ = run("costs", "--utilisation")
    assert (code, "(hosts)" in shown, "overhead of hosts" in shown) == (0, True, True)
    month = f"{datetime.now(UTC):%Y-%m}"
    assert "more may come" in run("invoice", "acme", "--month", month)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("costs --by week", "--by: 'week' is none of day"),
        ("costs --by day,day", "--by: 'day' stands twice"),
        ("costs --since tomorrow", "--since: expected a day"),
        ("costs --since 2026-01-02 --until 2026-01-01", "--since: 2026-01-02"),
        ("costs --since 2020-01-01", "--since: at most 400 days"),
        ("costs --until 2026-13-01 --since 2026-01-01", "--until: expected a day"),
        ("costs --picture x.gif", "--picture: a picture ends in .svg or .png"),
        ("costs --by tenant --picture x.png", "--by: a picture is of days"),
        ("costs --savings --utilisation", "are two reports"),
        ("costs --savings --by day", "--by: is of the report by groups"),
        ("costs --tenant nobody", "no tenant 'nobody'"),
        ("costs reconcile --since x", "--since: expected a day"),
        ("invoice acme --month 2026-1", "--month: expected a month"),
        ("invoice acme --month 2999-01", "--month: 2999-01 has not begun"),
        ("invoice tieryard-rent --month 2026-01", "tenant: 'tieryard-rent' holds rent"),
    ],
)
def test_what_is_refused_names_the_field(run: Run, store: Store, arguments: str, said: str) -> None:
    code, _, error = run(*arguments.split())
    assert (code, said in error) == (2, True), error


# --- the API ------------------------------------------------------------------------------------------


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def key(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def test_a_tenant_sees_what_it_pays_and_an_operator_everything(client: TestClient, store: Store, span: Span) -> None:
    keys.add_key(store, "ty_op", tenant="ops", name="x", scopes=[Scope.READ, Scope.OPERATE])
    asked = {"group_by": "tenant,kind"}
    own = client.get("/v1/costs", params=asked, headers=key("ty_acme")).json()
    assert [row["group"] for row in own["data"]] == [
        {"tenant": "acme", "kind": "adjustment"},
        {"tenant": "acme", "kind": "inference"},
    ]
    assert (own["open_windows"], own["total"]["estimated_usd"]) == (0, "0")
    whole = client.get("/v1/costs", params=asked, headers=key("ty_op")).json()
    assert {row["group"]["tenant"] for row in whole["data"]} == {"acme", "globex", "bench", "tieryard-rent"}
    assert {row["group"]["kind"] for row in whole["data"]} == {str(kind) for kind in Kind}
    total = costs.costs(store, Span(span.since, datetime.now(UTC)), [Dimension.DAY]).total
    assert Decimal(whole["total"]["cost_usd"]) == total.cost_usd
    narrowed = client.get("/v1/costs", params=asked | {"tenant": "acme"}, headers=key("ty_op")).json()
    assert narrowed["total"] == own["total"]
    cut = client.get("/v1/costs", params={"group_by": "batch", "limit": 1}, headers=key("ty_op")).json()
    assert (len(cut["data"]), cut["truncated"], cut["total"]) == (1, True, whole["total"])


def test_costs_come_as_files_too(client: TestClient, span: Span) -> None:
    found = client.get("/v1/costs?format=csv&group_by=day", headers=key("ty_acme"))
    assert (found.headers["content-type"], found.text[:8]) == ("text/csv; charset=utf-8", "day,jobs")
    assert "x-tieryard-truncated" not in found.headers
    cut = client.get("/v1/costs?format=csv&group_by=day&limit=1", headers=key("ty_acme"))
    assert (len(cut.text.splitlines()), cut.headers["x-tieryard-truncated"]) == (2, "true")
    parquet = client.get("/v1/costs?format=parquet&group_by=day", headers=key("ty_acme"))
    assert pq.read_table(io.BytesIO(parquet.content)).num_rows == len(found.text.splitlines()) - 1


def test_a_tenant_may_name_itself(client: TestClient, span: Span) -> None:
    of_acme = {"group_by": "kind", "until": "0d"}
    own = client.get("/v1/costs", params=of_acme, headers=key("ty_acme")).json()
    named = client.get("/v1/costs", params=of_acme | {"tenant": "acme"}, headers=key("ty_acme")).json()
    assert (named["total"], named["data"]) == (own["total"], own["data"])
    month = f"{datetime.now(UTC):%Y-%m}"
    assert client.get(f"/v1/invoices/{month}?tenant=acme", headers=key("ty_acme")).status_code == 200


def test_invoices(client: TestClient, store: Store, span: Span) -> None:
    keys.add_key(store, "ty_op", tenant="ops", name="x", scopes=[Scope.READ, Scope.OPERATE])
    month = f"{datetime.now(UTC):%Y-%m}"
    own = client.get(f"/v1/invoices/{month}", headers=key("ty_acme")).json()
    assert (own["tenant"], own["complete"]) == ("acme", False)
    assert Decimal(own["total_usd"]) == sum(Decimal(line["amount_usd"]) for line in own["lines"]) > 0
    assert client.get(f"/v1/invoices/{month}?tenant=acme", headers=key("ty_op")).json() == own
    assert client.get("/v1/invoices/2020-01", headers=key("ty_acme")).json()["total_usd"] == "0"


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("/v1/costs?group_by=week", 400, "group_by"),
        ("/v1/costs?since=x", 400, "since"),
        ("/v1/costs?until=2020-01-01", 400, "since"),
        ("/v1/costs?since=2020-01-01", 400, "since"),
        ("/v1/costs?format=xml", 400, "format"),
        ("/v1/costs?limit=0", 400, "limit"),
        ("/v1/costs?tenant=globex", 403, "tenant"),
        ("/v1/invoices/2026-13", 400, "month"),
        ("/v1/invoices/2999-01", 400, "month"),
        ("/v1/invoices/2026-01?tenant=globex", 403, "tenant"),
    ],
)
def test_the_api_refuses_with_the_field(client: TestClient, store: Store, path: str, status: int, param: str) -> None:
    keys.add_key(store, "ty_acme", tenant="acme", name="x")
    answer = client.get(path, headers=key("ty_acme"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert make.count(store, "ledger") == 0
