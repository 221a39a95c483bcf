"""An inference worker with an engine that does what its prompt says, and the other hands that bring it jobs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from tests.conftest import eventually
from tieryard.engines import Delta, Done, Stream, Usage
from tieryard.engines.load import Load
from tieryard.engines.vetting import Expected
from tieryard.errors import BadRequestError, EngineBusyError, EngineDownError, EngineTimeoutError
from tieryard.ids import to_runs
from tieryard.settings import Settings
from tieryard.store import jobs
from tieryard.store.jobs import NewJob
from workers.classify import Classifier
from workers.infer import Inference
from workers.yard import Yard


@dataclass
class ScriptedEngine:
    """Obeys the first word of the prompt; `go` lets `wait` requests finish."""

    url: str | None = None
    up: bool = True
    unfit: list[str] = field(default_factory=list)
    """What its start-up checks find."""
    says: Load | None = None
    """What it says of its own load."""
    starts: int = 0
    checks: int = 0
    expected: Expected | None = None
    models: set[str | None] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    seen: list[tuple[str, int]] = field(default_factory=list)
    """(prompt, requests in flight with it) in the order they started."""
    most: int = 0
    go: threading.Event = field(default_factory=threading.Event)

    async def start(self) -> None:
        if not self.up:
            raise EngineDownError("not up", sent=False)
        self.starts += 1

    async def faults(self, expected: Expected) -> list[str]:
        self.expected = expected
        self.checks += 1
        return self.unfit

    async def load(self) -> Load | None:
        return self.says

    async def healthy(self) -> bool:
        return self.up

    async def close(self) -> None:
        pass

    async def stream(self, body: dict[str, Any]) -> Stream:  # noqa: C901  # a case a word
        prompt = body["messages"][-1]["content"]
        self.models.add(body.get("model"))
        self.running.add(prompt)
        self.most = max(self.most, len(self.running))
        self.seen.append((prompt, len(self.running)))
        try:
            match prompt.split()[0]:
                case "refuse":
                    raise BadRequestError("no")
                case "forbid":
                    raise EngineDownError("no", status=403, sent=False)
                case "busy":
                    raise EngineBusyError("full", retry_after_s=0.2)
                case "timeout":
                    raise EngineTimeoutError("nothing came")
                case "crash":
                    self.up = False
                    raise EngineDownError("reset")
                case "unsent":
                    self.up = False
                    raise EngineDownError("refused", sent=False)
                case "bug":
                    raise ZeroDivisionError("a fault of ours")
                case "nul":
                    yield Delta("a\x00b\ud800")
                case "wait":
                    yield Delta("some", Usage(7, 3))
                    while not self.go.is_set():  # noqa: ASYNC110  # set from another thread
                        await asyncio.sleep(0.01)
            yield Delta("done")
            yield Done("stop", Usage(7, 5))
        finally:
            self.running.discard(prompt)


@dataclass
class Bench:
    """One inference worker with its engine, and the yard's other hands to bring it jobs."""

    yard: Yard
    engine: ScriptedEngine
    worker: Inference
    classifier: Classifier
    tenant: int
    gates: list[bool] = field(default_factory=list)

    def bring(self, *prompts: str, tier: str = "batch", model: str = "short", offer: bool = True) -> list[int]:
        """Saves, routes and offers jobs: their ids."""
        deadline = datetime.now(tz=UTC) + timedelta(hours=1)
        ids = []
        for prompt in prompts:
            body = orjson.dumps({"prompt": prompt, "model": model}).decode()
            ids.append(jobs.save_job(self.yard.store, NewJob(self.tenant, tier, body, deadline), patience_s=60)[0])
        runs = to_runs(ids)
        self.classifier.classify(tier, deadline.timestamp(), runs)
        if offer:
            self.worker.offer(tier, deadline.timestamp(), runs)
        return ids

    def again(self, job_id: int) -> None:
        """What rescue does when a backoff is over."""
        self.yard.store.fetch("UPDATE job SET not_before = NULL WHERE id = %(id)s RETURNING id", {"id": job_id})
        self.classifier.classify("batch", 0.0, [(job_id, 1)])
        self.worker.offer("batch", 0.0, [(job_id, 1)])

    def row(self, job_id: int, columns: str = "state") -> Any:
        found = self.yard.store.fetch(f"SELECT {columns} FROM job WHERE id = %(id)s", {"id": job_id})[0]
        return found if "," in columns else found[0]

    def until(self, job_id: int, state: str) -> None:
        eventually(lambda: self.row(job_id) == state, what=f"job {job_id} {state}")

    def outcomes(self, job_id: int) -> list[str]:
        rows = self.yard.store.fetch("SELECT outcome FROM timing WHERE job_id = %(id)s ORDER BY fence", {"id": job_id})
        return [row[0] for row in rows]


@contextlib.contextmanager
def inference(
    settings: Settings,
    tenant: int,
    *,
    deployment: str = "short",
    unfit: list[str] | None = None,
    engine: ScriptedEngine | None = None,
) -> Iterator[Bench]:
    """A running worker of this deployment."""
    yard = Yard("infer", settings, consume=[f"model.{deployment}"], deployment=deployment)
    yard.join()
    engine = engine or ScriptedEngine(unfit=unfit or [])
    worker = Inference(yard, deployment, engine=engine)
    bench = Bench(yard, engine, worker, Classifier(yard, yard.admission()), tenant)
    worker.start(bench.gates.append)
    yield bench
    engine.go.set()
    engine.up = True
    worker.drain()
    yard.leave()
