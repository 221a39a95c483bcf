"""Parts die in the middle of a batch; every job still ends once, with one result and one charge."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal

import httpx
import psycopg
import redis

from tests.acceptance.conftest import KEY, Running, StartFleet
from tests.conftest import eventually
from tieryard.testing.fake_vllm import FakePlan

JOBS = 400
LOOK_AHEAD = 8 + 4  # claimed and not started: a quarter of the 32 slots, and those that realtime has reserved
PLAN = FakePlan(ttft_ms=40, tokens_per_s=40, capacity=32)  # a batch of JOBS takes three seconds or more


def assert_each_once(running: Running, batch: dict[str, object], n: int) -> None:
    """n jobs succeeded; each has one result and one charge; the batch's cost is the sum of theirs."""
    assert batch["counts"]["succeeded"] == n, batch["counts"]  # type: ignore[index]
    assert running.rows("SELECT count(*), count(DISTINCT job_id) FROM result") == [(n, n)]
    assert running.rows("SELECT count(*), count(DISTINCT job_id) FROM ledger") == [(n, n)]
    assert running.rows("SELECT count(*) FROM timing WHERE outcome = 'succeeded'") == [(n,)]
    assert running.rows("SELECT count(*) FROM job WHERE finished_at IS NULL") == [(0,)]
    [(total,)] = running.rows("SELECT sum(cost_usd) FROM ledger")
    assert Decimal(str(batch["cost_usd"])) == total > 0


def test_inference_worker_killed_in_mid_batch(start_fleet: StartFleet) -> None:
    with start_fleet(PLAN) as running:
        batch = running.submit(JOBS)
        running.until_some_succeeded(batch["id"], 40)
        os.kill(running.pid("infer-short"), signal.SIGKILL)
        done = running.until_finished(batch["id"])
        assert_each_once(running, done, JOBS)
        [(died,)] = running.rows("SELECT count(*) FROM timing WHERE outcome = 'worker_died'")
        assert died > 0, "the kill met no job in flight, so this proved nothing"
        assert running.rows("SELECT max(worker_deaths) FROM job") == [(1,)]


def test_redis_flushed_in_mid_batch(start_fleet: StartFleet) -> None:
    with start_fleet(PLAN) as running:
        batch = running.submit(JOBS)
        single = running.api.post("/v1/jobs", json={"prompt": "Alone.", "max_tokens": 8}).json()
        running.until_some_succeeded(batch["id"], 40)
        client = redis.Redis.from_url(running.fleet.redis_url)
        assert client.flushall()
        client.close()
        done = running.until_finished(batch["id"])
        eventually(
            lambda: running.api.get(f"/v1/jobs/{single['id']}").json()["state"] == "succeeded", what="the single job"
        )
        assert done["counts"]["succeeded"] == JOBS
        log = running.fleet.log("expand").read_text()
        assert log.count("broker.flushed") == 2, "at the first start, and now"
        n = JOBS + 1
        assert running.rows("SELECT count(*), count(DISTINCT job_id) FROM result") == [(n, n)]
        assert running.rows("SELECT count(*), count(DISTINCT job_id) FROM ledger") == [(n, n)]


def test_every_other_process_killed_in_mid_batch(start_fleet: StartFleet) -> None:
    with start_fleet(PLAN) as running:
        batch = running.submit(JOBS)
        running.until_some_succeeded(batch["id"], 40)
        for name in ("classify", "expand", "beat", "callback"):
            os.kill(running.pid(name), signal.SIGKILL)
        done = running.until_finished(batch["id"])
        assert_each_once(running, done, JOBS)


def test_postgres_and_valkey_killed_in_mid_batch(start_fleet: StartFleet) -> None:
    with start_fleet(PLAN) as running:
        batch = running.submit(JOBS)
        running.until_some_succeeded(batch["id"], 40)
        [(postmaster,)] = running.rows("SELECT pg_read_file('postmaster.pid', 0, 20)")
        running.database.close()
        os.kill(int(postmaster.split()[0]), signal.SIGKILL)
        os.kill(running.fleet.valkey.pid, signal.SIGKILL)
        eventually(lambda: running.try_batch(batch["id"]).get("finished_at"), within_s=60, what="the batch's end")
        with psycopg.connect(running.fleet.database_url, autocommit=True) as again:
            running.database = again
            assert_each_once(running, running.batch(batch["id"]), JOBS)


def test_stopped_fleet_goes_on_where_it_was(start_fleet: StartFleet) -> None:
    with start_fleet(FakePlan(ttft_ms=40, tokens_per_s=20, capacity=32)) as running:
        batch = running.submit(JOBS)
        running.until_some_succeeded(batch["id"], 40)
    stopped_at = datetime.now(tz=UTC)
    with start_fleet(PLAN) as running:
        done = running.until_finished(batch["id"])
        [(left,)] = running.rows(f"SELECT count(*) FROM job WHERE finished_at > '{stopped_at}'")
        assert left > 0, "all was done before the stop, so this proved nothing"
        assert_each_once(running, done, JOBS)
        assert running.rows("SELECT count(*) FROM timing WHERE outcome = 'worker_died'") == [(0,)]
        [(handed_back,)] = running.rows("SELECT count(*) FROM timing WHERE outcome = 'drain'")
        assert handed_back <= LOOK_AHEAD, "what was in the engine at the stop must have been finished"


def test_calls_in_flight_when_the_fleet_stops_are_answered(start_fleet: StartFleet) -> None:
    """What serves them must outlast the API's own stop."""
    body = {"model": "auto", "max_tokens": 60, "stream": True, "messages": [{"role": "user", "content": "A story."}]}

    def stream(url: str) -> str:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False).text

    with ThreadPoolExecutor(4) as pool:
        with start_fleet(FakePlan(ttft_ms=40, tokens_per_s=10, length=60)) as running:
            streams = [pool.submit(stream, running.fleet.url) for _ in range(4)]
            eventually(lambda: running.fake.state.running == 4, what="four calls in the engine")
        ends = [answer.result(1).splitlines()[-2] for answer in streams]
    assert ends == ["data: [DONE]"] * 4


def test_cancelled_while_running_stops_the_engine_and_bills_what_it_used(start_fleet: StartFleet) -> None:
    with start_fleet(FakePlan(ttft_ms=20, tokens_per_s=20, capacity=4, length=400)) as running:
        job = running.api.post("/v1/jobs", json={"prompt": "A long story.", "max_tokens": 400}).json()
        eventually(lambda: running.fake.state.running == 1, what="the job in the engine")
        running.api.post(f"/v1/jobs/{job['id']}/cancel")
        eventually(
            lambda: running.api.get(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled", what="the cancellation"
        )
        story = running.api.get(f"/v1/jobs/{job['id']}/story").json()
        assert running.fake.state.running == 0
        assert 0 < story["starts"][0]["completion_tokens"] < 400
        assert [m["kind"] for m in story["money"]] == ["inference"]
        assert Decimal(story["job"]["cost_usd"]) > 0
