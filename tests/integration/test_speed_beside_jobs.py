"""A benchmark beside a real infer worker: users' jobs go first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from tests.conftest import eventually
from tests.integration.conftest import OpenYard
from tests.integration.measuring import Measuring, write_catalog
from tieryard.ids import to_runs
from tieryard.settings import Settings
from tieryard.store import jobs
from tieryard.store.benchmarks import RunEnd, RunState
from tieryard.store.jobs import NewJob
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan
from workers import speed
from workers.classify import Classifier
from workers.infer import Inference

PLAN = FakePlan(ttft_ms=250, capacity=2, length=4, context_limit=4096, records=True)
SLOTS = 2

Fleet = tuple[Measuring, Inference]


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with FakeVllm.in_thread(PLAN) as server:
        yield server


@pytest.fixture
def fleet(open_yard: OpenYard, settings: Settings, fake: FakeVllm, tmp_path: Path) -> Iterator[Fleet]:
    path = write_catalog(tmp_path, fake.url, most=SLOTS, reserve=0)
    known = settings.model_copy(update={"catalog": path})
    infer, bench = open_yard("infer", settings=known), open_yard("benchmark", settings=known)
    infer.join()
    bench.join()
    worker = Inference(infer, "short")
    worker.start(lambda _: None)
    eventually(lambda: [r for r in bench.metrics.replicas("short") if r.serves], what="an engine")
    yield Measuring(bench, fake), worker
    worker.drain()


def bring(bench: Measuring, worker: Inference, tenant: int, *prompts: str) -> list[int]:
    """Saves, routes and offers users' jobs."""
    deadline = datetime.now(tz=UTC) + timedelta(hours=1)
    bodies = [orjson.dumps({"prompt": prompt, "model": "short", "max_tokens": 4}).decode() for prompt in prompts]
    ids = [jobs.save_job(bench.yard.store, NewJob(tenant, "batch", b, deadline), patience_s=60)[0] for b in bodies]
    Classifier(bench.yard, bench.yard.admission()).classify("batch", deadline.timestamp(), to_runs(ids))
    worker.offer("batch", deadline.timestamp(), to_runs(ids))
    return ids


def test_users_jobs_go_first_and_the_run_goes_on_afterwards(fleet: Fleet, fake: FakeVllm, tenant: int) -> None:
    bench, worker = fleet
    ends: list[RunEnd] = []
    measuring = threading.Thread(target=lambda: ends.append(bench.measure(requests=40, warm_up=0)))
    before = fake.state.requests  # the start-up checks
    measuring.start()
    eventually(lambda: fake.state.requests > before + 2 * SLOTS, what="a load")
    ids = bring(bench, worker, tenant, "mine 1", "mine 2", "mine 3", "mine 4")
    seen = fake.state.requests
    store = bench.yard.store
    done = "SELECT count(*) FROM job WHERE state = 'succeeded'"
    eventually(lambda: store.fetch(done) == [(len(ids),)], what="the jobs")
    assert measuring.is_alive()  # not one of them has waited for its end
    measuring.join()
    sent = [one.prompt for one in fake.pace.sent]
    places = [place for place, prompt in enumerate(sent) if "mine" in prompt]
    assert len(places) == len(ids)
    between = places[0] - (len(sent) - (fake.state.requests - seen))
    assert between <= 4 * SLOTS, f"{between} requests of the run began before the first job did"
    assert places[-1] - places[0] < len(ids) + SLOTS  # and next to none between them
    [end] = ends
    assert end.state is RunState.SUCCEEDED, end.why
    assert end.report is not None
    assert end.report["figures"]["succeeded"] == 40
    assert any("paused" in note for note in end.report["notes"])


def test_it_does_not_begin_where_jobs_are(fleet: Fleet, fake: FakeVllm, tenant: int) -> None:
    bench, worker = fleet
    fake.plan = replace(PLAN, ttft_ms=1500)
    before = fake.state.requests
    [job] = bring(bench, worker, tenant, "mine")
    eventually(lambda: fake.state.requests == before + 1, what="the job's start")
    eventually(lambda: sum(r.in_flight for r in bench.yard.metrics.replicas("short")) == 1, what="a gauge")
    with pytest.raises(speed.Busy, match="1 requests of others leave no room for 2"):
        bench.measure(requests=4)
    store = bench.yard.store
    eventually(
        lambda: store.fetch("SELECT state FROM job WHERE id = %(id)s", {"id": job}) == [("succeeded",)], what="it"
    )
    assert fake.state.requests == before + 1
