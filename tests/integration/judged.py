"""A judge on a fake server that says what a test wants, two models that have answered a golden set, and the fleet's
hands that bring the judge its questions."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests import factories as make
from tests.conftest import eventually
from tieryard.golden import GoldenSet, Item
from tieryard.golden.saving import save
from tieryard.ids import to_runs
from tieryard.job import State
from tieryard.settings import Settings
from tieryard.store import Store, batches, benchmarks, golden, workers
from tieryard.store.benchmarks import BenchmarkRun, NewRun, RunEnd, RunKind, RunState
from tieryard.store.finish import finish
from tieryard.store.golden import ItemScore
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan
from workers.classify import Classifier
from workers.infer import Inference
from workers.yard import Yard

CATALOG = """
version: 1
tiers:
  realtime: {{slo: {{max_latency_ms: 1000}}, window: 60s}}
  bulk: {{window: 24h}}
categories: [chat, code]
benchmarks:
  judge: {{deployment: judge, live_share: 1.0}}
  sample: {{tenants: [tests, guarded], redact: [{{pattern: "secret-[0-9]+", put: "[cut]"}}]}}
routing:
  policies: {{guarded: {{regions: [eu]}}}}
deployments:
  one: &plain
    model: test/one
    revision: "1"
    size_class: small
    engine: {{kind: instant}}
    context_limit: 100000
    max_in_flight: 8
    tokenizer: utf8
    price: {{input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}}
  two: {{<<: *plain, model: test/two}}
  twin: {{<<: *plain, model: test/judge, quantization: awq}}
  judge:
    <<: *plain
    model: test/judge
    size_class: large
    engine: {{kind: openai_http, url: "{url}", server: vllm, served_model: fake}}
    context_limit: 2000000
    capabilities: [json_schema]
"""

Says = Callable[[str], str | None]


@dataclass
class Judged:
    """`says` answers the judge's prompts."""

    yard: Yard
    fake: FakeVllm
    store: Store
    tenant: int
    worker: Inference
    classifier: Classifier
    prompts: list[str] = field(default_factory=list)

    def says(self, said: Says) -> None:
        def hear(prompt: str) -> str | None:
            self.prompts.append(prompt)
            return said(prompt)

        self.fake.plan = replace(self.fake.plan, says=hear)

    def answer(self, batch_id: int) -> None:
        """The batch goes its whole way: expanded, released, routed, run and closed."""
        make.expand(self.store)
        [[total]] = self.store.fetch("SELECT total FROM batch WHERE id = %(id)s", {"id": batch_id})
        make.release(self.store, batch_id, total)
        runs = to_runs(range(batch_id + 1, batch_id + total + 1))
        due = make.soon().timestamp()
        self.classifier.classify("bulk", due, runs)
        self.worker.offer("bulk", due, runs)
        open_ = f"batch_id = {batch_id} AND finished_at IS NULL"
        eventually(lambda: make.count(self.store, "job", open_) == 0, what="all questions answered")
        with self.store.transaction() as connection:
            batches.complete(connection, [batch_id])

    def asked(self) -> list[int]:
        """The batches that are open."""
        return [row[0] for row in self.store.fetch("SELECT id FROM batch WHERE finished_at IS NULL ORDER BY id")]

    def quality_run(
        self, name: str, answers: Mapping[str, str | None], *, items: GoldenSet | None = None, **end: Any
    ) -> BenchmarkRun:
        """A quality run that has succeeded on this deployment, with these answers by item; None failed."""
        found, _ = save(self.store, items or ITEMS)
        [number] = benchmarks.create(self.store, [NewRun(RunKind.QUALITY, name, {}, golden_set_id=found.id)])
        run = self.claimed(number)
        by_id = {item.id: item for item in (items or ITEMS).items}
        rows = [
            ItemScore(item_id, by_id[item_id].category, by_id[item_id].input_hash, job, None if text is None else 0.5)
            for (item_id, text), job in zip(answers.items(), self.finished(name, [*answers.values()]), strict=True)
        ]
        golden.save_scores(self.store, run, rows)
        self.finish(run, RunEnd(RunState.SUCCEEDED, **end))
        return benchmarks.get(self.store, number)

    def finished(self, deployment: str, texts: list[str | None], **fields: Any) -> list[int]:
        """Single jobs that ended so on this deployment: their ids."""
        worker = workers.register(self.store, "infer", deployment=deployment, lease_s=60)
        jobs = make.save_jobs(self.store, fields.pop("tenant", self.tenant), len(texts), **fields)
        make.route(self.store, jobs, deployment)
        with self.store.transaction() as connection:
            for job, text in zip(make.claim(self.store, jobs, worker, deployment), texts, strict=True):
                how = {} if text is not None else {"state": State.FAILED, "error_kind": "x", "error": "no"}
                finish(connection, [make.ending(job, deployment=deployment, output=text, **how)])
        return jobs

    def claimed(self, number: int) -> BenchmarkRun:
        run = benchmarks.claim(self.store, self.yard.worker_id, list(RunKind))
        assert run is not None
        assert run.id == number
        return run

    def finish(self, run: BenchmarkRun, end: RunEnd) -> None:
        with self.store.transaction() as connection:
            assert benchmarks.finish(connection, run, end) is not None


ITEMS = GoldenSet(
    "sky",
    tuple(
        Item(id=f"q{n}", category="code" if n % 2 else "chat", prompt=f"Question {n}?", criteria="Is kind.")
        for n in range(4)
    ),
)


def parts(prompt: str) -> dict[str, str]:
    """What a judge is shown, by the names of its tags."""
    found = re.findall(r"<[0-9a-f]{8}-([a-z-]+)>\n(.*?)\n</", prompt, re.DOTALL)
    return dict(found)


def verdict(**fields: Any) -> str:
    return json.dumps({"reason": "so it is", **fields})


@contextlib.contextmanager
def judging(settings: Settings, store: Store, tenant: int, directory: Path) -> Iterator[Judged]:
    with FakeVllm.in_thread(FakePlan(context_limit=2_000_000)) as fake:
        path = directory / "tieryard.yaml"
        path.write_text(CATALOG.format(url=fake.url))
        yard = Yard("infer", settings.model_copy(update={"catalog": path}), consume=[], deployment="judge")
        yard.join()
        worker = Inference(yard, "judge")
        worker.start(lambda _: None)
        eventually(lambda: any(r.serves for r in yard.metrics.replicas("judge")), what="the judge to serve")
        yield Judged(yard, fake, store, tenant, worker, Classifier(yard, yard.admission()))
        worker.drain()
        yard.leave()
