"""Hosted APIs as deployments: infer processes within a provider's limits, its refusals and key; breakers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from tests.conftest import eventually
from tieryard import breakers, quotas
from tieryard.ids import to_runs
from tieryard.metrics import EngineState
from tieryard.settings import Settings
from tieryard.store import Store, jobs
from tieryard.store.jobs import NewJob
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan, Fault
from workers import upkeep
from workers.classify import Classifier
from workers.infer import Inference
from workers.yard import Yard

CATALOG = """
version: 1
tiers: {{batch: {{window: 24h, waits: false}}, realtime: {{window: 60s}}}}
categories: [extraction, classification, summarization, reasoning, code, chat]
routing:
  classifier: rules
  breaker: {{failures: 4, within: 30s, open_for: {open_for}}}
deployments:
  api:
    model: vendor/model
    revision: "2026-10-01"
    size_class: small
    engine:
      kind: openai_http
      url: "{api}"
      server: openai
      served_model: fake
      {engine}
    context_limit: 4096
    max_in_flight: 16
    tokenizer: utf8
    price: {{input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}}
  own:
    model: test/own
    revision: "1"
    size_class: small
    engine: {{kind: openai_http, url: "{own}", server: openai, served_model: fake}}
    context_limit: 4096
    max_in_flight: 64
    tokenizer: utf8
    price: {{input_usd_per_1m: 1.00, output_usd_per_1m: 4.00}}
"""
KEY = "sk-of-the-api"


@dataclass
class Fleet:
    """Infer processes, and a thread that does what classify, rescue and the broker do between them."""

    store: Store
    tenant: int
    classifier: Classifier
    workers: dict[str, list[Inference]] = field(default_factory=dict)
    yards: list[Yard] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    _offered: dict[int, int] = field(default_factory=dict)

    def bring(self, n: int, prompt: str = "Say hi.", *, model: str = "auto", tier: str = "batch") -> list[int]:
        deadline = datetime.now(tz=UTC) + timedelta(hours=1)
        body = orjson.dumps({"prompt": prompt, "model": model, "max_tokens": 8}).decode()
        new = NewJob(self.tenant, tier, body, deadline)
        return [jobs.save_job(self.store, new, patience_s=60)[0] for _ in range(n)]

    def carry(self) -> None:
        while not self.ended.wait(0.03):
            waiting = self.store.fetch(
                "SELECT id, tier, state, deployment FROM job WHERE state IN ('queued', 'routed') "
                "AND (not_before IS NULL OR not_before <= now()) ORDER BY id"
            )
            queued = [number for number, _, state, _ in waiting if state == "queued"]
            for number in queued:
                self._offered.pop(number, None)
            if queued:
                self.classifier.classify("batch", 0.0, to_runs(queued))
            for number, tier, state, deployment in waiting:
                if state == "routed" and number not in self._offered and deployment in self.workers:
                    self._offered[number] = 1
                    replicas = self.workers[deployment]
                    replicas[number % len(replicas)].offer(tier, 0.0, [(number, 1)])

    def states(self) -> dict[tuple[str, str], int]:
        rows = self.store.fetch("SELECT state, coalesce(deployment, ''), count(*) FROM job GROUP BY 1, 2")
        return {(state, deployment): n for state, deployment, n in rows}

    def done(self, ids: list[int]) -> bool:
        return not self.store.fetch("SELECT FROM job WHERE id = ANY(%(ids)s) AND finished_at IS NULL", {"ids": ids})

    def held(self, deployment: str = "api") -> str:
        gauges = self.yards[0].metrics.read(self.yards[0].catalog).gauges
        return gauges[deployment].broken if deployment in gauges else ""

    def costs_nothing(self) -> None:
        """No attempt and no worker death was counted, and every job ended once."""
        assert self.store.fetch("SELECT sum(attempts), sum(worker_deaths) FROM job") == [(0, 0)]
        [[ended, jobs_]] = self.store.fetch("SELECT (SELECT count(*) FROM result), (SELECT count(*) FROM job)")
        assert ended == jobs_


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_LOOK_HOSTED_S", 0.2)
    monkeypatch.setenv("VENDOR_KEY", KEY)


@contextlib.contextmanager
def fleet(
    settings: Settings,
    store: Store,
    tenant: int,
    tmp_path: Path,
    fakes: tuple[FakeVllm, FakeVllm],
    *,
    engine: str = "key_env: VENDOR_KEY",
    replicas: int = 2,
    open_for: str = "15s",
) -> Iterator[Fleet]:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CATALOG.format(api=fakes[0].url, own=fakes[1].url, engine=engine, open_for=open_for))
    settings = settings.model_copy(update={"catalog": path})
    yards = [Yard("infer", settings, consume=[], deployment=name) for name in ["api"] * replicas + ["own"]]
    found = Fleet(store, tenant, Classifier(yards[0], yards[0].admission()), yards=yards)
    for yard in yards:
        yard.join()
        worker = Inference(yard, yard.deployment or "")
        found.workers.setdefault(yard.deployment or "", []).append(worker)
        worker.start(lambda _: None)
    carrying = threading.Thread(target=found.carry)
    carrying.start()
    try:
        yield found
    finally:
        found.ended.set()
        carrying.join()
        for worker in [w for workers in found.workers.values() for w in workers]:
            worker.drain()
        for yard in yards:
            yard.leave()


@pytest.fixture
def fakes() -> Iterator[tuple[FakeVllm, FakeVllm]]:
    plan = FakePlan(ttft_ms=2, length=8)
    with FakeVllm.in_thread(replace(plan, key=KEY)) as api, FakeVllm.in_thread(plan) as own:
        yield api, own


def serves(found: Fleet, *names: str) -> None:
    metrics = found.yards[0].metrics
    for name in names or ("api", "own"):
        wanted = len(found.workers[name])
        eventually(lambda n=name, w=wanted: sum(r.serves for r in metrics.replicas(n)) == w, what=f"{name} to serve")


def idle(worker: Inference) -> bool:
    """Whether nothing runs, nor is being given leave to: in this order, for what has leave then runs."""
    return (worker._asking is None or worker._asking.done()) and not worker._running


def test_two_processes_keep_within_the_requests_a_minute_and_overflow_goes_elsewhere(
    settings: Settings, store: Store, tenant: int, tmp_path: Path, fakes: tuple[FakeVllm, FakeVllm]
) -> None:
    fakes[0].plan = replace(fakes[0].plan, requests_per_minute=30)
    limits = "key_env: VENDOR_KEY\n      limits: {requests_per_minute: 30}"
    with fleet(settings, store, tenant, tmp_path, fakes, engine=limits) as found:
        serves(found)
        ids = found.bring(120)
        eventually(lambda: found.done(ids), within_s=30, what="every job to end")
        assert found.states() == {("succeeded", "api"): 30, ("succeeded", "own"): 90}
        assert (fakes[0].state.finished, fakes[0].state.limited) == (30, 0)
        assert found.held().startswith("its 30 requests a minute are used up for ")
        found.costs_nothing()
        assert store.fetch("SELECT DISTINCT outcome FROM timing WHERE deployment = 'own'") == [("succeeded",)]


def test_tokens_a_minute_count_what_was_used_and_jobs_that_name_the_api_wait(
    settings: Settings, store: Store, tenant: int, tmp_path: Path, fakes: tuple[FakeVllm, FakeVllm],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(quotas, "WINDOW_S", 1.0)
    monkeypatch.setattr(quotas, "_GRAIN_S", 0.1)
    used = 2 + 4 + 8  # words, a message, the answer
    fakes[0].plan = replace(fakes[0].plan, tokens_per_minute=10 * used, window_s=1.0)
    limits = f"key_env: VENDOR_KEY\n      limits: {{tokens_per_minute: {10 * used}}}"
    with fleet(settings, store, tenant, tmp_path, fakes, engine=limits) as found:
        serves(found)
        ids = found.bring(40, model="api")
        eventually(lambda: found.done(ids), within_s=40, what="every job to end")
        assert found.states() == {("succeeded", "api"): 40}
        assert fakes[0].state.limited == 0
        found.costs_nothing()


def test_what_waits_for_tokens_goes_elsewhere(
    settings: Settings, store: Store, tenant: int, tmp_path: Path, fakes: tuple[FakeVllm, FakeVllm]
) -> None:
    """Some are left, though too few for the next job: to look without asking for any says that it is free."""
    most = 10 * (2 + 4 + 8) + 5
    fakes[0].plan = replace(fakes[0].plan, tokens_per_minute=most)
    limits = f"key_env: VENDOR_KEY\n      limits: {{tokens_per_minute: {most}}}"
    with fleet(settings, store, tenant, tmp_path, fakes, engine=limits, replicas=1) as found:
        serves(found)
        ids = found.bring(40)
        eventually(lambda: found.done(ids), within_s=30, what="every job to end")
        states = found.states()
        assert states["succeeded", "api"] <= 10
        assert states["succeeded", "own"] >= 30
        assert fakes[0].state.limited == 0
        assert not store.fetch("SELECT FROM timing WHERE error = ''")
        found.costs_nothing()


def test_a_refusal_that_was_not_foreseen_holds_the_deployment_and_lowers_its_limit(
    settings: Settings, store: Store, tenant: int, tmp_path: Path, fakes: tuple[FakeVllm, FakeVllm]
) -> None:
    """The catalog names no limits: the provider's 429 and Retry-After are all that is known of them."""
    fakes[0].plan = replace(fakes[0].plan, requests_per_minute=20, ttft_ms=100)
    with fleet(settings, store, tenant, tmp_path, fakes) as found:
        serves(found)
        ids = found.bring(100)
        eventually(lambda: found.done(ids), within_s=30, what="every job to end")
        assert found.states() == {("succeeded", "api"): 20, ("succeeded", "own"): 80}
        assert fakes[0].state.limited <= 32, "what was under way at both, and nothing after it"
        assert found.held().startswith("its provider refused a request for its rate limit (429) for ")
        metrics = found.yards[0].metrics
        eventually(lambda: all(r.capacity < 16 for r in metrics.replicas("api")), what="the limits to be lowered")
        assert metrics.read(found.yards[0].catalog).profiles["api"]["chat"].error_rate == 0
        found.costs_nothing()
        assert not found.workers["api"][0]._pacing._breaker.opened


def test_a_provider_that_does_not_say_when_is_asked_later_and_later(
    settings: Settings, store: Store, tenant: int, tmp_path: Path, fakes: tuple[FakeVllm, FakeVllm]
) -> None:
    fakes[0].plan = replace(fakes[0].plan, requests_per_minute=4, window_s=2.0, says_when=False)
    with fleet(settings, store, tenant, tmp_path, fakes, replicas=1) as found:
        serves(found)
        ids = found.bring(12, model="api")
        eventually(lambda: found.done(ids), within_s=40, what="every job to end")
        assert found.states() == {("succeeded", "api"): 12}
        found.costs_nothing()


def test_a_key_that_is_not_there_keeps_the_deployment_down_and_is_named(
    settings: Settings, store: Store, tenant: int, tmp_path: Path, fakes: tuple[FakeVllm, FakeVllm],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("VENDOR_KEY")
    with fleet(settings, store, tenant, tmp_path, fakes, replicas=1) as found:
        metrics = found.yards[0].metrics
        eventually(lambda: any(r.state is EngineState.DOWN for r in metrics.replicas("api")), what="it to be down")
        [replica] = metrics.replicas("api")
        assert replica.why == "the key of 'api' is missing: set the environment variable VENDOR_KEY"
    monkeypatch.setenv("VENDOR_KEY", "wrong")
    with fleet(settings, store, tenant, tmp_path, fakes, replicas=1) as found:
        metrics = found.yards[0].metrics
        serves(found, "own")
        assert not any(r.serves for r in metrics.replicas("api"))
        assert fakes[0].state.finished == 0
    assert "wrong" not in capsys.readouterr().err


def test_a_breaker_opens_the_router_avoids_it_a_few_probe_it_and_it_closes(
    settings: Settings, store: Store, tenant: int, tmp_path: Path, fakes: tuple[FakeVllm, FakeVllm]
) -> None:
    """It stays open until the test lets its time be over: a probe meanwhile would fail, and cost a job an attempt."""
    broken = threading.Event()
    broken.set()
    fakes[0].plan = replace(fakes[0].plan, key=KEY, faults=lambda *_: Fault("http_500") if broken.is_set() else None)
    with fleet(settings, store, tenant, tmp_path, fakes, replicas=1, open_for="1h") as found:
        serves(found)
        [worker] = found.workers["api"]
        found.bring(100)
        eventually(lambda: found.held().startswith("its circuit breaker is open: "), what="it to open")
        eventually(lambda: worker._pacing._breaker.open and idle(worker), what="its worker to hear of it")
        asked = fakes[0].state.requests
        later = found.bring(40)
        eventually(lambda: found.done(later), what="the later ones to end elsewhere")
        went = store.fetch("SELECT DISTINCT deployment FROM job WHERE id = ANY(%(ids)s)", {"ids": later})
        assert went == [("own",)]
        assert fakes[0].state.requests == asked, "what waits there is not burnt up"
        broken.clear()
        found.yards[0].redis.hset(breakers.key("api"), "opened", 1)
        eventually(lambda: not found.held().startswith("its circuit breaker is open: "), what="it to be half open")
        eventually(lambda: not found.held() or not found.bring(1), within_s=30, what="a probe to close it")
        every = [number for [number] in store.fetch("SELECT id FROM job")]
        eventually(lambda: found.done(every), within_s=30, what="every job to end")
        assert {state for state, _ in found.states()} == {"succeeded"}


def test_the_answer_of_another_model_than_was_asked_for_is_kept_as_what_ran(
    settings: Settings, store: Store, tenant: int, tmp_path: Path, fakes: tuple[FakeVllm, FakeVllm]
) -> None:
    with fleet(settings, store, tenant, tmp_path, fakes, replicas=1) as found:
        serves(found)
        ids = found.bring(1, model="api")
        eventually(lambda: found.done(ids), what="it to end")
        assert store.fetch("SELECT revision, fingerprint FROM timing") == [("vendor/model@2026-10-01", "fake-vllm")]
