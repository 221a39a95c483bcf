"""The peer: plain Celery doing the same two hops, a message a job, with one row written per job.

As its documentation would have it: `task.delay`, two workers, Redis as broker, a row by an autocommitted INSERT
over a connection kept open. No leases, no fences, no ledger. Of the pools tried on 2 cores (threads 8 and 32,
prefork 2 and 4) the fastest, prefork with 4 processes a worker, is the one measured.
"""

from __future__ import annotations

import os
import threading

import psycopg
from celery import Celery

app = Celery("plain", broker=os.environ.get("PLAIN_REDIS_URL", "redis://"))
app.conf.update(
    task_ignore_result=True,
    task_routes={"plain.classify": {"queue": "classify"}, "plain.infer": {"queue": "infer"}},
    worker_prefetch_multiplier=16,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
_local = threading.local()


@app.task(name="plain.classify")
def classify(job_id: int, prompt: str) -> None:
    infer.delay(job_id, "large" if len(prompt.split()) > 100 else "small", prompt)


@app.task(name="plain.infer")
def infer(job_id: int, deployment: str, prompt: str) -> None:
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(os.environ["PLAIN_DATABASE_URL"], autocommit=True)
    _local.connection.execute(
        "INSERT INTO plain_result (job_id, deployment, tokens, output) VALUES (%s, %s, %s, 'done')",
        [job_id, deployment, len(prompt.split())],
    )
