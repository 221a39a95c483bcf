"""Two replicas of one deployment, as real processes before fake vLLMs with a small prefix cache: jobs that begin alike
meet at one of them, and its cache is hit."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from tests.conftest import CATALOGS, eventually
from tieryard.ids import to_runs
from tieryard.metrics import Replica
from tieryard.queues import model_queue, parcels_to_infer, replica_queue
from tieryard.settings import Settings
from tieryard.store import Store, jobs, keys, workers
from tieryard.store.jobs import NewJob
from tieryard.store.reads import prefix_cache
from tieryard.testing.fake_prefixes import BLOCK, PrefixCache
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan
from workers.classify import Classifier
from workers.rescue import sweep
from workers.yard import Yard

PREFIXES, EACH = 8, 24
SHARED_BLOCKS = 12
PLAN = FakePlan(ttft_ms=5, capacity=8, length=4, cache_blocks=4 * SHARED_BLOCKS)


def prompt(prefix: int, number: int) -> str:
    """Words, which are the fake's tokens: a beginning that `prefix` names, and an end of its own."""
    return " ".join([f"p{prefix}w{i}" for i in range(SHARED_BLOCKS * BLOCK)] + [f"n{number}"])


@contextlib.contextmanager
def replica(settings: Settings, fake: FakeVllm) -> Iterator[subprocess.Popen[bytes]]:
    """An infer process of the deployment, with this server."""
    environment = {
        **os.environ,
        "TIERYARD_DATABASE_URL": settings.database_url.get_secret_value(),
        "TIERYARD_REDIS_URL": settings.redis_url.get_secret_value(),
        "TIERYARD_CATALOG": str(settings.catalog),
        "TIERYARD_CACHE_DIR": str(settings.cache_dir),
        "TIERYARD_LOG_LEVEL": "warning",
        "TIERYARD_DRAIN_S": "5",
    }
    process = subprocess.Popen([sys.executable, "-m", "workers", "infer", "short", "--url", fake.url], env=environment)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    text = (CATALOGS / "fake.yaml").read_text()
    path = tmp_path / "tieryard.yaml"
    path.write_text(text.replace("context_limit: 512", "context_limit: 4096").replace("in_flight: 32", "in_flight: 8"))
    return path


def serving(yard: Yard) -> list[Replica]:
    return yard.metrics.read(yard.catalog).replicas.get("short", [])


def bring(store: Store, classifier: Classifier, tenant: int, prompts: list[str]) -> list[int]:
    """Saves and routes jobs in parcels of 64, as the feeder releases them: their ids."""
    deadline = datetime.now(tz=UTC) + timedelta(hours=1)
    ids = []
    for text in prompts:
        body = orjson.dumps({"prompt": text, "model": "short", "max_tokens": 4}).decode()
        ids.append(jobs.save_job(store, NewJob(tenant, "batch", body, deadline), patience_s=60)[0])
    for first in range(0, len(ids), 64):
        classifier.classify("batch", deadline.timestamp(), to_runs(ids[first : first + 64]))
    return ids


def until_done(store: Store, ids: list[int]) -> None:
    def left() -> int:
        rows = store.fetch("SELECT count(*) FROM job WHERE id = ANY(%(ids)s) AND state <> 'succeeded'", {"ids": ids})
        return int(rows[0][0])

    eventually(lambda: left() == 0, what="all jobs")


def test_jobs_that_begin_alike_meet_at_one_replica_and_hit_its_cache(
    settings: Settings, store: Store, tenant: int, yard: Yard
) -> None:
    prompts = [prompt(n % PREFIXES, n) for n in range(PREFIXES * EACH)]  # every next one begins otherwise
    with FakeVllm.in_thread(PLAN) as one, FakeVllm.in_thread(PLAN) as other, contextlib.ExitStack() as running:
        for fake in (one, other):
            running.enter_context(replica(settings, fake))
        eventually(lambda: len(serving(yard)) == 2, within_s=60, what="two replicas")
        classifier = Classifier(yard, yard.admission())
        ids = bring(store, classifier, tenant, prompts)
        until_done(store, ids)

        rows = store.fetch("SELECT job_id, worker_id FROM timing WHERE outcome = 'succeeded' ORDER BY job_id")
        places = [Counter(worker for job, worker in rows if (job - ids[0]) % PREFIXES == n) for n in range(PREFIXES)]
        settled = sum(max(found.values()) for found in places)
        assert len(rows) == len(ids) == sum(found.total() for found in places)
        assert settled >= 0.75 * len(ids), f"the bound on loads moves a few: {places}"
        assert len({max(found, key=found.__getitem__) for found in places}) == 2, f"both are home to some: {places}"

        [found] = prefix_cache(store, since=datetime.now(tz=UTC) - timedelta(hours=1))
        assert (found.deployment, found.starts) == ("short", len(ids))
        assert found.cached_tokens == one.state.prefix_hits + other.state.prefix_hits
        assert found.hit_rate > 0.7
        assert found.hit_rate > 2 * hit_rate_at_random(prompts), "in the order of arrival, at either"


def hit_rate_at_random(prompts: list[str]) -> float:
    """What either replica's cache would have had of these."""
    chance, caches, read, cached = random.Random(7), (PrefixCache(), PrefixCache()), 0, 0
    for text in prompts:
        tokens = text.split()
        read += len(tokens)
        cached += chance.choice(caches).read(tokens, "", blocks=PLAN.cache_blocks)
    return cached / read


class Silent(Classifier):
    """Routes, and lets every nudge be lost."""

    def _publish(self, *_: object) -> None:
        pass


def test_a_replica_takes_what_only_it_is_sent_and_keeps_tenants_prefixes_apart(
    settings: Settings, store: Store, tenant: int, yard: Yard
) -> None:
    keys.add_key(store, "ty_other", tenant="another", name="other")
    another = keys.holder_of(store, "ty_other").tenant_id
    with FakeVllm.in_thread(PLAN) as one, replica(settings, one):
        eventually(lambda: len(serving(yard)) == 1, within_s=60, what="a replica")
        [here] = serving(yard)
        for owner, found in ((tenant, 0), (tenant, SHARED_BLOCKS * BLOCK), (another, 0)):
            [job] = bring(store, Silent(yard, yard.admission()), owner, [prompt(0, 0)])
            yard.publisher.publish(parcels_to_infer("short", "batch", 0.0, [(job, 7)], home=here.worker_id))
            until_done(store, [job])
            cached = store.fetch("SELECT cached_tokens FROM timing WHERE job_id = %(id)s", {"id": job})
            assert cached == [(found,)]


def test_what_was_sent_to_one_that_died_moves_to_the_shared_queue(yard: Yard, store: Store) -> None:
    gone = workers.register(store, "infer", deployment="short", lease_s=60)
    living = workers.register(store, "infer", deployment="short", lease_s=60)
    for home in (gone, living):
        keyed = [(home * 100 + n, 7) for n in range(130)]
        yard.publisher.publish(parcels_to_infer("short", "batch", 0.0, keyed, home=home))
    store.fetch("UPDATE worker SET lease_until = now() - interval '1 s' WHERE id = %(id)s RETURNING id", {"id": gone})
    sweep(yard)
    assert yard.redis.exists(replica_queue("short", gone)) == 0
    assert yard.redis.llen(replica_queue("short", living)) == 3
    assert yard.redis.llen(model_queue("short")) == 3
