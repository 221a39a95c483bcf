"""Receives a tick a second, or a nudge that rows of a classification run have come. Has their distinct texts asked in
parts, each a batch of their owner's, reads labels from the answers, and decides by the first ones who takes the rest.
Next: `workers/expand.py` makes jobs of a part; rows that have their last answer are read at the API."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tieryard import telemetry
from tieryard.admission import Admission
from tieryard.catalog import Catalog
from tieryard.classification import answers
from tieryard.errors import StoreError, UnreadableError, UserError
from tieryard.requests.classification import ClassificationSpec
from tieryard.store import classification_parts as parts
from tieryard.store import classification_progress as progress
from tieryard.store import classifications
from tieryard.store.classification_parts import Ended, Found, OpenRun, Part
from tieryard.store.classification_progress import Policy
from tieryard.store.classifications import ClassificationRun, RunState, Stage
from tieryard.store.leader import lead
from tieryard.telemetry import Event
from workers import classification_samples as samples
from workers.classification_asking import Asking
from workers.classification_samples import Pending
from workers.yard import Yard

_ROUND_S = 2.0  # a tick goes on for so long while there is something to do
_CHUNK = 1000  # answers that are kept together
_IDLE_S = 15.0  # until a run is looked at again that nobody has touched
_HOPELESS = 200  # answers without a label among them


class Classifying:
    """One process leads. All that it has done is in Postgres, and what it holds beside is only remembered to be quick:
    so another goes on where it was killed."""

    def __init__(self, yard: Yard, admission: Admission) -> None:
        self._yard = yard
        self._asking = Asking(yard, admission)
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self._specs: dict[int, ClassificationSpec] = {}
        self._seen: dict[int, tuple[int, int, Policy]] = {}
        self._idle: dict[int, tuple[str, float]] = {}

    def prepare(self, _: Catalog, catalog: Catalog) -> Callable[[], None]:
        """Questions are made by this catalog from the next part on. Raises UserError."""
        return partial(self._asking.take_over, self._yard.admission(catalog))

    def tick(self) -> None:
        """Raises StoreError: the next tick tries again."""
        if self._stop.is_set() or not self._busy.acquire(blocking=False):
            return
        try:
            with lead(self._yard.store, "classifying") as leads:
                until = time.monotonic() + _ROUND_S
                while leads is not None and self._round() and not self._stop.is_set() and time.monotonic() < until:
                    pass
        finally:
            self._busy.release()

    def stop(self) -> None:
        """Returns when what is at work has committed."""
        self._stop.set()
        with self._busy:
            pass

    def _round(self) -> bool:
        """A step of every open run: whether any has moved."""
        open_runs = parts.open_runs(self._yard.store)
        for forgotten in self._specs.keys() - {run.id for run in open_runs}:
            self._specs.pop(forgotten)
            self._seen.pop(forgotten, None)
            self._idle.pop(forgotten, None)
            self._asking.forget(forgotten)
        moved = [self._look(run) for run in open_runs if not self._stop.is_set()]
        return any(moved)

    def _look(self, run: OpenRun) -> bool:
        """A run of which nothing is under way, and that did not move as it is now, is left alone a while: a client that
        never came back may leave thousands."""
        version, until = self._idle.get(run.id, ("", 0.0))
        if not run.busy and run.version == version and time.monotonic() < until:
            return False
        if self._step(run.id):
            self._idle.pop(run.id, None)
            return True
        self._idle[run.id] = run.version, time.monotonic() + _IDLE_S
        return False

    def _step(self, run_id: int) -> bool:
        try:
            return self._advance(run_id)
        except StoreError:
            raise
        except UserError as error:  # of the run itself: its model is not served any more
            progress.end(self._yard.store, run_id, RunState.FAILED, str(error))
            return True
        except Exception as error:  # a fault of ours costs this run a second, and no other
            self._yard.log.error(Event.TASK_FAILED, task="classifying", run=run_id, **telemetry.fault(error))
            return False

    def _advance(self, run_id: int) -> bool:
        run = self._read(run_id)
        collected = self._collect(run)
        if collected:
            run = self._read(run_id)
        due = samples.pending(self._yard.store, run)
        if due is None:
            policy = progress.policy(run)
            self._settle(run, policy)
            asked = self._ask_all(run, policy)
        else:
            asked = run.ending is None and self._ask_sample(run, due)
        state = progress.close(self._yard.store, run_id)
        if state is not None:
            self._yard.log.info(Event.CLASSIFICATION_FINISHED, run=run.public_id, state=state, rows=run.received)
        return bool(collected or asked or state)

    def _read(self, run_id: int) -> ClassificationRun:
        """With its spec as it was read first: questions are made quickly from one that is known."""
        run = classifications.get(self._yard.store, run_id)
        return replace(run, spec=self._specs.setdefault(run_id, run.spec))

    def _settle(self, run: ClassificationRun, policy: Policy) -> None:
        """While nothing of a run has changed, no row has got its last answer."""
        seen = (run.answered, run.received, policy)
        if self._seen.get(run.id) != seen:
            progress.settle(self._yard.store, run, policy)
            self._seen[run.id] = seen

    # --- questions ----------------------------------------------------------------------------------------

    def _ask_sample(self, run: ClassificationRun, due: Pending) -> bool:
        """Until the sample has decided, nothing else is asked."""
        if due.to_ask:
            return self._asking.ask_sample(run, due.to_ask)
        if not due.is_whole:
            progress.say(self._yard.store, run.id, due.said)
            return False
        if any(part.open for part in parts.parts(self._yard.store, run.id)):
            return False
        said = samples.decide(self._yard.store, run, due)
        self._yard.log.info(Event.CLASSIFICATION_DECIDED, run=run.public_id, said=said)
        return True

    def _ask_all(self, run: ClassificationRun, policy: Policy) -> bool:
        if run.ending is not None:
            return False
        stop = samples.why_it_stops(run) or self._hopeless(run)
        if stop is not None:
            progress.end(self._yard.store, run.id, RunState.STOPPED, stop)
            return True
        return self._asking.ask(run, policy)

    def _hopeless(self, run: ClassificationRun) -> str | None:
        """Where there is not one label among many answers, the larger model's too, if there is one: whatever is wrong,
        the next question is not the one that is answered."""
        if run.answered - run.forgiven < _HOPELESS or any(tally["labelled"] for tally in run.models.values()):
            return None
        if run.spec.larger_model is not None and not run.escalated:
            return None
        return f"none of the first {run.answered} questions was answered with a label; the rows' errors say why"

    # --- answers ------------------------------------------------------------------------------------------

    def _collect(self, run: ClassificationRun) -> int:
        """Reads what has ended of each open part: how many answers."""
        open_parts = [part for part in parts.parts(self._yard.store, run.id) if part.open]
        done = parts.progress(self._yard.store, open_parts) if open_parts else {}
        return sum(self._collect_part(run, part, done.get(part.batch_id, 0)) for part in open_parts)

    def _collect_part(self, run: ClassificationRun, part: Part, done: int) -> int:
        first = part.collected
        while part.collected < done and not self._stop.is_set():
            to = min(part.collected + _CHUNK, done)
            found = [_found(run.spec, part.stage, one) for one in parts.ended(self._yard.store, run.id, part, to)]
            if not parts.collect(self._yard.store, run.id, part, found):
                break
            part = replace(part, collected=to)
        return part.collected - first


def _found(spec: ClassificationSpec, stage: Stage, ended: Ended) -> Found:
    """Labels, or why there are none."""
    bare = Found(ended.job_id, ended.text_no, stage, ended.deployment, ended.cost_usd, error=ended.why)
    if ended.body is None:
        return bare
    try:
        read = answers.read(spec, ended.body)
    except UnreadableError as error:
        return replace(bare, error=str(error))
    return replace(bare, labels=read.labels, confidence=read.confidence)
