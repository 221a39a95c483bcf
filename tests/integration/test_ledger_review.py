"""Where money could be lost, doubled or overrun: found by reading what reserves, posts and settles it."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic import command

from tests import factories as make
from tests.conftest import eventually
from tests.integration.inference import ScriptedEngine, inference
from tests.unit.catalog.test_tariffs import BOOK
from tieryard import admission
from tieryard.admission import Admission
from tieryard.catalog import Catalog, parse_catalog
from tieryard.engines import Delta, Stream
from tieryard.requests import parse_job
from tieryard.routing import snapshot
from tieryard.settings import Settings
from tieryard.store import Store, budgets, jobs
from tieryard.store.budgeted import Budgeted
from tieryard.store.budgets import Need, Wanted
from tieryard.store.finish import finish
from tieryard.store.migrate import _config, migrate

TODAY = datetime.now(tz=UTC).date()


def put(store: Store, usd: str, period: str) -> None:
    budgets.set_budget(store, Wanted("tests", Decimal(usd), period))


def reserve(store: Store, tenant: int, job_id: int, usd: str) -> None:
    with store.transaction() as connection:
        needs = [Need(job_id, 1, Decimal(usd))]
        budgets.reserve(connection, tenant_id=tenant, api_key_id=None, needs=needs)


def stands_still(store: Store, under_way: list[Future[Any]]) -> bool:
    """Whether each of these waits for a lock, or is over."""
    [[n]] = store.fetch(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return int(n) == sum(not one.done() for one in under_way)


def test_submits_at_the_start_of_a_day_are_no_deadlock(store: Store, tenant: int) -> None:
    """One has looked before the day's row was there, and has locked the month's; another has the day's and waits."""
    put(store, "100", "day")
    put(store, "100", "month")
    [[day], [month]] = store.fetch("SELECT id FROM budget ORDER BY id")
    store.fetch("DELETE FROM budget_period WHERE budget_id = %(day)s RETURNING 1", {"day": day})
    begin = (
        "INSERT INTO budget_period (budget_id, starts_on) VALUES (%(day)s, (now() AT TIME ZONE 'UTC')::date) "
        "ON CONFLICT DO NOTHING RETURNING 1"
    )
    under_way: list[Future[Any]] = []
    with ThreadPoolExecutor(3) as pool:
        with store.transaction() as holder:
            holder.execute("SELECT FROM budget_period WHERE budget_id = %s FOR NO KEY UPDATE", [month])
            for does in (
                lambda: reserve(store, tenant, 1, "1"),
                lambda: store.fetch(begin, {"day": day}),  # as one more submit does
                lambda: reserve(store, tenant, 2, "1"),
            ):
                under_way.append(pool.submit(does))
                eventually(lambda: stands_still(store, under_way), what="it to wait")
        for one in under_way:
            one.result(30)
    assert store.fetch("SELECT reserved_usd FROM budget_period") == [(2,), (2,)]


@pytest.mark.parametrize("removed", [0, 1], ids=["the first", "the second"])
def test_a_budget_that_is_removed_while_a_submit_waits_for_it_reserves_of_the_others_once(
    store: Store, tenant: int, removed: int
) -> None:
    put(store, "100", "day")
    put(store, "100", "month")
    ids = [row[0] for row in store.fetch("SELECT id FROM budget ORDER BY id")]
    with ThreadPoolExecutor(1) as pool:
        with store.transaction() as remover:
            remover.execute(budgets._REMOVE, {"id": ids[removed]})
            submit = pool.submit(reserve, store, tenant, 1, "1")
            eventually(lambda: stands_still(store, [submit]), what="it to wait")
        submit.result(30)
    assert store.fetch("SELECT budget_id, reserved_usd FROM budget_period") == [(ids[1 - removed], 1)]
    assert store.fetch("SELECT budget_id, usd FROM reservation") == [(ids[1 - removed], 1)]


def test_what_was_free_when_it_was_accepted_counts_when_it_costs(store: Store, tenant: int) -> None:
    """A rented deployment without a price until its first speed run: what waits is charged at the price that it has
    then."""
    put(store, "1", "day")
    [job] = make.save_jobs(store, tenant, worst_usd=Decimal(0))
    make.route(store, [job])
    [claimed] = make.claim(store, [job], make.worker(store))
    with store.transaction() as connection:
        finish(connection, [make.ending(claimed, cost_usd=Decimal("0.4"))])
        budgets.settle(connection)
    [row] = budgets.list_budgets(store)
    assert (row.spent_usd, row.reserved_usd) == (Decimal("0.4"), 0)


def test_the_version_before_sees_no_rows_that_it_takes_for_charges(
    store: Store, tenant: int, database_url: str
) -> None:
    """It knows charges and benchmarks alone, and sums what a job has."""
    kinds = ("inference", "retry", "benchmark", "warmup", "idle", "overhead", "adjustment")
    for number, kind in enumerate(kinds):
        store.fetch(
            "INSERT INTO ledger (job_id, fence, kind, tenant_id, tier, deployment, prompt_tokens, completion_tokens, "
            "cost_usd, catalog) VALUES (%(id)s, 1, %(kind)s, %(tenant)s, 'batch', 'one', 1, 1, 1, 'c') RETURNING 1",
            {"id": number, "kind": kind, "tenant": tenant},
        )
    command.downgrade(_config(database_url), "0008")
    assert store.fetch("SELECT kind FROM ledger ORDER BY job_id") == [("inference",), ("benchmark",)]
    migrate(database_url)


# What a start used that did not come to its end


class UntoldEngine(ScriptedEngine):
    """Says what it used in the end alone, as hosted APIs do."""

    async def stream(self, body: dict[str, Any]) -> Stream:
        async with contextlib.aclosing(super().stream(body)) as events:
            async for event in events:
                yield replace(event, usage=None) if isinstance(event, Delta) else event


def test_a_cancelled_start_is_charged_its_prompt_by_an_engine_that_has_not_counted_yet(
    settings: Settings, tenant: int
) -> None:
    with inference(settings, tenant, engine=UntoldEngine()) as bench:
        [job] = bench.bring("wait long")
        eventually(lambda: bench.engine.running, what="the request")
        jobs.cancel(bench.yard.store, [job], tenant_id=tenant)
        bench.until(job, "cancelled")
        asked = parse_job('{"prompt": "wait long"}')
        [prompt] = bench.yard.admission().prompt_tokens([asked])
        assert prompt > 1
        assert bench.yard.store.fetch("SELECT prompt_tokens, completion_tokens FROM ledger") == [(prompt, 1)]


# Prices that are known to change


def catalog(first: str, then: str, days: int) -> Catalog:
    """`hosted` costs so much a million tokens, in and out, and after so many days something else."""
    start, end = BOOK.index("  hosted:"), BOOK.index("  instances:")
    said = "source: a list, read_on: 2026-11-23, status: as_printed"
    change = TODAY + timedelta(days=days)
    rows = (
        f"    - {{provider: openai, model: gpt-4o, input_usd_per_1m: {first}, output_usd_per_1m: {first}, "
        f"valid_from: 2025-01-01, valid_until: {change - timedelta(days=1)}, {said}}}\n"
        f"    - {{provider: openai, model: gpt-4o, input_usd_per_1m: {then}, output_usd_per_1m: {then}, "
        f"valid_from: {change}, {said}}}\n"
    )
    text = BOOK[:start] + "  hosted:\n" + rows + BOOK[end:]
    return parse_catalog(text.replace("batch: {window: 24h}", "batch: {window: 24h}, bulk: {window: 7d}"))


@pytest.mark.parametrize(("days", "usd"), [(1, 9), (6, 9), (9, 1)])
def test_a_price_that_rises_before_a_job_may_end_is_reserved(store: Store, days: int, usd: int) -> None:
    known = catalog("1", "9", days)
    [name] = [name for name, one in known.deployments.items() if one.rent is None]
    price = Budgeted(store).prices(known)[name]
    assert (price.input_usd_per_1m, price.output_usd_per_1m) == (usd, usd)


def test_a_process_that_runs_over_midnight_goes_by_the_prices_of_the_day(
    monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    known = catalog("9000", "1", 1)
    [name] = [name for name, one in known.deployments.items() if one.rent is None]
    admitting = Admission(known, cache_dir=cache_dir)
    asked: dict[str, Any] = {"model": name, "prompt": "Say hi.", "max_tokens": 10, "max_cost_usd": "0.01"}
    job = parse_job(json.dumps(asked))
    with pytest.raises(admission.RequestError, match=r"above \$0.01"):
        admitting.check(job, callbacks=False)

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=1)

    for module in (admission, snapshot):
        monkeypatch.setattr(module, "datetime", Tomorrow)
    admitting.check(job, callbacks=False)
