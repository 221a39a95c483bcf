"""What tests of promotions and canaries stand on: a catalog with a candidate, and quality runs with their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests import factories as make
from tieryard.catalog import Catalog
from tieryard.ids import public
from tieryard.store import Store, benchmarks, golden
from tieryard.store.benchmarks import KIND, NewRun, RunEnd, RunKind, RunState
from tieryard.store.golden import ItemScore, SetRow

CATALOG = """
version: 1
tiers:
  realtime: {slo: {max_latency_ms: 1000}, window: 60s}
  batch: {slo: {max_latency_ms: 60000}, slo_from: claimed, window: 24h}
  bulk: {window: 24h}
categories: [extraction, reasoning, chat]
routing: {classifier: rules}
deployments:
  big:
    model: acme/big
    revision: "1"
    size_class: large
    engine: {kind: instant}
    context_limit: 4096
    max_in_flight: 64
    tokenizer: utf8
    price: {input_usd_per_1m: 1.00, output_usd_per_1m: 4.00}
  awq:
    model: acme/big-awq
    revision: "1"
    quantization: awq
    candidate_of: big
    size_class: large
    engine: {kind: instant}
    context_limit: 4096
    max_in_flight: 64
    tokenizer: utf8
    price: {input_usd_per_1m: 0.40, output_usd_per_1m: 1.60}
"""

Scores = Mapping[str, Sequence[float | None]]
"""By category, in the items' order."""


def golden_set(store: Store, counts: Mapping[str, int], *, name: str = "mixed") -> SetRow:
    items = [{"id": f"{category}-{i}"} for category, n in counts.items() for i in range(n)]
    saved, _ = golden.save_set(store, name, "hash-1", counts, items)
    return saved


def quality_run(
    store: Store, catalog: Catalog, deployment: str, asked: SetRow, scores: Scores, *, judge: str | None = None
) -> str:
    """A run of the build that this catalog has, with these scores: its public id."""
    worker = make.worker(store, kind="benchmark")
    [run_id] = benchmarks.create(store, [NewRun(RunKind.QUALITY, deployment, {}, golden_set_id=asked.id)])
    run = benchmarks.claim(store, worker, [RunKind.QUALITY])
    assert run is not None
    rows = [
        ItemScore(f"{category}-{i}", category, f"hash of {category}-{i}", None, score, judge=judge)
        for category, found in scores.items()
        for i, score in enumerate(found)
    ]
    golden.save_scores(store, run, rows)
    with store.transaction() as connection:
        end = RunEnd(RunState.SUCCEEDED, pinned=catalog.deployments[deployment].build)
        assert benchmarks.finish(connection, run, end) is not None
    return public(KIND, run_id)


def passing(n: int, of: int) -> list[float]:
    return [1.0] * n + [0.0] * (of - n)
