"""What the fleet finds of itself says nothing of tenants, though it measures with their requests and has their answers
judged: no text of theirs, no name, no id of a job, whatever a key that may measure asks for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests import factories as make
from tests.integration.conftest import OpenYard
from tests.integration.measuring import Measuring, write_catalog
from tests.integration.test_api import serving
from tests.integration.test_leaks import B_MEASURES, KINDS, NEVER, ROUTES, SECRET
from tests.integration.trials import quality_run
from tieryard.bench import load
from tieryard.ids import public
from tieryard.settings import Settings
from tieryard.store import Store, benchmarks, golden, keys
from tieryard.store.benchmarks import NewRun, RunEnd, RunKind, RunState
from tieryard.store.finish import finish
from tieryard.store.keys import Scope
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan, Fault
from workers import judging

B = {"authorization": "Bearer ty_b"}
TENANT = f"{SECRET} Ltd"
FIRST = 7_770_000_000
"""Ids are above it: no figure is taken for one."""
MORE = f"""
  judge:
    <<: *short
    model: test/judge
benchmarks:
  judge: {{deployment: judge, live_share: 1.0}}
  sample: {{tenants: [{TENANT}], per_category: 4}}
"""
ITEM = {"id": "1", "category": "chat", "prompt": "What colour has the sky?", "criteria": "Says blue."}


@dataclass
class Measured:
    """A fleet that was measured. `theirs` are the numbers of A's jobs, and of what the judge was asked about them;
    `ended` are quality runs that can be compared."""

    client: TestClient
    store: Store
    theirs: set[int]
    runs: list[str]
    ended: list[str]

    def told(self, text: str) -> list[str]:
        """What of A stands in it."""
        numbers = {int(number) for number in re.findall(r"\d{10,18}", text)}
        return [*([SECRET] if SECRET in text else []), *(f"the number {n}" for n in sorted(numbers & self.theirs))]


@pytest.fixture
def bench(
    open_yard: OpenYard, settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Measuring]:
    monkeypatch.setattr(load, "MOST_LAG_MS", math.inf)
    store.fetch("INSERT INTO id_counter (name, next) VALUES ('id', %(first)s) RETURNING next", {"first": FIRST})
    with FakeVllm.in_thread(FakePlan(ttft_ms=1, capacity=8, length=4, says=lambda _: SECRET)) as fake:
        path = write_catalog(tmp_path, fake.url, more=MORE)
        yard = open_yard("benchmark", settings=settings.model_copy(update={"catalog": path}))
        yard.join()
        found = Measuring(yard, fake)
        found.gauge()
        yield found


@pytest.fixture
def measured(bench: Measuring, store: Store) -> Iterator[Measured]:
    for name, tenant, scopes in (("ty_a", TENANT, None), ("ty_b", "b", None), ("ty_b_measures", "b", Scope)):
        keys.add_key(store, name, tenant=tenant, name=SECRET, scopes=scopes)
    theirs = _answered(store, keys.holder_of(store, "ty_a").tenant_id)
    judging.look(bench.yard)
    asked = store.fetch("SELECT question_id FROM live_verdict WHERE job_id = ANY(%(ids)s)", {"ids": theirs})
    assert len(asked) == len(theirs)

    runs = [_run(bench, RunKind.SPEED)]
    bench.fake.plan = replace(bench.fake.plan, faults=lambda _, __: Fault("http_400"))
    runs += [_run(bench, RunKind.SPEED), _run(bench, RunKind.CAPACITY, low=50.0, most=1, seconds=0.2, least=10)]
    with serving(bench.yard.settings) as client:
        client.headers.update(B_MEASURES)
        assert client.post("/v1/golden_sets", params={"name": "sky"}, content=json.dumps(ITEM)).status_code == 200
        sky = golden.find_set(store, "sky")
        ended = [
            quality_run(store, bench.yard.catalog, name, sky, {"chat": [0.5, None]}, judge="judge")
            for name in ("short", "judge")
        ]
        numbers = {*theirs, *(row[0] for row in asked)}
        yield Measured(client, store, numbers, runs + ended, ended)


def _answered(store: Store, tenant: int) -> list[int]:
    """Jobs of A's, and what they were answered."""
    texts = [make.body(f"{SECRET} {n}", custom_id=SECRET, metadata={SECRET: SECRET}, max_tokens=4) for n in range(4)]
    jobs = [make.save_jobs(store, tenant, text=text)[0] for text in texts]
    make.route(store, jobs, "short", reason=SECRET)
    with store.transaction() as connection:
        claimed = make.claim(store, jobs, make.worker(store), "short")
        finish(connection, [make.ending(job, deployment="short", output=SECRET) for job in claimed])
    return jobs


def _run(bench: Measuring, kind: RunKind, **spec: Any) -> str:
    """A run with A's own requests, from its start to its end."""
    end = bench.measure(kind, category="chat", **spec)
    assert end.report is not None, end.why
    assert end.report["sample"]["chat"]["tenants"] == 4
    with bench.yard.store.transaction() as connection:
        assert benchmarks.finish(connection, bench.found[-1], end) == 0
    return bench.found[-1].public_id


MEASURING = [route for route, attack in ROUTES.items() if attack.scope is Scope.BENCHMARK]


def test_what_was_measured_with_anothers_requests_says_nothing_of_it(measured: Measured) -> None:
    reading = [route.removeprefix("GET ") for route in MEASURING if route.startswith("GET ")]
    paths = [path.format(benchmark_id=run, name="sky") for path in reading for run in measured.runs]
    paths += ["/v1/golden_sets/sky?items=true", *(f"/v1/benchmarks?after={run}" for run in measured.runs)]
    assert len(measured.told(f"{SECRET} {public('job', min(measured.theirs))}")) == 2  # else this would prove nothing
    for path in dict.fromkeys(paths):
        answer = measured.client.get(path)
        assert answer.status_code == 200, (path, answer.text)
        assert measured.told(f"{answer.headers}{answer.text}") == [], path
        assert measured.client.get(path, headers=B).status_code == 403, path


def test_what_is_made_of_it_says_nothing_either(measured: Measured) -> None:
    a, b = measured.ended
    job = public("job", min(measured.theirs))
    for status, ask in [
        (200, {"kind": "pairwise", "a": a, "b": b}),
        (200, {"kind": "quality", "golden": "sky"}),
        (200, {"kind": "speed", "category": "chat"}),
        (404, {"kind": "pairwise", "a": a, "b": job}),
        (404, {"kind": "pairwise", "a": a, "b": f"benchmark_{min(measured.theirs)}"}),
        (404, {"kind": "quality", "golden": job}),
    ]:
        answer = measured.client.post("/v1/benchmarks", json=ask)
        assert answer.status_code == status, answer.text
        assert measured.told(answer.text.replace(str(min(measured.theirs)), "")) == []
        for made in answer.json().get("data", []):
            ended = measured.client.post(f"/v1/benchmarks/{made['id']}/cancel")
            assert (ended.status_code, measured.told(ended.text)) == (200, [])


def test_what_the_judge_is_asked_about_it_is_nobodys_to_read(measured: Measured) -> None:
    """The questions hold A's words; they are jobs of the fleet's own."""
    [[lines]] = measured.store.fetch(
        "SELECT count(*) FROM batch JOIN line ON line.source_id = batch.id JOIN tenant ON tenant.id = batch.tenant_id "
        "WHERE tenant.name = %(name)s AND line.body LIKE %(secret)s",
        {"name": benchmarks.BENCHMARK_TENANT, "secret": f"%{SECRET}%"},
    )
    assert lines == 4
    batches = measured.store.fetch("SELECT id FROM batch")
    for number in {*measured.theirs, *(row[0] for row in batches)}:
        for route, attack in ROUTES.items():
            if attack.kind in KINDS:
                method, _, path = route.partition(" ")
                sent = re.sub(r"{\w+}", public(attack.kind, number), path)
                body = attack.body(public("file", NEVER)) if attack.body is not None else {}
                answer = measured.client.request(method, sent, params=attack.params, **body)
                assert answer.status_code == 404, (route, number)
    for path in ("/v1/jobs", "/v1/batches", "/v1/files"):
        assert measured.client.get(path).json()["data"] == [], path


def test_ones_key_makes_anothers_nothing(measured: Measured) -> None:
    """A key under which one tenant has asked for a run is another tenant's own, too."""
    keys.add_key(measured.store, "ty_a_measures", tenant=TENANT, name="measures", scopes=Scope)
    once = {"idempotency-key": "nightly"}
    made = []
    for key, seed in (("ty_a_measures", 1), ("ty_b_measures", 2), ("ty_a_measures", 1)):
        headers = {**once, "authorization": f"Bearer {key}"}
        ask = {"kind": "speed", "deployment": "short", "seed": seed}
        answer = measured.client.post("/v1/benchmarks", json=ask, headers=headers)
        assert answer.status_code == 200, answer.text
        made.append([one["id"] for one in answer.json()["data"]])
    assert made[0] == made[2] != made[1]


def test_a_run_that_is_under_way_keeps_its_notes_to_itself(measured: Measured) -> None:
    """What a worker notes of a run until it ends are batches and lines, which have no names outside."""
    spec = {"golden": "sky"}
    [number] = benchmarks.create(
        measured.store,
        [NewRun(RunKind.QUALITY, "short", spec, golden_set_id=golden.find_set(measured.store, "sky").id)],
    )
    run = benchmarks.claim(measured.store, make.worker(measured.store, kind="benchmark"), [RunKind.QUALITY])
    assert run is not None
    with measured.store.transaction() as connection:
        benchmarks.note(connection, run, {"judging": {"batch": min(measured.theirs)}})
    path = f"/v1/benchmarks/{public(benchmarks.KIND, number)}"
    assert measured.client.get(path).json()["report"] is None
    with measured.store.transaction() as connection:
        assert benchmarks.finish(connection, run, RunEnd(RunState.FAILED, "why", {"whole": {}})) is not None
    assert measured.client.get(path).json()["report"] == {"whole": {}}
