"""Quotes that batches take along: which batch may, how what came of it is held against the quote, and the commands."""

# ruff: noqa: F811  # fixtures that are imported

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import factories as make
from tests.integration.test_api import error_of
from tests.integration.test_batches_api import CHAT, House, line
from tests.integration.test_cli import Run, run, url  # noqa: F401  # fixtures
from tests.integration.test_prometheus import KEY as OPERATOR
from tests.integration.test_quotes import MEASURED, NDJSON, catalog_path, house, job, live, offers, quote  # noqa: F401
from tieryard.ids import internal
from tieryard.settings import Settings
from tieryard.store import Store, batches, keys, quotes
from tieryard.store.keys import Scope
from workers import quoting as holding
from workers.expand import close_all


def run_all(house: House, batch: dict[str, Any], *, cost_usd: str) -> None:
    """Its jobs are answered, at this price each, and it is over."""
    house.expand()
    house.answer(batch, cost_usd=Decimal(cost_usd))
    with house.store.transaction() as connection:
        assert batches.complete(connection, [internal("batch", batch["id"])]) != []
    close_all(house.yard)


def settle(house: House) -> list[tuple[int, int, dict[str, Any]]]:
    with house.store.transaction() as connection:
        return quotes.settle(connection)


def test_a_list_takes_its_quote_along_and_is_held_against_it(house: House, redis_url: str) -> None:
    jobs = [job() for _ in range(4)]
    found = quote(house, *jobs)
    answer = house.client.post("/v1/jobs", json=jobs, params={"quote_id": found["id"], "tier": "bulk"})
    batch = answer.json()
    assert settle(house) == []
    assert house.client.get(f"/v1/quotes/{found['id']}").json()["batch_id"] == batch["id"]
    run_all(house, batch, cost_usd="0.000011")
    [(number, batch_number, _)] = settle(house)
    assert (number, batch_number) == (internal("quote", found["id"]), internal("batch", batch["id"]))
    assert settle(house) == []
    held = house.client.get(f"/v1/quotes/{found['id']}").json()
    assert (held["tier"], held["settled_at"] is not None) == ("bulk", True)
    actual = held["actual"]
    assert (actual["outcome"], actual["cost_usd"], actual["completion_tokens"]) == ("completed", "0.000044", 20)
    # 4 × (23 × 0.10 + 8 × 0.40) ÷ 1M = 0.000022 was expected, and 0.0000348 the worst
    assert actual["cost"] == {"ratio": 2.0, "inside": False}
    assert actual["finish"]["ratio"] == pytest.approx(
        actual["finish_s"] / offers(found)["bulk"]["finish"]["expected_s"], abs=1e-3
    )


def test_a_files_batch_takes_the_newest_quote_of_its_file(house: House) -> None:
    file = house.upload(line("a"), line("b"))
    first, second = (house.client.post("/v1/quotes", json={"input_file_id": file}).json()["id"] for _ in range(2))
    wanted = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    one = house.client.post("/v1/batches", json=wanted).json()
    assert house.client.get(f"/v1/quotes/{second}").json()["batch_id"] == one["id"]
    named = {**wanted, "metadata": {"tieryard_quote": first}}
    two = house.client.post("/v1/batches", json=named).json()
    assert house.client.get(f"/v1/quotes/{first}").json()["batch_id"] == two["id"]
    three = house.client.post("/v1/batches", json=wanted)
    assert three.status_code == 200
    run_all(house, one, cost_usd="0.000003")
    assert [row[0] for row in settle(house)] == [internal("quote", second)]


def test_a_quote_that_is_not_this_batchs_is_refused_and_nothing_is_saved(house: House) -> None:
    jobs = [job(), job()]
    taken, other_size = quote(house, *jobs)["id"], quote(house, job())["id"]
    one_tier = quote(house, *jobs, tier="batch")["id"]
    of_file = house.client.post("/v1/quotes", json={"input_file_id": house.upload(line("a"), line("b"))}).json()["id"]
    assert house.client.post("/v1/jobs", json=jobs, params={"quote_id": taken}).status_code == 201

    def refusal(named: str, status: int, tier: str = "batch") -> dict[str, Any]:
        answer = house.client.post("/v1/jobs", json=jobs, params={"quote_id": named, "tier": tier})
        error = error_of(answer, status)
        assert error["param"] in ("quote_id", "quote")
        return error

    assert "is batch_" in refusal(taken, 409)["message"]
    assert "1 requests" in refusal(other_size, 400)["message"]
    assert "no offer for the tier 'bulk'" in refusal(one_tier, 400, "bulk")["message"]
    assert "was made for file_" in refusal(of_file, 400)["message"]
    refusal("quote_999", 404)
    refusal("7", 404)
    assert make.count(house.store, "batch") == 1


def test_a_cancelled_batch_is_settled_and_counts_for_no_error(house: House) -> None:
    jobs = [job()]
    found = quote(house, *jobs)
    batch = house.client.post("/v1/jobs", json=jobs, params={"quote_id": found["id"]}).json()
    batches.cancel(house.store, internal("batch", batch["id"]))
    run_all(house, batch, cost_usd="0.000001")
    [(_, _, actual)] = settle(house)
    assert actual["outcome"] == "cancelled"
    with house.store.transaction() as connection:
        assert quotes.errors(connection) == {}


def test_the_leader_settles_and_operators_see_the_error(
    house: House, store: Store, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    keys.add_key(store, "ty_prometheus", tenant="tests", name="prometheus", scopes=[Scope.BENCHMARK])
    for cost_usd in ("0.0000055", "0.0000055", "0.000011"):
        jobs = [job()]
        named = quote(house, *jobs)["id"]
        batch = house.client.post("/v1/jobs", json=jobs, params={"quote_id": named}).json()
        run_all(house, batch, cost_usd=cost_usd)
    with store.transaction() as connection:
        holding.look(house.yard, connection)
    text = house.client.get("/metrics", headers=OPERATOR).text
    assert 'tieryard_quotes_settled{figure="cost"} 3.0' in text
    assert 'tieryard_quote_error{figure="cost",quantile="0.5"} 1.0' in text
    assert 'tieryard_quote_error{figure="cost",quantile="0.9"} 1.8' in text
    assert 'tieryard_quote_inside_ratio{figure="cost"} 0.6666' in text
    assert 'tieryard_quote_error{figure="finish",quantile="0.5"}' in text
    assert house.yard.redis.ttl("tieryard:quotes") > 0


# The command


def test_the_command_prices_a_file_runs_it_by_the_quote_and_shows_what_came(
    house: House,
    run: Run,  # fixtures
    url: str,
    tmp_path: Path,
) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text("".join(json.dumps(job()) + "\n" for _ in range(3)) + json.dumps(job(max_tokens=0)) + "\n")
    shown = run("quote", str(file), "--deadline", "6h", "--url", url)
    assert shown.code == 0, shown.err
    assert "4 requests, 1 bad" in shown.out
    assert "line 4, max_tokens:" in shown.out
    assert "cheapest that is done by" in shown.out
    file.write_text("".join(json.dumps(job()) + "\n" for _ in range(3)))
    named = json.loads(run("quote", str(file), "--json", "--url", url).out)["id"]
    batch = run("submit", str(file), "--quote", named, "--url", url).out.strip()
    run_all(house, {"id": batch}, cost_usd="0.000006")
    settle(house)
    shown = run("quote", "show", named, "--url", url)
    assert f"{batch}, batch: completed" in shown.out
    assert "1.09" in shown.out
    assert named in run("quote", "list", "--url", url).out


def test_the_command_uploads_openais_lines(
    house: House,
    run: Run,
    url: str,
    tmp_path: Path,
) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(json.dumps(line("a")) + "\n")
    shown = run("quote", str(file), "--url", url)
    assert shown.code == 0, shown.err
    [[file_id]] = house.store.fetch("SELECT id FROM file")
    assert f"file: file_{file_id}" in shown.out
    assert run("quote", f"file_{file_id}", "--url", url).code == 0
    assert run("quote", str(tmp_path / "none"), "--url", url).code == 2
