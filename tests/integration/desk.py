"""Classification runs at the API, the worker that works them off, and the rest of the fleet stood in for statement by
statement: what each deployment answers to a text is the test's to say."""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from fastapi.testclient import TestClient

from tests import factories as make
from tests.integration.test_api import serving
from tieryard.engines.made_up import doubted
from tieryard.ids import internal
from tieryard.job import State
from tieryard.settings import Settings
from tieryard.store import Store, batches, budgets, rescue
from tieryard.store.finish import finish
from workers.classifying import Classifying
from workers.expand import expand_all
from workers.yard import Yard

CATALOG = """
version: 1
tiers:
  batch: {slo: {max_latency_ms: 60000}, slo_from: claimed, window: 24h}
  bulk: {window: 24h}
categories: [extraction, classification, summarization, reasoning, code, chat]
deployments:
  cheap: &cheap
    model: test/cheap
    revision: "1"
    size_class: small
    engine: {kind: instant}
    context_limit: 2000
    max_in_flight: 64
    tokenizer: utf8
    capabilities: [json_schema, logprobs]
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}
  dear:
    <<: *cheap
    model: test/dear
    size_class: large
    price: {input_usd_per_1m: 1.00, output_usd_per_1m: 4.00}
  mute:
    <<: *cheap
    model: test/mute
    size_class: medium
    auto: false
    capabilities: [json_schema]
"""
PATH = "/v1/classifications"
LABELS = [{"name": "billing"}, {"name": "bug", "description": "Something does not work."}, {"name": "feature"}]
TEMPLATE = "{labels}\nText: {text}"
COST = {"cheap": Decimal("0.00001"), "dear": Decimal("0.0001"), "mute": Decimal("0.00002")}

Answers = Callable[[str, str], tuple[str | None, float]]
"""`answers(deployment, text)`: the label, None where the job fails, and how sure."""


def plainly(_: str, text: str) -> tuple[str | None, float]:
    """The label that is the text's first word."""
    return text.split()[0], 0.9


@dataclass
class Desk:
    """`asked` counts what was asked, by deployment and text."""

    client: TestClient
    store: Store
    yard: Yard
    answers: Answers = plainly
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Another worker process in the place of the one before."""
        self.worker = Classifying(self.yard, self.yard.admission())

    def create(self, **fields: Any) -> str:
        answer = self.client.post(PATH, json={"labels": LABELS, "template": TEMPLATE, "model": "cheap", **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def send(self, run: str, rows: list[dict[str, Any]], first: int = 1) -> Any:
        return self.client.post(f"{PATH}/{run}/rows", params={"first": first}, content=ndjson(rows))

    def complete(self, run: str, rows: int) -> Any:
        return self.client.post(f"{PATH}/{run}/complete", json={"rows": rows})

    def get(self, run: str) -> dict[str, Any]:
        answer = self.client.get(f"{PATH}/{run}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def results(self, run: str, **params: Any) -> list[dict[str, Any]]:
        answer = self.client.get(f"{PATH}/{run}/results", params=params)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.content.splitlines()]

    def labels(self, run: str) -> list[str | None]:
        return [row["label"] for row in self.results(run)]

    def tick(self) -> None:
        self.worker.tick()

    def finish(self, run: str, *, turns: int = 60) -> dict[str, Any]:
        """Works until the run is over."""
        for _ in range(turns):
            self.tick()
            if (found := self.get(run))["finished_at"] is not None:
                return found
            self.fleet()
        raise AssertionError(f"{run} has not ended: {self.get(run)}")

    def fleet(self, *, most: int | None = None) -> int:
        """Runs jobs that wait, `most` of them in the order of their lines: how many."""
        expand_all(self.yard, self.yard.admission())
        for batch_id, total in self.store.fetch("SELECT id, total FROM batch WHERE released_to < total"):
            make.release(self.store, batch_id, total)
        with self.store.transaction() as connection:
            rescue.stop(connection)  # of what is cancelled
        waiting = self.store.fetch(
            "SELECT job.id, line.body FROM job JOIN line USING (source_id, line_no) "
            "WHERE finished_at IS NULL ORDER BY id"
        )[:most]
        by_deployment: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for job_id, body in waiting:
            asked = json.loads(body)
            by_deployment["cheap" if asked["model"] == "auto" else asked["model"]].append((job_id, asked))
        for deployment, jobs in by_deployment.items():
            self._run(deployment, jobs)
        with self.store.transaction() as connection:
            batches.complete(connection, [row[0] for row in self.store.fetch("SELECT id FROM batch")])
            budgets.settle(connection)
        return len(waiting)

    def _run(self, deployment: str, jobs: list[tuple[int, dict[str, Any]]]) -> None:
        ids, bodies = [job_id for job_id, _ in jobs], dict(jobs)
        make.route(self.store, ids, deployment)
        endings = []
        for job in make.claim(self.store, ids, make.worker(self.store), deployment):
            asked = bodies[job.id]
            text = asked["messages"][-1]["content"].rsplit("Text: ", 1)[1]
            self.asked[deployment, text] += 1
            label, sure = self.answers(deployment, text)
            shared = {"deployment": deployment, "cost_usd": COST[deployment]}
            if label is None:
                failed = {"state": State.FAILED, "output": None, "error_kind": "bad_request", "error": "no"}
                endings.append(make.ending(job, **shared, **failed))
                continue
            schema = asked["response_format"]["json_schema"]["schema"]
            said = {"labels": label.split("+")} if "labels" in schema["properties"] else {"label": label}
            made = doubted(json.dumps(said, separators=(",", ":")), schema, sure)
            extra = {"logprobs": made.logprobs(asked["top_logprobs"])} if asked.get("logprobs") else None
            endings.append(make.ending(job, **shared, output=made.text, extra=extra))
        with self.store.transaction() as connection:
            finish(connection, endings)

    def charged(self) -> Decimal:
        return Decimal(self.store.fetch("SELECT coalesce(sum(cost_usd), 0) FROM ledger WHERE kind = 'inference'")[0][0])

    def parts(self, run: str) -> list[tuple[str, int]]:
        """(stage, texts) of each part, in order."""
        return self.store.fetch(
            "SELECT stage, texts FROM classification_part WHERE classification_id = %(id)s ORDER BY part_no",
            {"id": internal("classification", run)},
        )


def ndjson(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def rows_of(*texts: str) -> list[dict[str, Any]]:
    return [{"text": text} for text in texts]


def numbered(n: int, *, truth: bool = False) -> list[dict[str, Any]]:
    """`n` distinct texts in turn of each label; with their truth."""
    names = [label["name"] for label in LABELS]
    return [{"text": f"{names[i % 3]} {i}", **({"truth": names[i % 3]} if truth else {})} for i in range(n)]


@contextlib.contextmanager
def desk_of(settings: Settings, store: Store) -> Iterator[Desk]:
    yard = Yard("classifying", settings, consume=[])
    with serving(settings) as client:
        yield Desk(client, store, yard)
    yard.app.close()
    yard.store.close()
    yard.redis.close()
