"""Two replicas of real processes start anew for a catalog, and at every moment one of them serves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from tests.conftest import eventually
from tests.integration.conftest import open_yard
from tests.integration.test_renewal import CATALOG, catalog_path, fakes, yard
from tieryard.catalog import parse_catalog
from tieryard.lease import OUTDATED_EXIT
from tieryard.metrics import Metrics
from tieryard.settings import Settings
from tieryard.store import Store, catalogs
from tieryard.testing.fake_vllm import FakeVllm
from workers.yard import Yard

__all__ = ["catalog_path", "fakes", "open_yard", "yard"]


class Replicas:
    """Infer processes, and who starts another in the place of one that has ended as outdated. How many serve is looked
    at all the while."""

    def __init__(self, settings: Settings, metrics: Metrics, urls: list[str]) -> None:
        self.metrics, self.urls = metrics, urls
        self.codes: list[int] = []
        self.fewest = len(urls)
        self.watched, self.stopping = threading.Event(), threading.Event()
        self.environment = {
            **os.environ,
            "TIERYARD_DATABASE_URL": settings.database_url.get_secret_value(),
            "TIERYARD_REDIS_URL": settings.redis_url.get_secret_value(),
            "TIERYARD_CATALOG": str(settings.catalog),
            "TIERYARD_HEARTBEAT_S": "0.3",
            "TIERYARD_LOG_LEVEL": "warning",
        }
        self.running = [self.start(url) for url in urls]
        self.thread = threading.Thread(target=self.tend)

    def __enter__(self) -> Replicas:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(30)

    def start(self, url: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "workers", "infer", "one", "--url", url]
        return subprocess.Popen(command, env=self.environment)

    def tend(self) -> None:
        while not self.stopping.wait(0.02):
            for n, process in enumerate(self.running):
                if (code := process.poll()) is not None:
                    self.codes.append(code)
                    self.running[n] = self.start(self.urls[n])
            if self.watched.is_set():
                self.fewest = min(self.fewest, len(self.serving()))

    def serving(self) -> list[int]:
        """What those that serve take at once."""
        return [r.capacity for r in self.metrics.replicas("one") if r.serves]


def test_of_two_replicas_one_serves_at_every_moment(
    settings: Settings, store: Store, yard: Yard, fakes: tuple[FakeVllm, FakeVllm]
) -> None:
    with Replicas(settings, yard.metrics, [fake.url for fake in fakes]) as found:
        eventually(lambda: found.serving() == [64, 64], within_s=40, what="both to serve")
        found.watched.set()
        text = CATALOG.format(url=fakes[0].url, limit=32)
        catalogs.apply(store, text, name=parse_catalog(text).hash(), tiers=["batch"])
        eventually(lambda: found.serving() == [32, 32], within_s=60, what="both to serve as the new catalog has it")
    assert found.codes == [OUTDATED_EXIT] * 2
    assert found.fewest == 1
