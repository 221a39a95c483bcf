"""Control-plane throughput: everything real, the engine replaced by an instant one in the worker's process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import orjson
import psycopg

from tests.benchmarks.figures import Figure
from tieryard.embedded import EmbeddedPostgres, EmbeddedValkey, free_port
from tieryard.supervisor import Fleet

CATALOG = Path(__file__).parents[1] / "catalogs" / "bench.yaml"
KEY = "ty_bench"
ROUNDS = 3


def prompts(n: int) -> list[str]:
    """Distinct short prompts, all of one size class and tier."""
    return [f"Extract the city from: order {i} was sent to Oslo by Ms. Hansen." for i in range(n)]


def tieryard_round(url: str, n: int, *, key: str = KEY) -> float:
    """Jobs a second, from the request that submits them to the last result in Postgres."""
    body = b"\n".join(orjson.dumps({"prompt": p, "max_tokens": 16}) for p in prompts(n))
    headers = {"authorization": f"Bearer {key}", "content-type": "application/x-ndjson"}
    with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
        started = time.monotonic()
        answer = client.post("/v1/jobs?tier=batch", content=body)
        answer.raise_for_status()
        batch = answer.json()
        while batch["finished_at"] is None:
            time.sleep(0.2)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
        elapsed = time.monotonic() - started
    if batch["counts"]["succeeded"] != n:
        raise SystemExit(f"{batch['counts']} of {n} jobs")
    return n / elapsed


def plain_round(redis_url: str, database_url: str, n: int) -> float:
    """The same of plain Celery: from the first `delay` to the last row."""
    environment = {**os.environ, "PLAIN_REDIS_URL": redis_url, "PLAIN_DATABASE_URL": database_url, "C_FORCE_ROOT": "1"}
    os.environ |= environment
    from tests.benchmarks.plain_celery import app, classify

    app.conf.broker_url = redis_url
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS plain_result")
        connection.execute("CREATE TABLE plain_result (job_id bigint, deployment text, tokens int, output text)")
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.benchmarks.plain_celery", "worker", "-Q", queue,
                 "--pool=prefork", "--concurrency=4", "--loglevel=ERROR", "--hostname", f"{queue}@bench",
                 "--without-gossip", "--without-mingle", "--without-heartbeat"],
                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for queue in ("classify", "infer")
        ]  # fmt: skip
        try:
            classify.delay(-1, "warm up")
            _until(connection, 1)
            started = time.monotonic()
            for i, prompt in enumerate(prompts(n)):
                classify.delay(i, prompt)
            _until(connection, n + 1)
            return n / (time.monotonic() - started)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait(timeout=30)


def _until(connection: psycopg.Connection, rows: int) -> None:
    deadline = time.monotonic() + 600
    while connection.execute("SELECT count(*) FROM plain_result").fetchone()[0] < rows:
        if time.monotonic() > deadline:
            raise SystemExit("plain Celery did not finish in 600 s")
        time.sleep(0.2)


def run(work: Path, *, jobs: int = 20_000) -> list[Figure]:
    """Rounds alternate, so that both meet the same machine."""
    os.environ["TIERYARD_API_KEY"] = KEY
    ours: list[float] = []
    theirs: list[float] = []
    with (
        EmbeddedPostgres(work / "plain-postgres") as postgres,
        EmbeddedValkey(work / "plain-valkey", append_only=True) as valkey,
        Fleet(work / "fleet", port=free_port(), catalog=CATALOG) as fleet,
    ):
        fleet.wait_until_ready()
        database = postgres.create_database("plain")
        tieryard_round(fleet.url, 1000)
        for _ in range(ROUNDS):
            ours.append(tieryard_round(fleet.url, jobs))
            theirs.append(plain_round(valkey.url, database, jobs))
    return [
        Figure.median("control_plane_throughput", "jobs/s", ours, peer="plain Celery, two hops", peer_values=theirs)
    ]
