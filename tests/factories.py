"""What tests build: jobs in any state, batches, endings. Each makes one plain thing, with only what matters named."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg

from tieryard.catalog import SizeClass
from tieryard.job import State
from tieryard.routing import Candidate, JobFeatures, Rules, Snapshot, TextFeatures
from tieryard.store import Store, batches, expansion, jobs, workers
from tieryard.store.batches import NewBatch, OpenBatch
from tieryard.store.expansion import Verdict
from tieryard.store.finish import Ending, HandBack
from tieryard.store.jobs import Claimed, NewJob, Routed

PATIENCE_S = 8.0
HOOK = "https://hooks.example.com/done"
_unique = itertools.count(1)


def body(prompt: str = "Say hi.", **fields: Any) -> str:
    return json.dumps({"prompt": prompt, **fields})


def soon(seconds: float = 3600) -> datetime:
    return datetime.now(tz=UTC) + timedelta(seconds=seconds)


def features(prompt_tokens: int = 10, *, model: str = "auto", wanted: str = "small", max_tokens: int = 16, **more: Any):
    text = TextFeatures("chat", SizeClass(wanted), "short and plain", 2, has_code=False)
    return JobFeatures(text, model, {"t": prompt_tokens}, max_tokens, **more)


def candidate(name: str = "one", **fields: Any) -> Candidate:
    plain: dict[str, Any] = {
        "name": name,
        "size_class": SizeClass.SMALL,
        "context_limit": 1000,
        "tokenizer": "t",
        "capabilities": frozenset(),
        "input_usd_per_1m": Decimal("0.10"),
        "output_usd_per_1m": Decimal("0.40"),
        "quality": None,
        "live": True,
    }
    return Candidate(**{**plain, **fields})


def snapshot(*candidates: Candidate, rules: Rules | None = None) -> Snapshot:
    return Snapshot("0123456789ab", candidates, rules or Rules())


def save_jobs(store: Store, tenant: int, n: int = 1, *, text: str | None = None, window_s: float = 3600, **fields: Any):
    """`n` single jobs, queued: their ids."""
    plain = {"tier": "batch", "body": text or body(), "deadline": soon(window_s), **fields}
    return [jobs.save_job(store, NewJob(tenant, **plain), patience_s=PATIENCE_S)[0] for _ in range(n)]


def save_batch(store: Store, tenant: int, n: int = 3, *, window_s: float = 3600, **fields: Any) -> int:
    lines = fields.pop("lines", None) or [body(f"line {i}") for i in range(n)]
    return batches.save_batch(store, NewBatch(tenant, **{"tier": "bulk", "deadline": soon(window_s), **fields}), lines)


def expand(store: Store, *, refuse: str = "", wants_callback: bool = False) -> list[int]:
    """Expands all that waits, refusing lines that contain `refuse`: lines a chunk."""

    def judge(line: str, *_: object) -> Verdict:
        return Verdict(error="refused") if refuse and refuse in line else Verdict(wants_callback=wants_callback)

    done = []
    while (chunk := expansion.expand_chunk(store, judge)) is not None:
        done.append(chunk[1])
    return done


def past_window(store: Store, batch_id: int) -> None:
    """Its window ends now, after it was expanded."""
    store.fetch("UPDATE job SET deadline = now() WHERE batch_id = %(id)s RETURNING id", {"id": batch_id})
    store.fetch("UPDATE batch SET deadline = now() WHERE id = %(id)s RETURNING id", {"id": batch_id})


def release(store: Store, batch_id: int, to: int) -> None:
    [[before]] = store.fetch("SELECT released_to FROM batch WHERE id = %(id)s", {"id": batch_id})
    with store.transaction() as connection:
        batches.release(connection, [(batch_id, before, to)])


def released_batch(store: Store, tenant: int, n: int = 3, **fields: Any) -> list[int]:
    """A batch that is expanded and released whole: its job ids."""
    batch_id = save_batch(store, tenant, n, **fields)
    expand(store)
    release(store, batch_id, n)
    return list(range(batch_id + 1, batch_id + n + 1))


def route(
    store: Store, ids: list[int], deployment: str | None = "one", reason: str = "short and plain", *, key: int = 0
) -> set[int]:
    with store.transaction() as connection:
        waiting = jobs.load_parcel(connection, ids)
        decisions = [Routed(w.id, w.fence, deployment, "chat", reason, features(), key) for w in waiting]
        at = jobs.save_snapshot(connection, snapshot(candidate("one")).to_json())
        return jobs.save_decisions(connection, decisions, snapshot_id=at, patience_s=PATIENCE_S)


def worker(store: Store, *, lease_s: float = 60, kind: str = "infer") -> int:
    return workers.register(store, kind, deployment="one", lease_s=lease_s)


def claim(store: Store, ids: list[int], worker_id: int, deployment: str = "one") -> list[Claimed]:
    with store.transaction() as connection:
        return jobs.claim(connection, ids, worker_id=worker_id, deployments=[deployment])


def running(store: Store, tenant: int, n: int = 1, *, worker_id: int | None = None, **fields: Any) -> list[Claimed]:
    """`n` single jobs, claimed by one worker."""
    ids = save_jobs(store, tenant, n, **fields)
    route(store, ids)
    return sorted(claim(store, ids, worker_id or worker(store)), key=lambda c: c.id)


def ending(job: Claimed, **fields: Any) -> Ending:
    """How this start ended: by default it succeeded, with an answer and a bill."""
    plain: dict[str, Any] = {
        "job_id": job.id,
        "fence": job.fence,
        "state": State.SUCCEEDED,
        "worker_id": 1,
        "deployment": "one",
        "catalog": "0123456789ab",
        "claimed_at": job.claimed_at,
        "wait_ms": job.waited_ms,
        "ttft_ms": 12.5,
        "latency_ms": 50.0,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost_usd": Decimal("0.000003"),
        "output": "hi",
        "finish_reason": "stop",
    }
    return Ending(**{**plain, **fields})


def hand_back(job: Claimed, why: HandBack = HandBack.DRAIN, **fields: Any) -> Ending:
    return Ending(
        **{
            "job_id": job.id,
            "fence": job.fence,
            "state": State.QUEUED,
            "worker_id": 1,
            "deployment": "one",
            "catalog": "0123456789ab",
            "claimed_at": job.claimed_at,
            "wait_ms": 1.0,
            "error": "no",
            "hand_back": why,
            **fields,
        }
    )


def open_batch(number: int | None = None, **fields: Any) -> OpenBatch:
    """An open batch as the feeder sees it: 1,000 lines, all expanded, none released."""
    number = number or next(_unique)
    plain: dict[str, Any] = {
        "id": number,
        "tenant_id": 1,
        "tier": "bulk",
        "first_job_id": number * 1_000_000,
        "total": 1000,
        "expanded_to": 1000,
        "released_to": 0,
        "deadline": soon(),
        "outstanding": 0,
        "lowest": None,
    }
    return OpenBatch(**{**plain, **fields})


def column(store: Store, name: str, ids: list[int]) -> list[Any]:
    """One column of these jobs, in id order."""
    statement = f"SELECT {name} FROM job WHERE id = ANY(%(ids)s) ORDER BY id"
    return [row[0] for row in store.fetch(statement, {"ids": ids})]


def count(store: Store, table: str, where: str = "true") -> int:
    return int(store.fetch(f"SELECT count(*) FROM {table} WHERE {where}")[0][0])


@contextmanager
def statements(monkeypatch: Any) -> Iterator[list[str]]:
    """Every statement that psycopg executes meanwhile."""
    seen: list[str] = []
    execute = psycopg.Cursor.execute

    def counted(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(str(query))
        return execute(self, query, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", counted)
        yield seen
