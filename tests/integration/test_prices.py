"""Prices in Postgres: recorded once, never rewritten; and the terms that rent windows are opened with."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest

from tests.integration.test_cli import Run, here, run
from tests.unit.catalog.test_tariffs import BOOK, changed
from tieryard.catalog import Catalog, parse_catalog
from tieryard.errors import ConflictError
from tieryard.store import Connection, Store, catalogs, prices, windows
from tieryard.store.connection import reserve_ids

__all__ = ["here", "run"]  # fixtures

TODAY = datetime.now(tz=UTC).date()
MORE = "source: a list, read_on: 2026-11-23, status: as_printed"
A_DAY = timedelta(days=1)


@pytest.fixture
def connection(store: Store) -> Iterator[Connection]:
    with store.transaction() as connection:
        yield connection


def book(*rows: tuple[date, str], ends: date | None = None) -> Catalog:
    """One instance at these prices from these days on, each until the next; and one deployment that rents half of
    it."""
    said = []
    for number, (first, usd) in enumerate(rows):
        last = rows[number + 1][0] - A_DAY if number + 1 < len(rows) else ends
        until = f"valid_until: {last}, " if last is not None else ""
        said.append(
            "    - {provider: p, name: box, region: r, purchase: on_demand, gpus: 2, gpu_type: A10G, "
            f"usd_per_h: {usd}, valid_from: {first}, {until}{MORE}}}\n"
        )
    start, end = BOOK.index("  hosted:"), BOOK.index("overhead:")
    text = BOOK[:start] + "  instances:\n" + "".join(said) + BOOK[end:]
    text = text.replace("{instance: aws/g5.12xlarge, gpus: 1}", "{instance: box, gpus: 1}")
    return parse_catalog(text.replace("{book: openai/gpt-4o}", "{input_usd_per_1m: 1, output_usd_per_1m: 4}"))


def recorded(connection: Connection) -> list[tuple[date, Decimal | None]]:
    return [(row.valid_from, row.usd_per_hour) for row in prices.load_book(connection)]


LONG_AGO = TODAY - timedelta(days=100)


def test_a_book_is_recorded_once_with_its_ends(connection: Connection) -> None:
    catalog = book((LONG_AGO, "2"), (TODAY, "3"), ends=TODAY + A_DAY)
    assert prices.record(connection, catalog) == 3
    assert prices.record(connection, catalog) == 0
    assert recorded(connection) == [(LONG_AGO, 2), (TODAY, 3), (TODAY + 2 * A_DAY, None)]
    last = prices.load_book(connection)[-1]
    assert (last.ends, last.gpus, last.kind) == (True, None, "instance")


def test_what_is_to_come_may_change_and_what_has_come_may_not(connection: Connection) -> None:
    prices.record(connection, book((LONG_AGO, "2"), ends=TODAY))
    prices.record(connection, book((LONG_AGO, "2"), (TODAY + A_DAY, "3")))
    assert recorded(connection) == [(LONG_AGO, 2), (TODAY + A_DAY, 3)]
    with pytest.raises(ConflictError, match=r"p/box is recorded from .* with 2 USD an hour and 2 GPUs") as refused:
        prices.record(connection, book((LONG_AGO, "2.5")))
    assert refused.value.param == "price_book.instances.0.valid_from"


def test_what_is_to_come_may_be_taken_back(connection: Connection) -> None:
    for to_come in (book((LONG_AGO, "2"), ends=TODAY + A_DAY), book((LONG_AGO, "2"), (TODAY + A_DAY, "3"))):
        prices.record(connection, to_come)
        assert len(recorded(connection)) == 2
        assert prices.record(connection, book((LONG_AGO, "2"))) == 0
        assert recorded(connection) == [(LONG_AGO, 2)]


def test_no_row_begins_behind_what_was_paid_by_the_row_before(connection: Connection) -> None:
    catalog = book((LONG_AGO, "2"))
    prices.record(connection, catalog)
    late = book((LONG_AGO, "2"), (TODAY, "3"))
    terms = prices.terms_of(connection, catalog, "rented")
    assert terms is not None
    window = windows.open_window(
        connection, reserve_ids(connection, 1), place="here/1", worker_id=None, deployment="rented", terms=terms
    )
    connection.execute("UPDATE rent_window SET started_at = now() - interval '2 days' WHERE id = %s", [window])
    with pytest.raises(ConflictError, match="a window was rented by what p/box cost before") as refused:
        prices.record(connection, late)
    assert refused.value.param == "price_book.instances.1.valid_from"
    connection.execute("UPDATE rent_window SET stopped_at = now() - interval '1 day' WHERE id = %s", [window])
    assert prices.record(connection, late) == 1  # nothing was rented on its days


def test_no_hosted_price_begins_behind_charges(connection: Connection) -> None:
    from_today = f"valid_from: {TODAY}, {MORE}"
    until = f"valid_until: {TODAY - A_DAY}"
    rows = BOOK.replace("valid_until: 2026-11-23, ", "").splitlines(keepends=True)
    first = parse_catalog("".join(row for row in rows if "valid_from: 2026-11-24" not in row))
    second = parse_catalog(
        BOOK.replace("valid_until: 2026-11-23", until).replace(f"valid_from: 2026-11-24, {MORE}", from_today)
    )
    prices.record(connection, first)
    connection.execute(
        "INSERT INTO ledger (job_id, fence, kind, tenant_id, prompt_tokens, completion_tokens, cost_usd, deployment, "
        "catalog) VALUES (1, 1, 'inference', 1, 1, 1, 0.1, 'bought', 'x')"
    )
    with pytest.raises(ConflictError, match="jobs were charged by what openai/gpt-4o cost before") as refused:
        prices.record(connection, second)
    assert refused.value.param == "price_book.hosted.1.valid_from"
    connection.execute("UPDATE ledger SET posted_at = now() - interval '1 day'")
    assert prices.record(connection, second) == 1


def test_terms_are_those_of_the_day_with_the_row_they_come_from(connection: Connection) -> None:
    catalog = book((LONG_AGO, "2"), (TODAY, "3"), (TODAY + A_DAY, "4"))
    prices.record(connection, catalog)
    terms = prices.terms_of(connection, catalog, "rented")
    assert terms is not None
    row = next(row for row in prices.load_book(connection) if row.valid_from == TODAY)
    assert (terms.usd_per_hour, terms.gpus, terms.purchase) == (Decimal("1.5"), 1, "on_demand")
    assert (terms.price_id, terms.measured_by, terms.catalog) == (row.id, (), catalog.hash())
    assert terms.price == catalog.price_of("rented", TODAY)
    assert prices.terms_of(connection, catalog, "bought") is None
    [(name, host)] = prices.host_terms(connection, catalog).items()
    assert (name, host.usd_per_hour, host.price_id, host.gpus) == ("redis-1", Decimal("0.17"), None, 0)


def speed_run(connection: Connection, build: str, **figures: Any) -> int:
    """A finished run of one that keeps two replicas full, unless it says otherwise."""
    run_id = reserve_ids(connection, 1)
    whole = {"requests_per_s": 20.0, "prompt_tokens": 1100.0, "cached_tokens": 100.0, "output_tps": 2000.0}
    full = figures.pop("full", True)
    report = {"replicas": 2, "full": full, "valid": figures.pop("valid", True)}
    report["figures"] = whole | {"token_source": "server"} | figures
    connection.execute(
        "INSERT INTO benchmark (id, tenant_id, kind, deployment, spec, state, finished_at, pinned, report) "
        "VALUES (%s, 1, 'speed', 'rented', '{}', 'succeeded', now(), %s, %s)",
        [run_id, build, orjson.dumps(report).decode()],
    )
    return run_id


def test_the_standard_price_is_by_the_newest_full_runs_of_the_build(connection: Connection) -> None:
    catalog = parse_catalog(changed("{instance: aws/g5.12xlarge, gpus: 1}", "{usd_per_hour: 1.80}"))
    build = catalog.deployments["rented"].build
    other = speed_run(connection, build, requests_per_s=20.0, prompt_tokens=200.0, cached_tokens=0.0, output_tps=3600.0)
    newest = speed_run(connection, build)  # a replica: 20 × (1,100 − 100) ÷ 2 = 10,000 prompt and 1,000 output tokens
    speed_run(connection, build, full=False)
    speed_run(connection, build, valid=False)
    speed_run(connection, build, token_source="counted")  # no password
    speed_run(connection, "another")
    terms = prices.terms_of(connection, catalog, "rented")
    assert terms is not None
    assert terms.measured_by == (newest, other)
    assert (terms.price.input_usd_per_1m, terms.price.output_usd_per_1m) == (Decimal("0.025"), Decimal("0.25"))


def test_apply_records_and_refuses_with_the_field(store: Store) -> None:
    def put(catalog: Catalog, body: str) -> None:
        catalogs.apply(store, body, name=catalog.hash(), tiers=catalog.tiers, catalog=catalog)

    put(book((LONG_AGO, "2")), "one")
    with pytest.raises(ConflictError, match="a recorded price stays"):
        put(book((LONG_AGO, "3")), "two")
    assert [version.body for version in catalogs.versions(store, limit=9)] == ["one"]


def test_the_commands(run: Run, here: None, store: Store, tmp_path: Any) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(BOOK.replace("valid_until: 2026-11-23", f"valid_until: {TODAY}").replace(
        "valid_from: 2026-11-24", f"valid_from: {TODAY + A_DAY}"), encoding="utf-8")  # fmt: skip
    assert "- savings are counted against bought" in run("config", "check", str(file)).out
    assert run("config", "apply", str(file)).code == 0
    listed = orjson.loads(run("prices", "list", "--from-fleet", "--json").out)
    assert [row["name"] for row in listed if row["provider"] == "openai"] == ["gpt-4o", "gpt-4o"]
    shown = run("prices", "list", "--from-fleet").out
    assert "offered no more" in " ".join(shown.split())
    rates = orjson.loads(run("prices", "rates", "--json").out)
    assert rates["baseline"] == "bought"
    assert {rate["name"]: rate["usd_per_hour"] for rate in rates["rates"]} == {
        "rented": "1.418000",
        "bought": None,
        "redis-1": "0.17",
    }
    assert "price book: openai/gpt-4o" in " ".join(run("prices", "rates").out.split())
    file.write_text(file.read_text().replace("{book: openai/gpt-4o}", "{book: other/old}"), encoding="utf-8")
    for refused in (run("config", "check", str(file)), run("config", "apply", str(file))):
        assert refused.code == 2
        assert "deployments.bought.price.book: no price of other/old holds on" in refused.err
