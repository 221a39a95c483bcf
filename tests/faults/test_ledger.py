"""Ten thousand jobs while everything dies again and again; then every cent is looked for, and found once."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import Running, running
from tests.conftest import CATALOGS, eventually, open_directory
from tests.faults.reconcile import Books
from tests.faults.unsteady_engine import UnsteadyEngine
from tieryard.catalog import Catalog, load_catalog
from tieryard.embedded import free_port
from tieryard.supervisor import Fleet

JOBS = int(os.environ.get("TIERYARD_FAULT_JOBS", "10000"))
LISTS = 5  # the last of which is cancelled in the middle
SINGLES = JOBS // 12
CALLS = JOBS // 50
REPLICAS = {"small": 2, "large": 2, "hosted": 1}
KILLS = (
    *("infer-small", "infer-small-2", "infer-large", "infer-large-2") * 2,
    *("infer-hosted", "infer-small", "engine-small", "engine-small", "engine-large", "engine-hosted"),
    *("api", "api", "api", "classify", "classify", "expand", "expand", "beat", "beat", "benchmark", "benchmark"),
)
STORY = "Once upon a time there was a ship that sailed from Oslo to Bergen in a storm and nobody on board knew why. "


class RentedFleet(Fleet):
    """With several replicas of a deployment, each at a place of its own."""

    def _commands(self, catalog: Catalog) -> dict[str, list[str]]:
        commands = super()._commands(catalog)
        for name in [name for name in catalog.hosts if REPLICAS[name] == 2]:
            commands[f"infer-{name}-2"] = [sys.executable, "-m", "workers", "infer", name, "--replica", "2"]
        return commands


class Ordeal:
    """All that is asked of a fleet while its parts are killed."""

    def __init__(
        self, found: Running, engines: dict[str, UnsteadyEngine], pool: ThreadPoolExecutor, *, seed: int
    ) -> None:
        self._running, self._engines, self._pool = found, engines, pool
        self._chance = random.Random(seed)
        self._asked: list[Future[None]] = []

    def finished(self) -> int:
        [(n,)] = self._running.rows("SELECT count(*) FROM job WHERE finished_at IS NOT NULL")
        return int(n)

    def post(self, path: str, key: str, body: object) -> dict[str, object]:
        """As a caller does who wants it done once, whatever becomes of the API process."""
        found: dict[str, object] = {}

        def accepted() -> bool:
            with contextlib.suppress(httpx.TransportError):
                answer = self._running.api.post(path, json=body, headers={"idempotency-key": key})
                if answer.status_code < 300:
                    found.update(answer.json())
                    return True
                assert answer.status_code >= 500 or answer.status_code == 409, answer.text
            return False

        eventually(accepted, within_s=60, what=f"the answer to {path} {key}")
        return found

    def list_of(self, number: int, n: int) -> str:
        jobs = [self._job(f"{number}-{i}") for i in range(n)]
        return str(self.post("/v1/jobs?tier=batch", f"list-{number}", jobs)["id"])

    def _job(self, name: str) -> dict[str, object]:
        model = self._chance.choices(("small", "large", "hosted", "auto"), (4, 3, 1, 2))[0]
        kind = self._chance.random()
        fault = "[[fault:reset_midstream]]" if kind < 0.004 else "[[fault:http_500]]" if kind < 0.008 else ""
        story = STORY * self._chance.randrange(3)
        return {"prompt": f"{story}Write about {name}. {fault}", "model": model, "max_tokens": 10, "custom_id": name}

    def ask(self, step: int) -> None:
        """Singles, some of which are cancelled in mid-answer, and calls: all at once, in threads."""
        for i in range(SINGLES // len(KILLS)):
            self._later(self._single, f"{step}-{i}", self._job(f"{step}-{i}"), i % 12 == 0)
        for _ in range(CALLS // len(KILLS)):
            self._later(self._call, self._chance.choice(("small", "large", "hosted")))

    def _later(self, what: Callable[..., None], *given: object) -> None:
        self._asked.append(self._pool.submit(what, *given))

    def _single(self, name: str, job: dict[str, object], cancel: bool) -> None:
        if cancel:  # it is slow, so that it has begun and not ended when it is cancelled
            job = {**job, "prompt": f"A slow story {name}. [[fault:slow:30]]", "model": "small"}
        made = self.post("/v1/jobs", f"single-{name}", {**job, "tier": "interactive"})
        if cancel:
            path = f"/v1/jobs/{made['id']}"
            eventually(lambda: self.state_of(path) != "queued", within_s=60, what=f"{path} on its way")
            self.post(f"{path}/cancel", f"cancel-{name}", None)

    def state_of(self, path: str) -> str:
        with contextlib.suppress(httpx.TransportError):
            answer = self._running.api.get(path)
            if answer.status_code == 200:
                return str(answer.json()["state"])
        return "queued"

    def _call(self, model: str) -> None:
        """A caller that gives up when its connection does."""
        body = {"model": model, "max_tokens": 10, "stream": True, "messages": [{"role": "user", "content": STORY}]}
        with (
            contextlib.suppress(httpx.HTTPError),
            self._running.api.stream("POST", "/v1/chat/completions", json=body) as s,
        ):
            for _ in s.iter_bytes():
                pass

    def kill(self, name: str) -> None:
        if name.startswith("engine-"):
            self._engines[name.removeprefix("engine-")].kill()
            self._engines[name.removeprefix("engine-")].revive()
        else:
            eventually(lambda: self._killed(name), within_s=60, what=f"{name} on its feet")

    def _killed(self, name: str) -> bool:
        """Whether it ran, and runs no more."""
        child = self._running.fleet.children.get(name)
        process = child.process if child is not None else None
        if process is None or process.poll() is not None:
            return False
        process.kill()
        return True

    def until_asked(self) -> None:
        for asked in self._asked:
            asked.result(120)


@contextlib.contextmanager
def rented_fleet() -> Iterator[tuple[Running, dict[str, UnsteadyEngine], Path]]:
    """With the file of its catalog."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(open_directory())
        engines = {name: stack.enter_context(UnsteadyEngine(every=60)) for name in REPLICAS}
        text = (CATALOGS / "rented.yaml").read_text()
        for name, engine in engines.items():
            text = text.replace(f"http://{name}.invalid", engine.url)
        catalog = home / "rented.yaml"
        catalog.write_text(text)
        fleet = RentedFleet(home / "data", port=free_port(), catalog=catalog)
        yield stack.enter_context(running(fleet)), engines, catalog


@pytest.mark.timeout(600)
def test_every_cent_is_found_once(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERYARD_RENT_GRACE_S", "2")
    seed = int(os.environ.get("TIERYARD_FAULT_SEED", random.SystemRandom().randrange(2**31)))
    print(f"TIERYARD_FAULT_SEED={seed}")
    kills = random.Random(seed).sample(KILLS, len(KILLS))
    with rented_fleet() as (found, engines, catalog), ThreadPoolExecutor(4) as pool:
        prices = {"hosted": load_catalog(catalog).deployments["hosted"].price}
        ordeal = Ordeal(found, engines, pool, seed=seed)
        lists = [ordeal.list_of(i, (JOBS - SINGLES - CALLS) // LISTS) for i in range(LISTS)]
        at_step = {
            3: lambda: ordeal.post("/v1/benchmarks", "measured", {"kind": "speed", "requests": 48}),
            9: lambda: apply(found, catalog, dearer(catalog.read_text())),
            12: lambda: ordeal.post(f"/v1/batches/{lists[-1]}/cancel", "cancelled", None),
        }
        for step, name in enumerate(kills):
            least = round(0.85 * JOBS * step / len(kills))
            eventually(lambda least=least: ordeal.finished() >= least, within_s=120, what=f"{least} finished jobs")
            at_step.get(step, lambda: None)()
            ordeal.ask(step)
            ordeal.kill(name)
            print(f"{name} killed at {ordeal.finished()} of {JOBS}")
        ordeal.until_asked()
        until(found, "SELECT count(*) FROM job WHERE finished_at IS NULL", what="the end of all jobs")
        until(found, "SELECT count(*) FROM benchmark WHERE finished_at IS NULL", what="the end of all benchmarks")
        apply(found, catalog, without_rent(catalog.read_text()))
        until(found, "SELECT count(*) FROM rent_window WHERE closed_at IS NULL", what="the close of all windows")
        books = Books.read(found.database, prices)
        print(books.summary())
        print(tieryard(found, "costs", "reconcile"))
    faults = books.faults()
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:40])
    assert_it_proved_something(books)


def assert_it_proved_something(books: Books) -> None:
    """Else too little went wrong, or too late."""
    assert len(books.jobs) >= 0.98 * JOBS
    assert {row.kind for row in books.ledger} >= {"inference", "retry", "benchmark", "warmup", "idle", "overhead"}
    assert {start.outcome for start in books.starts} >= {"succeeded", "cancelled", "fault", "crash", "worker_died"}
    assert {job.state for job in books.jobs.values()} >= {"succeeded", "failed", "cancelled"}
    rents = {(window.place, window.usd_per_hour) for window in books.windows.values()}
    assert len({place for place, _ in rents}) == 6, "four replicas and two hosts"
    assert len(rents) == 8, "a rent that changed under way at two of them"
    assert len(books.windows) > len(KILLS) // 2


def tieryard(found: Running, *arguments: str) -> str:
    """What the command prints, as an operator runs it; it must succeed."""
    command = [sys.executable, "-m", "tieryard", *arguments, "--data-dir", str(found.fleet.data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def apply(found: Running, catalog: Path, text: str) -> None:
    """Puts another catalog in force."""
    catalog.write_text(text)
    tieryard(found, "config", "apply", str(catalog))


def dearer(text: str) -> str:
    assert "usd_per_hour: 1.006" in text
    return text.replace("usd_per_hour: 1.006", "usd_per_hour: 1.333333")


def without_rent(text: str) -> str:
    """What is bought by the token alone: the replicas of all else end, and so do the hosts."""
    start, end = text.index("  small:"), text.index("benchmarks:")
    return text[:start] + text[end:]


def until(found: Running, count: str, *, what: str) -> None:
    eventually(lambda: found.rows(count) == [(0,)], within_s=120, what=what)
