"""Receives a tick each two seconds, or a nudge that a benchmark waits. Asks for the runs that schedules want, claims
those that may start, measures, and finishes each with its report, profiles, money and events in one transaction.
Next: the profiles are in Postgres, and in Redis, where the next decisions of `workers/classify.py` rest on them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import redis

from tieryard import telemetry
from tieryard.catalog import Catalog
from tieryard.errors import ConflictError, StoreError
from tieryard.store import benchmarks
from tieryard.store.benchmark_postings import Posting
from tieryard.store.benchmarks import BenchmarkRun, RunEnd, RunKind, RunState
from tieryard.telemetry import Event
from workers import fingerprints, judging, pairwise, quality, schedules, speed
from workers.fingerprints import Changes
from workers.yard import Yard

_ADVANCING: dict[RunKind, Callable[[Yard, BenchmarkRun], RunEnd | None]] = {
    RunKind.QUALITY: quality.advance,
    RunKind.PAIRWISE: pairwise.advance,
}
"""Runs that mostly wait for the fleet: they are looked at, and go on by themselves."""

_LOADING = (RunKind.SPEED, RunKind.CAPACITY)
"""Runs that send a load themselves: one at a time, in a thread of its own, and beside it this process does nothing that
would make it late."""

_JUDGE_EVERY_S = 60.0
_LOOK_EVERY_S = 2.0
_MOST_DOUBLED = 6


class Benchmarker:
    """One process. `tick` is called from Celery's thread, and what comes while one is worked on is left to the next."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._busy = threading.Lock()
        self._ours: dict[int, int] = {}  # runs that advance: their fences
        self._load: threading.Thread | None = None
        self._stop = threading.Event()
        self._judged_at = 0.0
        self._unmet: dict[str, datetime] = {}  # slots of schedules

    def prepare(self, _: Catalog, __: Catalog) -> Callable[[], None]:
        """Every run reads the catalog in force when it starts."""
        return lambda: None

    def tick(self) -> None:
        """Raises StoreError: the next tick tries again."""
        if self._stop.is_set() or not self._busy.acquire(blocking=False):
            return
        try:
            if self._load is not None and self._load.is_alive():
                return
            schedules.ask_for_due(self._yard, unmet=self._unmet)
            self._advance()
            if time.monotonic() - self._judged_at >= _JUDGE_EVERY_S:
                self._judged_at = time.monotonic()
                judging.look(self._yard)
            self._start_load()
        finally:
            self._busy.release()

    def stop(self) -> None:
        """What runs is handed back: another process, or the next, goes on with it."""
        self._stop.set()
        if self._load is not None:
            self._load.join()
        with self._busy:
            for run_id, fence in self._ours.items():
                run = benchmarks.get(self._yard.store, run_id)
                if run.fence == fence:
                    benchmarks.hand_back(self._yard.store, run, why="its worker has stopped")

    # --- runs that wait for the fleet -------------------------------------------------------------------

    def _advance(self) -> None:
        while (new := benchmarks.claim(self._yard.store, self._yard.worker_id, list(_ADVANCING))) is not None:
            self._ours[new.id] = new.fence
            self._yard.log.info(Event.BENCHMARK_STARTED, run=new.public_id, kind=new.kind, deployment=new.deployment)
        for run_id, fence in list(self._ours.items()):
            run = benchmarks.get(self._yard.store, run_id)
            if run.fence != fence or run.finished_at is not None:
                del self._ours[run_id]
            elif (end := self._step(run)) is not None:
                self._finish(run, end)
                del self._ours[run_id]

    def _step(self, run: BenchmarkRun) -> RunEnd | None:
        try:
            return _ADVANCING[RunKind(run.kind)](self._yard, run)
        except (StoreError, redis.RedisError):
            raise
        except ConflictError:  # another worker's by now
            return None
        except Exception as error:  # a fault of ours costs this run, and no other
            return self._fault(run, error)

    # --- runs that send a load --------------------------------------------------------------------------

    def _start_load(self) -> None:
        run = benchmarks.claim(self._yard.store, self._yard.worker_id, _LOADING, alone=True)
        if run is not None:
            self._load = threading.Thread(target=self._run_load, args=[run], name="benchmark", daemon=True)
            self._load.start()

    def _run_load(self, run: BenchmarkRun) -> None:
        stop, done = threading.Event(), threading.Event()
        watch = threading.Thread(target=self._watch, args=[run, stop, done], name="benchmark-watch", daemon=True)
        watch.start()
        try:
            self._measure(run, stop)
        except Exception as error:  # the run is claimed again when this process has gone
            self._yard.log.error(Event.TASK_FAILED, task="benchmark", **telemetry.fault(error))
        finally:
            done.set()
            watch.join()

    def _measure(self, run: BenchmarkRun, stop: threading.Event) -> None:
        end: RunEnd | speed.Busy
        try:
            end = speed.run(self._yard, run, stop)
        except speed.Busy as busy:
            end = busy
        except (StoreError, redis.RedisError) as error:
            end = speed.Busy(f"{type(error).__name__} while it ran", 10.0)
        except speed.FaultedError as faulted:
            end = replace(self._fault(run, faulted.error), postings=faulted.postings)
        except Exception as error:
            end = self._fault(run, error)
        while True:  # what was found, and has cost something, must not be lost with Postgres or Redis away for a while
            try:
                self._conclude(run, end, stopped=stop.is_set())
                return
            except (StoreError, redis.RedisError) as error:
                self._yard.log.warning(Event.TASK_FAILED, task="benchmark", **telemetry.fault(error))
                if self._stop.wait(_LOOK_EVERY_S):
                    raise

    def _conclude(self, run: BenchmarkRun, end: RunEnd | speed.Busy, *, stopped: bool) -> None:
        if isinstance(end, speed.Busy):
            # One that has begun and is put off again and again would cost more than it ever tells.
            longer = 2 ** min(run.fence - 1, _MOST_DOUBLED) if end.postings else 1
            self._put_off(run, str(end), longer * end.wait_s, end.postings)
        elif stopped and end.state is not RunState.FAILED and not self._cancelled(run):
            self._put_off(run, "its worker has stopped", 0.0, end.postings)
        else:
            self._finish(run, end)

    def _watch(self, run: BenchmarkRun, stop: threading.Event, done: threading.Event) -> None:
        """Stops a load that is cancelled, or whose process stops."""
        while not done.wait(_LOOK_EVERY_S if not self._stop.is_set() else 0.05):
            try:
                if self._stop.is_set() or self._cancelled(run):
                    stop.set()
                    return
            except StoreError:
                continue

    def _cancelled(self, run: BenchmarkRun) -> bool:
        found = benchmarks.get(self._yard.store, run.id)
        return found.cancelling or found.fence != run.fence

    def _put_off(self, run: BenchmarkRun, why: str, wait_s: float, postings: tuple[Posting, ...] = ()) -> None:
        if self._cancelled(run):
            self._finish(run, RunEnd(RunState.CANCELLED, "cancelled while it ran", postings=postings))
            return
        benchmarks.hand_back(self._yard.store, run, why=why, wait_s=wait_s, postings=postings)
        self._yard.log.info(Event.BENCHMARK_PUT_OFF, run=run.public_id, deployment=run.deployment, why=why)

    # --- how runs end -----------------------------------------------------------------------------------

    def _fault(self, run: BenchmarkRun, error: Exception) -> RunEnd:
        self._yard.log.error(Event.TASK_FAILED, task=f"benchmark {run.public_id}", **telemetry.fault(error))
        return RunEnd(RunState.FAILED, f"{type(error).__name__} in the benchmark worker; its log says where")

    def _finish(self, run: BenchmarkRun, end: RunEnd) -> None:
        """Writes it all down, then tells Redis: what is lost there is told again from Postgres."""
        yard = self._yard
        changes = Changes()
        if end.state is RunState.SUCCEEDED and run.kind != RunKind.PAIRWISE:
            end, changes = self._compared(run, end)
        with yard.store.transaction() as connection:
            owed = benchmarks.finish(connection, run, end, callback_url=yard.catalog.benchmarks.callback_url)
            lost = fingerprints.demote(connection, run, changes) if owed is not None else []
        if owed is None:
            return
        about = {"run": run.public_id, "kind": run.kind, "deployment": run.deployment}
        yard.log.info(Event.BENCHMARK_FINISHED, **about, state=end.state, why=end.why)
        if end.regressed is not None:
            yard.log.error(Event.BENCHMARK_REGRESSED, **about, why=end.regressed)
        if lost:
            yard.log.error(Event.DEMOTED, deployment=run.deployment, categories=lost, why=end.regressed)
        if end.state is RunState.SUCCEEDED:
            try:
                _TELLING.get(RunKind(run.kind), _nothing)(yard, run, end)
                fingerprints.mark(yard, run, end, changes)
            except redis.RedisError as error:
                yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
        if owed:
            yard.nudge_callbacks()

    def _compared(self, run: BenchmarkRun, end: RunEnd) -> tuple[RunEnd, Changes]:
        """With what answers now, and how that has changed. Raises StoreError or redis.RedisError."""
        try:
            end = replace(end, fingerprint=fingerprints.fingerprint(self._yard, run.deployment))
            found = fingerprints.changes(self._yard, run, end)
        except (StoreError, redis.RedisError):
            raise
        except Exception as error:  # what it has measured is true all the same
            self._yard.log.error(Event.TASK_FAILED, task=f"benchmark {run.public_id}", **telemetry.fault(error))
            return end, Changes()
        return replace(end, regressed=found.regressed, report=(end.report or {}) | found.stored()), found


def _nothing(*_: object) -> None:
    """A comparison has no profile."""


_TELLING: dict[RunKind, Callable[[Yard, BenchmarkRun, RunEnd], None]] = {
    RunKind.SPEED: speed.tell,
    RunKind.CAPACITY: speed.tell,
    RunKind.QUALITY: quality.tell,
}
